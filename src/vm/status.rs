//! What a VM is doing, observed: `kernel lock > what QEMU answers > what lies around`. Takes no lock.
//!
//! | `run.lock` | then | state |
//! |---|---|---|
//! | held | QEMU says whether the CPUs run | running, paused |
//! | free | its QMP socket was left behind | crashed: a QEMU that ends in order removes it |
//! | free | nothing was left | stopped |

use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::model::{Name, State};
use crate::qemu::cmdline::Sockets;
use crate::qemu::qmp::Qmp;
use crate::store::Store;
use crate::sys::flock;

/// What was observed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// QEMU's process, when it answered.
    pub pid: Option<i32>,
    /// QEMU's word for the state where it says more than ours (`io-error`, `guest-panicked`, …), or that it does not answer.
    pub detail: Option<String>,
}

/// Does QEMU run, by the lock it holds?
pub fn is_running(store: &Store, name: &Name) -> Result<bool> {
    let lock = store.layout.run_lock(name);
    flock::is_held(&lock).on("look at the lock", &lock)
}

/// The sockets of a VM that has been started at least once.
pub fn sockets(store: &Store, name: &Name) -> Option<Sockets> {
    store.run_directory(name).map(Sockets::new)
}

/// Observes the VM.
pub async fn observe(context: &Context, name: &Name) -> Result<Status> {
    let sockets = sockets(&context.store, name);
    if !is_running(&context.store, name)? {
        let left_behind = sockets.is_some_and(|sockets| sockets.qmp().exists());
        let state = if left_behind { State::Crashed } else { State::Stopped };
        return Ok(Status { state, pid: None, detail: None });
    }
    let mut status = Status { state: State::Running, pid: None, detail: None };
    let answer = match sockets {
        Some(sockets) => Qmp::glance(&sockets.status()).await,
        None => None,
    };
    match answer {
        Some((pid, run)) => {
            status.pid = pid;
            if !run.running {
                status.state = State::Paused;
            }
            if !matches!(run.status.as_str(), "running" | "paused" | "prelaunch") {
                status.detail = Some(run.status);
            }
        }
        None => status.detail = Some("QEMU does not answer".to_owned()),
    }
    Ok(status)
}
