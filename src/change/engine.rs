//! Carrying out a plan: the journal is written, the steps are applied in their order, and an error
//! before the pivot undoes them in reverse.

use super::dependents::refuse_new_dependents;
use super::planned::{self, Planned};
use super::run::{Report, Run};
use super::step::{Pivot, Touches};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::connect;
use crate::layer::{chain, sealed};
use crate::model::{Layer, Merge, Name, Quiesced};
use crate::store::journal::{self, Journal, Owner};
use crate::store::{Store, VmLock, atomic};
use crate::sys::fault;

/// What is going to happen, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    steps: Vec<Planned>,
    /// The index of the step after which there is no way back.
    pivot: usize,
}

/// The beginning of a plan, whose pivot is named next.
#[derive(Debug, Clone, Default)]
pub struct Before(Vec<Planned>);

impl Before {
    /// Names the step after which there is no way back.
    pub fn pivot(self, step: impl Pivot) -> Plan {
        let pivot = self.0.len();
        let mut steps = self.0;
        steps.push(step.into());
        Plan { steps, pivot }
    }
}

impl Plan {
    /// A plan that begins with `steps`, all of which can be undone.
    pub fn before(steps: impl IntoIterator<Item = Planned>) -> Before {
        Before(steps.into_iter().collect())
    }

    /// A plan that begins with the step after which there is no way back.
    pub fn pivot(step: impl Pivot) -> Self {
        Before::default().pivot(step)
    }

    /// The same, and then `steps`, which are carried on by whoever comes next if this process dies.
    pub fn after(mut self, steps: impl IntoIterator<Item = Planned>) -> Self {
        self.steps.extend(steps);
        self
    }

    /// The steps, and the index of the pivot.
    #[cfg(test)]
    pub fn parts(&self) -> (&[Planned], usize) {
        (&self.steps, self.pivot)
    }

    /// The same, with `steps` before all others.
    pub fn behind(mut self, steps: impl IntoIterator<Item = Planned>) -> Self {
        let mut all: Vec<Planned> = steps.into_iter().collect();
        self.pivot += all.len();
        all.append(&mut self.steps);
        Self { steps: all, ..self }
    }
}

/// Carries out `plan` on the VM behind `lock`. An error before the pivot leaves everything as it
/// was.
pub async fn run(lock: &VmLock, plan: Plan, run: &mut Run<'_>) -> Result<Report> {
    let (context, store) = (run.context, run.store());
    let touches: Vec<Touches> = plan.steps.iter().map(Planned::touches).collect();
    let pins: Vec<Layer> = touches.iter().flat_map(|touches| touches.pins.clone()).collect();
    let vm = match may_begin(context, lock.name(), &touches, run).await {
        Ok(vm) => Some(vm),
        Err(error) => {
            store.unclaim(lock.name())?;
            return Err(error);
        }
    };
    debug_assert!(
        plan.steps.iter().all(|step| planned::reader(step.tag()).is_some()),
        "a step that no journal tells"
    );
    let operation = context.operation.clone();
    let journal = Journal {
        schema: journal::SCHEMA,
        vm,
        operation,
        steps: plan.steps,
        pivot: plan.pivot,
        pins,
    };
    if let Err(error) = journal.save(store, lock.name()) {
        store.unclaim(lock.name())?;
        return Err(error);
    }
    if let Err(error) = refuse_new_dependents(store, lock.name(), &journal.steps, &journal.pins) {
        return Err(match forget_for_good(store, lock) {
            Ok(()) => error,
            Err(second) => {
                error.hint(format!("its journal is still there: {}", second.full_message()))
            }
        });
    }
    for (at, step) in journal.steps.iter().enumerate() {
        let Err(error) = apply(step, run).await else { continue };
        if at > journal.pivot {
            apply_what_shows_nowhere(&journal, run).await;
            return Err(error.hint(
                "it is past the point of no return: the next command on this VM finishes it",
            ));
        }
        // A switch that was sent and never answered may have happened: only QEMU knows, or nobody.
        run.reconnect();
        let happened = match at == journal.pivot {
            true => pivot_happened(&journal, run).await,
            false => Ok(false),
        };
        match happened {
            Ok(true) => {}
            Ok(false) => return Err(undo(lock, &journal, at, run, error).await),
            Err(second) => {
                apply_what_shows_nowhere(&journal, run).await;
                return Err(error.hint(format!(
                    "whether it happened is unknown ({}); the next command on this VM finds out",
                    second.full_message()
                )));
            }
        }
    }
    seal(store, &journal);
    // A guest that could not be thawed stays written down: the next command tries again.
    if run.report.freeze != Some(Quiesced::NotThawed) {
        journal::remove(store, lock.name())?;
    }
    Ok(std::mem::take(&mut run.report))
}

/// Applies `step`, with a fault point on either side.
pub(super) async fn apply(step: &Planned, run: &mut Run<'_>) -> Result<()> {
    let failed = |source: std::io::Error| Error::failed("cannot go on").because(source);
    fault::point(&format!("{}, about to happen", step.tag())).map_err(failed)?;
    step.apply(run).await?;
    fault::point(&format!("{}, done", step.tag())).map_err(failed)
}

/// Undoes the steps up to and with `at`, in reverse, and forgets the change.
pub(super) async fn roll_back(
    lock: &VmLock,
    journal: &Journal<Planned>,
    at: usize,
    run: &mut Run<'_>,
) -> Result<()> {
    undo_all(journal, at, run).await?;
    refuse_frozen(lock, run)?;
    forget(run.store(), lock)
}

