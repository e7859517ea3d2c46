//! What a VM is doing, observed: `kernel lock > what QEMU answers > what lies around`. Takes no
//! lock.
//!
//! | `run.lock` | then | state |
//! |---|---|---|
//! | held | QEMU says whether the CPUs run | running, paused |
//! | free | its QMP socket answers: it was started by hand | running, paused |
//! | free | its QMP socket was left behind | crashed: a QEMU that ends in order removes it |
//! | free | nothing was left | stopped |

use std::os::unix::net::UnixStream;

use super::sockets;
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::model::{Name, State};
use crate::qemu::qmp::Qmp;
use crate::sys::flock;

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// QEMU's process, when it answered.
    pub pid: Option<i32>,
    /// QEMU's word for the state where it says more than ours (`io-error`, `guest-panicked`, …), or
    /// that it does not answer.
    pub detail: Option<String>,
}

impl Status {
    /// Did QEMU stop the guest because one of its disks could not be written or read?
    pub fn has_io_error(&self) -> bool {
        self.detail.as_deref() == Some("io-error")
    }
}

/// Does QEMU run? By the lock it holds; or, when it was started by somebody else (with the command
/// `plan` prints), by answering on its socket.
pub fn is_running(context: &Context, name: &Name) -> Result<bool> {
    let lock = context.store.layout.run_lock(name);
    if flock::is_held(&lock).on("look at the lock", &lock)? {
        return Ok(true);
    }
    if !sockets::are_there(context, name) {
        return Ok(false);
    }
    // The socket of a QEMU that is gone refuses at once.
    Ok(sockets::of(context, name)
        .is_some_and(|sockets| UnixStream::connect(sockets.status()).is_ok()))
}

/// The state of a VM that has no QEMU: stopped, or crashed.
pub fn at_rest(context: &Context, name: &Name) -> State {
    let left_behind = sockets::are_there(context, name)
        && sockets::of(context, name).is_some_and(|sockets| sockets.qmp().exists());
    if left_behind { State::Crashed } else { State::Stopped }
}

/// Observes the VM.
pub async fn observe(context: &Context, name: &Name) -> Result<Status> {
    if !is_running(context, name)? {
        return Ok(Status { state: at_rest(context, name), pid: None, detail: None });
    }
    let mut status = Status { state: State::Running, pid: None, detail: None };
    let answer = match sockets::of(context, name) {
        Some(sockets) => Qmp::query_once(&sockets.status()).await,
        None => None,
    };
    match answer {
        Some((pid, run)) => {
            status.pid = pid;
            if !run.running {
                status.state = State::Paused;
            }
            if !matches!(run.status.as_str(), "running" | "paused" | "prelaunch" | "postmigrate") {
                status.detail = Some(run.status);
            }
        }
        None => status.detail = Some("QEMU does not answer".to_owned()),
    }
    Ok(status)
}
