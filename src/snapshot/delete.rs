//! Removing a snapshot: its name goes, then the layers it leaves unnamed are merged or trashed as [`crate::layer::collapse`]
//! says. The data of every other point stays as it is.

use super::bystanders::{self, Bystanders};
use super::internal;
use super::plan::{self, Moves};
use crate::change::{self, Executor, Plan};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::census;
use crate::layer::collapse::{self, Action, Permissions, Why};
use crate::layer::pool::Pool;
use crate::model::{Layer, LayerId, Name, Record, Snapshot};
use crate::qemu::qmp::REPLY;
use crate::store::{Store, VmLock};
use crate::vm::{live, open};

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
    /// It was inside the layer, which stays.
    Internal,
    /// It stays, for this reason.
    Kept(String),
}

/// What is removed along with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// Nothing: what stands on it stands on its parent then.
    #[default]
    Alone,
    /// Everything that stands on it.
    WithChildren,
    /// Everything that stands on it, and not itself.
    ChildrenOnly,
}

/// Removes `vm@snapshot`, or with `dry_run` only says what that would do. Several are removed one by one, from the leaves down.
pub async fn remove(
    context: &Context,
    vm: &Name,
    snapshot: &Name,
    which: Which,
    dry_run: bool,
) -> Result<Vec<Removed>> {
    if !dry_run {
        context.store.give_up_reserve();
    }
    let (lock, record) = open::open_vm(context, vm, "remove a snapshot of").await?;
    remove_locked(context, &lock, record, snapshot, which, dry_run).await
}

/// Removes a snapshot that has expired, as it was seen in the record `seen` of `vm`; not one that has taken its name meanwhile.
pub async fn expire(
    context: &Context,
    vm: &Name,
    seen: &Record,
    snapshot: &Snapshot,
    dry_run: bool,
) -> Result<Vec<Removed>> {
    let (lock, record) = open::open_vm(context, vm, "remove a snapshot of").await?;
    let is_it =
        |now: &Snapshot| (&now.name, now.created, now.expires) == (&snapshot.name, snapshot.created, snapshot.expires);
    if record.uuid != seen.uuid || !record.snapshots.iter().any(is_it) {
        return Ok(Vec::new());
    }
    remove_locked(context, &lock, record, &snapshot.name, Which::Alone, dry_run).await
}

async fn remove_locked(
    context: &Context,
    lock: &VmLock,
    mut record: Record,
    snapshot: &Name,
    which: Which,
    dry_run: bool,
) -> Result<Vec<Removed>> {
    let vm = lock.name();
    let name = record.snapshot(vm, snapshot)?.name.clone();
    let names = plan::victims(&record, &name, which);
    for name in &names {
        refuse_carrier(&context.store, vm, &record, name, &names)?;
    }
    let mut removed = Vec::with_capacity(names.len());
    for name in &names {
        let one = if dry_run {
            let snapshot = record.snapshot(vm, name)?;
            let outcomes = match snapshot.tag() {
                Some(_) => internal::would_remove(context, vm, &record, snapshot)?,
                None => Doomed::look(context, vm, &record, name)?.outcomes(None),
            };
            record = plan::without(&record, name);
            Removed { name: name.clone(), outcomes }
        } else {
            let one = remove_one(context, lock, &record, name).await.map_err(|error| match removed.len() {
                0 => error,
                count => error.hint(format!("{count} of {} were removed and stay so", names.len())),
            })?;
            record = context.store.load(vm)?;
            one
        };
        removed.push(one);
    }
    Ok(removed)
}

async fn remove_one(context: &Context, lock: &VmLock, record: &Record, name: &Name) -> Result<Removed> {
    let vm = lock.name();
    if let Some(tag) = record.snapshot(vm, name)?.tag() {
        return internal::remove(context, lock, record, name, tag).await;
    }
    let doomed = Doomed::look(context, vm, record, name)?;
    let mut qmp = live::connect_if_running(context, vm).await?;
    let running = match &mut qmp {
        Some(qmp) => qmp.status(REPLY).await?.running,
        None => false,
    };
    let trash = Store::trash_name("snapshot-rm", vm);
    let steps = plan::collapse(record, &doomed.dropped, doomed.moves(), running, "snapshot-rm", trash);
    let mut executor = Executor::with(context, vm, qmp);
    let report = change::run(context, lock, Plan::new(steps), &mut executor).await?;
    Ok(Removed { name: name.clone(), outcomes: doomed.outcomes(report.unmerged.as_deref()) })
}

/// Merges layers below `vm` that nobody names and that need not stay. A VM somebody else works on is left for the next time.
/// Layers in `spared` stay as they are.
pub async fn merge_hidden(context: &Context, vm: &Name, spared: &[LayerId], dry_run: bool) -> Result<Vec<Outcome>> {
    let mut all = Vec::new();
    let Some(lock) = context.store.try_lock_vm(vm, &context.operation)? else { return Ok(all) };
    if !dry_run {
        crate::change::recover::recover(context, &lock).await?;
    }
    let mut seen = spared.to_vec();
    loop {
        let record = context.store.load(vm)?;
        if record.is_template() {
            return Ok(all);
        }
        let Some(hidden) = Doomed::hidden(context, vm, &record, &mut seen)? else { return Ok(all) };
        if hidden.moves().merges.iter().any(|merge| spared.contains(&merge.base.id) || spared.contains(&merge.top.id)) {
            continue;
        }
        if dry_run {
            all.extend(hidden.outcomes(None));
            continue;
        }
        let mut qmp = live::connect_if_running(context, vm).await?;
        let running = match &mut qmp {
            Some(qmp) => qmp.status(REPLY).await?.running,
            None => false,
        };
        let steps = plan::collapse(&record, &record, hidden.moves(), running, "gc", Store::trash_name("gc", vm));
        let report = change::run(context, &lock, Plan::new(steps), &mut Executor::with(context, vm, qmp)).await?;
        if let Some(why) = report.unmerged {
            return Err(Error::qemu("they could not be merged").because(why));
        }
        all.extend(hidden.outcomes(None));
        // What stood in the way of another one may be gone.
        seen = spared.to_vec();
    }
}

