//! What becomes of the layers of one VM when names are given up: the merges, the record afterwards,
//! and the steps that lead there. Pure.

use crate::change::{Plan, Planned};
use crate::layer::collapse::Action;
use crate::layer::graph::LayerGraph;
use crate::model::{Layer, Merge, MergeKind, RamImage, Record, Snapshot};
use crate::steps::merge::{MergeLayers, RemoveLayers, RemoveMemory};
use crate::steps::qemu::Resume;
use crate::steps::record::WriteRecord;
use crate::steps::trash::TrashLayers;
use crate::store::trash;

/// What becomes of the layers of one VM.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerChanges {
    /// Layers that are merged.
    pub merges: Vec<Merge>,
    /// Layers that go into the trash.
    pub trashed: Vec<Layer>,
}

impl LayerChanges {
    /// Adds what the collapse planner has decided for one disk.
    pub(crate) fn add(&mut self, target: &str, actions: &[Action], graph: &LayerGraph) {
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
                overlay: graph.children(&top.id).next().map(|info| info.layer.clone()),
                below: graph.layers.get(&base.id).and_then(|info| info.backing.clone()),
                ..Merge::pair(target, kind, top, base, bytes)
            });
        }
    }
}

/// The plan that gives up names and merges what they leave: write the record without the names,
/// merge, re-point what was named after a vanished layer, clean up. `dropped` is the record without
/// the names.
pub(crate) fn collapse(
    before: &Record,
    dropped: &Record,
    changes: LayerChanges,
    running: bool,
    what: trash::Kind,
    trash: String,
) -> Plan {
    let LayerChanges { merges, trashed } = changes;
    let mut repointed = dropped.clone();
    for merge in merges.iter().filter(|merge| merge.kind == MergeKind::Commit) {
        for gone in merge.vanishing() {
            repoint(&mut repointed, gone, &merge.base);
        }
    }
    let merging = !merges.is_empty();
    let vanishing: Vec<Layer> = merges.iter().flat_map(Merge::vanishing).cloned().collect();
    let mut last: Vec<Planned> = Vec::new();
    if merging {
        last.push(MergeLayers { merges }.into());
    }
    if repointed != *dropped {
        last.push(WriteRecord::of(&repointed).into());
    }
    // Whatever was merged, the guest stood still for the switch.
    if running && merging {
        last.push(Resume {}.into());
    }
    if !vanishing.is_empty() {
        last.push(RemoveLayers { layers: vanishing }.into());
    }
    let named =
        |image: &RamImage| dropped.snapshots.iter().any(|kept| kept.ram_image() == Some(image));
    let images: Vec<RamImage> = before
        .snapshots
        .iter()
        .filter_map(Snapshot::ram_image)
        .filter(|image| !named(image))
        .cloned()
        .collect();
    if !images.is_empty() {
        last.push(RemoveMemory { images }.into());
    }
    if !trashed.is_empty() {
        last.push(TrashLayers::of(before, trash, what, trashed, None).into());
    }
    Plan::pivot(WriteRecord::of(dropped)).after(last)
}

/// The record as it is after `action`: what is committed is called by the layer that it went into.
pub(crate) fn repointed(mut record: Record, action: &Action) -> Record {
    if let Action::Commit { top, base, .. } = action {
        repoint(&mut record, top, base);
    }
    record
}

fn repoint(record: &mut Record, from: &Layer, to: &Layer) {
    let snapshots = record.snapshots.iter_mut().map(|snapshot| &mut snapshot.config);
    for config in snapshots.chain([&mut record.config]) {
        for disk in
            config.disks.iter_mut().chain(&mut config.nvram).filter(|disk| disk.layer == *from)
        {
            disk.layer = to.clone();
        }
    }
}
