//! What goes from the host's files into the guest.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::appliance::boot::Payload;
use crate::error::{Error, IoContext, Result};
use crate::seal::customise::{Blob, Customisation};

/// A file or a tree of the host's, below `directory`.
pub(super) fn tree(
    local: &Path,
    directory: &str,
    payload: &mut Payload,
) -> Result<Vec<Customisation>> {
    let mut all = Vec::new();
    let about = local.symlink_metadata().on("read", local)?;
    let name = std::path::absolute(local).on("find", local)?;
    let name = name
        .file_name()
        .ok_or_else(|| Error::usage(format!("{} has no name", local.display())))?
        .to_string_lossy();
    let path = format!("{}/{name}", directory.trim_end_matches('/'));
    let mode = about.permissions().mode() & 0o7777;
    if about.is_symlink() {
        let target = std::fs::read_link(local).on("read", local)?.to_string_lossy().into_owned();
        all.push(Customisation::Symlink { path, target });
    } else if about.is_dir() {
        all.push(Customisation::Mkdir { path: path.clone() });
        all.push(Customisation::Chmod { path: path.clone(), mode });
        let mut inside: Vec<PathBuf> = std::fs::read_dir(local)
            .on("list", local)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        inside.sort();
        for entry in inside {
            all.extend(tree(&entry, &path, payload)?);
        }
    } else if about.is_file() {
        let content = blob(local, payload)?;
        all.push(Customisation::Upload { path, name: String::new(), mode, content });
    } else {
        return Err(Error::refused(format!(
            "{} is neither file, directory nor link",
            local.display()
        )));
    }
    Ok(all)
}

pub(super) fn blob(path: &Path, payload: &mut Payload) -> Result<Blob> {
    let (at, length) = payload.add(path)?;
    Ok(Blob::Payload(at, length))
}
