//! What can be taken back, and why something cannot.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::{Kind, Result};
use crate::layer::stamp;
use crate::model::{Layer, Name, Record};
use crate::store::trash::{self, Entry, Found};
use crate::store::{Store, plain, schema};

/// Something that can be taken back, or could have been.
#[derive(Debug, Clone)]
pub struct Undoable {
    /// What the trash says of it.
    pub entry: Entry,
    /// The VM, by its present name.
    pub vm: Name,
    /// Bytes on disk.
    pub bytes: u64,
    /// Why it cannot be taken back any more.
    pub obstacle: Option<String>,
    /// The directory in the trash.
    pub(super) path: PathBuf,
    /// The record from before it.
    pub(super) before: Record,
}

/// What can be taken back, the last first; of one VM, or of all.
pub(crate) fn list(context: &Context, vm: Option<&Name>) -> Result<Vec<Undoable>> {
    let store = &context.store;
    let records = store.records()?;
    let mut all: Vec<Undoable> = Vec::new();
    for found in store.list_trash()?.into_iter().rev() {
        let Some(entry) = found.entry.ok().filter(Entry::can_be_undone) else {
            continue;
        };
        let file = if entry.what == trash::Kind::Rm { "vm/vm.json" } else { "vm.json" };
        let Some(text) = plain::read_if_possible(&found.path.join(file)) else { continue };
        let Ok(before) = schema::parse_record(&text) else { continue };
        let now = records.iter().find(|(_, record)| record.uuid == before.uuid);
        let name = now.map_or(&entry.vm, |(name, _)| name).clone();
        let missing = |layer: &&Layer| {
            !found.path.join("layers").join(layer.file_name()).exists()
                && !store.layout.layer(layer).exists()
        };
        // A VM whose record could not be read was removed without its layers.
        let disks = before.config.volumes().map(|disk| &disk.layer);
        let needed = disks.filter(|_| entry.what == trash::Kind::Rm);
        let gone = entry
            .layers
            .iter()
            .chain(needed)
            .find(missing)
            .map(|layer| format!("its layer {layer} is not there any more"));
        let away = is_on_another_disk(store, &found.path).then(|| {
            let path = found.path.display();
            format!("{path} leads to another disk; move it back first")
        });
        let obstacle = gone
            .or(away)
            .or_else(|| {
                obstacle(store, &all, &records, &entry, &name, now.map(|(_, record)| record))
            })
            .or_else(|| taken(&records, &before, &entry))
            .or_else(|| unnoted(store, &found.path, &before, &entry));
        all.push(Undoable {
            entry,
            vm: name,
            bytes: found.bytes,
            obstacle,
            path: found.path,
            before,
        });
    }
    all.retain(|undoable| vm.is_none_or(|vm| *vm == undoable.vm));
    Ok(all)
}

/// Does this directory of the trash lie on another file system than the layers? Then nothing is
/// moved back by a rename.
fn is_on_another_disk(store: &Store, trash: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|about| about.dev());
    device(trash) != device(&store.layout.layers())
}

/// Nothing says what a disk of a removed VM depended on: its layer was missing then, or its record
/// could not be read.
fn unnoted(store: &Store, trash: &Path, before: &Record, entry: &Entry) -> Option<String> {
    let is_noted = |layer: &Layer| {
        entry.layers.contains(layer) || entry.below.iter().any(|stamp| stamp.layer == *layer)
    };
    let mut disks = before.config.volumes().map(|disk| &disk.layer);
    let layer = disks.find(|layer| entry.what == trash::Kind::Rm && !is_noted(layer))?;
    Some(format!(
        "the backing file of its layer {layer} was not recorded when the VM was removed, and \
         may have changed; if nothing was merged or removed since then: mv {} {}",
        trash.join("vm").display(),
        store.layout.vm(&entry.vm).display()
    ))
}

/// Another VM or template has one of its layers: then what the entry or the record says is wrong.
fn taken(records: &[(Name, Record)], before: &Record, entry: &Entry) -> Option<String> {
    let layers: Vec<&Layer> = entry.layers.iter().chain(before.layers()).collect();
    records.iter().filter(|(_, record)| record.uuid != before.uuid).find_map(|(name, record)| {
        let layer = record.layers().find(|layer| layers.contains(layer))?;
        Some(format!("its layer {layer} belongs to {name}"))
    })
}

fn obstacle(
    store: &Store,
    later: &[Undoable],
    records: &[(Name, Record)],
    entry: &Entry,
    name: &Name,
    now: Option<&Record>,
) -> Option<String> {
    if let Some(obstacle) = stamp::obstacle(store, records, &entry.below) {
        if let stamp::Obstacle::Changed(layer) = &obstacle {
            // What a later change has put into the trash comes back with that one.
            let first = later
                .iter()
                .find(|later| later.obstacle.is_none() && later.entry.layers.contains(layer));
            if let Some(first) = first {
                return Some(format!(
                    "`{}` of {} has to be taken back first",
                    first.entry.operation, first.vm
                ));
            }
        }
        return Some(obstacle.to_string());
    }
    match (&entry.what, now) {
        (trash::Kind::Rm, None) if store.exists(name) => {
            Some(format!("the name {name} is taken by another VM"))
        }
        (trash::Kind::Rm, Some(_)) => Some("it has been taken back already".to_owned()),
        (trash::Kind::Rm, None) => None,
        (_, None) if store.load(name).is_err_and(|error| error.kind() != Kind::NotFound) => {
            Some(format!("the record of {name} cannot be read: cowhand doctor {name}"))
        }
        (_, None) => Some("the VM is not there any more".to_owned()),
        (_, Some(_)) => None,
    }
}

/// What is in the trash and cannot be used, and may be what is to be taken back.
pub(super) fn unusable(context: &Context, vm: Option<&Name>) -> Result<Option<String>> {
    let trash = context.store.list_trash()?;
    let name =
        |found: &Found| found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_its = |found: &&Found| vm.is_none_or(|vm| name(found).ends_with(&format!("-{vm}")));
    Ok(trash.iter().filter(is_its).find_map(|found| {
        Some(format!(
            "{} in the trash may be what is meant, and cannot be used: {}",
            name(found),
            found.fault()?
        ))
    }))
}
