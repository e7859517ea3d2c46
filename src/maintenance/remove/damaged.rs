//! Removing a VM whose record is damaged, or was changed by another program.

use uuid::Uuid;

use super::{Options, refuse_relative_link};
use crate::change::open;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::status;
use crate::layer::graph::LayerGraph;
use crate::model::{Name, Record};
use crate::store::trash::{self, Entry};
use crate::store::{Store, atomic};
use crate::sys::fault;

/// A record that was changed by somebody else does not name all that the VM has, which would be
/// nobody's when that is gone.
pub(super) async fn settle_overruled(
    context: &Context,
    name: &Name,
    options: Options,
) -> Result<()> {
    let record = context.store.load(name)?;
    let Err(error) = open::refuse_overruled(context, name, &record) else { return Ok(()) };
    if !options.force {
        return Err(error.hint(format!("or remove it as it is: cowhand rm --force {name}")));
    }
    if spare(context, name).await?.is_none() {
        context.ui.warn(&format!(
            "{}; some layers of {name} may stay in the pool until gc",
            error.full_message()
        ));
        let path = context.store.layout.spare_json(name);
        std::fs::remove_file(&path).on("remove", &path)?;
    }
    Ok(())
}

/// Puts the spare copy of a record that cannot be read in its place, where it fits: then what it
/// names goes with it, and can be had back.
pub(super) async fn spare(context: &Context, name: &Name) -> Result<Option<Record>> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let Some(Ok(spare)) = store.load_spare(name) else { return Ok(None) };
    let graph = LayerGraph::scan(store)?;
    if graph.head_conflict(name, &spare).is_some()
        || spare.layers().any(|layer| !graph.layers.contains_key(&layer.id))
    {
        return Ok(None);
    }
    let record = store.layout.vm_json(name);
    if record.is_dir() {
        let aside = record.with_extension(Uuid::new_v4().simple().to_string());
        fault::point("a directory, about to be set aside").on("move", &record)?;
        std::fs::rename(&record, aside).on("move", &record)?;
    }
    store.save(name, &spare)?;
    Ok(Some(spare))
}

/// Moves what is left of a VM whose record cannot be read into the trash. Its layers stay: nobody
/// knows which they are, and `gc` finds those that nobody else uses.
pub(super) async fn remove_broken(context: &Context, name: &Name) -> Result<Vec<Name>> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    if status::is_running(context, name)? {
        return Err(Error::refused(format!("{name} is running"))
            .hint(format!("stop it first: cowhand stop --force {name}")));
    }
    refuse_relative_link(store, name)?;
    let trash = store.open_trash(
        &Store::trash_name(&trash::Kind::Rm, name),
        &Entry::new(trash::Kind::Rm, name, &context.operation),
    )?;
    let directory = store.layout.vm(name);
    let aside = trash.join("vm");
    fault::point("a damaged VM, on its way to the trash").on("move to the trash", &directory)?;
    std::fs::rename(&directory, &aside).on("move to the trash", &directory)?;
    atomic::sync_rename(&directory, &aside)?;
    Ok(vec![name.clone()])
}
