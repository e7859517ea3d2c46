//! What a snapshot, a revert and a removal make of a record, and the steps that lead there. Pure but for random identities.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::change::{Step, Switched};
use crate::layer::collapse::Action;
use crate::layer::pool::Pool;
use crate::model::{
    Format, Layer, Memory, Merge, MergeKind, Name, RamImage, Record, Snapshot, SnapshotKind, State, VmState,
};
use crate::store::schema::RecordV1;

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
pub struct Taking {
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
pub fn named(record: &Record, taking: &Taking) -> Record {
    let snapshot = Snapshot {
        name: taking.name.clone(),
        parent: record.head.clone(),
        kind: SnapshotKind::External,
        created: Timestamp::now(),
        description: taking.description.clone(),
        // What stands still is consistent, unless it was killed. A freeze that works is noted when it has.
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
    after.head = Some(taking.name.clone());
    after
}

/// The record after the snapshot, and the steps.
pub fn take(record: &Record, taking: &Taking) -> (Record, Vec<Step>) {
    let mut after = named(record, taking);
    let mut steps = Vec::new();
    let mut switched = Vec::new();
    for disk in after.config.writable_mut() {
        let overlay = Layer::new(Format::Qcow2);
        let head = std::mem::replace(&mut disk.layer, overlay.clone());
        steps.push(Step::MakeLayer {
            layer: overlay.clone(),
            backing: Some(head.clone()),
            virtual_bytes: disk.virtual_bytes,
        });
        switched.push(Switched { target: disk.target.clone(), head, overlay });
    }
    let image = taking.memory.as_ref().and_then(|memory| memory.image.clone());
    let running = taking.state == State::Running;
    if taking.state.is_live() && !switched.is_empty() {
        steps.push(Step::AddNodes { layers: switched.iter().map(|disk| disk.overlay.clone()).collect() });
        match image {
            // Memory and disks of one instant need no freeze: a guest that is taken up again goes on where it was.
            Some(image) => {
                steps.push(Step::BeginMemory { image: image.clone(), running });
                steps.push(Step::Pause { resume: running });
                let heads = switched.iter().map(|disk| disk.overlay.clone()).collect();
                steps.push(Step::Switch { disks: switched });
                steps.push(Step::SaveMemory { image, heads, resume: running });
            }
            None => {
                let limit_ms = taking.freeze_limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
                steps.extend(taking.freeze.map(|required| Step::Freeze { required, limit_ms }));
                steps.push(Step::Switch { disks: switched });
                steps.extend(taking.freeze.map(|_| Step::Thaw));
            }
        }
    }
    steps.push(Step::Save { record: Box::new(RecordV1::from(&after)), snapshot: Some(taking.name.clone()) });
    (after, steps)
}

/// A revert that is about to be made.
#[derive(Debug, Clone)]
pub struct Reverting {
    /// QEMU runs.
    pub live: bool,
    /// The snapshot's memory is taken up; its guest runs afterwards, or stands still.
    pub memory: Option<(RamImage, bool)>,
    /// The directory in the trash for the old head.
    pub trash: String,
}

/// The record after a revert to `snapshot`, and the steps: new overlays on its layers, the old head into the trash.
pub fn revert(record: &Record, snapshot: &Snapshot, reverting: &Reverting) -> (Record, Vec<Step>) {
    let mut after = back_at(record, snapshot);
    let mut steps = Vec::new();
    for disk in after.config.writable_mut() {
        let overlay = Layer::new(Format::Qcow2);
        let backing = std::mem::replace(&mut disk.layer, overlay.clone());
        steps.push(Step::MakeLayer { layer: overlay, backing: Some(backing), virtual_bytes: disk.virtual_bytes });
    }
    if reverting.live {
        steps.push(Step::StopQemu);
    }
    if let Some((image, _)) = &reverting.memory {
        steps.push(Step::LoadMemory { image: image.clone(), record: Box::new(RecordV1::from(&after)) });
    }
    steps.push(Step::save(&after));
    let kept: Vec<&Layer> = after.layers().collect();
    let layers: Vec<Layer> =
        record.config.writable().map(|disk| disk.layer.clone()).filter(|layer| !kept.contains(&layer)).collect();
    steps.push(trash(record, reverting.trash.clone(), "revert", layers, None));
    if let Some((_, true)) = reverting.memory {
        steps.push(Step::Resume);
    }
    (after, steps)
}

/// The record with its head's configuration as it was at `snapshot`, layers and all; a generation id is never used twice.
pub fn back_at(record: &Record, snapshot: &Snapshot) -> Record {
    let mut after = record.clone();
    after.config = snapshot.config.clone();
    after.config.generation = Uuid::new_v4();
    after.head = Some(snapshot.name.clone());
    after
}

/// The step that keeps what a change takes out of use, for `undo`.
pub fn trash(before: &Record, directory: String, what: &str, layers: Vec<Layer>, way_back: Option<String>) -> Step {
    Step::Trash { directory, what: what.to_owned(), layers, before: Box::new(RecordV1::from(before)), way_back }
}

/// The record without `name`: what stood on it stands on its parent.
pub fn without(record: &Record, name: &Name) -> Record {
    let mut after = record.clone();
    let parent =
        record.snapshots.iter().find(|snapshot| snapshot.name == *name).and_then(|snapshot| snapshot.parent.clone());
    after.snapshots.retain(|snapshot| snapshot.name != *name);
    for snapshot in after.snapshots.iter_mut().filter(|snapshot| snapshot.parent.as_ref() == Some(name)) {
        snapshot.parent.clone_from(&parent);
    }
    if after.head.as_ref() == Some(name) {
        after.head = parent;
    }
    after
}

/// The snapshots that go when `name` is removed in this way, from the leaves down.
pub fn victims(record: &Record, name: &Name, which: Which) -> Vec<Name> {
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

/// What becomes of the layers of one VM.
#[derive(Debug, Clone, Default)]
pub struct Moves {
    /// Layers that are merged.
    pub merges: Vec<Merge>,
    /// Layers that go into the trash.
    pub trashed: Vec<Layer>,
}

impl Moves {
    /// Adds what the collapse planner has decided for one disk.
    pub fn add(&mut self, target: &str, actions: &[Action], pool: &Pool) {
        for action in actions {
            let (kind, top, base, bytes) = match action {
                Action::Drop(layer) => {
                    self.trashed.push(layer.clone());
                    continue;
                }
                Action::Keep { .. } => continue,
                Action::Commit { top, base, bytes } => (MergeKind::Commit, top, base, *bytes),
                Action::Stream { top, gone, bytes } => (MergeKind::Stream, top, gone, *bytes),
            };
            self.merges.push(Merge {
                overlay: pool.children(&top.id).next().map(|info| info.layer.clone()),
                below: pool.layers.get(&base.id).and_then(|info| info.backing.clone()),
                ..Merge::pair(target, kind, top, base, bytes)
            });
        }
    }
}

/// The steps that give up names and merge what they leave: save the record without the names, merge, re-point what was named after a
/// vanished layer, clean up. `dropped` is the record without the names.
pub fn collapse(
    before: &Record,
    dropped: &Record,
    moves: Moves,
    running: bool,
    what: &str,
    trash: String,
) -> Vec<Step> {
    let Moves { merges, trashed } = moves;
    let mut repointed = dropped.clone();
    for merge in merges.iter().filter(|merge| merge.kind == MergeKind::Commit) {
        for gone in merge.vanishing() {
            repoint(&mut repointed, gone, &merge.base);
        }
    }
    let merging = !merges.is_empty();
    let vanishing: Vec<Layer> = merges.iter().flat_map(Merge::vanishing).cloned().collect();
    let mut steps = vec![Step::save(dropped)];
    if !merges.is_empty() {
        steps.push(Step::Merge { merges });
    }
    if repointed != *dropped {
        steps.push(Step::save(&repointed));
    }
    // Whatever was merged, the guest stood still for the switch.
    if running && merging {
        steps.push(Step::Resume);
    }
    if !vanishing.is_empty() {
        steps.push(Step::RemoveMerged { layers: vanishing });
    }
    let named = |image: &RamImage| dropped.snapshots.iter().any(|kept| kept.ram_image() == Some(image));
    let images: Vec<RamImage> =
        before.snapshots.iter().filter_map(Snapshot::ram_image).filter(|image| !named(image)).cloned().collect();
    if !images.is_empty() {
        steps.push(Step::RemoveMemory { images });
    }
    if !trashed.is_empty() {
        steps.push(self::trash(before, trash, what, trashed, None));
    }
    steps
}

/// The record as it is after `action`: what is committed is called by the layer that it went into.
pub fn repointed(mut record: Record, action: &Action) -> Record {
    if let Action::Commit { top, base, .. } = action {
        repoint(&mut record, top, base);
    }
    record
}

fn repoint(record: &mut Record, from: &Layer, to: &Layer) {
    let snapshots = record.snapshots.iter_mut().map(|snapshot| &mut snapshot.config);
    for config in snapshots.chain([&mut record.config]) {
        for disk in config.disks.iter_mut().chain(&mut config.nvram).filter(|disk| disk.layer == *from) {
            disk.layer = to.clone();
        }
    }
}
