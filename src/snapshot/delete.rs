//! Removing a snapshot: its name goes, then the layers it leaves unnamed are merged or trashed as [`crate::layer::collapse`]
//! says. The data of every other point stays as it is.

use std::collections::BTreeSet;

use super::plan::{self, DiskActions, Neighbours};
use crate::change::{self, Executor, Plan};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::collapse::{self, Action, Permissions, Why};
use crate::layer::pool::Pool;
use crate::model::{LayerId, Name, Record};
use crate::qemu::qmp::REPLY;
use crate::store::{Store, VmLock};
use crate::vm::{live, open, status};

/// What was done to the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The snapshot.
    pub name: Name,
    /// Per disk and layer.
    pub outcomes: Vec<Outcome>,
}

/// What became of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `vda`, …
    pub target: String,
    /// What was done.
    pub what: What,
    /// About how many bytes moved.
    pub bytes: u64,
}

/// What became of a layer that nobody names any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The layer above was committed into it.
    Committed,
    /// It was streamed into the layer above.
    Streamed,
    /// It went into the trash.
    Trashed,
    /// It stays, for this reason.
    Kept(String),
}

/// Removes `vm@snapshot`.
pub async fn remove(context: &Context, vm: &Name, snapshot: &Name) -> Result<Removed> {
    let (lock, record) = open::open_vm(context, vm, "remove a snapshot of").await?;
    let name = record.snapshot(vm, snapshot)?.name.clone();
    let dropped = plan::without(&record, &name);
    let pool = census(context, vm, &dropped)?;
    // Stopped VMs that stand on what is merged are kept from starting; running ones keep their layers from being written.
    let neighbours = lock_neighbours(context, &pool, vm, &record, &name)?;
    // What they did until we had their locks shows in a second look.
    let pool = census(context, vm, &dropped)?;
    let foreign = neighbours.foreign(&pool)?;
    let uncertain = pool.uncertainty(vm);
    let permissions = Permissions { owner: vm, foreign: &foreign, uncertain: uncertain.as_deref() };
    let disks = actions(&pool, &record, &name, permissions);
    if let Some(count) = internal_snapshots(&disks) {
        return Err(Error::refused(format!(
            "{vm}@{name} carries {count} internal snapshots, which a merge would lose"
        )));
    }
    let mut qmp = live::connect_if_running(context, vm).await?;
    let running = match &mut qmp {
        Some(qmp) => qmp.status(REPLY).await?.running,
        None => false,
    };
    let steps = plan::remove(&record, &dropped, &disks, running, Store::trash_name("snapshot-rm", vm));
    let mut executor = Executor::with(context, vm, qmp);
    let report = change::run(context, &lock, Plan::new(steps), &mut executor).await?;
    let planned = disks.iter().flat_map(|disk| disk.actions.iter().map(|(action, _)| (&disk.target, action)));
    let outcomes = planned.map(|(target, action)| outcome(target, action, &pool, report.unmerged.as_deref())).collect();
    Ok(Removed { name, outcomes })
}

/// The pool as it is when the name is gone.
fn census(context: &Context, vm: &Name, dropped: &Record) -> Result<Pool> {
    let mut pool = Pool::scan(&context.store)?;
    pool.forget(vm);
    pool.add_record(vm, dropped);
    Ok(pool)
}

struct Bystanders {
    _locks: Vec<VmLock>,
    busy: Vec<Name>,
}

impl Bystanders {
    /// The layers of those who are busy, which must not be written.
    fn foreign(&self, pool: &Pool) -> Result<Vec<LayerId>> {
        let mut layers = Vec::new();
        for name in &self.busy {
            layers.extend(open_layers(pool, name)?);
        }
        Ok(layers)
    }
}

