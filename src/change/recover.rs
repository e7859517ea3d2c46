//! Recovery: what the next command does about a change that was cut short.
//!
//! Before the pivot: the steps are undone in reverse. From the pivot on: they are carried on. A
//! directory that never became a VM is removed. Recovering twice changes nothing the second time.

use super::dependents::refuse_new_dependents;
use super::engine::{apply, pivot_happened, refuse_frozen, roll_back, saved, seal};
use super::foreign;
use super::lost::{self, Lost};
use super::planned::Planned;
use super::run::Run;
use super::step::Abandoned;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::model::{Layer, Name};
use crate::store::journal::{self, Journal};
use crate::store::{Store, StoreLock, VmLock};

/// What recovery found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// Nothing was cut short.
    Nothing,
    /// A change was undone: it never happened.
    Undone,
    /// A change was completed.
    Completed,
    /// A change is past its pivot and was left for later.
    Left,
}

/// Recovers the VM behind `lock`.
pub(crate) async fn recover(context: &Context, lock: &VmLock) -> Result<Recovered> {
    recover_journal(context, lock, true).await
}

/// Undoes what changes of this process were cut short, where they can still be undone. For Ctrl-C:
/// what is past its point of no return may take long, and is left to the next command.
pub(crate) async fn after_interrupt(context: &Context) -> Result<Vec<(String, Recovered)>> {
    let mut results = Vec::new();
    for name in context.store.directories()? {
        let journal = context.store.has_journal(&name);
        if !journal && context.store.exists(&name) {
            continue;
        }
        if let Some(lock) = context.store.try_lock_vm(&name, &context.operation)? {
            match recover_journal(context, &lock, false).await {
                Ok(recovered) => results.push((name.to_string(), recovered)),
                Err(error) => context.ui.warn(&format!("{name}: {}", error.full_message())),
            }
        }
    }
    Ok(results)
}

/// Reads the journal of `name`. One that takes layers for its own which are not is damaged, too.
pub(crate) fn load(context: &Context, name: &Name) -> Result<Option<Journal<Planned>>> {
    let Some(journal) = Journal::<Planned>::load(&context.store, name)? else { return Ok(None) };
    // How far it got cannot be seen in a record that cannot be read.
    if let Ok(saved) = saved(&journal, 0, &Run::recovering(context, name)) {
        foreign::refuse(&context.store, name, &journal, saved)?;
    }
    Ok(Some(journal))
}

/// Is its guest going on from memory just now, and perhaps not yet one of its own?
pub(crate) fn holds_guest(store: &Store, name: &Name) -> Result<bool> {
    Ok(Journal::<Planned>::load(store, name)?
        .is_some_and(|journal| journal.steps.iter().any(Planned::holds_guest)))
}

/// Removes what commands that died have left of VMs that never came to be.
pub(crate) async fn sweep(context: &Context, _: &StoreLock) -> Result<()> {
    for name in context.store.directories()? {
        if context.store.exists(&name) {
            continue;
        }
        if let Some(lock) = context.store.try_lock_vm(&name, &context.operation)?
            && let Err(error) = recover_journal(context, &lock, true).await
        {
            context.ui.warn(&format!(
                "what is left of {name} cannot be cleared up: {}",
                error.full_message()
            ));
        }
    }
    Ok(())
}

