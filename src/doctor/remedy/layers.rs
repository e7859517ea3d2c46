//! Remedies for layers and memory.

use std::path::Path;

use super::super::{chain, memory};
use super::Applied;
use super::aside::set_aside;
use crate::change::{OpenVm, lost};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::status;
use crate::layer::garbage::Needs;
use crate::layer::graph::LayerGraph;
use crate::layer::{backing_xattr, info, sealed, stamp, trashed};
use crate::maintenance::gc;
use crate::model::{Format, Layer, Name, RamImage, Record};
use crate::qemu::img::Img;
use crate::steps::restore;
use crate::store::trash::{self, Entry};
use crate::store::{Store, atomic, plain};

/// Takes a layer that `vm` lacks out of the trash.
pub(super) async fn restore_layer(
    context: &Context,
    vm: &Name,
    layer: &Layer,
    trash: &Path,
) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_store().await?;
    let opened = OpenVm::open(context, vm).await?;
    // Another command may have put it there meanwhile.
    if store.layout.layer(layer).exists() || !chain::lacks(store, &opened.record, layer) {
        return Ok(Applied::NotNeeded);
    }
    let file = store.layout.layer(layer);
    if plain::is_there(&file) {
        // A link that leads nowhere.
        set_aside(context, vm, &file)?;
    }
    let Some(found) = store.list_trash()?.into_iter().find(|found| found.path == *trash) else {
        return Ok(Applied::NotNeeded);
    };
    match trashed::of(&found, layer) {
        None => return Ok(Applied::NotNeeded),
        Some(Err(why)) => {
            return Err(Error::refused(format!("what is in the trash may not be {layer}: {why}")));
        }
        Some(Ok(())) => {}
    }
    let below = trashed::dependencies(store, &found, layer);
    restore::restore_or_put_back(store, vm, trash, std::slice::from_ref(layer), &below)?;
    atomic::sync_directory(&store.layout.layers())?;
    Applied::done("it was taken out again")
}

/// Takes memory that `vm` lacks out of the trash.
pub(super) async fn restore_memory(
    context: &Context,
    vm: &Name,
    image: &RamImage,
) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_store().await?;
    let opened = OpenVm::open(context, vm).await?;
    match memory::take_out(store, &opened.record, image)? {
        true => Applied::done("it was taken out again"),
        false => Ok(Applied::NotNeeded),
    }
}

/// Gives `layer` the backing file that it was made on. Nobody may have it open: QEMU writes
/// headers, too. The old header is kept in the trash.
pub(super) async fn set_backing(
    context: &Context,
    layer: &Layer,
    backing: Option<&Layer>,
) -> Result<()> {
    let store = &context.store;
    let _lock = context.lock_store().await?;
    for name in store.names()? {
        if status::is_running(context, &name)?
            && store.load(&name).is_ok_and(|record| depends_on(&record, store, layer))
        {
            return Err(Error::refused(format!("{name} runs, and has it open"))
                .hint(format!("stop it first: cowhand stop {name}")));
        }
    }
    if backing_xattr::read(store, layer).by_note(store) != Some(backing.cloned()) {
        return Err(Error::refused(format!("what {layer} was made on is not certain any more")));
    }
    if layer.format != Format::Qcow2
        || backing.is_some_and(|backing| chain::read(store, backing).is_err())
    {
        return Err(Error::refused("what it was made on is damaged itself"));
    }
    let path = store.layout.layer(layer);
    let before = stamp::of(store, layer)?;
    let name: Name = layer.id.as_str().parse()?;
    let trash = store.open_trash(
        &Store::trash_name(&trash::Kind::Doctor, &name),
        &Entry::new(trash::Kind::Doctor, &name, &context.operation),
    )?;
    let kept = trash.join(format!("{}.header", layer.file_name()));
    atomic::write(&kept, &info::read_start(store, layer)?)?;
    // The other header was no part of what was noted, and what else has changed is not known: it is
    // noted when the next layer is put on it.
    sealed::forget(store, layer);
    Img::find(context)?.set_backing(&path, backing).await?;
    // What lies in it is what it was: an `undo` that relies on it stays possible.
    store.stamp_anew(&before, &stamp::of(store, layer)?)
}

/// Is `layer` named by the record, or below what it names?
fn depends_on(record: &Record, store: &Store, layer: &Layer) -> bool {
    // A chain that cannot be read might contain it.
    record
        .layers()
        .any(|named| chain::read(store, named).map_or(true, |chain| chain.contains(&layer.id)))
}

/// Moves layers that no VM uses into the trash.
pub(super) async fn trash_unused(context: &Context) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_store().await?;
    if let Some(name) = lost::directories(store)?.first() {
        return Err(Error::refused(format!(
            "the record of {name} is missing, and they may belong to it"
        )));
    }
    let needs = Needs::look_for_orphans(store)?;
    if needs.graph.first_broken().is_some() {
        return Err(Error::refused("a chain is broken, and one of them may be what it lacks"));
    }
    if let Some(torn) = store.torn_entry()? {
        return Err(Error::refused(format!(
            "{torn} in the trash cannot be read, and may need one of them"
        )));
    }
    // What belongs to a removal that was cut short goes where `undo` looks for it.
    match gc::finish_removals(context)?
        + gc::trash_orphans(context, &Needs::look_for_orphans(store)?, false)?
    {
        0 => Ok(Applied::NotNeeded),
        _ => Applied::done("they are in the trash"),
    }
}

/// Moves a file between the layers that belongs to none into the trash.
pub(super) async fn trash_file(context: &Context, path: &Path) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_store().await?;
    let name: Name = "leftovers".parse()?;
    // By now a record may name it.
    let graph = LayerGraph::scan(store)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let layer = Layer::from_file_name(file.trim_end_matches(".part"));
    if !path.exists() || layer.is_some_and(|layer| !graph.uses(&layer.id).is_empty()) {
        return Ok(Applied::NotNeeded);
    }
    set_aside(context, &name, path)?;
    Applied::done("it is in the trash")
}
