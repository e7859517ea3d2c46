//! What a snapshot, a revert and a removal make of a record, and the steps that lead there. Pure
//! but for random identities.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::live_steps::{AddNodes, Freeze, Switch, Switched, Thaw};
use super::memory_steps::{BeginMemory, LoadMemory, Pause, SaveMemory};
use crate::change::{Plan, Planned};
use crate::model::{
    Format, Layer, Memory, Name, RamImage, Record, Snapshot, SnapshotKind, State, VmState,
};
use crate::steps::layers::CreateOverlay;
use crate::steps::qemu::{Resume, StopQemu};
use crate::steps::record::WriteRecord;
use crate::steps::trash::TrashLayers;
use crate::store::schema::RecordV1;
use crate::store::trash;

/// What is removed along with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Which {
    /// Nothing: what depends on it depends on its parent then.
    #[default]
    Alone,
    /// Everything that depends on it.
    WithChildren,
    /// Everything that depends on it, and not itself.
    ChildrenOnly,
}

/// Freeze the guest's file systems first?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quiesce {
    /// If the guest agent is there; go on with a warning when it fails.
    #[default]
    Auto,
    /// Fail when it fails.
    Require,
    /// No.
    Never,
}

/// A snapshot that is about to be taken.
#[derive(Debug, Clone)]
pub(crate) struct Taking {
    /// Its name.
    pub name: Name,
    /// The user's words.
    pub description: String,
    /// What the VM is doing.
    pub state: State,
    /// Freeze first; true: fail when that fails.
    pub freeze: Option<bool>,
    /// How long the freeze may take.
    pub freeze_limit: Option<Duration>,
    /// Save the guest's memory, too.
    pub memory: Option<Memory>,
    /// When `gc` may remove it.
    pub expires: Option<Timestamp>,
}

/// The record with the snapshot; its layers are still the head's.
pub(crate) fn named(record: &Record, taking: &Taking) -> Record {
    let snapshot = Snapshot {
        name: taking.name.clone(),
        parent: record.current.clone(),
        kind: SnapshotKind::External,
        created: Timestamp::now(),
        description: taking.description.clone(),
        // What stands still is consistent, unless it was killed. A freeze that works is noted when
        // it has.
        quiesced: matches!(taking.state, State::Paused | State::Stopped),
        vm_state: match taking.state {
            State::Running => VmState::Running,
            State::Paused => VmState::Paused,
            State::Stopped | State::Crashed => VmState::Stopped,
        },
        memory: taking.memory.clone(),
        expires: taking.expires,
        config: record.config.clone(),
    };
    let mut after = record.clone();
    after.snapshots.push(snapshot);
    after.current = Some(taking.name.clone());
    after
}

/// The record after the snapshot, and the plan.
pub(crate) fn take(record: &Record, taking: &Taking) -> (Record, Plan) {
    let mut after = named(record, taking);
    let mut before: Vec<Planned> = Vec::new();
    let mut switched = Vec::new();
    for disk in after.config.writable_mut() {
        let overlay = Layer::new(Format::Qcow2);
        let head = std::mem::replace(&mut disk.layer, overlay.clone());
        let (layer, backing) = (overlay.clone(), Some(head.clone()));
        before.push(CreateOverlay { layer, backing, virtual_bytes: disk.virtual_bytes }.into());
        switched.push(Switched { target: disk.target.clone(), head, overlay });
    }
    let write = WriteRecord::with_snapshot(&after, &taking.name);
    if !taking.state.is_live() || switched.is_empty() {
        return (after, Plan::before(before).pivot(write));
    }
    let overlays: Vec<Layer> = switched.iter().map(|disk| disk.overlay.clone()).collect();
    before.push(AddNodes { layers: overlays.clone() }.into());
    let running = taking.state == State::Running;
    let mut last: Vec<Planned> = Vec::new();
    match taking.memory.as_ref().and_then(|memory| memory.image.clone()) {
        // Memory and disks of one instant need no freeze: a guest that is taken up again goes on
        // where it was.
        Some(image) => {
            before.push(BeginMemory { image: image.clone(), running }.into());
            before.push(Pause { resume: running }.into());
            last.push(SaveMemory { image, heads: overlays, resume: running }.into());
        }
        None => {
            let limit_ms = taking
                .freeze_limit
                .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
            before.extend(taking.freeze.map(|required| Freeze { required, limit_ms }.into()));
            last.extend(taking.freeze.map(|_| Thaw {}.into()));
        }
    }
    last.push(write.into());
    (after, Plan::before(before).pivot(Switch { disks: switched }).after(last))
}

