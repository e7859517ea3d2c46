//! The one rule of what nobody needs: which layers may go, and when nobody can be sure of that.
//!
//! A layer is needed when a record, the spare copy of one, a journal or something in the trash
//! names it, or when a layer depends on it that stays. `rm`, the end of a throw-away VM, `template
//! cool`, `gc` and `doctor` ask here. What a merge leaves is decided by [`super::collapse`], which
//! plans the merge, and what a change takes out of use goes into the trash as its plan says.
//!
//! While a header or a name cannot be seen, nothing goes, with one exception: where all headers can
//! be read, a throw-away VM takes along what it alone wrote to. Such a layer was made for that VM,
//! no other record ever names it, and a layer that is made on it has a header that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirEntry;
use std::path::Path;

use super::graph::LayerGraph;
use super::info::LayerInfo;
use crate::error::{Kind, Result};
use crate::model::{Layer, LayerId, Name, RamImage, Record, Snapshot};
use crate::store::Store;

/// The store at one moment, as far as it tells which layers are needed.
#[derive(Debug, Clone)]
pub struct Needs {
    /// The layers, and who names them.
    pub graph: LayerGraph,
    /// What something in the trash depends on, which can be taken back.
    below_trash: BTreeSet<LayerId>,
    /// Why something in the trash may name any layer.
    unknown: Option<String>,
    /// The VM that goes.
    going: Option<Name>,
}

/// How sure it is who needs what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certainty {
    /// Everything was seen.
    Sure,
    /// A record, a journal, an entry of the trash cannot be read, or a layer is missing, for this
    /// reason: what it names is unknown.
    NamesUnknown(String),
    /// A header cannot be read, or no moment of the store could be seen, for this reason: any layer
    /// may be depended on.
    HeadersUnknown(String),
}

/// The layers that may go, those on top first; and why others have to stay, if they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unneeded {
    /// Those.
    pub layers: Vec<Layer>,
    /// Why it is not certain that the others are needed.
    pub uncertain: Option<String>,
}

/// What kind of VM goes, and what it takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Going {
    /// It goes into the trash, with the layers that its record names, and those below them that
    /// nobody names. Where anything is uncertain, with none.
    IntoTrash,
    /// It was never to stay, and goes for good, with the layers that its record names. Where only
    /// names are uncertain, with those that it wrote to.
    ThrownAway,
}

impl Needs {
    /// Looks at the whole store, the trash included: for layers that are removed for good, or that
    /// go into the trash on their own.
    pub fn look(store: &Store) -> Result<Self> {
        let (graph, below_trash) = LayerGraph::scan_with_trash(store)?;
        let unknown = store.torn_entry()?.map(|entry| in_the_trash(&entry));
        let below_trash = below_trash.into_iter().collect();
        Ok(Self { graph, below_trash, unknown, going: None })
    }

    /// The same, for layers that no record names: what spare copies of records and removed VMs in
    /// the trash name counts, too.
    pub fn look_for_orphans(store: &Store) -> Result<Self> {
        let mut needs = Self::look(store)?;
        needs.graph.add_spares(store)?;
        needs.below_trash.extend(store.restorable_layers()?);
        needs.unknown = unknown(store)?;
        Ok(needs)
    }

    /// What the trash does not need: for layers that go into it together with their VM. What stands
    /// on them in there is taken back after that VM.
    pub fn of(graph: LayerGraph) -> Self {
        Self { graph, below_trash: BTreeSet::new(), unknown: None, going: None }
    }

    /// The same once the VM `name` has gone: what its record says does not count.
    pub fn without(mut self, name: &Name) -> Self {
        self.graph.forget(name);
        Self { going: Some(name.clone()), ..self }
    }

    /// How sure it is who needs what.
    pub fn certainty(&self) -> Certainty {
        let graph = &self.graph;
        if let Some(why) = graph.unseen_headers() {
            return Certainty::HeadersUnknown(why);
        }
        match graph.unseen_names(self.going.as_ref()).or_else(|| self.unknown.clone()) {
            Some(why) => Certainty::NamesUnknown(why),
            None => Certainty::Sure,
        }
    }

    /// The layers that nobody needs once a VM has gone whose record was `record`.
    pub fn freed_by(&self, record: &Record, how: Going) -> Unneeded {
        let ids = |layer: &Layer| layer.id.clone();
        let (mut going, uncertain): (BTreeSet<LayerId>, _) = match self.certainty() {
            Certainty::Sure => (record.layers().map(ids).collect(), None),
            Certainty::NamesUnknown(why) if how == Going::ThrownAway && !record.is_template() => {
                (record.config.writable().map(|disk| ids(&disk.layer)).collect(), Some(why))
            }
            Certainty::NamesUnknown(why) | Certainty::HeadersUnknown(why) => {
                (BTreeSet::new(), Some(why))
            }
        };
        if how == Going::IntoTrash && uncertain.is_none() {
            self.add_hidden_below(&mut going);
        }
        Unneeded { layers: self.free(&going), uncertain }
    }

