//! A change to a VM is a list of steps with one point of no return, the *pivot*.
//!
//! ```text
//! journal written ─▶ steps before the pivot ─▶ PIVOT ─▶ steps after it ─▶ journal removed
//!                    failed or cut short:       failed or cut short after it:
//!                    undone in reverse          carried on, by us or by the next command
//! ```
//! Every step is idempotent: applying it again, or undoing what never happened, does no harm. So the journal needs no notes on
//! how far it got; whether the pivot happened is *observed* ([`recover`]). The same code undoes a change after an error, after
//! Ctrl-C and after our own death.

mod apply;
mod external;
mod foreign;
mod internal;
pub mod lost;
mod memory;
pub mod open;
pub mod recover;
pub mod reliance;
mod step;

pub use apply::{Executor, Report};
pub use step::{Sealed, Step, Switched};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::connect;
use crate::layer::{chain, sealed};
use crate::model::{Layer, Merge, Name, Quiesced};
use crate::store::journal::{self, Journal, Owner};
use crate::store::{Store, VmLock, atomic, schema::RecordV1};

/// What is going to happen, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The steps.
    pub steps: Vec<Step>,
    /// The index of the step after which there is no way back.
    pub pivot: usize,
}

impl Plan {
    /// A plan whose pivot is the first [`Step::Switch`] or [`Step::Resize`], else the first [`Step::Save`].
    pub fn new(steps: Vec<Step>) -> Self {
        let first = |wanted: fn(&Step) -> bool| steps.iter().position(wanted);
        let pivot = first(|step| matches!(step, Step::Switch { .. } | Step::Resize { .. }))
            .or_else(|| first(|step| matches!(step, Step::Save { .. })))
            .unwrap_or(steps.len().saturating_sub(1));
        Self { steps, pivot }
    }
}

/// Carries out `plan` on the VM behind `lock`. An error before the pivot leaves everything as it was.
pub async fn run(context: &Context, lock: &VmLock, plan: Plan, executor: &mut Executor<'_>) -> Result<Report> {
    let store = &context.store;
    let pins: Vec<Layer> = plan.steps.iter().flat_map(Step::layers).collect();
    let vm = match may_begin(context, lock.name(), &plan, executor).await {
        Ok(vm) => Some(vm),
        Err(error) => {
            store.unclaim(lock.name())?;
            return Err(error);
        }
    };
    let operation = context.operation.clone();
    let mut journal = Journal { schema: journal::SCHEMA, vm, operation, steps: plan.steps, pivot: plan.pivot, pins };
    if let Err(error) = journal.save(store, lock.name()) {
        store.unclaim(lock.name())?;
        return Err(error);
    }
    if let Err(error) = reliance::refuse_newcomers(store, lock.name(), &journal.steps, &journal.pins) {
        return Err(match forget_for_good(store, lock, executor) {
            Ok(()) => error,
            Err(second) => error.hint(format!("its journal is still there: {}", second.full_message())),
        });
    }
    for at in 0..journal.steps.len() {
        let result = executor.apply_here(&journal.steps[at]).await;
        amend(&mut journal.steps[at + 1..], &executor.report);
        let Err(error) = result else { continue };
        if at > journal.pivot {
            executor.thaw_ours().await;
            return Err(error.hint("it is past the point of no return: the next command on this VM finishes it"));
        }
        // A switch that was sent and never answered may have happened: only QEMU knows, or nobody.
        executor.reconnect();
        let happened = match at == journal.pivot {
            true => executor.pivot_happened(&journal).await,
            false => Ok(false),
        };
        match happened {
            Ok(true) => {}
            Ok(false) => return Err(undo(lock, &journal, at, executor, error).await),
            Err(second) => {
                executor.thaw_ours().await;
                return Err(error.hint(format!(
                    "whether it happened is unknown ({}); the next command on this VM finds out",
                    second.full_message()
                )));
            }
        }
    }
    seal(store, &journal.steps);
    // A guest that could not be thawed stays written down: the next command tries again.
    if executor.report.freeze != Some(Quiesced::NotThawed) {
        journal::remove(store, lock.name())?;
    }
    Ok(std::mem::take(&mut executor.report))
}

