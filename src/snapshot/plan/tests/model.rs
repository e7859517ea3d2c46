//! A store as plain data, for the properties of plans: what every layer holds, block by block, and
//! what the steps of a plan make of it. Steps are read in the form that a journal has them in.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::change::planned::Planned;
use crate::change::step::Step;
use crate::layer::graph::LayerGraph;
use crate::layer::info::LayerInfo;
use crate::model::{Disk, Layer, LayerId, Merge, MergeKind, Name, Record};
use crate::steps::layers::CreateOverlay;
use crate::steps::merge::{MergeLayers, RemoveLayers, RemoveMemory};
use crate::steps::record::WriteRecord;
use crate::steps::trash::TrashLayers;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 1 << 16;

/// What was written, by the number of the block.
type Blocks = BTreeMap<u64, u32>;

/// What a guest reads of a disk, block by block; or why it cannot.
type Reading = Result<Vec<u32>, String>;

/// A layer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Held {
    /// What it depends on.
    pub backing: Option<Layer>,
    /// In blocks.
    pub size: u64,
    /// What lies behind the end is the memory of a guest.
    pub blocks: Blocks,
    /// Its internal snapshots: their sizes in blocks, and what they hold.
    pub inner: Vec<(u64, Blocks)>,
}

/// A store.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    /// The pool.
    pub layers: BTreeMap<Layer, Held>,
    /// The layers in the trash.
    pub trash: Vec<Layer>,
    /// The files of guests' memory.
    pub images: BTreeSet<LayerId>,
    /// VMs and templates.
    pub records: BTreeMap<Name, Record>,
    /// The last number that was given away.
    pub last: u32,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// All steps of a kind, as a journal has them.
pub(crate) fn steps_of<S: Step>(steps: &[Planned]) -> Vec<S> {
    steps.iter().filter_map(|step| read(step)).collect()
}

fn read<S: Step + DeserializeOwned>(step: &Planned) -> Option<S> {
    if step.tag() != S::TAG {
        return None;
    }
    let Ok(Value::Object(mut fields)) = serde_json::to_value(step) else {
        panic!("{step:?} has no fields")
    };
    fields.remove("step");
    Some(serde_json::from_value(Value::Object(fields)).expect("a step is read as it was written"))
}

/// How much of a step is done before its process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Half,
    Whole,
}

impl Part {
    fn of<T>(self, all: &[T]) -> &[T] {
        if self == Self::Half { &all[..all.len() / 2] } else { all }
    }
}

