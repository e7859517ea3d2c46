//! Carrying out remedies. Each takes the locks it needs, looks again, and refuses when what it
//! relies on is not so any more. Nothing that may hold data is removed: it goes into the trash.

use std::path::Path;

use super::super::{chain, memory, record, running, store as places};
use super::{Applied, Remedy};
use crate::change::recover::{self, Recovered};
use crate::change::{OpenVm, lost, open};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::guest::freeze;
use crate::instance::{connect, logs, sockets, status};
use crate::layer::backing_xattr;
use crate::layer::garbage::Needs;
use crate::layer::graph::LayerGraph;
use crate::layer::{info, sealed, stamp, trashed};
use crate::maintenance::gc;
use crate::model::{Format, Layer, Name};
use crate::qemu::img::Img;
use crate::qemu::process;
use crate::steps::restore;
use crate::store::trash::{self, Entry};
use crate::store::{Store, atomic, plain};
use crate::sys::{fault, image_lock};

/// Applies one.
pub async fn apply(context: &Context, remedy: &Remedy) -> Result<Applied> {
    let store = &context.store;
    let done = |words: &str| Ok(Applied::Done(words.to_owned()));
    match remedy {
        Remedy::Recover(name) => {
            let lock = context.lock_vm(name).await?;
            done(match recover::recover(context, &lock).await? {
                Recovered::Nothing => return Ok(Applied::NotNeeded),
                Recovered::Undone => "it was undone",
                Recovered::Completed => "it was completed",
                Recovered::Left => "it was left for later",
            })
        }
        Remedy::Sweep(name) => {
            let lock = context.lock_store().await?;
            // It never came to be: whatever a journal says that cannot be read, no VM needs it.
            if let Some(_vm) = store.try_lock_vm(name, &context.operation)?
                && !store.exists(name)
                && let Err(error) = recover::load(context, name)
            {
                refuse_unless_damaged(error)?;
                set_aside(context, name, &store.layout.journal(name))?;
            }
            recover::sweep(context, &lock).await?;
            if store.layout.vm(name).exists() && !store.exists(name) {
                return Err(Error::failed("it could not be cleared up"));
            }
            done("it was cleared up")
        }
        Remedy::RestoreRecord(name) => {
            restore_record(context, name).await?;
            done("its spare copy is in its place, and what was there is in the trash")
        }
        Remedy::SetSpareAside(name) => {
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
            done("it is in the trash")
        }
        Remedy::TakeOver(name) => {
            take_over(context, name).await?;
            done("its record is one of this store now")
        }
        Remedy::RenewSpare(name) => {
            let _lock = context.lock_vm(name).await?;
            let path = store.layout.spare_json(name);
            match store.load_spare(name) {
                Some(Ok(_)) => return Ok(Applied::NotNeeded),
                _ if plain::no_file_at(&path).is_some() => set_aside(context, name, &path)?,
                _ => {}
            }
            store.renew_spare(name);
            match store.load_spare(name) {
                Some(Ok(_)) => done("it was written anew"),
                _ => Err(Error::failed("it could not be written anew")),
            }
        }
        Remedy::SetJournalAside(name) => {
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
            done("it is in the trash")
        }
        Remedy::RestoreLayer { vm, layer, trash } => {
            let _lock = context.lock_store().await?;
            let opened = OpenVm::open(context, vm).await?;
            // Somebody may have gone somewhere else meanwhile, and put it there.
            if store.layout.layer(layer).exists() || !chain::lacks(store, &opened.record, layer) {
                return Ok(Applied::NotNeeded);
            }
            let file = store.layout.layer(layer);
            if plain::is_there(&file) {
                // A link that leads nowhere.
                set_aside(context, vm, &file)?;
            }
            let Some(found) = store.list_trash()?.into_iter().find(|found| found.path == *trash)
            else {
                return Ok(Applied::NotNeeded);
            };
            match trashed::of(&found, layer) {
                None => return Ok(Applied::NotNeeded),
                Some(Err(why)) => {
                    return Err(Error::refused(format!(
                        "what is in the trash may not be {layer}: {why}"
                    )));
                }
                Some(Ok(())) => {}
            }
            let below = trashed::stood_on(store, &found, layer);
            restore::restore_or_put_back(store, vm, trash, std::slice::from_ref(layer), &below)?;
            atomic::sync_directory(&store.layout.layers())?;
            done("it was taken out again")
        }
        Remedy::RestoreMemory { vm, image } => {
            let _lock = context.lock_store().await?;
            let opened = OpenVm::open(context, vm).await?;
            match memory::take_out(store, &opened.record, image)? {
                true => done("it was taken out again"),
                false => Ok(Applied::NotNeeded),
            }
        }
        Remedy::SetBacking { layer, backing } => {
            set_backing(context, layer, backing.as_ref()).await?;
            done("that is undone, and the header that was there is in the trash")
        }
        Remedy::TrashUnused { .. } => {
            let _lock = context.lock_store().await?;
            if let Some(name) = lost::directories(store)?.first() {
                return Err(Error::refused(format!(
                    "the record of {name} is missing, and they may belong to it"
                )));
            }
            let needs = Needs::look_for_orphans(store)?;
            if needs.graph.first_broken().is_some() {
                return Err(Error::refused(
                    "a chain is broken, and one of them may be what it lacks",
                ));
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
                _ => done("they are in the trash"),
            }
        }
        Remedy::TrashFile(path) => {
            let _lock = context.lock_store().await?;
            let name: Name = "leftovers".parse()?;
            // By now somebody may have written down that it is his.
            let graph = LayerGraph::scan(store)?;
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let layer = Layer::from_file_name(file.trim_end_matches(".part"));
            if !path.exists() || layer.is_some_and(|layer| !graph.uses(&layer.id).is_empty()) {
                return Ok(Applied::NotNeeded);
            }
            set_aside(context, &name, path)?;
            done("it is in the trash")
        }
        Remedy::SetAside(path) => set_misplaced_aside(context, path).await,
        Remedy::RemoveTemporary(path) => {
            std::fs::remove_file(path).on("remove", path)?;
            done("it was removed")
        }
        Remedy::SetModes(modes) => {
            use std::os::unix::fs::PermissionsExt;
            for (path, mode) in modes {
                // Links are not followed: it was none when it was looked at.
                if path.is_symlink() {
                    continue;
                }
                let bits = std::fs::Permissions::from_mode(*mode);
                std::fs::set_permissions(path, bits).on("set the permissions of", path)?;
            }
            done("they are its owner's alone")
        }
        Remedy::ClearSockets(name) => {
            let _lock = context.lock_vm(name).await?;
            if !status::is_running(context, name)? {
                sockets::of(context, name).iter().for_each(process::clear);
            }
            done("they were removed")
        }
        Remedy::Dismiss { vm, job } => {
            let _lock = context.lock_vm(vm).await?;
            connect::required(context, vm).await?.dismiss_job(job).await?;
            done("it was forgotten")
        }
        Remedy::Thaw(name) => {
            let _lock = context.lock_vm(name).await?;
            freeze::thaw(context, name).await?;
            done("they were thawed")
        }
        Remedy::Adopt(name) => adopt(context, name).await.map(Applied::Done),
        Remedy::LimitLogs(name) => {
            let _lock = context.lock_vm(name).await?;
            let record = store.load(name)?;
            if !status::is_running(context, name)? || logs::are_limited(context, name, &record) {
                return Ok(Applied::NotNeeded);
            }
            logs::limit_anew(context, name, record.config.log_limit).await?;
            done("it was started")
        }
        Remedy::WriteStoreFile => {
            // It may be of another kind, too.
            let _lock = context.lock_store_unprepared().await.ok();
            let file = store.layout.store_json();
            if store.check_identity().is_ok() {
                return Ok(Applied::NotNeeded);
            }
            if plain::no_file_at(&file).is_some() {
                set_aside(context, &"store".parse()?, &file)?;
            }
            store.write_lost_identity()?;
            done("it was written anew")
        }
    }
}

