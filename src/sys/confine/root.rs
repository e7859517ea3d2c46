//! The root directory of a confined QEMU: a file system in memory, in which nothing lies but what
//! it may reach, each file at the path that it has on the host.
//!
//! ```text
//! unshare(2) ─▶ empty tmpfs ─▶ bind mounts, read-only where it only reads ─▶ pivot_root(2)
//! ```
//! What Landlock does not know is out of reach this way: sockets that are files, names, sizes and
//! permissions of what others have. There is no `/proc`. An ordinary user needs a user namespace,
//! since only there they may mount. See `mount_namespaces(7)`, `user_namespaces(7)`.
//!
//! The plan is made before fork(2), and carried out after it, without allocating. What was a file
//! when the plan was made and is a link when it is carried out is left out: somebody else has put
//! it there.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::{self, c_int};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chmodat, fstat, mkdirat, openat, openat2,
    symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};
use rustix::thread::CapabilitySet;

use super::namespaces::{User, unshare};
pub(super) use plan::{ALL, CLOSED, NOTHING_SPECIAL, POOL, Use, c_string};
use plan::{Step, plan};

mod plan;

/// A root directory that is planned.
#[derive(Debug)]
pub(super) struct Root {
    steps: Vec<Step>,
    /// For an ordinary user: what they are in their user namespace.
    user: Option<User>,
    /// Is the process in namespaces of its own already?
    is_apart: Arc<AtomicBool>,
}

impl Root {
    /// One that shows `paths`, as far as they exist; of the directory `pool`, only what is among
    /// them, and what is shown later ([`super::pool`]). `kept` are the capabilities that QEMU
    /// keeps. `is_apart` tells, in the child, whether it is in namespaces of its own already.
    pub(super) fn new(
        paths: impl Iterator<Item = (PathBuf, Use)>,
        pool: Option<&Path>,
        kept: CapabilitySet,
        is_apart: Arc<AtomicBool>,
    ) -> Result<Self, Errno> {
        Ok(Self { steps: plan(paths, pool)?, user: User::of_us(kept)?, is_apart })
    }

    /// Makes it the root directory of the calling process, in namespaces of its own. After an
    /// error, the process finds what it found before, unless pivot_root(2) had succeeded.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        let entered = self.make();
        if entered.is_err() {
            let _ = chdir(c"/");
        }
        entered
    }

    fn make(&self) -> Result<(), Errno> {
        if !self.is_apart.load(Ordering::Relaxed) {
            unshare(self.user.as_ref())?;
        }
        // Nothing of what follows is seen by others, and what they unmount goes here, too.
        mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        let root = empty()?;
        // Absolute paths still are those of the host, relative ones those of the new root.
        move_mount(&root, c"", CWD, c"/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        fchdir(&root)?;
        for step in &self.steps {
            step.make()?;
        }
        let read_only = (MountAttrFlags::MOUNT_ATTR_RDONLY, MountAttrFlags::empty());
        set_attributes(&root, c"", libc::AT_EMPTY_PATH, read_only)?;
        match pivot_root(c".", c".") {
            Ok(()) => unmount(c".", UnmountFlags::DETACH)?,
            // Where the host's root is its initramfs. Nobody without a capability gets out of it.
            Err(_) => chroot(c".")?,
        }
        chdir(c"/")
    }
}

impl Step {
    fn make(&self) -> Result<(), Errno> {
        match self {
            Self::Directory(at) => mkdirat(CWD, at, Mode::from_raw_mode(0o755)),
            Self::File(at) => {
                let how = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(CWD, at, how, Mode::from_raw_mode(0o400)).map(drop)
            }
            Self::Memory(at) => {
                let memory = empty()?;
                move_mount(&memory, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            }
            Self::Close(at) => chmodat(CWD, at, Mode::empty(), AtFlags::empty()),
            Self::Link { at, to } => symlinkat(to, CWD, at),
            Self::Show { from, at, is_dir, attributes } => {
                let Some(shown) = open_again(from, *is_dir)? else { return Ok(()) };
                let tree = open_tree(shown, c"", TREE)?;
                move_mount(&tree, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                restrict(at, *attributes)
            }
        }
    }
}

/// What is mounted once more: all of it, also what is mounted below.
const TREE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_RECURSIVE)
    .union(OpenTreeFlags::AT_EMPTY_PATH);

/// What lies at `path`, where it is still what it was: no link is followed.
fn open_again(path: &CStr, is_dir: bool) -> Result<Option<OwnedFd>, Errno> {
    let how = OFlags::PATH | OFlags::CLOEXEC;
    let opened = match openat2(CWD, path, how, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        opened => opened?,
    };
    let is_the_same =
        (FileType::from_raw_mode(fstat(&opened)?.st_mode) == FileType::Directory) == is_dir;
    Ok(is_the_same.then_some(opened))
}

/// An empty file system in memory that is not mounted anywhere.
fn empty() -> Result<OwnedFd, Errno> {
    let made = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&made, c"mode", c"0755")?;
    // Nothing but directories, links and places for mounts is in it.
    fsconfig_set_string(&made, c"size", c"1m")?;
    fsconfig_create(&made)?;
    fsmount(&made, FsMountFlags::FSMOUNT_CLOEXEC, NOTHING_SPECIAL)
}

/// Adds `attributes` to what is mounted at `path`, and to all that is mounted below.
fn restrict(path: &CStr, attributes: MountAttrFlags) -> Result<(), Errno> {
    set_attributes(CWD, path, libc::AT_RECURSIVE, (attributes, MountAttrFlags::empty()))
}

/// Adds attributes to a mount, and takes others away (`mount_setattr(2)`, Linux 5.12).
#[allow(unsafe_code)]
pub(super) fn set_attributes(
    directory: impl AsFd,
    path: &CStr,
    flags: c_int,
    (added, taken): (MountAttrFlags, MountAttrFlags),
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: u64::from(added.bits()),
        attr_clr: u64::from(taken.bits()),
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, and the size is that of the structure, which the kernel only
    // reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory.as_fd().as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOTSUP)),
    }
}