async fn recover_journal(
    context: &Context,
    lock: &VmLock,
    may_complete: bool,
) -> Result<Recovered> {
    let (store, name) = (&context.store, lock.name());
    remove_temporary(store, name);
    let Some(journal) = Journal::<Planned>::load(store, name)? else {
        if !store.exists(name) {
            match lost::look(store)? {
                Lost::Nothing => store.unclaim(name)?,
                Lost::Layers(layers) => {
                    store.mark_lost(name)?;
                    context.ui.warn(&lost::missing(name, &layers));
                }
                Lost::Unknown => {}
            }
        }
        return Ok(Recovered::Nothing);
    };
    if !store.exists(name) && !lost::makes_its_vm(&journal) {
        store.mark_lost(name)?;
    }
    refuse_unreadable(store, name, &journal.command())?;
    let mut run = Run::recovering(context, name);
    foreign::refuse(store, name, &journal, saved(&journal, 0, &run)?)?;
    let outcome = if !pivot_happened(&journal, &mut run).await? {
        roll_back(lock, &journal, journal.pivot, &mut run).await?;
        if journal.steps.iter().any(Planned::holds_guest) {
            // Its disks were there before.
            context.ui.note(&format!(
                "{name}: `{}` was cut short: it is back where it was made from, and does not run; \
                 start it: cowhand start {name}",
                journal.command()
            ));
        } else {
            context.ui.note(&format!(
                "{name}: `{}` was cut short and has been undone",
                journal.command()
            ));
        }
        let ended = journal.steps[..=journal.pivot].iter().any(Planned::ends_guest);
        if ended && run.qmp().await?.is_none() {
            context.ui.note(&format!(
                "{name}: its guest had been ended for that; start it again: cowhand start {name}"
            ));
        }
        Recovered::Undone
    } else if may_complete || can_be_ended_now(remaining(&journal, &run)?, &mut run).await? {
        call_off_new_dependents(store, name, &journal, &mut run).await?;
        roll_forward(context, lock, &journal, &mut run).await?;
        match &run.report.unmerged {
            None => context.ui.note(&format!(
                "{name}: `{}` was cut short and has been completed",
                journal.command()
            )),
            Some(why) => context.ui.warn(&format!(
                "{name}: `{}` was cut short before its layers were merged ({why}); all points that \
                 are left keep what they hold; run it again, or merge layers that no record names \
                 any more: cowhand gc",
                journal.command()
            )),
        }
        Recovered::Completed
    } else {
        Recovered::Left
    };
    run.forget_jobs().await?;
    store.renew_spare(name);
    if let Some(why) = &run.report.memory_lost {
        context.ui.warn(&format!(
            "{name}: the snapshot that was being taken holds the disks alone: {why}"
        ));
    }
    for warning in &run.report.warnings {
        context.ui.warn(warning);
    }
    Ok(outcome)
}

/// Whether a change has happened shows in the record. One that is there and cannot be read is no
/// proof that it has not: undoing the change could remove layers that the record names.
fn refuse_unreadable(store: &Store, name: &Name, operation: &str) -> Result<()> {
    let Err(error) = store.load(name) else { return Ok(()) };
    let (kind, hint) = match error.kind() {
        Kind::NotFound => return Ok(()),
        Kind::Damaged if error.is_newer() => {
            (Kind::Damaged, "use that version; nothing was changed".to_owned())
        }
        Kind::Damaged => (
            Kind::Damaged,
            format!(
                "cowhand doctor {name} --repair    brings back the last readable record, \
                 where there is one"
            ),
        ),
        kind => (kind, "the next command on this VM tries again; nothing was undone".to_owned()),
    };
    Err(Error::new(
        kind,
        format!("`{operation}` was cut short on {name}, and how far it got cannot be seen"),
    )
    .hint(hint)
    .because_of(&error))
}

/// What was to be renamed into its place when its writer died. Whoever holds the lock is the only
/// one who writes here.
fn remove_temporary(store: &Store, name: &Name) {
    for entry in std::fs::read_dir(store.layout.vm(name)).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with('.') && file.ends_with(".tmp") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// After an interrupt: calls off what `steps` have under way, so that the rest can be done at once.
/// False: something goes on by itself, or has gone too far.
async fn can_be_ended_now(steps: &[Planned], run: &mut Run<'_>) -> Result<bool> {
    for step in steps {
        if step.abandon(run).await? == Abandoned::GoesOn {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A change may have died before it looked whether somebody new depends on what it takes away.
async fn call_off_new_dependents(
    store: &Store,
    name: &Name,
    journal: &Journal<Planned>,
    run: &mut Run<'_>,
) -> Result<()> {
    let steps = remaining(journal, run)?;
    let plan: Vec<Layer> = journal.steps.iter().flat_map(|step| step.touches().pins).collect();
    if let Err(error) = refuse_new_dependents(store, name, steps, &plan)
        && can_be_ended_now(steps, run).await?
    {
        run.report.unmerged = Some(error.full_message());
    }
    Ok(())
}

async fn roll_forward(
    context: &Context,
    lock: &VmLock,
    journal: &Journal<Planned>,
    run: &mut Run<'_>,
) -> Result<()> {
    let steps = remaining(journal, run)?;
    // Whether it happened shows nowhere, so it is done again.
    for step in journal.steps.iter().filter(|step| step.shows_nowhere() && !steps.contains(step)) {
        apply(step, run).await?;
    }
    for step in steps {
        apply(step, run).await?;
    }
    seal(&context.store, journal);
    refuse_frozen(lock, run)?;
    journal::remove(&context.store, lock.name())
}

/// What is still to be done behind the pivot. A record that has been saved proves every step before
/// it.
fn remaining<'a>(journal: &'a Journal<Planned>, run: &Run<'_>) -> Result<&'a [Planned]> {
    let mut from = journal.pivot;
    for (at, step) in journal.steps.iter().enumerate().skip(journal.pivot) {
        if step.touches().writes_record && saved(journal, at, run)? {
            from = at;
        }
    }
    Ok(&journal.steps[from + 1..])
}
