//! Layers that lose their names when a snapshot is removed are merged or put into the trash, as
//! [`crate::layer::collapse`] says. The data of every other point stays as it is.

use super::dependents::{self, DependentLocks};
use super::outcome::{Outcome, What};
use super::plan::{self, LayerChanges};
use super::undoable::Kept;
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::collapse::{self, Action, Permissions, Why};
use crate::layer::graph::LayerGraph;
use crate::model::{Layer, LayerId, Name, Record, State};
use crate::store::{Store, trash};

/// What becomes of layers that lose their names. Holds the locks that keep other VMs from changing
/// it.
pub(crate) struct CollapsePlan {
    graph: LayerGraph,
    /// The record without the names that are given up.
    pub dropped: Record,
    /// Per disk, what is done to which layer.
    pub disks: Vec<(String, Vec<Action>)>,
    _locks: DependentLocks,
}

impl CollapsePlan {
    /// What becomes of `layers` when the record of `vm` says `dropped`.
    pub(crate) fn at(
        context: &Context,
        vm: &Name,
        dropped: Record,
        layers: &[(String, Layer)],
        keep_undo: bool,
    ) -> Result<Self> {
        let ids: Vec<LayerId> = layers.iter().map(|(_, layer)| layer.id.clone()).collect();
        let (locks, graph) = DependentLocks::lock(context, vm, &dropped, &ids)?;
        let in_use = locks.in_use(&graph)?;
        let kept = Kept::look(context, keep_undo)?;
        let uncertain = kept.uncertainty(&graph, vm);
        let permissions = Permissions {
            owner: vm,
            in_use: &in_use,
            kept: &kept.layers,
            uncertain: uncertain.as_deref(),
        };
        let plan = |(target, layer): &(String, Layer)| {
            (target.clone(), collapse::plan(&graph, &layer.id, permissions))
        };
        let disks = layers.iter().map(plan).collect();
        Ok(Self { graph, dropped, disks, _locks: locks })
    }

    /// The next layer below `vm` that nobody names, with something that can be done about it.
    fn hidden(
        context: &Context,
        vm: &Name,
        record: &Record,
        seen: &mut Vec<LayerId>,
    ) -> Result<Option<Self>> {
        let graph = dependents::graph_after(context, vm, record)?;
        let volumes = record.snapshots.iter().flat_map(|snapshot| snapshot.config.writable());
        for disk in record.config.writable().chain(volumes) {
            for info in graph.chain(&disk.layer.id)? {
                let id = &info.layer.id;
                if !graph.uses(id).is_empty() || seen.contains(id) {
                    continue;
                }
                seen.push(id.clone());
                let layers = [(disk.target.clone(), info.layer.clone())];
                let collapse = Self::at(context, vm, record.clone(), &layers, false)?;
                if !collapse.changes().merges.is_empty() {
                    return Ok(Some(collapse));
                }
            }
        }
        Ok(None)
    }

    /// The merges, and what goes into the trash.
    pub(crate) fn changes(&self) -> LayerChanges {
        let mut changes = LayerChanges::default();
        for (target, actions) in &self.disks {
            changes.add(target, actions, &self.graph);
        }
        changes
    }

    /// What becomes of each layer; `unmerged`: why nothing could be merged.
    pub(crate) fn outcomes(&self, unmerged: Option<&str>) -> Vec<Outcome> {
        let planned = self
            .disks
            .iter()
            .flat_map(|(target, actions)| actions.iter().map(move |action| (target, action)));
        planned.map(|(target, action)| outcome(target, action, &self.graph, unmerged)).collect()
    }
}

/// What becomes of the layer of one action on the disk `target`.
pub(crate) fn outcome(
    target: &str,
    action: &Action,
    graph: &LayerGraph,
    unmerged: Option<&str>,
) -> Outcome {
    let (what, bytes) = match action {
        Action::Commit { .. } | Action::Stream { .. } if let Some(why) = unmerged => {
            (What::Kept(format!("it could not be merged: {why}")), 0)
        }
        Action::Drop(_) => (What::Trashed, 0),
        Action::Commit { bytes, .. } => (What::Committed, *bytes),
        Action::Stream { bytes, .. } => (What::Streamed, *bytes),
        Action::Keep { why: Why::Children(children), .. } => {
            let mut users: Vec<String> = children
                .iter()
                .flat_map(|layer| graph.uses(&layer.id))
                .map(|r#use| match r#use {
                    crate::layer::graph::Use::Snapshot(vm, snapshot) => format!("{vm}@{snapshot}"),
                    other => other.owner().to_string(),
                })
                .collect();
            users.sort();
            users.dedup();
            if users.is_empty() {
                users.push("hidden ones themselves".to_owned());
            }
            let users = users.join(", ");
            (What::Kept(format!("it backs {} layers ({users})", children.len())), 0)
        }
        Action::Keep { why: Why::Uncertain(why), .. } => (What::Kept(why.clone()), 0),
        Action::Keep { why: Why::Undo, .. } => {
            (What::Kept("a change that can be undone needs it".to_owned()), 0)
        }
        Action::Keep { why: Why::InUse, .. } => {
            (What::Kept("another VM has it open, or relies on it as it is".to_owned()), 0)
        }
        Action::Keep { why: Why::BelowInternal(count), .. } => (
            What::Kept(format!(
                "the layer above carries {count} internal snapshots, which rest on it"
            )),
            0,
        ),
        Action::Keep { why: Why::InternalSnapshots(count), .. } => {
            (What::Kept(format!("it carries {count} internal snapshots")), 0)
        }
    };
    Outcome { target: target.to_owned(), what, bytes }
}

/// Merges layers below `vm` that nobody names and that need not stay. A VM somebody else works on
/// is left for the next time. Layers in `spared` stay as they are.
pub(crate) async fn merge_hidden(
    context: &Context,
    vm: &Name,
    spared: &[LayerId],
    dry_run: bool,
) -> Result<Vec<Outcome>> {
    let mut all = Vec::new();
    let Some(lock) = context.store.try_lock_vm(vm, &context.operation)? else { return Ok(all) };
    let mut opened = match dry_run {
        true => OpenVm::as_it_is(context, lock)?,
        false => OpenVm::with_lock(context, lock).await?,
    };
    let mut seen = spared.to_vec();
    loop {
        let record = context.store.load(vm)?;
        if record.is_template() {
            return Ok(all);
        }
        let Some(hidden) = CollapsePlan::hidden(context, vm, &record, &mut seen)? else {
            return Ok(all);
        };
        if hidden
            .changes()
            .merges
            .iter()
            .any(|merge| spared.contains(&merge.base.id) || spared.contains(&merge.top.id))
        {
            continue;
        }
        if dry_run {
            all.extend(hidden.outcomes(None));
            continue;
        }
        let running = opened.state().await? == State::Running;
        let trash = Store::trash_name(&trash::Kind::Gc, vm);
        let plan =
            plan::collapse(&record, &record, hidden.changes(), running, trash::Kind::Gc, trash);
        let report = opened.carry_out(plan).await?;
        if let Some(why) = report.unmerged {
            return Err(Error::qemu("they could not be merged").because(why));
        }
        all.extend(hidden.outcomes(None));
        // What stood in the way of another one may be gone.
        seen = spared.to_vec();
    }
}
