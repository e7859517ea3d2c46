//! Layers and memory that nobody names.

use std::fs::DirEntry;

use crate::change::claims::Claims;
use crate::change::lost;
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::layer::garbage::{self, Certainty, Needs};
use crate::layer::graph::LayerGraph;
use crate::layer::info::LayerInfo;
use crate::model::{Name, Snapshot, human};
use crate::store::trash::{self, Entry};
use crate::store::{Store, how_to_mend, plain, schema};
use crate::sys::image_lock;

/// Moves what a removed VM had into its directory of the trash, where whoever removed it died in
/// the middle: `undo` looks for it there. Returns how many layers that were.
pub fn finish_removals(store: &Store) -> Result<usize> {
    let mut moved = 0;
    for found in store.list_trash()? {
        let Some(entry) = found
            .entry
            .ok()
            .filter(|entry| entry.what == trash::Kind::Rm && found.path.join("vm").exists())
        else {
            continue;
        };
        if entry.layers.iter().any(|layer| store.layout.layer(layer).exists()) {
            let mut needs = Needs::of(LayerGraph::scan(store)?);
            needs.graph.add_spares(store)?;
            // That nobody needed them was certain when the VM was removed.
            let Some(layers) = needs.decided(&entry.layers) else { continue };
            for layer in layers {
                store.trash_layer(&found.path, &layer)?;
                moved += 1;
            }
            store.flush_trashed(&found.path)?;
        }
        let record = plain::read_if_possible(&found.path.join("vm/vm.json"));
        if let Some(record) = record.and_then(|text| schema::parse_record(&text).ok()) {
            for image in record.snapshots.iter().filter_map(Snapshot::ram_image) {
                store.move_memory(&found.path, image, false)?;
            }
        }
    }
    Ok(moved)
}

/// Layers that nobody names and nobody stands on, left by commands that died. Not while a record
/// cannot be read: it might name them. Returns how many went into the trash.
pub fn trash_orphans(context: &Context, needs: &Needs, dry_run: bool) -> Result<usize> {
    let store = &context.store;
    let name: Name = "orphans".parse()?;
    if let Certainty::NamesUnknown(why) | Certainty::HeadersUnknown(why) = needs.certainty() {
        context.ui.warn(&format!("layers that seem unused are kept: {why}"));
        return Ok(0);
    }
    if let Some(name) = lost::directories(store)?.first() {
        context.ui.warn(&format!(
            "layers that seem unused are kept: the record of {name} is missing, and one of them \
             may belong to it; {}",
            how_to_mend(name)
        ));
        return Ok(0);
    }
    if let Some(broken) = needs.graph.first_broken() {
        context.ui.warn(&format!(
            "layers that seem unused are kept: a chain of {broken} is broken, and one of them may \
             be what it lacks"
        ));
        return Ok(0);
    }
    let stays = |info: &LayerInfo| {
        let layer = &info.layer;
        if let Some(name) = needs.graph.head_below(&layer.id) {
            context.ui.warn(&format!(
                "layer {layer} is named by nobody, and may hold what the \
                 guest of {name} wrote: it stays; see cowhand doctor {name}"
            ));
            return true;
        }
        // Whatever the records say: somebody writes to it, or reads from it.
        let is_open = image_lock::is_open(&store.layout.layer(layer)).unwrap_or(true);
        if is_open {
            context
                .ui
                .warn(&format!("layer {layer} is named by nobody and open in a QEMU: it stays"));
        }
        is_open
    };
    let (mut trash, mut moved) = (None, 0);
    for info in needs.orphans(stays) {
        let (layer, bytes) = (&info.layer, human(info.allocated_bytes));
        if dry_run {
            context.ui.note(&format!(
                "layer {layer} ({bytes}) is used by nobody and would go into the trash"
            ));
            continue;
        }
        let directory = match &trash {
            Some(directory) => directory,
            None => trash.insert(store.open_trash(
                &Store::trash_name(&trash::Kind::Gc, &name),
                &Entry::new(trash::Kind::Gc, &name, &context.operation),
            )?),
        };
        store.trash_layer(directory, layer)?;
        moved += 1;
        context.ui.note(&format!("layer {layer} ({bytes}) was used by nobody and is in the trash"));
    }
    if let Some(directory) = &trash {
        store.flush_trashed(directory)?;
    }
    remove_memory(context, dry_run)?;
    Ok(moved)
}

/// The files of guests' memory that no snapshot has, and no change under way is about to give to
/// one.
pub fn unneeded_memory(store: &Store) -> Result<Vec<DirEntry>> {
    // Files first: what is there now is in a journal or in a record already, if it belongs to
    // anything.
    let files = garbage::memory_files(store);
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let Claims { images, unreadable, .. } = Claims::look(store)?;
    match unreadable.is_empty() {
        true => garbage::unneeded_memory(store, files, images),
        // It may need any of them.
        false => Ok(Vec::new()),
    }
}

fn remove_memory(context: &Context, dry_run: bool) -> Result<()> {
    for entry in unneeded_memory(&context.store)? {
        let bytes = entry.metadata().map_or(0, |about| about.len());
        if !dry_run {
            std::fs::remove_file(entry.path()).on("remove", &entry.path())?;
        }
        let verb = if dry_run {
            "belongs to no snapshot and would be"
        } else {
            "belonged to no snapshot and was"
        };
        let file = entry.file_name().to_string_lossy().into_owned();
        context.ui.note(&format!("memory {file} ({}) {verb} removed", human(bytes)));
    }
    Ok(())
}
