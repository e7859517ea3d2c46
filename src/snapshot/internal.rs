//! Internal snapshots: kept inside the qcow2 images themselves. The head goes on in the same
//! layers.
//!
//! | the VM | taken | gone back to | removed |
//! |---|---|---|---|
//! | runs | `snapshot-save`, with memory | a new QEMU and `snapshot-load` | `snapshot-delete` |
//! | is stopped | `qemu-img snapshot -c`, disks alone | the same with `-a` | the same with `-d` |
//!
//! Before the head's layers are taken back, their state is kept as another internal snapshot, for
//! `undo`. Once the layers have been sealed by an external snapshot they are not written any more:
//! going back then copies what the internal snapshot holds into new layers.

use super::internal_steps::{InternalDelete, InternalRevert, InternalSave};
use super::plan;
use crate::change::{OpenVm, Plan, Planned};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{fingerprint, status};
use crate::layer::graph::LayerGraph;
use crate::layer::info;
use crate::merge::outcome::{Outcome, Removed, What};
use crate::model::{
    Disk, Format, Layer, LayerId, Memory, Name, Record, Snapshot, SnapshotKind, human,
};
use crate::qemu::img::{Img, Source};
use crate::qemu::qmp::Qmp;
use crate::steps::layers::CopyInternal;
use crate::steps::qemu::{Resume, StopQemu};
use crate::steps::record::WriteRecord;
use crate::steps::trash::TrashLayers;
use crate::store::{VmLock, trash};

/// How the tags begin under which a head is kept for `undo`.
pub(crate) const UNDO_PREFIX: &str = "cw-undo-";

/// The tags in `layer` under which heads are kept for `undo`.
pub(crate) async fn undo_tags(context: &Context, layer: &Layer) -> Result<Vec<String>> {
    let path = context.store.layout.layer(layer);
    let inside =
        Img::find(context)?.info(&path, Source::File(&path, layer.format)).await?.snapshots;
    Ok(inside
        .into_iter()
        .map(|inner| inner.name)
        .filter(|tag| tag.starts_with(UNDO_PREFIX))
        .collect())
}

/// Refuses a disk that cannot carry internal snapshots, naming it.
pub(crate) fn refuse_formats(vm: &Name, record: &Record) -> Result<()> {
    let Some(disk) = record.config.writable().find(|disk| disk.layer.format != Format::Qcow2)
    else {
        return Ok(());
    };
    Err(Error::refused(format!(
        "disk {} of {vm} is {}, and only qcow2 can carry an internal snapshot",
        disk.target, disk.layer.format
    ))
    .hint(format!(
        "take an external one, after which the disk is qcow2: cowhand snapshot create {vm}"
    )))
}

/// A tag for a new one. QEMU takes a number for its own id, and an image may carry tags that others
/// made: so it is no name of a user's.
pub(crate) fn free_tag() -> String {
    format!("cw-{}", LayerId::random())
}

/// The plan that takes one. `writer` is the QEMU that runs.
pub(crate) async fn take(
    qmp: Option<&mut Qmp>,
    record: &Record,
    taking: &plan::Taking,
    tag: &str,
) -> Result<Plan> {
    let live = qmp.is_some();
    let memory = match qmp {
        Some(qmp) => {
            let writer = fingerprint::fingerprint(qmp, &record.config).await?;
            Some(Memory {
                image: None,
                bytes: 0,
                writer,
                leased: fingerprint::leased(qmp, &record.config),
            })
        }
        None => None,
    };
    let mut after = plan::named(record, taking);
    let layers = layers(record.config.writable());
    if let Some(snapshot) = after.snapshots.last_mut() {
        snapshot.kind = SnapshotKind::Internal { tag: tag.to_owned() };
        snapshot.memory = memory;
    }
    let save = InternalSave { tag: tag.to_owned(), layers, live };
    Ok(Plan::before([save.into()]).pivot(WriteRecord::of(&after)))
}

fn layers<'a>(disks: impl Iterator<Item = &'a Disk>) -> Vec<Layer> {
    disks.map(|disk| disk.layer.clone()).collect()
}

/// Are the layers that carry the snapshot the head's own still?
pub(crate) fn is_in_head(record: &Record, snapshot: &Snapshot) -> bool {
    let place = |disk: &Disk| (disk.target.clone(), disk.layer.clone());
    let of = |config: &crate::model::Config| config.writable().map(place).collect::<Vec<_>>();
    of(&record.config) == of(&snapshot.config)
}

/// How a revert to an internal snapshot goes.
#[derive(Debug)]
pub(crate) struct Reverting<'a> {
    /// The snapshot.
    pub snapshot: &'a Snapshot,
    /// The snapshot that the head follows afterwards.
    pub current: Option<Name>,
    /// The QEMU that runs.
    pub old_pid: Option<i32>,
    /// Take up its memory; the guest runs afterwards, or stands still.
    pub memory: Option<bool>,
    /// The directory in the trash.
    pub trash: String,
    /// What the trash says it was: `revert`, `undo`.
    pub what: trash::Kind,
}