/// Writes a record of another store as one of this, if it fits what is here.
async fn take_over(context: &Context, name: &Name) -> Result<()> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let Some(record) = store.load_of_another_store(name) else { return Ok(()) };
    record::whole(context, &LayerGraph::scan(store)?, name, &record)
        .await
        .map_err(Error::refused)?;
    store.save(name, &record)
}

/// What cannot be read just now, or by this version, is not taken away.
fn refuse_unless_damaged(error: Error) -> Result<()> {
    match error.kind() == Kind::Damaged && !error.is_newer() {
        true => Ok(()),
        false => Err(error),
    }
}

/// What QEMU answers goes before the record, and so do headers: a layer that its guest has written
/// to is the head, whatever the record says. What the record called the head stays below it.
async fn adopt(context: &Context, name: &Name) -> Result<String> {
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
            words.push(format!("{} goes on in {head}", disk.target));
            disk.layer = head.clone();
        }
    }
    store.save(name, &record)?;
    Ok(words.join(", "))
}

/// Moves away what is of another kind than what belongs there.
async fn set_misplaced_aside(context: &Context, path: &Path) -> Result<Applied> {
    let store = &context.store;
    // It may be the lock of the store; then the directory is locked, as long as it is no file.
    let _alone = context.lock_directory(store.layout.root(), "the store").await?;
    let _lock =
        if *path == store.layout.store_lock() { None } else { Some(context.lock_store().await?) };
    if places::what_is_misplaced(store, path).is_none() {
        return Ok(Applied::NotNeeded);
    }
    let owner = path.parent().filter(|directory| directory.parent() == Some(&store.layout.vms()));
    let owner: Option<Name> = owner
        .and_then(Path::file_name)
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse().ok());
    if let Some(name) = &owner
        && *path == store.layout.run_lock(name)
        && (status::is_running(context, name)? || is_written_to(store, name))
    {
        return Err(Error::refused(format!("{name} is running"))
            .hint(format!("stop it first: cowhand stop {name}")));
    }
    let owner = owner.map_or_else(|| "store".parse(), Ok)?;
    set_aside(context, &owner, path)?;
    Ok(Applied::Done("it is in the trash".to_owned()))
}

