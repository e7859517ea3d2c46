//! Loading modules, in the order the host has worked out (`finit_module(2)`).

use std::fs::File;
use std::path::Path;

use crate::appliance::initramfs::{Group, MODULES};
use crate::error::{Error, IoContext, Result};

/// Loads what the group `name` needs. False: this kernel has no such thing.
pub(super) fn load(name: &str) -> Result<bool> {
    let path = Path::new(MODULES);
    let text = std::fs::read(path).on("read", path)?;
    let groups: Vec<Group> = serde_json::from_slice(&text)
        .map_err(|error| Error::failed("the list of modules cannot be read").because(error))?;
    let Some(group) = groups.into_iter().find(|group| group.name == name) else { return Ok(false) };
    for file in &group.files {
        insert(Path::new(file))?;
    }
    Ok(true)
}

fn insert(path: &Path) -> Result<()> {
    use rustix::io::Errno;
    let file = File::open(path).on("read", path)?;
    // The kernel unpacks what is compressed (since 5.17).
    let packed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if packed {
        nix::kmod::ModuleInitFlags::from_bits_retain(4)
    } else {
        nix::kmod::ModuleInitFlags::empty()
    };
    match nix::kmod::finit_module(&file, c"", flags) {
        Err(nix::errno::Errno::EEXIST) => Ok(()),
        other => other.map_err(|errno| Errno::from_raw_os_error(errno as i32)).on("load", path),
    }
}
