//! A warm template becomes cold again: the memory of its guest is removed, unless clones run on it.

use std::fs::File;
use std::path::Path;

use crate::change::OpenVm;
use crate::context::Context;
use crate::ephemeral::discard;
use crate::error::{Error, IoContext, Result};
use crate::instance::status;
use crate::layer::garbage::Needs;
use crate::model::{Name, Record, Warm};
use crate::store::{Store, plain};
use crate::sys::flock;

/// Takes the warm guest of the template `name` away again. Refused while clones run on it.
pub(crate) async fn cool(context: &Context, name: &Name) -> Result<u64> {
    let store = &context.store;
    discard::reap(context).await?;
    let _store_lock = context.lock_store().await?;
    let mut vm = OpenVm::open(context, name).await?;
    let Some(warm) = vm.record.warm.take() else {
        return Err(Error::refused(format!("{name} is not warm"))
            .hint("which templates are: cowhand template ls"));
    };
    let _alone = refuse_used(context, name, &vm.record, &warm)?;
    vm.save()?;
    // From here on nobody names them: what stays is for `gc` to find.
    remove_files(store, &warm)?;
    let layers = warm.config.writable().map(|disk| &disk.layer);
    for layer in Needs::look(store)?.unneeded_of(layers).layers {
        remove(&store.layout.layer(&layer))?;
    }
    Ok(warm.bytes())
}

/// Removes the memory of a warm guest.
pub(crate) fn remove_files(store: &Store, warm: &Warm) -> Result<()> {
    remove(&store.layout.warm_memory(&warm.image))?;
    remove(&store.layout.warm_state(&warm.image))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).on("remove", path),
        _ => Ok(()),
    }
}

/// Refuses while a QEMU has the memory mapped; else keeps everybody from beginning to.
pub(crate) fn refuse_used(
    context: &Context,
    name: &Name,
    record: &Record,
    warm: &Warm,
) -> Result<Option<File>> {
    let path = context.store.layout.warm_memory(&warm.image);
    let Some(file) = plain::open(&path).ok().flatten() else { return Ok(None) };
    if flock::try_exclusive(&file).on("lock", &path)? {
        return Ok(Some(file));
    }
    let mut users = Vec::new();
    let mut waiting = 0;
    for other in context.store.names()? {
        let Ok(vm) = context.store.load(&other) else { continue };
        if vm.origin.as_ref().is_some_and(|origin| origin.uuid == record.uuid)
            && status::is_running(context, &other)?
        {
            if vm.is_standby() { waiting += 1 } else { users.push(other.to_string()) }
        }
    }
    let mut error = Error::refused(match (users.len(), waiting) {
        (0, 0) => format!("the warm guest of {name} is in use"),
        (0, waiting) => {
            format!("{waiting} standby clones of the pool wait on the warm guest of {name}")
        }
        _ => format!("clones run on the warm guest of {name}: {}", users.join(", ")),
    });
    if !users.is_empty() {
        error = error
            .hint(format!("stop them first: cowhand stop {}", users.join(" ")))
            .dependents(users);
    }
    Err(if waiting > 0 {
        error.hint(format!("empty the pool: cowhand pool drain {name}"))
    } else {
        error
    })
}
