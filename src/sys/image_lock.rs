//! QEMU's own locks on image files (`block/file-posix.c`): open-file-description locks on single
//! bytes, one per permission.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// Where the bytes for permissions begin: the ones that are held, then, a hundred later, the ones
/// that are not shared.
const FIRST: i64 = 100;
/// The byte that stands for the permission to write.
const WRITE: i64 = FIRST + 1;

/// Does some QEMU on this host write to the image at `path`? Only looks; takes no lock.
pub(crate) fn is_written_to(path: &Path) -> io::Result<bool> {
    is_locked(path, WRITE, 1)
}

/// Has some QEMU on this host the image at `path` open? Only looks; takes no lock.
pub(crate) fn is_open(path: &Path) -> io::Result<bool> {
    is_locked(path, FIRST, 200)
}

fn is_locked(path: &Path, start: i64, length: i64) -> io::Result<bool> {
    // What has become a FIFO is not waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
        // A file system without such locks: QEMU has none there, either.
        Err(
            nix::errno::Errno::EINVAL | nix::errno::Errno::ENOLCK | nix::errno::Errno::EOPNOTSUPP,
        ) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
