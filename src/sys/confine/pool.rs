//! The layers in the root directory of a confined QEMU: its own, and no others.
//!
//! The directory of all layers is out of its sight, below a directory that nobody may enter. In the
//! directory in which QEMU looks for layers, a file system in memory, lie those of its guest, each
//! of them mounted by itself: what the guest writes to writable, and the layers below read-only.
//! What changes while it runs is changed from outside, by a process that enters its namespaces for
//! that (`setns(2)`).

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, open, openat, readlinkat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, UnmountFlags, mount_bind, unmount};
use rustix::process::{chroot, fchdir};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};

use super::super::pidfd::PidFd;
use super::root::{ALL, CLOSED, POOL, set_attributes};

/// The attributes of a mount that are added and taken away, so that it can be written to.
const TO_WRITE: (MountAttrFlags, MountAttrFlags) =
    (MountAttrFlags::empty(), MountAttrFlags::MOUNT_ATTR_RDONLY);

/// What becomes of a layer in the root directory of a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// It may read it and write to it.
    ToWrite,
    /// It has it no more, and what it takes on the disk can become free.
    Not,
}

/// Changes how the layer at `path` is shown to the QEMU `process`, whose number is `pid`. Returns
/// where QEMU finds it. A QEMU that has no root directory of its own finds all layers where they
/// are.
pub(crate) fn set(process: &PidFd, pid: i32, path: &Path, how: Shown) -> io::Result<PathBuf> {
    let Some(root) = own_root(pid)? else { return Ok(path.to_owned()) };
    let name = path.file_name().unwrap_or_default();
    let pool = readlinkat(&root, POOL, Vec::new())?;
    let entry = Entry::of(name)?;
    let enter = |spaces| {
        move_into_thread_name_spaces(process.as_fd(), spaces)?;
        fchdir(&root)?;
        chroot(c".")?;
        entry.set(how)
    };
    let mount = ThreadNameSpaceType::MOUNT;
    match namespace(&pid.to_string())? == namespace("self")? {
        true => in_a_thread(|| enter(mount))?,
        false => in_a_process(|| enter(mount | ThreadNameSpaceType::USER))?,
    }
    Ok(Path::new(OsStr::from_bytes(pool.to_bytes())).join(name))
}

/// The root directory of the process, where it was made by us; `None` also where it has ended.
fn own_root(pid: i32) -> io::Result<Option<OwnedFd>> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match open(format!("/proc/{pid}/root"), how, Mode::empty()) {
        Err(Errno::NOENT | Errno::SRCH) => return Ok(None),
        root => root?,
    };
    let closed = statat(&root, CLOSED, AtFlags::SYMLINK_NOFOLLOW);
    let place = |about: Stat| (about.st_dev, about.st_ino);
    let is_ours = place(fstat(&root)?) == place(statat(CWD, c"/", AtFlags::empty())?);
    Ok((closed.is_ok() && !is_ours).then_some(root))
}

/// Which user namespace a process is in.
fn namespace(of: &str) -> io::Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{of}/ns/user"))?.ino())
}

/// A layer, by its paths below a root directory.
struct Entry {
    /// Where QEMU looks for it.
    at: CString,
    /// Where it lies.
    from: CString,
}

impl Entry {
    fn of(name: &OsStr) -> io::Result<Self> {
        let below =
            |directory: &CStr| CString::new([directory.to_bytes(), b"/", name.as_bytes()].concat());
        Ok(Self { at: below(POOL)?, from: below(ALL)? })
    }

    fn set(&self, how: Shown) -> Result<(), Errno> {
        match how {
            Shown::Not => self.hide(),
            Shown::ToWrite => self.mount(),
        }
    }

    /// One that is shown already can be written to from now on.
    fn mount(&self) -> Result<(), Errno> {
        let layer = statat(CWD, &self.from, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(layer.st_mode) == FileType::Symlink {
            // A file that is used in its place is mounted in that place.
            let used = openat(CWD, &self.from, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return set_attributes(&used, c"", nix::libc::AT_EMPTY_PATH, TO_WRITE);
        }
        let how = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(CWD, &self.at, how, Mode::from_raw_mode(0o400)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let shown = match self.shown(&layer)? {
            Some(shown) => shown,
            None => {
                mount_bind(&self.from, &self.at)?;
                // Without Landlock, a QEMU that was taken over might have put a link there.
                self.shown(&layer)?.ok_or(Errno::EXIST)?
            }
        };
        set_attributes(&shown, c"", nix::libc::AT_EMPTY_PATH, TO_WRITE)
    }

    /// What is there, if it is the layer.
    fn shown(&self, layer: &Stat) -> Result<Option<OwnedFd>, Errno> {
        let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = openat(CWD, &self.at, how, Mode::empty())?;
        let about = fstat(&shown)?;
        let is_the_layer = (about.st_dev, about.st_ino) == (layer.st_dev, layer.st_ino);
        Ok(is_the_layer.then_some(shown))
    }

    fn hide(&self) -> Result<(), Errno> {
        // What is a link leads to a file that is none of ours.
        match unmount(&self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        match unlinkat(CWD, &self.at, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }
}

/// Does `work` in a thread with a root directory and a working directory of its own.
#[allow(unsafe_code)]
fn in_a_thread(work: impl FnOnce() -> Result<(), Errno> + Send) -> io::Result<()> {
    let work = || {
        // SAFETY: descriptors stay shared with the other threads: FILES is not among the flags.
        unsafe { unshare_unsafe(UnshareFlags::FS)? };
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    Ok(done.unwrap_or(Err(Errno::CANCELED))?)
}

/// Does `work` in a process of its own: a thread cannot enter a user namespace (`setns(2)`). It
/// makes system calls alone.
#[allow(unsafe_code)]
fn in_a_process(work: impl FnOnce() -> Result<(), Errno>) -> io::Result<()> {
    // SAFETY: the child makes system calls, all of them async-signal-safe, and ends by _exit(2).
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = work().err().map_or(0, Errno::raw_os_error);
            // SAFETY: it ends the process, and runs nothing of what the parent has registered.
            unsafe { nix::libc::_exit(code) }
        }
        ForkResult::Parent { child } => loop {
            return match waitpid(child, None) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(WaitStatus::Exited(_, 0)) => Ok(()),
                Ok(WaitStatus::Exited(_, code)) => Err(io::Error::from_raw_os_error(code)),
                Ok(status) => Err(io::Error::other(format!("{status:?}"))),
                Err(error) => Err(error.into()),
            };
        },
    }
}
