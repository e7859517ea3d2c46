//! Removing a snapshot: its name goes, then the layers it leaves unnamed are merged or trashed as
//! [`crate::layer::collapse`] says. The data of every other point stays as it is.

use super::internal;
use super::plan::{self, Which};
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::status;
use crate::layer::collapse::{self, Action, Permissions};
use crate::layer::{info, sealed};
use crate::merge::collapse::{CollapsePlan, outcome};
use crate::merge::dependents::DependentLocks;
use crate::merge::outcome::Removed;
use crate::merge::plan::{collapse as collapse_layers, repointed};
use crate::merge::undoable::{self, Kept};
use crate::model::{Layer, LayerId, Name, Record, Snapshot, State, printable};
use crate::store::{Store, trash};

/// How snapshots are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Request {
    /// What goes along.
    pub which: Which,
    /// Leave the layers alone that a change needs which can be undone.
    pub keep_undo: bool,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Removes `vm@snapshot`, or with `dry_run` only says what that would do. Several are removed one
/// by one, from the leaves down.
pub(crate) async fn remove(
    context: &Context,
    vm: &Name,
    snapshot: &Name,
    request: Request,
) -> Result<Vec<Removed>> {
    if !request.dry_run {
        context.store.give_up_reserve();
    }
    let opened = OpenVm::for_change(context, vm, "remove a snapshot of").await?;
    remove_from(opened, snapshot, request).await
}

/// Removes a snapshot that has expired, as it was seen in the record `seen` of `vm`; not one that
/// has taken its name meanwhile.
pub(crate) async fn expire(
    context: &Context,
    vm: &Name,
    seen: &Record,
    snapshot: &Snapshot,
    dry_run: bool,
) -> Result<Vec<Removed>> {
    let opened = OpenVm::for_change(context, vm, "remove a snapshot of").await?;
    let is_it = |now: &Snapshot| {
        (&now.name, now.created, now.expires)
            == (&snapshot.name, snapshot.created, snapshot.expires)
    };
    if opened.record.uuid != seen.uuid || !opened.record.snapshots.iter().any(is_it) {
        return Ok(Vec::new());
    }
    // A date takes no undo away: when that has gone from the trash, the layers are merged.
    let request = Request { dry_run, keep_undo: true, ..Request::default() };
    remove_from(opened, &snapshot.name, request).await
}

async fn remove_from(
    mut opened: OpenVm<'_>,
    snapshot: &Name,
    request: Request,
) -> Result<Vec<Removed>> {
    let (context, vm, record) = (opened.context(), &opened.name().clone(), opened.record.clone());
    let name = record.snapshot(vm, snapshot)?.name.clone();
    let names = plan::to_remove(&record, &name, request.which);
    for name in &names {
        refuse_carrier(context, vm, &record, name, &names).await?;
    }
    if request.dry_run {
        return foretell(context, vm, record, &names, request.keep_undo);
    }
    let mut removed = Vec::with_capacity(names.len());
    for name in &names {
        let one =
            remove_one(&mut opened, name, request.keep_undo).await.map_err(
                |error| match removed.len() {
                    0 => error,
                    count => {
                        error.hint(format!("{count} of {} were removed and stay so", names.len()))
                    }
                },
            )?;
        opened.record = context.store.load(vm)?;
        removed.push(one);
    }
    Ok(removed)
}

/// What removing these snapshots one after the other would do. What each leaves is what the next
/// one begins with.
fn foretell(
    context: &Context,
    vm: &Name,
    mut record: Record,
    names: &[Name],
    keep_undo: bool,
) -> Result<Vec<Removed>> {
    let going = record.snapshots.iter().filter(|snapshot| names.contains(&snapshot.name));
    let layers: Vec<LayerId> = going
        .flat_map(|snapshot| snapshot.config.writable())
        .map(|disk| disk.layer.id.clone())
        .collect();
    let last = names.iter().fold(record.clone(), |record, name| plan::without(&record, name));
    let (locks, mut graph) = DependentLocks::lock(context, vm, &last, &layers)?;
    let in_use = locks.in_use(&graph)?;
    drop(locks);
    let kept = Kept::look(context, keep_undo)?;
    let uncertain = kept.uncertainty(&graph, vm);
    let permissions = Permissions {
        owner: vm,
        in_use: &in_use,
        kept: &kept.layers,
        uncertain: uncertain.as_deref(),
    };
    let mut removed = Vec::with_capacity(names.len());
    for name in names {
        let snapshot = record.snapshot(vm, name)?.clone();
        let after = plan::without(&record, name);
        let mut lost_undo = Vec::new();
        let outcomes = if snapshot.tag().is_some() {
            let outcomes = internal::would_remove(context, vm, &record, &snapshot)?;
            for disk in snapshot.config.writable() {
                if let Some(info) = graph.layers.get_mut(&disk.layer.id) {
                    info.internal_snapshots = info.internal_snapshots.saturating_sub(1);
                }
            }
            record = after;
            outcomes
        } else {
            graph.forget(vm);
            graph.add_record(vm, &after);
            let disks: Vec<(String, Vec<Action>)> = snapshot
                .config
                .writable()
                .map(|disk| {
                    (disk.target.clone(), collapse::plan(&graph, &disk.layer.id, permissions))
                })
                .collect();
            let actions = || {
                disks
                    .iter()
                    .flat_map(|(target, actions)| actions.iter().map(move |one| (target, one)))
            };
            for (_, action) in actions() {
                let layers = match action {
                    Action::Commit { top, base, .. } => vec![top, base],
                    Action::Stream { top, gone, .. } => vec![top, gone],
                    Action::Drop(_) | Action::Keep { .. } => Vec::new(),
                };
                layers
                    .into_iter()
                    .try_for_each(|layer| sealed::refuse_lost(&context.store, layer))?;
            }
            let touched = disks.iter().flat_map(|(_, actions)| collapse::touched(actions));
            lost_undo = undoable::relying_on(context, touched)?
                .iter()
                .map(undoable::words_as_noted)
                .collect();
            lost_undo.retain(|lost| {
                removed.iter().all(|earlier: &Removed| !earlier.lost_undo.contains(lost))
            });
            let outcomes =
                actions().map(|(target, action)| outcome(target, action, &graph, None)).collect();
            record = actions().fold(after, |record, (_, action)| repointed(record, action));
            disks.iter().for_each(|(_, actions)| collapse::apply(&mut graph, actions));
            outcomes
        };
        removed.push(Removed { name: name.clone(), outcomes, lost_undo });
    }
    Ok(removed)
}

