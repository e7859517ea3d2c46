//! Going back to a snapshot: the head becomes a new overlay on its layers; the old head goes into
//! the trash.
//!
//! Everything is prepared before QEMU is ended, so that a revert that cannot be done leaves the VM
//! as it was.

use super::internal;
use super::memory;
use super::plan::{self, Reverting};
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{boot_files, launch, status};
use crate::layer::chain;
use crate::model::{Name, PointRef, Record, Snapshot, State, VmState};
use crate::qemu::cmdline::StartMode;
use crate::store::{Store, trash};

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

/// A revert as asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request {
    /// What the VM does afterwards; without it, what the snapshot's memory says, else what the VM
    /// did before.
    pub then: Option<Then>,
    /// Leave the snapshot's memory alone: the guest boots anew.
    pub cold: bool,
}

/// What a revert came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reverted {
    /// The snapshot.
    pub name: Name,
    /// What the VM does now.
    pub state: State,
}

/// Reverts `vm` to `snapshot`.
pub async fn revert(
    context: &Context,
    vm: &Name,
    snapshot: &Name,
    request: Request,
) -> Result<Reverted> {
    let mut opened = OpenVm::for_change(context, vm, "revert").await?;
    let record = opened.record.clone();
    let mut snapshot = record.snapshot(vm, snapshot)?.clone();
    // What an internal one had for sizes shows when it is back.
    if snapshot.tag().is_none() {
        chain::refresh(&context.store, &mut snapshot.config).map_err(|error| {
            Error::damaged(format!("snapshot {vm}@{} is damaged", snapshot.name))
                .because(error.full_message())
        })?;
    }
    opened.refuse_job().await?;
    let before = opened.state().await?;
    let memory =
        snapshot.memory.as_ref().filter(|_| !request.cold && request.then != Some(Then::Stopped));
    let then = request.then.unwrap_or(match (memory.is_some(), snapshot.vm_state, before) {
        (true, VmState::Running, _) | (false, _, State::Running) => Then::Running,
        (true, _, _) | (false, _, State::Paused) => Then::Paused,
        (false, _, State::Stopped | State::Crashed) => Then::Stopped,
    });
    let trash = Store::trash_name(&trash::Kind::Revert, vm);
    let (after, plan) = if snapshot.tag().is_some() {
        refuse_lost_memory(vm, &record, &snapshot, memory.is_some())?;
        let old_pid = opened.qmp().await?.and_then(|qmp| qmp.pid());
        let running = memory.map(|_| then == Then::Running);
        internal::revert(
            &record,
            &internal::Reverting {
                snapshot: &snapshot,
                current: Some(snapshot.name.clone()),
                old_pid,
                memory: running,
                trash,
                what: trash::Kind::Revert,
            },
        )
    } else {
        let image = memory.and_then(|memory| memory.image.clone());
        let memory = image.map(|image| (image, then == Then::Running));
        plan::revert(&record, &snapshot, &Reverting { live: before.is_live(), memory, trash })
    };
    if let Some(memory) = memory {
        let planned = Record { config: snapshot.config.clone(), ..after.clone() };
        memory::check(context, vm, &planned, &snapshot, memory)?;
    }
    if then != Then::Stopped {
        // Before a QEMU is ended for it.
        boot_files::check_isos(&after.config).map_err(|error| {
            error.hint(format!(
                "or let it be stopped: cowhand snapshot revert {vm}@{} --stopped",
                snapshot.name
            ))
        })?;
    }
    if let Err(error) = opened.carry_out(plan).await {
        return Err(start_again(context, vm, &record, before, error).await);
    }
    if then != Then::Stopped && memory.is_none() {
        let how = if then == Then::Paused { StartMode::Paused } else { StartMode::Running };
        launch::launch(context, vm, &after, how).await.map_err(|error| {
            let point = PointRef { vm: vm.clone(), snapshot: Some(snapshot.name.clone()) };
            let hinted =
                Error::new(error.kind(), format!("{vm} is back at {point}, but did not start"));
            hinted.hint(format!("try again: cowhand start {vm}")).because(error.full_message())
        })?;
    }
    let state = match then {
        Then::Running => State::Running,
        Then::Paused => State::Paused,
        Then::Stopped => State::Stopped,
    };
    Ok(Reverted { name: snapshot.name, state })
}

/// The memory of an internal snapshot lies in the image, and can be loaded from nowhere else.
fn refuse_lost_memory(vm: &Name, record: &Record, snapshot: &Snapshot, wanted: bool) -> Result<()> {
    if !wanted || internal::is_in_head(record, snapshot) {
        return Ok(());
    }
    let point = PointRef { vm: vm.clone(), snapshot: Some(snapshot.name.clone()) };
    Err(Error::refused(format!(
        "the memory of {point} lies in a layer that was sealed by a later snapshot, where it \
         cannot be loaded from"
    ))
    .hint(format!(
        "take back the disks alone, and let the guest boot: cowhand snapshot revert {point} --cold"
    )))
}

/// After a revert that failed: a guest that was ended for it boots again, where it was.
async fn start_again(
    context: &Context,
    vm: &Name,
    record: &Record,
    before: State,
    error: Error,
) -> Error {
    let unchanged = context.store.load(vm).is_ok_and(|now| now == *record);
    if !before.is_live()
        || !unchanged
        || !status::is_running(context, vm).is_ok_and(|running| !running)
    {
        return error;
    }
    let how = if before == State::Paused { StartMode::Paused } else { StartMode::Running };
    match launch::launch(context, vm, record, how).await {
        Ok(_) => error.hint(format!(
            "{vm} is where it was; its guest had been ended for the revert and boots anew"
        )),
        Err(_) => error.hint(format!(
            "its guest has been ended for the revert; start it again: cowhand start {vm}"
        )),
    }
}