impl World {
    pub(crate) fn number(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    pub(crate) fn held(&mut self, layer: &Layer) -> &mut Held {
        self.layers.get_mut(layer).expect("the layer is there")
    }

    /// A new layer without data.
    pub(crate) fn make(&mut self, layer: &Layer, backing: Option<&Layer>, size: u64) {
        assert!(
            backing.is_none_or(|backing| self.layers.contains_key(backing)),
            "{layer} would stand on nothing"
        );
        let held =
            Held { backing: backing.cloned(), size, blocks: Blocks::new(), inner: Vec::new() };
        self.layers.entry(layer.clone()).or_insert(held);
    }

    /// What is read in one block of `layer`.
    fn block(&self, layer: Option<&Layer>, at: u64) -> Result<u32, String> {
        let mut next = layer;
        for _ in 0..=self.layers.len() {
            let Some(layer) = next else { return Ok(0) };
            let held = self.layers.get(layer).ok_or_else(|| format!("{layer} is not there"))?;
            match held.blocks.get(&at) {
                _ if at >= held.size => return Ok(0),
                Some(value) => return Ok(*value),
                None => next = held.backing.as_ref(),
            }
        }
        Err("it stands on itself".to_owned())
    }

    pub(crate) fn reading(&self, layer: &Layer) -> Reading {
        let held = self.layers.get(layer).ok_or_else(|| format!("{layer} is not there"))?;
        (0..held.size).map(|at| self.block(Some(layer), at)).collect()
    }

    fn inner_reading(&self, held: &Held, (size, blocks): &(u64, Blocks)) -> Reading {
        let value = |at| {
            blocks
                .get(&at)
                .map_or_else(|| self.block(held.backing.as_ref(), at), |value| Ok(*value))
        };
        (0..*size).map(value).collect()
    }

    /// The layers that a record names, and those below them.
    pub(crate) fn reachable(&self) -> BTreeSet<Layer> {
        let mut next: Vec<&Layer> = self.records.values().flat_map(Record::layers).collect();
        let mut found = BTreeSet::new();
        while let Some(layer) = next.pop() {
            if found.insert(layer.clone()) {
                next.extend(self.layers.get(layer).and_then(|held| held.backing.as_ref()));
            }
        }
        found
    }

    /// Everything that a user can revert to, and what is read there.
    pub(crate) fn points(&self) -> BTreeMap<String, Reading> {
        self.points_with(&self.reachable())
    }

    /// The points of all records, and the internal snapshots of those of `layers` that are there.
    pub(crate) fn points_with(&self, layers: &BTreeSet<Layer>) -> BTreeMap<String, Reading> {
        let mut points = BTreeMap::new();
        for (name, record) in &self.records {
            let snapshots =
                record.snapshots.iter().map(|snapshot| (snapshot.name.as_str(), &snapshot.config));
            for (point, config) in snapshots.chain([("", &record.config)]) {
                for disk in config.volumes() {
                    points.insert(
                        format!("{name}@{point} {}", disk.target),
                        self.reading(&disk.layer),
                    );
                }
            }
        }
        for layer in layers {
            let Some(held) = self.layers.get(layer) else { continue };
            for (at, inner) in held.inner.iter().enumerate() {
                points.insert(format!("{layer} inside {at}"), self.inner_reading(held, inner));
            }
        }
        points
    }

    /// What a scan would see.
    pub(crate) fn graph(&self) -> LayerGraph {
        let mut graph = LayerGraph::default();
        for (layer, held) in &self.layers {
            let info = LayerInfo {
                backing: held.backing.clone(),
                virtual_bytes: held.size * BLOCK,
                allocated_bytes: held.blocks.len() as u64,
                internal_snapshots: u32::try_from(held.inner.len()).expect("few"),
                guest_memory: held.blocks.keys().any(|at| *at >= held.size),
                ..LayerInfo::unusable(layer.clone())
            };
            graph.layers.insert(layer.id.clone(), info);
        }
        for (name, record) in &self.records {
            graph.add_record(name, record);
        }
        graph
    }

    /// Does a step to the store, on behalf of the VM `name`.
    pub(crate) fn apply(&mut self, name: &Name, step: &Planned, part: Part) {
        if let Some(CreateOverlay { layer, backing, virtual_bytes }) = read(step) {
            self.make(&layer, backing.as_ref(), virtual_bytes / BLOCK);
        } else if let Some(WriteRecord { record, .. }) = read(step) {
            let record = Record::try_from(*record).expect("the record is sound");
            self.records.insert(name.clone(), record);
        } else if let Some(MergeLayers { merges }) = read(step) {
            part.of(&merges).iter().for_each(|merge| self.merge(merge));
        } else if let Some(RemoveLayers { layers }) = read(step) {
            part.of(&layers).iter().for_each(|layer| drop(self.layers.remove(layer)));
        } else if let Some(TrashLayers { layers, .. }) = read(step) {
            let gone = part.of(&layers).iter().filter(|layer| self.layers.remove(*layer).is_some());
            self.trash.extend(gone.cloned());
        } else if let Some(RemoveMemory { images }) = read(step) {
            part.of(&images).iter().for_each(|image| self.images.retain(|id| *id != image.id));
        }
    }

    /// Has an earlier attempt done it? As headers and files tell.
    fn is_done(&self, merge: &Merge) -> bool {
        let backing = |layer: &Layer| self.layers.get(layer).and_then(|held| held.backing.as_ref());
        match (merge.kind, &merge.overlay) {
            (MergeKind::Stream, _) => backing(&merge.top) == merge.below.as_ref(),
            (MergeKind::Commit, Some(overlay)) => backing(overlay) == Some(&merge.base),
            (MergeKind::Commit, None) => !self.layers.contains_key(&merge.top),
        }
    }

    /// What QEMU's block jobs do. The layers that are to vanish are still there afterwards.
    fn merge(&mut self, merge: &Merge) {
        if self.is_done(merge) {
            return;
        }
        let chain: Vec<Layer> =
            [&merge.top].into_iter().chain(&merge.between).chain([&merge.base]).cloned().collect();
        for pair in chain.windows(2) {
            assert_eq!(
                self.held(&pair[0]).backing.as_ref(),
                Some(&pair[1]),
                "{merge:?} is no chain"
            );
        }
        match merge.kind {
            MergeKind::Commit => self.commit(merge, &chain),
            MergeKind::Stream => self.stream(merge, &chain),
        }
    }

    /// What the first of `layers` that tells holds in a block. One that ends before it tells of
    /// zeros.
    fn told(&self, layers: &[Layer], at: u64) -> Option<u32> {
        layers.iter().map(|layer| &self.layers[layer]).find_map(|held| {
            let value = held.blocks.get(&at).copied();
            if at < held.size { value } else { Some(0) }
        })
    }

    fn commit(&mut self, merge: &Merge, chain: &[Layer]) {
        let size = self.held(&merge.top).size;
        let data: Blocks = (0..size)
            .filter_map(|at| Some((at, self.told(&chain[..chain.len() - 1], at)?)))
            .collect();
        self.grow(&merge.base, size);
        self.held(&merge.base).blocks.extend(data);
        if let Some(overlay) = &merge.overlay {
            assert_eq!(
                self.held(overlay).backing.as_ref(),
                Some(&merge.top),
                "{merge:?} has another layer above it"
            );
            self.held(overlay).backing = Some(merge.base.clone());
        }
    }

    fn stream(&mut self, merge: &Merge, chain: &[Layer]) {
        assert_eq!(
            self.held(&merge.base).backing,
            merge.below,
            "{merge:?} stands on something else"
        );
        let size = self.held(&merge.top).size;
        let data: Blocks = (0..size).filter_map(|at| Some((at, self.told(chain, at)?))).collect();
        let top = self.held(&merge.top);
        for (at, value) in data {
            top.blocks.entry(at).or_insert(value);
        }
        top.backing.clone_from(&merge.below);
    }

    /// As QEMU does it: what is below does not show in the new part, and what lies there already
    /// does.
    pub(crate) fn grow(&mut self, layer: &Layer, size: u64) {
        let held = self.layers[layer].clone();
        for at in held.size..size {
            if self.block(held.backing.as_ref(), at) != Ok(0) {
                self.held(layer).blocks.entry(at).or_insert(0);
            }
        }
        let held = self.held(layer);
        held.size = held.size.max(size);
    }

    /// The layers that these VMs have open.
    pub(crate) fn open(&self, names: &[Name]) -> Vec<LayerId> {
        let busy = self.records.iter().filter(|(name, _)| names.contains(name));
        let records = busy.map(|(name, record)| (name.clone(), record.clone())).collect();
        let world = Self { records, layers: self.layers.clone(), ..Self::default() };
        world.reachable().into_iter().map(|layer| layer.id).collect()
    }

    /// The VM with this number, templates left aside.
    pub(crate) fn vm(&self, number: usize) -> Name {
        let vms: Vec<&Name> = self
            .records
            .iter()
            .filter(|(_, record)| !record.is_template())
            .map(|(name, _)| name)
            .collect();
        vms[number % vms.len()].clone()
    }
}

/// A disk of a config by its number.
pub(crate) fn volume(record: &mut Record, number: usize) -> Option<&mut Disk> {
    let count = record.config.writable().count().max(1);
    record.config.writable_mut().nth(number % count)
}