/// Locks those who stand on the layers that lose their name, and on the nameless ones below them.
fn lock_neighbours(context: &Context, pool: &Pool, vm: &Name, record: &Record, snapshot: &Name) -> Result<Bystanders> {
    let mut ids: Vec<LayerId> = Vec::new();
    let removed = record.snapshots.iter().filter(|candidate| candidate.name == *snapshot);
    for disk in removed.flat_map(|snapshot| snapshot.config.writable()) {
        let mut next = Some(disk.layer.id.clone());
        while let Some(info) =
            next.and_then(|id| pool.layers.get(&id)).filter(|info| pool.uses(&info.layer.id).is_empty())
        {
            ids.push(info.layer.id.clone());
            next = info.backing.as_ref().map(|backing| backing.id.clone());
        }
    }
    let mut held = Bystanders { _locks: Vec::new(), busy: Vec::new() };
    for other in pool.dependents(vm, &ids) {
        let lock = context.store.try_lock_vm(&other, &context.operation)?;
        let idle =
            lock.is_some() && !context.store.layout.journal(&other).exists() && !status::is_running(context, &other)?;
        held._locks.extend(lock);
        if !idle {
            held.busy.push(other);
        }
    }
    Ok(held)
}

/// Every layer that `vm`, running, has open or a change of it relies on.
fn open_layers(pool: &Pool, vm: &Name) -> Result<BTreeSet<LayerId>> {
    let mut open = BTreeSet::new();
    for (id, _) in pool.uses.iter().filter(|(_, uses)| uses.iter().any(|r#use| r#use.owner() == vm)) {
        if pool.layers.contains_key(id) {
            open.extend(pool.chain(id)?.into_iter().map(|info| info.layer.id.clone()));
        }
    }
    Ok(open)
}

fn actions(pool: &Pool, record: &Record, name: &Name, permissions: Permissions<'_>) -> Vec<DiskActions> {
    let snapshot = record.snapshots.iter().filter(|snapshot| snapshot.name == *name);
    snapshot
        .flat_map(|snapshot| snapshot.config.writable())
        .map(|disk| DiskActions {
            target: disk.target.clone(),
            actions: collapse::plan(pool, &disk.layer.id, permissions)
                .into_iter()
                .map(|action| (action.clone(), between(pool, &action)))
                .collect(),
        })
        .collect()
}

fn between(pool: &Pool, action: &Action) -> Neighbours {
    let (top, base) = match action {
        Action::Commit { top, base, .. } => (top, base),
        Action::Stream { top, gone, .. } => (top, gone),
        Action::Drop(_) | Action::Keep { .. } => return Neighbours::default(),
    };
    Neighbours {
        overlay: pool.children(&top.id).next().map(|info| info.layer.clone()),
        below: pool.layers.get(&base.id).and_then(|info| info.backing.clone()),
    }
}

fn internal_snapshots(disks: &[DiskActions]) -> Option<u32> {
    disks.iter().flat_map(|disk| &disk.actions).find_map(|(action, _)| match action {
        Action::Keep { why: Why::InternalSnapshots(count), .. } => Some(*count),
        _ => None,
    })
}

fn outcome(target: &str, action: &Action, pool: &Pool, unmerged: Option<&str>) -> Outcome {
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
                .flat_map(|layer| pool.uses(&layer.id))
                .map(|r#use| match r#use {
                    crate::layer::pool::Use::Snapshot(vm, snapshot) => format!("{vm}@{snapshot}"),
                    other => other.owner().to_string(),
                })
                .collect();
            users.sort();
            users.dedup();
            if users.is_empty() {
                users.push("hidden ones themselves".to_owned());
            }
            (What::Kept(format!("{} layers stand on it ({})", children.len(), users.join(", "))), 0)
        }
        Action::Keep { why: Why::Uncertain(why), .. } => (What::Kept(why.clone()), 0),
        Action::Keep { why: Why::InUse, .. } => {
            (What::Kept("another VM has it open, or relies on it as it is".to_owned()), 0)
        }
        Action::Keep { why: Why::InternalSnapshots(count), .. } => {
            (What::Kept(format!("it carries {count} internal snapshots")), 0)
        }
    };
    Outcome { target: target.to_owned(), what, bytes }
}
