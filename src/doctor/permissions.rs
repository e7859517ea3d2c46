//! Whether others can read or change what is in the store.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Finding, Remedy};
use crate::context::Context;
use crate::error::Result;
use crate::model::Layer;
use crate::store::Store;
use crate::sys::files::special;
use crate::template::freeze;

/// Disks, memory and sockets of guests are their user's business alone.
pub(super) fn examine(context: &Context) -> Result<Vec<Finding>> {
    let layout = &context.store.layout;
    let mut open: Vec<(PathBuf, u32)> = Vec::new();
    let mut foreign: Vec<PathBuf> = Vec::new();
    let me = nix::unistd::geteuid().as_raw();
    let mut look = |path: &Path| -> Option<Metadata> {
        let about = path.symlink_metadata().ok()?;
        if about.uid() != me {
            foreign.push(path.to_path_buf());
        }
        // What lies in the place of a file, and is none, is another finding's.
        if special(about.file_type()).is_some() {
            return None;
        }
        // What is being written just now gets its mode at the end.
        if path.extension().is_some_and(|extension| extension == "part") {
            return None;
        }
        let mode = about.mode() & 0o7777;
        // A template's layers are 0444, below a directory that is not for others.
        let fine =
            mode & 0o077 == 0 || about.is_symlink() || (about.is_file() && mode == freeze::MODE);
        if !fine {
            let right = match about.is_dir() {
                true => 0o700,
                false if mode & 0o200 == 0 => freeze::MODE,
                false => 0o600,
            };
            open.push((path.to_path_buf(), right));
        }
        Some(about)
    };
    look(layout.root());
    look(&layout.store_lock());
    look(&layout.store_json());
    for directory in
        [layout.layers(), layout.rams(), layout.sealing(), layout.trash(), layout.vms()]
    {
        look(&directory);
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| !says_only_whose(&context.store, &entry.path())) {
            let is_dir = look(&entry.path()).is_some_and(|about| about.is_dir());
            if is_dir && directory == layout.vms() {
                let files = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
                for file in files.filter(|file| file.file_type().is_ok_and(|kind| !kind.is_dir())) {
                    look(&file.path());
                }
            }
        }
    }
    let mut findings = Vec::new();
    if let Some((path, _)) = open.first() {
        let now = std::fs::metadata(path).map_or(0, |about| about.permissions().mode() & 0o7777);
        let more = and_more(open.len());
        findings.push(
            Finding::warn(
                "permissions",
                format!("{}{more} can be read or written by others ({now:o})", path.display()),
            )
            .hint("cowhand doctor --repair    takes that away")
            .remedy(Some(Remedy::SetModes(open))),
        );
    }
    if let Some(path) = foreign.first() {
        let more = and_more(foreign.len());
        findings.push(
            Finding::warn(
                "permissions",
                format!("{}{more} belong to another user", path.display()),
            )
            .hint(format!("chown --recursive {me} {}", layout.root().display())),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("permissions", "the store is its owner's alone"));
    }
    Ok(findings)
}

/// Is `path` an empty file that is no layer's, as users make it to say that a directory is the
/// store's? There is nothing in it to be read.
fn says_only_whose(store: &Store, path: &Path) -> bool {
    let is_empty = |about: Metadata| about.is_file() && about.len() == 0;
    store.may_be_mounted().iter().any(|directory| path.parent() == Some(directory))
        && path.symlink_metadata().is_ok_and(is_empty)
        && path.file_name().and_then(|name| Layer::from_file_name(name.to_str()?)).is_none()
}

fn and_more(count: usize) -> String {
    if count > 1 { format!(" and {} more", count - 1) } else { String::new() }
}
