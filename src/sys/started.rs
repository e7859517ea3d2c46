//! Children of ours, and a program that was started and outlives us.

use std::io;
use std::process::Child;

use nix::sys::signal::{SigHandler, signal};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Lets us wait for children, whatever our caller has told the kernel: where it ignores SIGCHLD,
/// which programs inherit, nobody can (`waitpid(2)`, `ECHILD`).
#[allow(unsafe_code)]
pub(crate) fn can_be_waited_for() {
    // SAFETY: no handler of ours is set. It fails for no signal that can be caught.
    let _ = unsafe { signal(nix::sys::signal::Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// A child of ours, which nobody waits for unless they want to know of its end.
#[derive(Debug)]
pub struct Started(Pid);

impl Started {
    /// The child with this number.
    pub fn numbered(number: i32) -> io::Result<Self> {
        Pid::from_raw(number).map(Self).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The child that the standard library has started.
    pub fn of(child: &Child) -> io::Result<Self> {
        Self::numbered(child.id().cast_signed())
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// Kills it (`SIGKILL`). Nobody has waited for it, so the number is still its own.
    pub fn kill(&self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::KILL)?)
    }

    /// Waits for its end. `None`: a signal ended it; else what it exited with.
    pub fn wait(&self) -> io::Result<Option<i32>> {
        loop {
            match waitpid(Some(self.0), WaitOptions::empty()) {
                Ok(Some((_, status))) if status.exited() || status.signaled() => {
                    return Ok(status.exit_status());
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
