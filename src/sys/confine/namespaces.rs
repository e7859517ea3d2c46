//! The namespaces that a confined QEMU is started in (`namespaces(7)`): its own mounts, its own
//! processes, of which it is the only one, its own System V IPC, and a network of its own where its
//! guest has none; for an ordinary user a user namespace as well, in which they keep their user id.
//! It can name no process of the host, neither to signal nor to limit it, whoever it runs as.
//!
//! ```text
//! we ──fork(2)──▶ a process ──clone(2), CLONE_PARENT──▶ QEMU, our child, PID 1 of its namespace
//!                     └──▶ tells us its number, and ends
//! ```
//! `unshare(2)` would give a PID namespace to children alone, and QEMU has to be the first process
//! in it.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::{self, c_int, c_long};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, unshare_unsafe};

use super::super::cage::in_the_child;
use super::super::cgroup::Group;
use super::super::started::Started;
use super::{NO_GROUP, NO_NAMESPACES};

/// The namespaces of a program that is about to be started.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Known in the child, once it is in them.
    are_made: Arc<AtomicBool>,
    number: OwnedFd,
}

const NAMESPACES: c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;

/// What a program is to have.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The capabilities that it keeps.
    pub(super) kept: CapabilitySet,
    /// The control group that it begins in.
    pub(super) group: Option<&'a Group>,
    /// A network namespace of its own.
    pub(super) network: bool,
}

/// The lines of `/proc/self/uid_map` and `/proc/self/gid_map`.
#[derive(Debug, Clone)]
pub(super) struct User {
    uid: String,
    gid: String,
}

impl User {
    /// What they are now; `None` for who needs no user namespace. `kept` are the capabilities that
    /// QEMU keeps: where it would lose them in a user namespace, and there is no other way, this
    /// fails.
    pub(super) fn of_us(kept: CapabilitySet) -> Result<Option<Self>, Errno> {
        match capabilities(None)?.effective.contains(CapabilitySet::SYS_ADMIN) {
            true => Ok(None),
            false if kept.is_empty() => Ok(Some(Self {
                uid: format!("{0} {0} 1", geteuid().as_raw()),
                gid: format!("{0} {0} 1", getegid().as_raw()),
            })),
            false => Err(Errno::PERM),
        }
    }

    /// Brings the calling process into a user namespace, in which they are who they were, and into
    /// `more` namespaces.
    #[allow(unsafe_code)]
    fn enter(&self, more: UnshareFlags) -> Result<(), Errno> {
        // SAFETY: descriptors stay shared with nobody but ourselves: FILES is not among the flags.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER | more)? };
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/uid_map", self.uid.as_bytes())?;
        write(c"/proc/self/gid_map", self.gid.as_bytes())
    }
}

impl Namespaces {
    /// Lets the program of `command` begin in namespaces of its own. To be called before anything
    /// else is asked of the child: what follows is done in the new process. `missing` decides what
    /// becomes of a start without them, or without the group.
    pub(super) fn new(
        command: &mut Command,
        wanted: &Wanted<'_>,
        missing: impl Fn(i32, Errno) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (number, report) = pipe_with(PipeFlags::CLOEXEC)?;
        let user = User::of_us(wanted.kept);
        // It is open for as long as the program is being started.
        let group = wanted.group.map(|group| group.as_fd().as_raw_fd());
        let flags = if wanted.network { NAMESPACES | libc::CLONE_NEWNET } else { NAMESPACES };
        let are_made = Arc::new(AtomicBool::new(false));
        let made = Arc::clone(&are_made);
        in_the_child(command, move || match enter(&user, flags, group, &report, &missing) {
            Ok(()) => {
                made.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(Failed::Start(error)) => Err(error),
            Err(Failed::Namespaces(error)) => missing(NO_NAMESPACES, error),
        });
        Ok(Self { are_made, number })
    }

    /// Is the calling process in them? To be asked in the child.
    pub(super) fn are_made(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.are_made)
    }

