//! What puts a finding right. Each takes the locks it needs, looks again, and refuses when what it relies on is not so any more. Nothing that may
//! hold data is removed: it goes into the trash.

use std::path::{Path, PathBuf};

use super::{chain, vm};
use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::guest::freeze;
use crate::layer::pool::{self, Pool};
use crate::model::{Format, Layer, Name};
use crate::qemu::img::Img;
use crate::qemu::process;
use crate::store::trash::Entry;
use crate::store::{Store, atomic};
use crate::vm::{gc, live, status};

/// A repair, as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Undo or complete the change that was cut short.
    Recover(Name),
    /// Remove what is left of a VM that never came to be.
    Sweep(Name),
    /// Put the spare copy of a record in the place of one that cannot be read.
    RestoreRecord(Name),
    /// Take an unreadable journal away from a VM that is whole without it.
    SetJournalAside(Name),
    /// Bring a layer that is named back out of the trash.
    RestoreLayer {
        /// Which.
        layer: Layer,
        /// The directory of the trash.
        trash: PathBuf,
    },
    /// Write the right backing file into a layer's header.
    SetBacking {
        /// Which layer.
        layer: Layer,
        /// What it stands on.
        backing: Layer,
    },
    /// Move layers that nobody uses into the trash.
    TrashUnused {
        /// Those that were seen.
        layers: Vec<Layer>,
    },
    /// Move a half-written file into the trash.
    TrashFile(PathBuf),
    /// Remove a temporary file that nobody writes any more.
    RemoveTemporary(PathBuf),
    /// Set permission bits.
    SetMode {
        /// Of what.
        path: PathBuf,
        /// The bits.
        mode: u32,
    },
    /// Remove what a QEMU that crashed has left of its sockets.
    ClearSockets(Name),
    /// Forget a job that has ended and that nobody asks for.
    Dismiss {
        /// Of which VM.
        vm: Name,
        /// The job.
        job: String,
    },
    /// Thaw a guest that somebody left frozen.
    Thaw(Name),
}

/// Applies one.
pub async fn apply(context: &Context, remedy: &Remedy) -> Result<()> {
    let store = &context.store;
    match remedy {
        Remedy::Recover(name) => {
            let lock = store.lock_vm(context, name).await?;
            recover::recover(context, &lock).await.map(drop)
        }
        Remedy::Sweep(_) => {
            let lock = store.lock(context).await?;
            recover::sweep(context, &lock).await
        }
        Remedy::RestoreRecord(name) => restore_record(context, name).await,
        Remedy::SetJournalAside(name) => {
            let _lock = store.lock_vm(context, name).await?;
            let record = store.load(name)?;
            vm::whole(context, &Pool::scan(store)?, name, &record).await.map_err(Error::refused)?;
            set_aside(context, name, &store.layout.journal(name))
        }
        Remedy::RestoreLayer { layer, trash } => {
            let _lock = store.lock(context).await?;
            store.restore_layer(trash, layer)?;
            atomic::sync_directory(&store.layout.layers())
        }
        Remedy::SetBacking { layer, backing } => set_backing(context, layer, backing).await,
        Remedy::TrashUnused { .. } => {
            let _lock = store.lock(context).await?;
            gc::trash_orphans(context, false)
        }
        Remedy::TrashFile(path) => {
            let _lock = store.lock(context).await?;
            let name: Name = "leftovers".parse()?;
            set_aside(context, &name, path)
        }
        Remedy::RemoveTemporary(path) => std::fs::remove_file(path).on("remove", path),
        Remedy::SetMode { path, mode } => {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode)).on("set the permissions of", path)
        }
        Remedy::ClearSockets(name) => {
            let _lock = store.lock_vm(context, name).await?;
            if !status::is_running(context, name)? {
                status::sockets(context, name).iter().for_each(process::clear);
            }
            Ok(())
        }
        Remedy::Dismiss { vm, job } => {
            let _lock = store.lock_vm(context, vm).await?;
            Ok(live::connect(context, vm).await?.dismiss_job(job).await?)
        }
        Remedy::Thaw(name) => {
            let _lock = store.lock_vm(context, name).await?;
            freeze::thaw(context, name).await
        }
    }
}

/// Renames `path` into a directory of the trash of its own.
fn set_aside(context: &Context, name: &Name, path: &Path) -> Result<()> {
    let store = &context.store;
    let entry = Entry::new("doctor", name, &context.operation);
    let trash = store.open_trash(&Store::trash_name("doctor", name), &entry)?;
    std::fs::rename(path, trash.join(path.file_name().unwrap_or_default())).on("move to the trash", path)?;
    path.parent().map_or(Ok(()), atomic::sync_directory)
}

async fn restore_record(context: &Context, name: &Name) -> Result<()> {
    let store = &context.store;
    let _lock = store.lock_vm(context, name).await?;
    if store.load(name).is_ok() {
        return Ok(());
    }
    let spare = store.load_spare(name).ok_or_else(|| Error::refused("there is no spare copy that can be read"))?;
    vm::whole(context, &Pool::scan(store)?, name, &spare).await.map_err(Error::refused)?;
    let damaged = store.layout.vm_json(name);
    if damaged.exists() {
        set_aside(context, name, &damaged)?;
    }
    store.save(name, &spare)
}

/// Nobody may have it open: QEMU writes headers, too. The old header is kept in the trash.
async fn set_backing(context: &Context, layer: &Layer, backing: &Layer) -> Result<()> {
    let store = &context.store;
    let _lock = store.lock(context).await?;
    for name in store.names()? {
        if status::is_running(context, &name)? && store.load(&name).is_ok_and(|record| stands_on(&record, store, layer))
        {
            return Err(Error::refused(format!("{name} runs, and has it open"))
                .hint(format!("stop it first: cowhand stop {name}")));
        }
    }
    if layer.format != Format::Qcow2 || chain::read(store, backing).is_err_and(|_| true) {
        return Err(Error::refused(format!("{backing} is damaged itself")));
    }
    let path = store.layout.layer(layer);
    let name: Name = layer.id.as_str().parse()?;
    let trash =
        store.open_trash(&Store::trash_name("doctor", &name), &Entry::new("doctor", &name, &context.operation))?;
    let kept = trash.join(format!("{}.header", layer.file_name()));
    std::fs::write(&kept, pool::read_start(&path)?).on("write", &kept)?;
    Img::find(context)?.set_backing(&path, backing).await
}

/// Is `layer` named by the record, or below what it names?
fn stands_on(record: &crate::model::Record, store: &Store, layer: &Layer) -> bool {
    // A chain that cannot be read might contain it.
    record.layers().any(|named| chain::read(store, named).map_or(true, |chain| chain.contains(&layer.id)))
}