/// Does some QEMU write to a disk of `name`? If that cannot be seen, maybe.
fn is_written_to(store: &Store, name: &Name) -> bool {
    let Ok(record) = store.load(name) else { return true };
    record
        .config
        .writable()
        .any(|disk| image_lock::is_written_to(&store.layout.layer(&disk.layer)).unwrap_or(true))
}

/// Renames `path` into a directory of the trash of its own.
fn set_aside(context: &Context, name: &Name, path: &Path) -> Result<()> {
    let store = &context.store;
    let entry = Entry::new(trash::Kind::Doctor, name, &context.operation);
    let trash = store.open_trash(&Store::trash_name(&trash::Kind::Doctor, name), &entry)?;
    let aside = trash.join(path.file_name().unwrap_or_default());
    fault::point("a file, about to be set aside").on("move to the trash", path)?;
    std::fs::rename(path, &aside).on("move to the trash", path)?;
    atomic::sync_rename(path, &aside)
}

async fn restore_record(context: &Context, name: &Name) -> Result<()> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let graph = LayerGraph::scan(store)?;
    let is_right = |record: crate::model::Record| {
        graph.head_conflict(name, &record).is_none()
            && open::refuse_overruled(context, name, &record).is_ok()
    };
    if store.load(name).is_ok_and(is_right) {
        return Ok(());
    }
    let spare =
        store.load_spare(name).ok_or_else(|| Error::refused("there is no spare copy"))??;
    record::whole(context, &graph, name, &spare).await.map_err(Error::refused)?;
    let damaged = store.layout.vm_json(name);
    if plain::is_there(&damaged) {
        set_aside(context, name, &damaged)?;
    }
    store.save(name, &spare)
}

/// Nobody may have it open: QEMU writes headers, too. The old header is kept in the trash.
async fn set_backing(context: &Context, layer: &Layer, backing: Option<&Layer>) -> Result<()> {
    let store = &context.store;
    let _lock = context.lock_store().await?;
    for name in store.names()? {
        if status::is_running(context, &name)?
            && store.load(&name).is_ok_and(|record| stands_on(&record, store, layer))
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
fn stands_on(record: &crate::model::Record, store: &Store, layer: &Layer) -> bool {
    // A chain that cannot be read might contain it.
    record
        .layers()
        .any(|named| chain::read(store, named).map_or(true, |chain| chain.contains(&layer.id)))
}
