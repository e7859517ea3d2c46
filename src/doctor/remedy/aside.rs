//! Moving into the trash what is in the way.

use std::path::Path;

use super::super::store as places;
use super::Applied;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::status;
use crate::model::Name;
use crate::store::trash::{self, Entry};
use crate::store::{Store, atomic};
use crate::sys::{fault, image_lock};

/// Renames `path` into a directory of the trash of its own.
pub(super) fn set_aside(context: &Context, name: &Name, path: &Path) -> Result<()> {
    let store = &context.store;
    let entry = Entry::new(trash::Kind::Doctor, name, &context.operation);
    let trash = store.open_trash(&Store::trash_name(&trash::Kind::Doctor, name), &entry)?;
    let aside = trash.join(path.file_name().unwrap_or_default());
    fault::point("a file, about to be set aside").on("move to the trash", path)?;
    std::fs::rename(path, &aside).on("move to the trash", path)?;
    atomic::sync_rename(path, &aside)
}

/// Moves away what is of another kind than what belongs there.
pub(super) async fn set_misplaced_aside(context: &Context, path: &Path) -> Result<Applied> {
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
