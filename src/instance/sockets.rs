//! Where the sockets of a VM are.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::Name;
use crate::qemu::sockets::Sockets;
use crate::sys::flock;

/// The sockets of a VM: where they were put at its last start, else where they would go. A note of
/// that start may have been copied with the store, and leads to the sockets of the original then.
/// It counts while the lock of its QEMU is held, and where it has the name that this store and this
/// VM give, whatever directory that lies in.
pub(crate) fn of(context: &Context, name: &Name) -> Option<Sockets> {
    let is_held = || flock::is_held(&context.store.layout.run_lock(name)).unwrap_or(false);
    let noted =
        context.store.run_directory(name).filter(|noted| is_held() || is_of(context, name, noted));
    let planned = || directory(context, context.store.load(name).ok()?.uuid).ok();
    noted.or_else(planned).map(Sockets::new)
}

/// Is there anything where its sockets were put at its last start? Whose they are is not looked at:
/// that takes longer.
pub(super) fn are_there(context: &Context, name: &Name) -> bool {
    context.store.run_directory(name).is_none_or(|directory| directory.exists())
}

/// The first part of the name of a directory of sockets; the second is the store's.
fn of_vm(uuid: Uuid) -> String {
    uuid.simple().to_string()[..12].to_owned()
}

/// Can `directory`, which was noted at the last start of `name`, be the one of its sockets? That of
/// another store, or of another VM of this one, was noted in what this store was copied from.
pub(crate) fn is_of(context: &Context, name: &Name, directory: &Path) -> bool {
    let last = directory.file_name().unwrap_or_default().to_string_lossy();
    let Some(vm) = last.strip_suffix(&context.store.place()) else { return false };
    // Of a VM whose record cannot be read, the store has to do.
    context.store.has_uuid(name, |uuid| vm == of_vm(uuid)).unwrap_or(true)
}

/// Where the sockets of the VM with this UUID go. They belong to the store as well: a copy of it
/// has VMs of the same UUIDs, and the QEMU of one must not be taken for that of the other. Refused
/// when a socket's path would be longer than the kernel allows.
pub(crate) fn directory(context: &Context, uuid: Uuid) -> Result<PathBuf> {
    let name = format!("{}{}", of_vm(uuid), context.store.place());
    let directory = context.settings.runtime.join(name);
    let longest = Sockets::new(directory.clone())
        .all()
        .iter()
        .map(|path| path.as_os_str().len())
        .max()
        .unwrap_or(0);
    if longest > Sockets::LONGEST {
        return Err(Error::refused(format!(
            "sockets below {} would have paths of {longest} bytes; the kernel allows {}",
            context.settings.runtime.display(),
            Sockets::LONGEST
        ))
        .hint("set XDG_RUNTIME_DIR to a shorter directory"));
    }
    Ok(directory)
}