async fn remove_one(opened: &mut OpenVm<'_>, name: &Name, keep_undo: bool) -> Result<Removed> {
    let (context, vm, record) = (opened.context(), &opened.name().clone(), opened.record.clone());
    if let Some(tag) = record.snapshot(vm, name)?.tag() {
        return internal::remove(opened, name, tag).await;
    }
    let collapse = collapse_plan(context, vm, &record, name, keep_undo)?;
    let touched = collapse.disks.iter().flat_map(|(_, actions)| collapse::touched(actions));
    let relying = undoable::relying_on(context, touched)?;
    for change in &relying {
        context.ui.warn(&format!(
            "{} cannot be undone after this: it needs a layer that is merged or removed",
            undoable::words(change)
        ));
    }
    let running = opened.state().await? == State::Running;
    let trash = Store::trash_name(&trash::Kind::SnapshotRm, vm);
    let plan = collapse_layers(
        &record,
        &collapse.dropped,
        collapse.changes(),
        running,
        trash::Kind::SnapshotRm,
        trash,
    );
    let report = opened.carry_out(plan).await?;
    let lost_undo =
        undoable::lost(context, relying)?.iter().map(undoable::words_as_noted).collect();
    Ok(Removed {
        name: name.clone(),
        outcomes: collapse.outcomes(report.unmerged.as_deref()),
        lost_undo,
    })
}

/// Refuses to remove a point whose layers carry internal snapshots that stay: a merge would lose
/// them.
async fn refuse_carrier(
    context: &Context,
    vm: &Name,
    record: &Record,
    name: &Name,
    to_remove: &[Name],
) -> Result<()> {
    let snapshot = record.snapshot(vm, name)?;
    if snapshot.tag().is_some() {
        return Ok(());
    }
    for disk in snapshot.config.writable() {
        let inside = |other: &&Snapshot| {
            other.tag().is_some() && other.config.writable().any(|inner| inner.layer == disk.layer)
        };
        let ours: Vec<&Name> =
            record.snapshots.iter().filter(inside).map(|other| &other.name).collect();
        let staying: Vec<String> = ours
            .iter()
            .filter(|other| !to_remove.contains(other))
            .map(|other| format!("{vm}@{other}"))
            .collect();
        if !staying.is_empty() {
            return Err(Error::refused(format!(
                "the layer of {vm}@{name} ({}) carries the internal snapshots {}, \
                 which a merge would lose",
                disk.target,
                staying.join(", ")
            ))
            .hint(format!("remove them first: cowhand snapshot rm {}", staying.join(" ")))
            .dependents(staying));
        }
        let others = (info::inspect(&context.store, &disk.layer)?.internal_snapshots as usize)
            .saturating_sub(ours.len());
        if others == 0 {
            continue;
        }
        let layer = format!("the layer of {vm}@{name} ({})", disk.target);
        let path = context.store.layout.layer(&disk.layer);
        let foreign = others.saturating_sub(internal::undo_tags(context, &disk.layer).await?.len());
        if foreign > 0 {
            return Err(Error::refused(format!(
                "{layer} carries {foreign} internal snapshots that cowhand did not make, which a \
                 merge would lose"
            ))
            .hint(format!("see them: cowhand image info {}", printable::shell(&path))));
        }
        let refused = Error::refused(format!(
            "{layer} keeps the state of {vm} before a revert, \
             for `cowhand undo`; a merge would lose it"
        ));
        // QEMU has it open, and only reads it.
        let refused = match status::is_running(context, vm)? {
            true => refused.hint(format!("stop it first: cowhand stop {vm}")),
            false => refused,
        };
        return Err(
            refused.hint("give that undo up: cowhand gc --older-than 0    empties the trash")
        );
    }
    Ok(())
}

/// What becomes of the layers of the snapshot `name` when it is removed.
fn collapse_plan(
    context: &Context,
    vm: &Name,
    record: &Record,
    name: &Name,
    keep_undo: bool,
) -> Result<CollapsePlan> {
    let going = record.snapshots.iter().filter(|snapshot| snapshot.name == *name);
    let disks = going.flat_map(|snapshot| snapshot.config.writable());
    let layers: Vec<(String, Layer)> =
        disks.map(|disk| (disk.target.clone(), disk.layer.clone())).collect();
    CollapsePlan::at(context, vm, plan::without(record, name), &layers, keep_undo)
}
