//! What a snapshot, a revert and a removal make of a record, and the steps that lead there. Pure but for random identities.

use jiff::Timestamp;
use uuid::Uuid;

use crate::change::{Step, Switched};
use crate::layer::collapse::Action;
use crate::model::{
    Format, Layer, Memory, Merge, MergeKind, Name, RamImage, Record, Snapshot, SnapshotKind, State, VmState,
};
use crate::store::schema::RecordV1;

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
    /// Freeze first, and fail when that fails.
    pub freeze: Option<bool>,
    /// Save the guest's memory, too.
    pub memory: Option<Memory>,
    /// When `gc` may remove it.
    pub expires: Option<Timestamp>,
}

/// The record after the snapshot, and the steps.
pub fn take(record: &Record, taking: &Taking) -> (Record, Vec<Step>) {
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
                steps.extend(taking.freeze.map(|required| Step::Freeze { required }));
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
    let mut after = record.clone();
    after.config = snapshot.config.clone();
    after.config.generation = Uuid::new_v4();
    after.head = Some(snapshot.name.clone());
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
    steps.push(Step::Trash {
        directory: reverting.trash.clone(),
        what: "revert".to_owned(),
        layers,
        before: Box::new(RecordV1::from(record)),
    });
    if let Some((_, true)) = reverting.memory {
        steps.push(Step::Resume);
    }
    (after, steps)
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

/// One disk's actions, with what is needed to carry them out.
#[derive(Debug, Clone)]
pub struct DiskActions {
    /// `vda`, …
    pub target: String,
    /// From the collapse planner, with what the merged layers stand between.
    pub actions: Vec<(Action, Neighbours)>,
}

/// What a merge happens between.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    /// What stands on the upper layer.
    pub overlay: Option<Layer>,
    /// What the lower layer stands on.
    pub below: Option<Layer>,
}

/// The steps of a removal: drop the name, merge, re-point what was named after a vanished layer, clean up.
pub fn remove(before: &Record, dropped: &Record, disks: &[DiskActions], running: bool, trash: String) -> Vec<Step> {
    let mut merges = Vec::new();
    let mut trashed = Vec::new();
    for disk in disks {
        for (action, neighbours) in &disk.actions {
            let merge = |kind, top: &Layer, base: &Layer, bytes: u64| Merge {
                target: disk.target.clone(),
                kind,
                top: top.clone(),
                base: base.clone(),
                below: neighbours.below.clone(),
                overlay: neighbours.overlay.clone(),
                bytes,
            };
            match action {
                Action::Drop(layer) => trashed.push(layer.clone()),
                Action::Commit { top, base, bytes } => merges.push(merge(MergeKind::Commit, top, base, *bytes)),
                Action::Stream { top, gone, bytes } => merges.push(merge(MergeKind::Stream, top, gone, *bytes)),
                Action::Keep { .. } => {}
            }
        }
    }
    let mut repointed = dropped.clone();
    for merge in merges.iter().filter(|merge| merge.kind == MergeKind::Commit) {
        repoint(&mut repointed, &merge.top, &merge.base);
    }
    let switches_head = merges.iter().any(Merge::is_active);
    let vanishing: Vec<Layer> = merges.iter().map(|merge| merge.vanishing().clone()).collect();
    let mut steps = vec![Step::save(dropped)];
    if !merges.is_empty() {
        steps.push(Step::Merge { merges });
    }
    if repointed != *dropped {
        steps.push(Step::save(&repointed));
    }
    if running && switches_head {
        steps.push(Step::Resume);
    }
    if !vanishing.is_empty() {
        steps.push(Step::RemoveMerged { layers: vanishing });
    }
    let images: Vec<RamImage> = before
        .snapshots
        .iter()
        .filter_map(Snapshot::ram_image)
        .filter(|image| dropped.snapshots.iter().all(|kept| kept.ram_image() != Some(*image)))
        .cloned()
        .collect();
    if !images.is_empty() {
        steps.push(Step::RemoveMemory { images });
    }
    if !trashed.is_empty() {
        let before = Box::new(RecordV1::from(before));
        steps.push(Step::Trash { directory: trash, what: "snapshot-rm".to_owned(), layers: trashed, before });
    }
    steps
}

fn repoint(record: &mut Record, from: &Layer, to: &Layer) {
    let snapshots = record.snapshots.iter_mut().map(|snapshot| &mut snapshot.config);
    for config in snapshots.chain([&mut record.config]) {
        for disk in config.disks.iter_mut().chain(&mut config.nvram).filter(|disk| disk.layer == *from) {
            disk.layer = to.clone();
        }
    }
}