/// A revert that is about to be made.
#[derive(Debug, Clone)]
pub(crate) struct Reverting {
    /// QEMU runs.
    pub live: bool,
    /// The snapshot's memory is taken up; its guest runs afterwards, or stands still.
    pub memory: Option<(RamImage, bool)>,
    /// The directory in the trash for the old head.
    pub trash: String,
}

/// The record after a revert to `snapshot`, and the plan: new overlays on its layers, the old head
/// into the trash.
pub(crate) fn revert(
    record: &Record,
    snapshot: &Snapshot,
    reverting: &Reverting,
) -> (Record, Plan) {
    let mut after = back_at(record, snapshot);
    let mut before: Vec<Planned> = Vec::new();
    for disk in after.config.writable_mut() {
        let layer = Layer::new(Format::Qcow2);
        let backing = Some(std::mem::replace(&mut disk.layer, layer.clone()));
        before.push(CreateOverlay { layer, backing, virtual_bytes: disk.virtual_bytes }.into());
    }
    if reverting.live {
        before.push(StopQemu {}.into());
    }
    if let Some((image, _)) = &reverting.memory {
        before.push(
            LoadMemory { image: image.clone(), record: Box::new(RecordV1::from(&after)) }.into(),
        );
    }
    let kept: Vec<&Layer> = after.layers().collect();
    let layers: Vec<Layer> = record
        .config
        .writable()
        .map(|disk| disk.layer.clone())
        .filter(|layer| !kept.contains(&layer))
        .collect();
    let mut last: Vec<Planned> = vec![
        TrashLayers::of(record, reverting.trash.clone(), trash::Kind::Revert, layers, None).into(),
    ];
    if let Some((_, true)) = reverting.memory {
        last.push(Resume {}.into());
    }
    let plan = Plan::before(before).pivot(WriteRecord::of(&after)).after(last);
    (after, plan)
}

/// The record with its head's configuration as it was at `snapshot`, layers and all; a generation
/// id is never used twice.
pub(crate) fn back_at(record: &Record, snapshot: &Snapshot) -> Record {
    let mut after = record.clone();
    after.config = snapshot.config.clone();
    after.config.generation = Uuid::new_v4();
    after.current = Some(snapshot.name.clone());
    after
}

/// The record without `name`: what depended on it depends on its parent.
pub(crate) fn without(record: &Record, name: &Name) -> Record {
    let mut after = record.clone();
    let parent = record
        .snapshots
        .iter()
        .find(|snapshot| snapshot.name == *name)
        .and_then(|snapshot| snapshot.parent.clone());
    after.snapshots.retain(|snapshot| snapshot.name != *name);
    for snapshot in
        after.snapshots.iter_mut().filter(|snapshot| snapshot.parent.as_ref() == Some(name))
    {
        snapshot.parent.clone_from(&parent);
    }
    if after.current.as_ref() == Some(name) {
        after.current = parent;
    }
    after
}

/// The snapshots that go when `name` is removed in this way, from the leaves down.
pub(crate) fn to_remove(record: &Record, name: &Name, which: Which) -> Vec<Name> {
    if which == Which::Alone {
        return vec![name.clone()];
    }
    // A parent always comes before its children: one pass finds them all.
    let mut names = vec![name.clone()];
    for snapshot in &record.snapshots {
        if snapshot.parent.as_ref().is_some_and(|parent| names.contains(parent)) {
            names.push(snapshot.name.clone());
        }
    }
    if which == Which::ChildrenOnly {
        names.remove(0);
    }
    names.reverse();
    names
}

#[cfg(test)]
pub(crate) mod tests;