/// Refuses a change that would lose something, or that is told to a QEMU which is not this VM's. Else, whose it is.
async fn may_begin(context: &Context, name: &Name, plan: &Plan, executor: &mut Executor<'_>) -> Result<Owner> {
    refuse_lost(&context.store, plan)?;
    refuse_stranger(context, name, executor).await?;
    owner(&context.store, name, plan)
}

/// Notes of the layers that new ones were put on what they are: from here on nothing writes to them.
fn seal(store: &Store, steps: &[Step]) {
    steps.iter().filter_map(Step::sealed).for_each(|layer| sealed::note(store, layer));
}

/// What a layer has lost is lost for good once it is merged into another one; and so is what it hides, where it stands on another layer than its own.
fn refuse_lost(store: &Store, plan: &Plan) -> Result<()> {
    let merged = plan.steps.iter().flat_map(Step::merges).flat_map(Merge::layers);
    // One that the plan makes is not there yet.
    let is_made = |layer: &&Layer| plan.steps.iter().any(|step| step.makes() == Some(layer));
    merged.filter(|layer| !is_made(layer)).try_for_each(|layer| chain::refuse_unsound(store, layer))
}

/// A QEMU that has other files open than the record names is not told to change anything.
async fn refuse_stranger(context: &Context, name: &Name, executor: &mut Executor<'_>) -> Result<()> {
    match executor.qmp_now().await? {
        Some(qmp) => connect::refuse_stranger(context, name, qmp, &context.store.load(name)?).await,
        None => Ok(()),
    }
}

/// Whose change it is: of a VM that is about to be made, only the plan says that.
fn owner(store: &Store, name: &Name, plan: &Plan) -> Result<Owner> {
    let uuid = match plan.steps.iter().find_map(Step::record) {
        Some(record) => record.uuid(),
        None => store.load(name)?.uuid,
    };
    Ok(Owner { name: name.clone(), uuid, store: store.id() })
}

/// Forgets a change that was refused. It must not come back with a power cut: nothing would tell that it was.
fn forget_for_good(store: &Store, lock: &VmLock, executor: &Executor<'_>) -> Result<()> {
    executor.forget(lock)?;
    let directory = store.layout.vm(lock.name());
    if directory.exists() { atomic::sync_directory(&directory) } else { Ok(()) }
}

/// Undoes the steps up to and with `at`, in reverse, and hands the error on.
async fn undo(lock: &VmLock, journal: &Journal<Step>, at: usize, executor: &mut Executor<'_>, error: Error) -> Error {
    match recover::roll_back(lock, journal, at, executor).await {
        Ok(()) => error,
        Err(second) => {
            Error::damaged(format!("{} (and undoing it failed: {})", error.full_message(), second.full_message()))
                .hint("the next command on this VM tries again to undo it")
        }
    }
}

/// Writes into the records that are about to be saved what only became known on the way.
fn amend(steps: &mut [Step], report: &Report) {
    if !report.quiesced && report.memory.is_none() && report.memory_lost.is_none() && report.stamps.is_none() {
        return;
    }
    for step in steps {
        if let Step::Save { record, snapshot: None } = step
            && let Some(now) = &report.stamps
            && let Ok(mut live) = crate::model::Record::try_from((**record).clone())
            && let crate::model::Role::Template { stamps, .. } = &mut live.role
        {
            stamps.clone_from(now);
            **record = RecordV1::from(&live);
        }
        if let Step::Save { record, snapshot: Some(name) } = step
            && let Ok(mut live) = crate::model::Record::try_from((**record).clone())
        {
            for snapshot in live.snapshots.iter_mut().filter(|snapshot| snapshot.name == *name) {
                snapshot.quiesced |= report.quiesced;
                if report.memory_lost.is_some() {
                    snapshot.memory = None;
                }
                if let Some((memory, bytes)) = snapshot.memory.as_mut().zip(report.memory) {
                    memory.bytes = bytes;
                }
            }
            **record = RecordV1::from(&live);
        }
    }
}
