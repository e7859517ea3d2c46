//! A little room kept back for those who make room. On a full file system a removal could otherwise not write down what it removes: it gives the reserve
//! up and tries again. The next command that finds ample room makes a new one.

use std::error::Error as _;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::Store;
use crate::error::{Error, Result};
use crate::sys::space;

/// Enough for some journals, records and directories.
const BYTES: u64 = 512 << 10;
/// With less than this left, what was freed is not taken back at once.
const AMPLE: u64 = 32 << 20;

impl Store {
    /// Does `work`, which removes something; once more with the reserve, where the file system is full. What was interrupted before its point of no
    /// return has been undone, what was interrupted after it is completed by the second try.
    pub async fn with_reserve<T>(&self, mut work: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        match work().await {
            Err(error) if is_full(&error) && std::fs::remove_file(self.layout.reserve()).is_ok() => work().await,
            other => other,
        }
    }

    /// Makes the reserve where it is missing. Doing without is no error.
    pub(super) fn make_reserve(&self) {
        let path = self.layout.reserve();
        if path.exists() || space::free(self.layout.root()).unwrap_or(0) < AMPLE {
            return;
        }
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        if made.is_ok_and(|file| fallocate(file, FallocateFlags::empty(), 0, BYTES).is_err()) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Was there no room left?
fn is_full(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind.is_some_and(|kind| [ErrorKind::StorageFull, ErrorKind::QuotaExceeded].contains(&kind)) {
            return true;
        }
        cause = error.source();
    }
    false
}