/// Refuses to remove a point whose layers carry internal snapshots that stay: a merge would lose them.
fn refuse_carrier(store: &Store, vm: &Name, record: &Record, name: &Name, victims: &[Name]) -> Result<()> {
    let snapshot = record.snapshot(vm, name)?;
    if snapshot.tag().is_some() {
        return Ok(());
    }
    for disk in snapshot.config.writable() {
        let inside =
            |other: &&Snapshot| other.tag().is_some() && other.config.writable().any(|inner| inner.layer == disk.layer);
        let ours: Vec<&Name> = record.snapshots.iter().filter(inside).map(|other| &other.name).collect();
        let staying: Vec<String> =
            ours.iter().filter(|other| !victims.contains(other)).map(|other| format!("{vm}@{other}")).collect();
        if !staying.is_empty() {
            return Err(Error::refused(format!(
                "the layer of {vm}@{name} ({}) carries the internal snapshots {}, which a merge would lose",
                disk.target,
                staying.join(", ")
            ))
            .hint(format!("remove them first: cowhand snapshot rm {}", staying.join(" ")))
            .dependents(staying));
        }
        let all = census::inspect(store, &disk.layer)?.internal_snapshots as usize;
        if all > ours.len() {
            return Err(Error::refused(format!(
                "the layer of {vm}@{name} ({}) carries {} internal snapshots that somebody else made, which a merge would lose",
                disk.target,
                all - ours.len()
            ))
            .hint(format!("see them: cowhand disk chain {vm}, cowhand image info FILE"))
            .hint("those a revert has left for undo go with: cowhand gc --older-than 0"));
        }
    }
    Ok(())
}

/// A snapshot that is about to go, and what becomes of the layers it names. Holds the locks that keep others from getting in the way.
struct Doomed {
    pool: Pool,
    dropped: Record,
    disks: Vec<(String, Vec<Action>)>,
    _neighbours: Bystanders,
}

impl Doomed {
    fn look(context: &Context, vm: &Name, record: &Record, name: &Name) -> Result<Self> {
        let going = record.snapshots.iter().filter(|snapshot| snapshot.name == *name);
        let disks = going.flat_map(|snapshot| snapshot.config.writable());
        let layers: Vec<(String, Layer)> = disks.map(|disk| (disk.target.clone(), disk.layer.clone())).collect();
        Self::at(context, vm, plan::without(record, name), &layers)
    }

    /// What becomes of `layers` when the record of `vm` says `dropped`.
    fn at(context: &Context, vm: &Name, dropped: Record, layers: &[(String, Layer)]) -> Result<Self> {
        let ids: Vec<LayerId> = layers.iter().map(|(_, layer)| layer.id.clone()).collect();
        let (neighbours, pool) = Bystanders::lock(context, vm, &dropped, &ids)?;
        let foreign = neighbours.foreign(&pool)?;
        let uncertain = pool.uncertainty(Some(vm));
        let permissions = Permissions { owner: vm, foreign: &foreign, uncertain: uncertain.as_deref() };
        let plan = |(target, layer): &(String, Layer)| (target.clone(), collapse::plan(&pool, &layer.id, permissions));
        let disks = layers.iter().map(plan).collect();
        Ok(Self { pool, dropped, disks, _neighbours: neighbours })
    }

    /// A layer below `vm` that nobody names, with something that can be done about it.
    fn hidden(context: &Context, vm: &Name, record: &Record, seen: &mut Vec<LayerId>) -> Result<Option<Self>> {
        let pool = bystanders::pool_after(context, vm, record)?;
        let volumes = record.snapshots.iter().flat_map(|snapshot| snapshot.config.writable());
        for disk in record.config.writable().chain(volumes) {
            for info in pool.chain(&disk.layer.id)? {
                let id = &info.layer.id;
                if !pool.uses(id).is_empty() || seen.contains(id) {
                    continue;
                }
                seen.push(id.clone());
                let doomed = Self::at(context, vm, record.clone(), &[(disk.target.clone(), info.layer.clone())])?;
                if !doomed.moves().merges.is_empty() {
                    return Ok(Some(doomed));
                }
            }
        }
        Ok(None)
    }

    fn moves(&self) -> Moves {
        let mut moves = Moves::default();
        for (target, actions) in &self.disks {
            moves.add(target, actions, &self.pool);
        }
        moves
    }

    fn outcomes(&self, unmerged: Option<&str>) -> Vec<Outcome> {
        let planned =
            self.disks.iter().flat_map(|(target, actions)| actions.iter().map(move |action| (target, action)));
        planned.map(|(target, action)| outcome(target, action, &self.pool, unmerged)).collect()
    }
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
        Action::Keep { why: Why::BelowInternal(count), .. } => {
            (What::Kept(format!("the layer above carries {count} internal snapshots, which rest on it")), 0)
        }
        Action::Keep { why: Why::InternalSnapshots(count), .. } => {
            (What::Kept(format!("it carries {count} internal snapshots")), 0)
        }
    };
    Outcome { target: target.to_owned(), what, bytes }
}
