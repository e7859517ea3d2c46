//! The room that a download leaves to others.

use std::fs::File;
use std::io::{self, ErrorKind};

use super::SPARE;
use crate::sys::space;

/// How much may still be written before the room on the file system is looked at again, in bytes.
pub(super) struct Room {
    file: File,
    left: u64,
}

impl Room {
    /// How often it is looked at, in bytes.
    const STEP: u64 = 64 << 20;

    pub(super) fn new(file: &File) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, left: 0 })
    }

    /// Refuses to write so many bytes more where that would leave guests without room for their
    /// disks.
    pub(super) fn take(&mut self, bytes: u64) -> io::Result<()> {
        if self.left < bytes {
            if space::free_of(&self.file)? < SPARE + Self::STEP {
                return Err(ErrorKind::StorageFull.into());
            }
            self.left = Self::STEP.max(bytes);
        }
        self.left -= bytes;
        Ok(())
    }
}