/// A guest that may still be frozen stays written down until it is thawed, or has ended.
pub(super) fn refuse_frozen(lock: &VmLock, run: &Run<'_>) -> Result<()> {
    if run.report.freeze != Some(Quiesced::NotThawed) {
        return Ok(());
    }
    let name = lock.name();
    let error = Error::qemu(format!("the guest of {name} may still be frozen"))
        .because(run.report.warnings.join("; "));
    Err(error.hint(format!(
        "the next command on {name} tries again; if it never answers: cowhand stop --force {name}"
    )))
}

/// Undoes the steps up to and with `at`, in reverse, with a fault point behind each.
async fn undo_all(journal: &Journal<Planned>, at: usize, run: &mut Run<'_>) -> Result<()> {
    for step in journal.steps[..=at].iter().rev() {
        step.undo(run).await?;
        fault::point(&format!("{}, undone", step.tag()))
            .map_err(|source| Error::failed("cannot go on undoing").because(source))?;
    }
    Ok(())
}

/// Did the journal's pivot happen? Asked of the kernel, of QEMU, of the file system, in that order;
/// never of a note.
pub(super) async fn pivot_happened(journal: &Journal<Planned>, run: &mut Run<'_>) -> Result<bool> {
    match journal.steps[journal.pivot].happened(run).await? {
        Some(happened) => Ok(happened),
        None => saved(journal, journal.pivot, run),
    }
}

/// Is the record of the step at `at`, or of a later one, what `vm.json` says now? A record that is
/// there and cannot be read says neither yes nor no.
pub(super) fn saved(journal: &Journal<Planned>, at: usize, run: &Run<'_>) -> Result<bool> {
    let Some(now) = run.record()? else { return Ok(false) };
    Ok(journal.steps[at..].iter().any(|step| step.wrote(&now) == Some(true)))
}

/// Notes of the layers that new ones were put on what they are: from here on nothing writes to
/// them.
pub(super) fn seal(store: &Store, journal: &Journal<Planned>) {
    let sealed = journal.steps.iter().filter_map(|step| step.touches().seals);
    sealed.for_each(|layer| sealed::note(store, &layer));
}

/// Forgets a change that was undone; a directory that never became a VM goes with it.
fn forget(store: &Store, lock: &VmLock) -> Result<()> {
    journal::remove(store, lock.name())?;
    store.unclaim(lock.name())
}

/// After an error past the pivot: a guest does not stay frozen until the next command comes.
async fn apply_what_shows_nowhere(journal: &Journal<Planned>, run: &mut Run<'_>) {
    for step in journal.steps.iter().filter(|step| step.shows_nowhere()) {
        if let Err(error) = step.apply(run).await {
            run.report.warnings.push(error.full_message());
        }
    }
}

/// Refuses a change that would lose something, or that is told to a QEMU which is not this VM's.
/// Else, whose it is.
async fn may_begin(
    context: &Context,
    name: &Name,
    touches: &[Touches],
    run: &mut Run<'_>,
) -> Result<Owner> {
    refuse_lost(&context.store, touches)?;
    refuse_stranger(context, name, run).await?;
    owner(&context.store, name, touches)
}

/// What a layer has lost is lost for good once it is merged into another one; and so is what it
/// hides, where it depends on another layer than its own.
fn refuse_lost(store: &Store, touches: &[Touches]) -> Result<()> {
    let merged = touches.iter().flat_map(|touches| &touches.merges).flat_map(Merge::layers);
    // One that the plan makes is not there yet.
    let is_made =
        |layer: &&Layer| touches.iter().any(|touches| touches.makes.as_ref() == Some(layer));
    merged.filter(|layer| !is_made(layer)).try_for_each(|layer| chain::refuse_unsound(store, layer))
}

/// A QEMU that has other files open than the record names is not told to change anything.
async fn refuse_stranger(context: &Context, name: &Name, run: &mut Run<'_>) -> Result<()> {
    match run.qmp_now().await? {
        Some(qmp) => connect::refuse_stranger(context, name, qmp, &context.store.load(name)?).await,
        None => Ok(()),
    }
}

/// Whose change it is: of a VM that is about to be made, only the plan says that.
fn owner(store: &Store, name: &Name, touches: &[Touches]) -> Result<Owner> {
    let uuid = match touches.iter().find_map(|touches| touches.vm) {
        Some(uuid) => uuid,
        None => store.load(name)?.uuid,
    };
    Ok(Owner { name: name.clone(), uuid, store: store.id() })
}

/// Forgets a change that was refused. It must not come back with a power cut: nothing would tell
/// that it was.
fn forget_for_good(store: &Store, lock: &VmLock) -> Result<()> {
    forget(store, lock)?;
    let directory = store.layout.vm(lock.name());
    if directory.exists() { atomic::sync_directory(&directory) } else { Ok(()) }
}

/// Undoes the steps up to and with `at`, in reverse, and hands the error on.
async fn undo(
    lock: &VmLock,
    journal: &Journal<Planned>,
    at: usize,
    run: &mut Run<'_>,
    error: Error,
) -> Error {
    match roll_back(lock, journal, at, run).await {
        Ok(()) => error,
        Err(second) => Error::damaged(format!(
            "{} (and undoing it failed: {})",
            error.full_message(),
            second.full_message()
        ))
        .hint("the next command on this VM tries again to undo it"),
    }
}

#[cfg(test)]
mod tests;
