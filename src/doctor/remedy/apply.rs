//! Carrying out remedies. Each takes the locks it needs, looks again, and refuses when what it
//! relies on is not so any more. Nothing that may hold data is removed: it goes into the trash.

use std::path::PathBuf;

use super::aside::{set_aside, set_misplaced_aside};
use super::{Applied, Remedy, layers, records};
use crate::change::recover::{self, Recovered};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::guest::freeze;
use crate::instance::{connect, logs, sockets, status};
use crate::model::Name;
use crate::qemu::process;
use crate::store::plain;

/// Applies one.
pub(crate) async fn apply(context: &Context, remedy: &Remedy) -> Result<Applied> {
    let done = Applied::done;
    match remedy {
        Remedy::Recover(name) => recover(context, name).await,
        Remedy::Sweep(name) => sweep(context, name).await,
        Remedy::RestoreRecord(name) => records::restore_record(context, name).await,
        Remedy::SetSpareAside(name) => records::set_spare_aside(context, name).await,
        Remedy::TakeOver(name) => records::take_over(context, name).await,
        Remedy::RenewSpare(name) => records::renew_spare(context, name).await,
        Remedy::SetJournalAside(name) => records::set_journal_aside(context, name).await,
        Remedy::Adopt(name) => records::adopt(context, name).await.map(Applied::Done),
        Remedy::RestoreLayer { vm, layer, trash } => {
            layers::restore_layer(context, vm, layer, trash).await
        }
        Remedy::RestoreMemory { vm, image } => layers::restore_memory(context, vm, image).await,
        Remedy::SetBacking { layer, backing } => {
            layers::set_backing(context, layer, backing.as_ref()).await?;
            done("that is undone, and the header that was there is in the trash")
        }
        Remedy::TrashUnused { .. } => layers::trash_unused(context).await,
        Remedy::TrashFile(path) => layers::trash_file(context, path).await,
        Remedy::SetAside(path) => set_misplaced_aside(context, path).await,
        Remedy::RemoveTemporary(path) => {
            std::fs::remove_file(path).on("remove", path)?;
            done("it was removed")
        }
        Remedy::SetModes(modes) => {
            set_modes(modes)?;
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
        Remedy::LimitLogs(name) => limit_logs(context, name).await,
        Remedy::WriteStoreFile => write_store_file(context).await,
    }
}

/// Undoes or completes a change that was cut short.
async fn recover(context: &Context, name: &Name) -> Result<Applied> {
    let lock = context.lock_vm(name).await?;
    Applied::done(match recover::recover(context, &lock).await? {
        Recovered::Nothing => return Ok(Applied::NotNeeded),
        Recovered::Undone => "it was undone",
        Recovered::Completed => "it was completed",
        Recovered::Left => "it was left for later",
    })
}

/// Removes what is left of a VM that never came to be.
async fn sweep(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let lock = context.lock_store().await?;
    // It never came to be: whatever a journal says that cannot be read, no VM needs it.
    if let Some(_vm) = store.try_lock_vm(name, &context.operation)?
        && !store.exists(name)
        && let Err(error) = recover::load(context, name)
    {
        records::refuse_unless_damaged(error)?;
        set_aside(context, name, &store.layout.journal(name))?;
    }
    recover::sweep(context, &lock).await?;
    if store.layout.vm(name).exists() && !store.exists(name) {
        return Err(Error::failed("it could not be cleared up"));
    }
    Applied::done("it was cleared up")
}

/// Sets the permissions of files and directories.
fn set_modes(modes: &[(PathBuf, u32)]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for (path, mode) in modes {
        // Links are not followed: it was none when it was looked at.
        if path.is_symlink() {
            continue;
        }
        let bits = std::fs::Permissions::from_mode(*mode);
        std::fs::set_permissions(path, bits).on("set the permissions of", path)?;
    }
    Ok(())
}

/// Limits the logs of a VM that runs.
async fn limit_logs(context: &Context, name: &Name) -> Result<Applied> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let record = store.load(name)?;
    if !status::is_running(context, name)? || logs::are_limited(context, name, &record) {
        return Ok(Applied::NotNeeded);
    }
    logs::limit_anew(context, name, record.config.log_limit).await?;
    Applied::done("it was started")
}

/// Writes a lost `store.json` anew.
async fn write_store_file(context: &Context) -> Result<Applied> {
    let store = &context.store;
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
    Applied::done("it was written anew")
}