/// The record after a revert, and the plan.
pub(crate) fn revert(record: &Record, reverting: &Reverting<'_>) -> (Record, Plan) {
    let snapshot = reverting.snapshot;
    let tag = snapshot.tag().unwrap_or_default().to_owned();
    let mut after = plan::back_at(record, snapshot);
    after.current.clone_from(&reverting.current);
    let mut before: Vec<Planned> = Vec::new();
    let stop = reverting.old_pid.map(|_| StopQemu {}.into());
    let mut trashed = Vec::new();
    let mut undo_snapshot = None;
    if is_in_head(record, snapshot) {
        let layers = layers(record.config.writable());
        let back = format!("{UNDO_PREFIX}{}", LayerId::random());
        before.extend(stop);
        before.push(InternalSave { tag: back.clone(), layers: layers.clone(), live: false }.into());
        let memory =
            reverting.memory.map(|_| Box::new(crate::store::schema::RecordV1::from(&after)));
        let old_pid = reverting.old_pid;
        before.push(InternalRevert { tag, back: back.clone(), layers, memory, old_pid }.into());
        undo_snapshot = Some(back);
    } else {
        for disk in after.config.writable_mut() {
            let layer = Layer::new(Format::Qcow2);
            let source = std::mem::replace(&mut disk.layer, layer.clone());
            let virtual_bytes = disk.virtual_bytes;
            before.push(CopyInternal { source, tag: tag.clone(), virtual_bytes, layer }.into());
        }
        before.extend(stop);
        let kept: Vec<&Layer> = after.layers().collect();
        trashed = layers(record.config.writable())
            .into_iter()
            .filter(|layer| !kept.contains(&layer))
            .collect();
    }
    let trash = TrashLayers::of(
        record,
        reverting.trash.clone(),
        reverting.what.clone(),
        trashed,
        undo_snapshot,
    );
    let mut last: Vec<Planned> = vec![trash.into()];
    if reverting.memory == Some(true) {
        last.push(Resume {}.into());
    }
    let plan = Plan::before(before).pivot(WriteRecord::of(&after)).after(last);
    (after, plan)
}

/// What [`remove`] would do, or its refusal.
pub(super) fn would_remove(
    context: &Context,
    vm: &Name,
    record: &Record,
    snapshot: &Snapshot,
) -> Result<Vec<Outcome>> {
    refuse_sealed_elsewhere(context, vm, record, snapshot)?;
    let outcome =
        |disk: &Disk| Outcome { target: disk.target.clone(), what: What::Internal, bytes: 0 };
    Ok(snapshot.config.writable().map(outcome).collect())
}

/// Removes an internal snapshot: nothing moves.
pub(super) async fn remove(opened: &mut OpenVm<'_>, name: &Name, tag: &str) -> Result<Removed> {
    let (context, vm, record) = (opened.context(), &opened.name().clone(), &opened.record.clone());
    let snapshot = record.snapshot(vm, name)?;
    let disks: Vec<&Disk> = snapshot.config.writable().collect();
    let _others = refuse_sealed_elsewhere(context, vm, record, snapshot)?;
    let size =
        |disk: &&Disk| info::inspect(&context.store, &disk.layer).map(|info| info.allocated_bytes);
    let before: Vec<u64> = disks.iter().map(size).collect::<Result<_>>()?;
    let delete = InternalDelete { tag: tag.to_owned(), layers: layers(snapshot.config.writable()) };
    let plan = Plan::pivot(WriteRecord::of(&plan::without(record, name))).after([delete.into()]);
    opened.carry_out(plan).await?;
    let outcomes = disks.iter().zip(before).map(|(disk, before)| {
        let now = size(disk).unwrap_or(before);
        Outcome {
            target: disk.target.clone(),
            what: What::Internal,
            bytes: before.saturating_sub(now),
        }
    });
    Ok(Removed { name: name.clone(), outcomes: outcomes.collect(), lost_undo: Vec::new() })
}

/// A sealed layer can be written only while nobody has it open; the locks of those who could open
/// it.
fn refuse_sealed_elsewhere(
    context: &Context,
    vm: &Name,
    record: &Record,
    snapshot: &Snapshot,
) -> Result<Vec<VmLock>> {
    let mut locks: Vec<VmLock> = Vec::new();
    if is_in_head(record, snapshot) {
        return Ok(locks);
    }
    let graph = LayerGraph::scan(&context.store)?;
    for disk in snapshot.config.writable() {
        let mut users = graph.sharers(vm, &disk.layer.id);
        users.push(vm.clone());
        for user in users {
            if user != *vm && !locks.iter().any(|lock| *lock.name() == user) {
                let lock = context.store.try_lock_vm(&user, &context.operation)?;
                locks.push(lock.ok_or_else(|| {
                    Error::locked(format!(
                        "another command is at work on {user}, \
                         which depends on the layer of {vm}@{}",
                        snapshot.name
                    ))
                })?);
            }
            let record = context.store.load(&user)?;
            if record.is_template() {
                return Err(Error::refused(format!(
                    "the layer of {vm}@{} belongs to template {user}",
                    snapshot.name
                )));
            }
            let is_backed_by_it = |head: &Disk| {
                graph
                    .chain(&head.layer.id)
                    .map(|chain| chain.iter().any(|info| info.layer == disk.layer))
            };
            let open = record
                .config
                .volumes()
                .map(is_backed_by_it)
                .collect::<Result<Vec<_>>>()?
                .contains(&true);
            if open && status::is_running(context, &user)? {
                return Err(Error::refused(format!(
                    "{user} is running, and has the layer of {vm}@{} ({}, {}) open",
                    snapshot.name,
                    disk.target,
                    human(disk.virtual_bytes)
                ))
                .hint(format!("stop it first: cowhand stop {user}")));
            }
        }
    }
    Ok(locks)
}