    /// Of these layers, those that nobody needs. None where anything is uncertain.
    pub fn unneeded_of<'a>(&self, layers: impl Iterator<Item = &'a Layer>) -> Unneeded {
        match self.certainty() {
            Certainty::Sure => {
                let going = layers.map(|layer| layer.id.clone()).collect();
                Unneeded { layers: self.free(&going), uncertain: None }
            }
            Certainty::NamesUnknown(why) | Certainty::HeadersUnknown(why) => {
                Unneeded { layers: Vec::new(), uncertain: Some(why) }
            }
        }
    }

    /// Of layers that were nobody's when it was decided that they go, those that nothing depends on
    /// now. `None` while something might depend on any of them that cannot be seen: something may
    /// have come back out of the trash since then.
    pub fn decided(&self, layers: &[Layer]) -> Option<Vec<Layer>> {
        let graph = &self.graph;
        let is_unseen = |layer: &Layer| !graph.noted.contains_key(&layer.id);
        if graph.unsettled
            || graph.unseen_names(None).is_some()
            || graph.damaged.iter().any(is_unseen)
        {
            return None;
        }
        // A damaged one is not among the layers, and what it depends on is free when it has gone.
        let damaged = layers.iter().filter(|layer| {
            let is_damaged =
                graph.noted.contains_key(&layer.id) && !graph.layers.contains_key(&layer.id);
            is_damaged
                && graph.uses(&layer.id).is_empty()
                && graph.children(&layer.id).next().is_none()
        });
        let mut free: Vec<Layer> = damaged.cloned().collect();
        free.extend(self.free(&layers.iter().map(|layer| layer.id.clone()).collect()));
        Some(free)
    }

    /// All layers that nobody needs, but those that `stays` tells of, with what they depend on.
    pub fn orphans(&self, stays: impl FnMut(&LayerInfo) -> bool) -> Vec<LayerInfo> {
        let all = self.graph.layers.keys().cloned().collect();
        free(&self.graph, &all, &self.below_trash, stays).into_iter().cloned().collect()
    }

    /// The layers below those in `going` that nobody names.
    fn add_hidden_below(&self, going: &mut BTreeSet<LayerId>) {
        let mut next: Vec<LayerId> = going.iter().cloned().collect();
        while let Some(id) = next.pop() {
            let below = self.graph.layers.get(&id).and_then(|info| info.backing.as_ref());
            let Some(below) = below.filter(|below| self.graph.uses(&below.id).is_empty()) else {
                continue;
            };
            if going.insert(below.id.clone()) {
                next.push(below.id.clone());
            }
        }
    }

    fn free(&self, going: &BTreeSet<LayerId>) -> Vec<Layer> {
        let free = free(&self.graph, going, &self.below_trash, |_| false);
        free.into_iter().map(|info| info.layer.clone()).collect()
    }
}

fn in_the_trash(entry: &str) -> String {
    format!("{entry} in the trash cannot be read, and may need them")
}

/// Why something in the trash may name any layer and any memory.
fn unknown(store: &Store) -> Result<Option<String>> {
    let torn = match store.torn_entry()? {
        None => store.unclear_removal()?,
        torn => torn,
    };
    Ok(torn.map(|entry| in_the_trash(&entry)))
}

/// The rule: of the layers in `going`, those that nobody names, that are not in `kept`, and that
/// nothing depends on but layers that go before them. `stays` has the last word on each. As long as
/// the pool is large; the order never leaves a layer without what it depends on.
fn free<'a>(
    graph: &'a LayerGraph,
    going: &BTreeSet<LayerId>,
    kept: &BTreeSet<LayerId>,
    mut stays: impl FnMut(&LayerInfo) -> bool,
) -> Vec<&'a LayerInfo> {
    // How many depend on each. By its note, a damaged layer depends on what it was made on for
    // ever.
    let mut children: BTreeMap<&LayerId, usize> = BTreeMap::new();
    for backing in
        graph.layers.values().chain(graph.noted.values()).filter_map(|info| info.backing.as_ref())
    {
        *children.entry(&backing.id).or_default() += 1;
    }
    let is_free =
        |id: &LayerId| going.contains(id) && !kept.contains(id) && graph.uses(id).is_empty();
    let mut next: Vec<&LayerInfo> =
        going.iter().rev().filter_map(|id| graph.layers.get(id)).collect();
    next.retain(|info| is_free(&info.layer.id) && !children.contains_key(&info.layer.id));
    let mut free = Vec::new();
    while let Some(info) = next.pop() {
        if stays(info) {
            continue;
        }
        free.push(info);
        let Some(backing) = &info.backing else { continue };
        let left = children.get_mut(&backing.id).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) && is_free(&backing.id) {
            next.extend(graph.layers.get(&backing.id));
        }
    }
    free
}

