//! Advisory locks (`flock(2)`). The kernel drops them when the last descriptor of the open file is
//! closed, however its holders died.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// Nothing that lies in the place of a lock keeps us waiting.
const FLAGS: i32 = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits().cast_signed();

/// Opens a lock file for locking, creating it (0600) when it is not there. It is never unlinked by
/// itself. What is no file is refused.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(FLAGS);
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")),
    }
}

/// Takes the lock without waiting; false when somebody else has it.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    held_elsewhere_is_false(flock(file, FlockOperation::NonBlockingLockExclusive))
}

/// Takes the lock beside others who do, without waiting; false when somebody has it alone.
pub(crate) fn try_shared(file: &File) -> io::Result<bool> {
    held_elsewhere_is_false(flock(file, FlockOperation::NonBlockingLockShared))
}

/// Takes the lock, waiting for it as long as it takes.
pub(crate) fn exclusive(file: &File) -> io::Result<()> {
    Ok(flock(file, FlockOperation::LockExclusive)?)
}

/// Is the lock of this file held by anybody? A file that does not exist is held by nobody.
///
/// Takes the lock *shared* for an instant, so observers never see each other; whoever wants it
/// exclusively retries.
pub(crate) fn is_held(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).custom_flags(FLAGS).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        // A socket, or a link to itself, can be opened by nobody.
        Err(error)
            if [Errno::NXIO, Errno::LOOP]
                .contains(&Errno::from_io_error(&error).unwrap_or(Errno::IO)) =>
        {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    held_elsewhere_is_false(flock(&file, FlockOperation::NonBlockingLockShared)).map(|free| !free)
}

/// Does `path` still lead to the file that was opened? A directory may have been renamed away
/// meanwhile.
pub(crate) fn is_still_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(now) => Ok(now.ino() == opened.ino() && now.dev() == opened.dev()),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn held_elsewhere_is_false(result: rustix::io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