    /// Starts the program.
    pub(super) fn spawn(self, mut command: Command) -> io::Result<Started> {
        let spawned = command.spawn();
        // It has the other end of the pipe.
        drop(command);
        let mut number = [0; 4];
        let told = std::fs::File::from(self.number).read_exact(&mut number);
        let program = told.and_then(|()| Started::numbered(i32::from_ne_bytes(number)));
        match (spawned, program) {
            (Ok(mut between), Ok(program)) => {
                // Where SIGCHLD is ignored, there is nothing to wait for.
                let _ = between.wait();
                Ok(program)
            }
            (Ok(child), Err(_)) => Started::of(&child),
            (Err(error), Ok(program)) => {
                let _ = program.wait();
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }
}

/// Why a program is not in namespaces of its own.
enum Failed {
    /// They were not made.
    Namespaces(Errno),
    /// It was to be strict, and something else is missing.
    Start(io::Error),
}

impl From<Errno> for Failed {
    fn from(error: Errno) -> Self {
        Self::Namespaces(error)
    }
}

/// In the child: goes on as a new process in the namespaces and in the control group `group`. The
/// old one ends, once it has written the number of the new one to `report`. After an error, the old
/// one goes on, in the group.
fn enter(
    user: &Result<Option<User>, Errno>,
    namespaces: c_int,
    group: Option<RawFd>,
    report: impl AsFd,
    missing: impl Fn(i32, Errno) -> io::Result<()>,
) -> Result<(), Failed> {
    let begun = group.map(|group| clone_into(namespaces, group));
    let number = match (begun, group) {
        (Some(Ok(number)), _) => number,
        (_, group) => {
            // Linux before 5.7, or no namespaces: slower, and the same.
            if let Some(Err(error)) = group.map(join) {
                missing(NO_GROUP, error).map_err(Failed::Start)?;
            }
            if let Some(user) = user.as_ref().map_err(|error| *error)? {
                user.enter(UnshareFlags::empty())?;
            }
            // Some hosts allow no network namespaces; there, a filter refuses its sockets.
            clone(namespaces).or_else(|_| clone(namespaces & !libc::CLONE_NEWNET))?
        }
    };
    if number == 0 {
        return Ok(());
    }
    let _ = rustix::io::write(report, &number.to_ne_bytes());
    // SAFETY: it ends the process and runs nothing of ours.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(0)
    }
}

/// Makes a copy of the calling process that is a child of its parent. Returns its number, in the
/// copy 0.
#[allow(unsafe_code)]
fn clone(namespaces: c_int) -> Result<i32, Errno> {
    let flags = namespaces | libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM, the copy has memory and a stack of its own, as after fork(2). The
    // calling process is a child before exec(2), which is limited to system calls anyway.
    number(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
}

/// The same, in the control group whose directory is open as `group` (Linux 5.7). To move a process
/// there that is there already takes milliseconds.
#[allow(unsafe_code)]
fn clone_into(namespaces: c_int, group: RawFd) -> Result<i32, Errno> {
    let flags = namespaces | libc::CLONE_PARENT;
    // SAFETY: a `clone_args` is numbers alone.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.cast_unsigned()) | INTO_GROUP;
    arguments.cgroup = u64::from(group.cast_unsigned());
    let size = size_of::<libc::clone_args>();
    // SAFETY: as above; the kernel only reads the arguments.
    number(unsafe { libc::syscall(libc::SYS_clone3, std::ptr::from_ref(&arguments), size) })
}

/// `CLONE_INTO_CGROUP`.
const INTO_GROUP: u64 = 0x2_0000_0000;

fn number(made: c_long) -> Result<i32, Errno> {
    match i32::try_from(made) {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOTSUP)),
    }
}

/// Moves the calling process to a control group.
#[allow(unsafe_code)]
fn join(group: RawFd) -> Result<(), Errno> {
    // SAFETY: it is open for as long as the program is being started.
    let group = unsafe { BorrowedFd::borrow_raw(group) };
    let members = openat(group, c"cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(members, b"0").map(drop)
}

/// Brings the calling process into a mount namespace of its own, and an ordinary user into a user
/// namespace, where there are no others.
#[allow(unsafe_code)]
pub(super) fn unshare(user: Option<&User>) -> Result<(), Errno> {
    match user {
        Some(user) => user.enter(UnshareFlags::NEWNS),
        // SAFETY: as above.
        None => unsafe { unshare_unsafe(UnshareFlags::NEWNS) },
    }
}

fn write(path: &std::ffi::CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes).map(drop)
}