/// The files in `ram/`: memory of guests, and the state of their devices.
pub(crate) fn memory_files(store: &Store) -> Vec<DirEntry> {
    let entries = std::fs::read_dir(store.layout.rams()).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            memory_id(entry).is_some() && entry.file_type().is_ok_and(|kind| kind.is_file())
        })
        .collect()
}

/// The id with which the name of a file in `ram/` begins. What has none, or goes on otherwise than
/// a name of ours, is not ours.
fn memory_id(file: &DirEntry) -> Option<LayerId> {
    let name = file.file_name();
    let (id, rest) = name.to_str()?.split_once('.').unwrap_or((name.to_str()?, ""));
    let whole = rest.strip_suffix("part").or_else(|| rest.strip_suffix("whole"));
    let kind = whole.map_or(rest, |kind| kind.strip_suffix('.').unwrap_or(kind));
    matches!(kind, "" | "zst" | "mem" | "state").then(|| id.parse().ok()).flatten()
}

/// The memory of a snapshot that the name of a file in `ram/` tells of, if that is whole. Neither
/// what a command was writing when it died, nor that of a warm template, which can be made again.
pub(crate) fn snapshot_memory(file: &DirEntry) -> Option<RamImage> {
    let id = memory_id(file)?;
    let images = [false, true].map(|compressed| RamImage { id: id.clone(), compressed });
    images.into_iter().find(|image| *image.file_name() == *file.file_name())
}

/// The memory that VMs name, by their records and the spare copies of these. `None` while a record
/// cannot be read: it may name any.
pub(crate) fn memory_of_vms(store: &Store) -> Result<Option<BTreeSet<LayerId>>> {
    let mut named = BTreeSet::new();
    for name in store.directories()? {
        match store.load(&name) {
            Ok(record) => {
                named.extend(record.memory_images().cloned());
                // Where the two differ, the record may be the one that was put back.
                let lasts = record.ephemeral.is_none();
                let spare = store.load_spare(&name).and_then(Result::ok).filter(|_| lasts);
                named.extend(spare.iter().flat_map(Record::memory_images).cloned());
            }
            // It never came to be, or has gone.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(_) => return Ok(None),
        }
    }
    Ok(store.set_aside()?.is_none().then_some(named))
}

/// Moves the memory of the snapshots of a VM that has gone, whose record was `record`, into its
/// directory of the trash; not what another VM names, a copy of it for example, and nothing while
/// that is unknown.
pub(crate) fn trash_memory(store: &Store, record: &Record, trash: &Path) -> Result<()> {
    let images: Vec<&RamImage> = record.snapshots.iter().filter_map(Snapshot::ram_image).collect();
    if images.is_empty() {
        return Ok(());
    }
    let Some(named) = memory_of_vms(store)? else { return Ok(()) };
    let unnamed = images.into_iter().filter(|image| !named.contains(&image.id));
    unnamed.into_iter().try_for_each(|image| store.move_memory(trash, image, false))
}

/// Of `files`, which were listed before the journals were read, those that no VM names, no removed
/// one in the trash, and no change has `claimed`. None while any of these is unknown.
pub(crate) fn unneeded_memory(
    store: &Store,
    files: Vec<DirEntry>,
    claimed: BTreeSet<LayerId>,
) -> Result<Vec<DirEntry>> {
    let named = memory_of_vms(store)?.filter(|_| unknown(store).is_ok_and(|why| why.is_none()));
    let removed: Option<Vec<Record>> = store.removed_records()?.into_iter().collect();
    let Some((mut named, removed)) = named.zip(removed) else { return Ok(Vec::new()) };
    named.extend(claimed);
    // What a removal that was cut short has still to take along.
    named.extend(removed.iter().flat_map(Record::memory_images).cloned());
    let is_unneeded = |file: &DirEntry| memory_id(file).is_some_and(|id| !named.contains(&id));
    Ok(files.into_iter().filter(is_unneeded).collect())
}

#[cfg(test)]
mod tests;
