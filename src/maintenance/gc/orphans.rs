//! Layers and memory that nobody names.

use std::collections::BTreeSet;
use std::fs::DirEntry;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::change::claims::Claims;
use crate::change::lost;
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::layer::garbage::{self, Certainty, Needs};
use crate::layer::graph::LayerGraph;
use crate::layer::info::LayerInfo;
use crate::layer::stamp;
use crate::model::{FileStamp, Name, human};
use crate::store::trash::{self, Entry, Found};
use crate::store::{Store, how_to_mend, plain, schema};
use crate::sys::image_lock;

/// Moves what a removed VM had into its directory of the trash, where whoever removed it died in
/// the middle: `undo` looks for it there. Returns how many layers that were.
pub fn finish_removals(context: &Context) -> Result<usize> {
    let store = &context.store;
    let mut moved = 0;
    for found in store.list_trash()? {
        let is_removed = |entry: &&Entry| {
            entry.what == trash::Kind::Rm && plain::is_there(&found.path.join("vm"))
        };
        let Some(entry) = found.entry.as_ref().ok().filter(is_removed) else { continue };
        match finish_removal(store, &found, entry) {
            Ok(layers) => moved += layers,
            Err(error) => context.ui.warn(&format!(
                "what was left of {} in the pool stays there: {}",
                entry.vm,
                error.full_message()
            )),
        }
    }
    Ok(moved)
}

fn finish_removal(store: &Store, found: &Found, entry: &Entry) -> Result<usize> {
    let mut moved = 0;
    if entry.layers.iter().any(|layer| store.layout.layer(layer).exists()) {
        let mut needs = Needs::of(LayerGraph::scan(store)?);
        needs.graph.add_spares(store)?;
        // That nobody needed them was certain when the VM was removed.
        let Some(layers) = needs.decided(&entry.layers) else { return Ok(0) };
        for layer in layers {
            store.trash_layer(&found.path, &layer)?;
            moved += 1;
        }
        store.flush_trashed(&found.path)?;
    }
    // Where its layers have stayed, so does its memory.
    let record = plain::read_if_possible(&found.path.join("vm/vm.json"));
    if let Some(record) = record.and_then(|text| schema::parse_record(&text).ok())
        && record.layers().all(|layer| !plain::is_there(&store.layout.layer(layer)))
    {
        garbage::trash_memory(store, &record, &found.path)?;
    }
    Ok(moved)
}

/// Layers that nobody names and nobody depends on, left by commands that died. Not while a record
/// cannot be read: it might name them. Returns how many went into the trash.
pub fn trash_orphans(context: &Context, needs: &Needs, dry_run: bool) -> Result<usize> {
    let store = &context.store;
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
                "no record names layer {layer}, which may hold what the \
                 guest of {name} wrote: it stays; see cowhand doctor {name}"
            ));
            return true;
        }
        // Whatever the records say: a QEMU writes to it, or reads from it.
        let is_open = image_lock::is_open(&store.layout.layer(layer)).unwrap_or(true);
        if is_open {
            context
                .ui
                .warn(&format!("no record names layer {layer}, but a QEMU has it open: it stays"));
        }
        is_open
    };
    let orphans = needs.orphans(stays);
    let below = dependencies(store, &needs.graph, &orphans);
    let mut trash = Trash { context, below, directory: None };
    let mut moved = 0;
    for info in &orphans {
        let (layer, bytes) = (&info.layer, human(info.allocated_bytes));
        if dry_run {
            context.ui.note(&format!(
                "layer {layer} ({bytes}) is unused and would be moved to the trash"
            ));
            continue;
        }
        store.trash_layer(trash.directory()?, layer)?;
        moved += 1;
        context.ui.note(&format!("layer {layer} ({bytes}) was unused and is in the trash now"));
    }
    if let Some(directory) = &trash.directory {
        store.flush_trashed(directory)?;
    }
    remove_memory(&mut trash, dry_run)?;
    Ok(moved)
}

/// What these layers depend on, as it is now: once that has changed, they mean nothing. What goes
/// with them is among it: if we are killed on the way, it stays.
fn dependencies(store: &Store, graph: &LayerGraph, going: &[LayerInfo]) -> Vec<FileStamp> {
    let mut seen = BTreeSet::new();
    let mut stamps = Vec::new();
    for info in going {
        let mut next = info.backing.as_ref();
        while let Some(layer) = next.filter(|layer| seen.insert(&layer.id)) {
            stamps.extend(stamp::of(store, layer));
            next = graph.layers.get(&layer.id).and_then(|info| info.backing.as_ref());
        }
    }
    stamps
}

/// The directory of the trash for what nobody names, made for the first of it.
struct Trash<'a> {
    context: &'a Context,
    /// What the layers that go into it depend on.
    below: Vec<FileStamp>,
    directory: Option<PathBuf>,
}

impl Trash<'_> {
    fn directory(&mut self) -> Result<&Path> {
        let Self { context, below, directory } = self;
        let made = match directory.take() {
            Some(made) => made,
            None => {
                let name: Name = "orphans".parse()?;
                let mut entry = Entry::new(trash::Kind::Gc, &name, &context.operation);
                entry.below.clone_from(below);
                context.store.open_trash(&Store::trash_name(&trash::Kind::Gc, &name), &entry)?
            }
        };
        Ok(directory.insert(made))
    }
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

/// Memory of snapshots goes into the trash: a record that was put back may name it. Whatever else
/// is there was never whole, or can be made again, and goes for good.
fn remove_memory(trash: &mut Trash<'_>, dry_run: bool) -> Result<()> {
    let Context { store, ui, .. } = trash.context;
    for entry in unneeded_memory(store)? {
        let bytes = human(entry.metadata().map_or(0, |about| about.len()));
        let image = garbage::snapshot_memory(&entry);
        if image.is_some() && !is_same_disk(&store.layout.trash(), &entry.path()) {
            ui.warn(&format!(
                "memory {0} ({bytes}) belongs to no snapshot, and stays: it is on another disk \
                 than the trash; to remove it: rm {0}",
                entry.path().display()
            ));
            continue;
        }
        match &image {
            _ if dry_run => {}
            Some(image) => store.move_memory(trash.directory()?, image, false)?,
            None => std::fs::remove_file(entry.path()).on("remove", &entry.path())?,
        }
        let what = match (image.is_some(), dry_run) {
            (true, true) => "belongs to no snapshot and would go into the trash",
            (true, false) => "belonged to no snapshot and is in the trash",
            (false, true) => "belongs to nothing and would be removed",
            (false, false) => "belonged to nothing and was removed",
        };
        ui.note(&format!("memory {} ({bytes}) {what}", entry.file_name().to_string_lossy()));
    }
    Ok(())
}

fn is_same_disk(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| path.metadata().ok().map(|about| about.dev());
    device(one) == device(other)
}
