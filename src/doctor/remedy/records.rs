//! Remedies for records, their spare copies and journals.

use super::super::{record, running};
use super::Applied;
use super::aside::set_aside;
use crate::change::{open, recover};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::instance::connect;
use crate::layer::graph::LayerGraph;
use crate::model::{Name, Record};
use crate::store::trash::{self, Entry};
use crate::store::{Store, plain};

/// Puts the spare copy of a record in its place.
pub(super) async fn restore_record(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let graph = LayerGraph::scan(store)?;
    let is_right = |record: Record| {
        graph.head_conflict(name, &record).is_none()
            && open::refuse_overruled(context, name, &record).is_ok()
    };
    if store.load(name).is_ok_and(is_right) {
        return Ok(Applied::NotNeeded);
    }
    let spare =
        store.load_spare(name).ok_or_else(|| Error::refused("there is no spare copy"))??;
    record::whole(context, &graph, name, &spare).await.map_err(Error::refused)?;
    let damaged = store.layout.vm_json(name);
    if plain::is_there(&damaged) {
        set_aside(context, name, &damaged)?;
    }
    store.save(name, &spare)?;
    Applied::done("its spare copy is in its place, and what was there is in the trash")
}

/// Moves a spare copy into the trash that names what is not whole, beside a record that is.
pub(super) async fn set_spare_aside(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let record = store.load(name)?;
    let Some(spare) = store.overruling(name, &record)? else {
        return Ok(Applied::NotNeeded);
    };
    let graph = LayerGraph::scan(store)?;
    if record::whole(context, &graph, name, &spare).await.is_ok() {
        return Err(Error::refused("its spare copy fits the layers that are here"));
    }
    record::whole(context, &graph, name, &record).await.map_err(Error::refused)?;
    set_aside(context, name, &store.layout.spare_json(name))?;
    store.renew_spare(name);
    Applied::done("it is in the trash")
}

/// Writes the spare copy of a record anew.
pub(super) async fn renew_spare(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let path = store.layout.spare_json(name);
    match store.load_spare(name) {
        Some(Ok(_)) => return Ok(Applied::NotNeeded),
        _ if plain::no_file_at(&path).is_some() => set_aside(context, name, &path)?,
        _ => {}
    }
    store.renew_spare(name);
    match store.load_spare(name) {
        Some(Ok(_)) => Applied::done("it was written anew"),
        _ => Err(Error::failed("it could not be written anew")),
    }
}

/// Writes a record of another store as one of this, if it fits what is here.
pub(super) async fn take_over(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let Some(record) = store.load_of_another_store(name) else {
        return Ok(Applied::NotNeeded);
    };
    record::whole(context, &LayerGraph::scan(store)?, name, &record)
        .await
        .map_err(Error::refused)?;
    store.save(name, &record)?;
    Applied::done("its record is one of this store now")
}

/// Moves a journal that cannot be read into the trash, where the VM is whole.
pub(super) async fn set_journal_aside(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let record = store.load(name)?;
    match recover::load(context, name) {
        Ok(_) => return Ok(Applied::NotNeeded),
        Err(error) => refuse_unless_damaged(error)?,
    }
    record::whole(context, &LayerGraph::scan(store)?, name, &record)
        .await
        .map_err(Error::refused)?;
    set_aside(context, name, &store.layout.journal(name))?;
    Applied::done("it is in the trash")
}

/// What cannot be read just now, or by this version, is not taken away.
pub(super) fn refuse_unless_damaged(error: Error) -> Result<()> {
    match error.kind() == Kind::Damaged && !error.is_newer() {
        true => Ok(()),
        false => Err(error),
    }
}

/// What QEMU answers goes before the record, and so do headers: a layer that its guest has written
/// to is the head, whatever the record says. What the record called the head stays below it.
pub(super) async fn adopt(context: &Context, name: &Name) -> Result<String> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let journal = recover::load(context, name).err();
    let has_damaged_journal = journal.map(refuse_unless_damaged).transpose()?.is_some();
    let mut record = store.load(name)?;
    let graph = LayerGraph::scan(store)?;
    let heads = match connect::if_running(context, name).await? {
        Some(mut qmp) => running::heads(context, &mut qmp, &record).await?,
        None => record::later(context, &graph, name, &record),
    };
    let heads = heads.ok_or_else(|| Error::refused("which layers are its heads is in doubt"))?;
    if has_damaged_journal {
        set_aside(context, name, &store.layout.journal(name))?;
    }
    let before = store.layout.vm_json(name);
    let kept = store.open_trash(
        &Store::trash_name(&trash::Kind::Doctor, name),
        &Entry::new(trash::Kind::Doctor, name, &context.operation),
    )?;
    std::fs::copy(&before, kept.join("vm.json")).on("keep", &before)?;
    let mut words = Vec::new();
    for disk in record.config.writable_mut() {
        if let Some((_, head)) = heads.iter().find(|(target, _)| *target == disk.target) {
            words.push(format!("{} continues in {head}", disk.target));
            disk.layer = head.clone();
        }
    }
    store.save(name, &record)?;
    Ok(words.join(", "))
}
