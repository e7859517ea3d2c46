//! Going back to a snapshot: the head becomes a new overlay on its layers; the old head goes into the trash.
//!
//! Everything is prepared before QEMU is ended, so that a revert that cannot be done leaves the VM as it was.

use super::plan;
use crate::change::{self, Executor, Plan};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::chain;
use crate::model::{Name, PointRef, State};
use crate::store::Store;
use crate::vm::{live, open, start, status};

/// What the VM does afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Run.
    Running,
    /// Run, with its CPUs standing still.
    Paused,
    /// Nothing.
    Stopped,
}

/// Reverts `vm` to `snapshot`. Without `then` it runs afterwards if it ran before. Returns the snapshot's name.
pub async fn revert(context: &Context, vm: &Name, snapshot: &Name, then: Option<Then>) -> Result<Name> {
    let (lock, record) = open::open_vm(context, vm, "revert").await?;
    let mut snapshot = record.snapshot(vm, snapshot)?.clone();
    chain::refresh(&context.store, &mut snapshot.config).map_err(|error| {
        Error::damaged(format!("snapshot {vm}@{} is damaged", snapshot.name)).because(error.full_message())
    })?;
    let mut qmp = live::connect_if_running(context, vm).await?;
    let mut before = State::Stopped;
    if let Some(qmp) = &mut qmp {
        if let Some(job) = qmp.jobs().await?.into_iter().find(|job| job.status != "concluded") {
            return Err(Error::refused(format!("a block job is at work on {vm}: {} ({})", job.id, job.status))
                .hint("wait for its end, then run the command again"));
        }
        let running = qmp.status(crate::qemu::qmp::REPLY).await?.running;
        before = if running { State::Running } else { State::Paused };
    }
    let then = then.unwrap_or(match before {
        State::Running => Then::Running,
        State::Paused => Then::Paused,
        State::Stopped | State::Crashed => Then::Stopped,
    });
    let (after, steps) = plan::revert(&record, &snapshot, qmp.is_some(), Store::trash_name("revert", vm));
    let mut executor = Executor::with(context, vm, qmp);
    change::run(context, &lock, Plan::new(steps), &mut executor).await.map_err(|error| {
        let ended = before.is_live() && status::is_running(context, vm).is_ok_and(|running| !running);
        if ended {
            error.hint(format!("its guest has been ended for the revert; start it again: cowhand start {vm}"))
        } else {
            error
        }
    })?;
    if then != Then::Stopped {
        start::start_locked(context, &lock, &after, then == Then::Paused).await.map_err(|error| {
            let point = PointRef { vm: vm.clone(), snapshot: Some(snapshot.name.clone()) };
            let hinted = Error::new(error.kind(), format!("{vm} is back at {point}, but did not start"));
            hinted.hint(format!("try again: cowhand start {vm}")).because(error.full_message())
        })?;
    }
    Ok(snapshot.name)
}
