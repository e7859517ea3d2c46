//! Who may change what. A lock is a flock on a file that is never unlinked by itself; the file says
//! who holds it and why.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::{Store, plain};
use crate::error::{IoContext, Kind, Result};
use crate::model::Name;
use crate::sys::flock as lock_file;

/// The right to create and delete names and to rely on a scan of references. Held briefly.
#[derive(Debug)]
pub struct StoreLock(#[allow(dead_code)] pub(crate) File);

/// The right to start the shells of one template that wait. Nobody asks for it who holds another
/// lock.
#[derive(Debug)]
pub struct PoolLock(#[allow(dead_code)] pub(crate) File);

/// The right to change one VM and to talk to its QEMU.
#[derive(Debug)]
pub struct VmLock {
    name: Name,
    _file: File,
}

impl VmLock {
    /// The lock of `name`, which is held as long as `file` is open.
    pub(crate) fn held(name: &Name, file: File) -> Self {
        Self { name: name.clone(), _file: file }
    }

    /// The same lock, of a VM whose directory was given another name.
    pub fn moved(self, name: &Name) -> Self {
        Self { name: name.clone(), ..self }
    }

    /// Which VM.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Store {
    /// Takes the lock of one VM only if nobody holds it. One that is no file can be taken by
    /// nobody: `doctor` tells of it.
    pub fn try_lock_vm(&self, name: &Name, operation: &str) -> Result<Option<VmLock>> {
        let path = self.layout.lock(name);
        let file = match open_lock(&path) {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => {
                return Ok(None);
            }
            other => other?,
        };
        if !lock_file::try_exclusive(&file).on("lock", &path)?
            || !lock_file::is_still_at(&file, &path).on("check", &path)?
        {
            return Ok(None);
        }
        sign(&file, operation);
        Ok(Some(VmLock::held(name, file)))
    }
}

/// Opens a lock. What is no file is damage.
pub fn open_lock(path: &Path) -> Result<File> {
    lock_file::open(path).or_else(|error| match plain::damage(path) {
        Some(damage) => Err(damage
            .hint("what can be done about it: cowhand doctor; to do it: cowhand doctor --repair")),
        None => Err(error).on("open the lock", path),
    })
}

/// Writes down who holds the lock. Only information: a failure is no reason not to go on.
pub(crate) fn sign(mut file: &File, operation: &str) {
    let _ = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{} {operation}", std::process::id()));
}

/// Who holds the lock, as its file says.
pub(crate) fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = plain::open(path)
        .ok()
        .flatten()
        .and_then(|file| file.take(4096).read_to_string(&mut text).ok());
    match (read, text.trim().split_once(' ')) {
        (Some(_), Some((pid, operation))) => format!("`{operation}` (pid {pid})"),
        _ => "another command".to_owned(),
    }
}
