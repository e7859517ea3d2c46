//! What stays in the trash although it is old.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::context::Context;
use crate::error::Result;
use crate::layer::graph::LayerGraph;
use crate::layer::{chain, trashed};
use crate::model::{Layer, LayerId, Name, RamImage, Record, Snapshot};
use crate::store::trash::{Found, Kind};
use crate::store::{Store, VmLock, how_to_mend, plain};

/// Why what was found in the trash may not go: it has a layer or memory that somebody lacks. Which
/// those are is in `lacking`, once it was looked.
pub(super) fn needed(
    store: &Store,
    found: &Found,
    lacking: &mut Option<Lacking>,
) -> Result<Option<String>> {
    let files = trashed::below(&found.path);
    let memory = found.path.join("ram");
    if files.is_empty() && !plain::is_there(&memory) {
        return Ok(None);
    }
    let lacking = match lacking {
        Some(lacking) => lacking,
        None => lacking.insert(Lacking::look(store)?),
    };
    let of_layers = files.iter().find_map(|(layer, path)| lacking.why(store, layer, path));
    Ok(of_layers.or_else(|| lacking.why_memory(&memory)))
}

/// Layers that are named or depended on, and not in the pool, with who names them; and the pool.
/// The same of the memory of snapshots.
pub(super) struct Lacking {
    missing: BTreeMap<LayerId, Option<Name>>,
    memory: Vec<(Name, RamImage)>,
    graph: LayerGraph,
}

impl Lacking {
    fn look(store: &Store) -> Result<Self> {
        let graph = LayerGraph::scan(store)?;
        let by_whom =
            |id: &LayerId| (id.clone(), graph.uses(id).first().map(|r#use| r#use.owner().clone()));
        let mut missing: BTreeMap<_, _> = graph.lacking().into_iter().map(by_whom).collect();
        let mut memory = Vec::new();
        for (name, record) in store.records()? {
            memory.extend(lacking_memory(store, &name, &record));
        }
        // What a record names that cannot be read, its spare copy mostly names, too.
        for name in &graph.unreadable {
            let Some(Ok(spare)) = store.load_spare(name) else { continue };
            let layers =
                spare.layers().filter(|layer| !plain::is_there(&store.layout.layer(layer)));
            missing.extend(layers.map(|layer| (layer.id.clone(), Some(name.clone()))));
            memory.extend(lacking_memory(store, name, &spare));
        }
        Ok(Self { missing, memory, graph })
    }

    /// Why the directory `files` of memory stays.
    fn why_memory(&self, files: &Path) -> Option<String> {
        let there =
            |(_, image): &&(Name, RamImage)| plain::is_there(&files.join(image.file_name()));
        let (name, image) = self.memory.iter().find(there)?;
        let path = files.join(image.file_name());
        Some(format!(
            "{name} lacks the memory of a snapshot, and {} has its name; {}",
            path.display(),
            how_to_mend(name)
        ))
    }

    fn why(&self, store: &Store, layer: &Layer, path: &Path) -> Option<String> {
        let path = path.display();
        if let Some(user) = self.missing.get(&layer.id) {
            return Some(match user {
                Some(name) => format!(
                    "{name} lacks layer {layer}, and {path} has its name; {}",
                    how_to_mend(name)
                ),
                None => format!(
                    "other layers are backed by {layer}, and {path} has its name: cowhand doctor"
                ),
            });
        }
        let name = self.graph.users(&layer.id).into_iter().next()?;
        chain::refuse_unsound(store, layer).err()?;
        Some(format!(
            "layer {layer} of {name} is damaged, and {path} may be a copy; {}",
            how_to_mend(&name)
        ))
    }
}

/// The memory of snapshots of `name` that is not in its place.
fn lacking_memory<'a>(
    store: &'a Store,
    name: &'a Name,
    record: &'a Record,
) -> impl Iterator<Item = (Name, RamImage)> + 'a {
    let images = record.snapshots.iter().filter_map(Snapshot::ram_image);
    let lacking = images.filter(|image| !plain::is_there(&store.layout.ram(image)));
    lacking.map(|image| (name.clone(), image.clone()))
}

/// Are layers of a removed VM still in the pool, because whoever removed it died?
pub(super) fn is_unfinished(store: &Store, found: &Found) -> bool {
    let is_in_pool = |layer: &Layer| plain::is_there(&store.layout.layer(layer));
    let is_removed = plain::is_there(&found.path.join("vm"));
    is_removed
        && found
            .entry
            .as_ref()
            .is_ok_and(|entry| entry.what == Kind::Rm && entry.layers.iter().any(is_in_pool))
}

/// May what was found in the trash belong to `name`, whatever that was called then?
pub(super) fn may_be_of(store: &Store, found: &Found, name: &Name) -> bool {
    let Ok(entry) = &found.entry else { return true };
    entry.vm == *name
        || entry.uuid().is_none_or(|uuid| store.has_uuid(name, |its| its == uuid) != Some(false))
}

/// A directory of the trash that does not say what it is, and is older than this, is not just being
/// made.
const MADE: Duration = Duration::from_secs(60);

/// Keeps everybody away from what was found in the trash; `None` when somebody is at work on it.
/// Who puts something there has the lock of its VM, or, when the whole VM goes, the store's.
pub(super) fn alone(
    context: &Context,
    found: &Found,
    now: Timestamp,
) -> Result<Option<Option<VmLock>>> {
    let store = &context.store;
    let Ok(entry) = &found.entry else {
        return Ok((now.duration_since(found.when).unsigned_abs() >= MADE).then_some(None));
    };
    if !plain::is_there(&store.layout.lock(&entry.vm)) {
        return Ok(Some(None));
    }
    Ok(store.try_lock_vm(&entry.vm, &context.operation)?.map(Some))
}
