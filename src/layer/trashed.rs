//! Files of layers in the trash: which there are, and whether one is what its name says.

use std::path::{Path, PathBuf};

use super::{backing_xattr, info, stamp};
use crate::error::{IoContext, Result};
use crate::model::{FileStamp, Layer};
use crate::store::trash::{Found, Kind};
use crate::store::{Store, plain};

/// How deep a directory of the trash is looked into.
const DEPTH: usize = 4;

/// The files below a directory that are named like a layer.
pub(crate) fn below(directory: &Path) -> Vec<(Layer, PathBuf)> {
    let mut files = Vec::new();
    look(directory, DEPTH, &mut files);
    files
}

fn look(directory: &Path, depth: usize, files: &mut Vec<(Layer, PathBuf)>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 1 => look(&path, depth - 1, files),
            _ => files.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(Layer::from_file_name)
                    .map(|layer| (layer, path)),
            ),
        }
    }
}

/// Removes a directory of the trash whose own layers were taken out of it, if there is one. With
/// files of layers that somebody else has put there, it stays, for `gc` to judge, without its
/// entry: it cannot be taken back again.
pub(crate) fn drop(directory: &Path) -> Result<()> {
    let removed = match below(directory).is_empty() {
        true => std::fs::remove_dir_all(directory),
        false => std::fs::remove_file(directory.join("entry.json")),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).on("remove", directory)
        }
        _ => Ok(()),
    }
}

/// Where copies of `layer` are in the trash.
pub(crate) fn copies(store: &Store, layer: &Layer) -> Vec<PathBuf> {
    let found = store.list_trash().unwrap_or_default();
    let files = found.iter().flat_map(|found| below(&found.path));
    files.filter(|(other, _)| other == layer).map(|(_, path)| path).collect()
}

/// The file of `layer` among those that were taken out of use with the directory `found`, if there
/// is one; or why it is not that layer.
pub(crate) fn of(found: &Found, layer: &Layer) -> Option<std::result::Result<(), String>> {
    let path = found.path.join("layers").join(layer.file_name());
    let about = path.symlink_metadata().ok()?;
    // Who moved what there has written it down, but for layers that nobody named.
    let is_listed = found
        .entry
        .as_ref()
        .is_ok_and(|entry| entry.layers.contains(layer) || entry.what == Kind::Gc);
    if about.is_symlink() {
        return Some(if is_listed { Ok(()) } else { Err("it is a link".to_owned()) });
    }
    Some(match info::inspect_file(&path, layer) {
        Err(error) => Err(error.full_message()),
        Ok(info) if info.disputed => Err("its header was changed by another program".to_owned()),
        Ok(_) if is_listed || backing_xattr::is_of(&path, layer) => Ok(()),
        Ok(_) => Err("nothing says that it is that layer".to_owned()),
    })
}

/// What has to be in the pool as it was, so that `layer` may come back out of the directory
/// `found`. What `gc` moved there together belongs to several VMs: of that, what `layer` itself
/// depends on, by the headers. A layer that is in the trash, and is what it was, need not be there
/// yet: it comes back by a repair of its own.
pub(crate) fn dependencies(store: &Store, found: &Found, layer: &Layer) -> Vec<FileStamp> {
    let Ok(entry) = &found.entry else { return Vec::new() };
    if entry.what != Kind::Gc {
        return entry.below.clone();
    }
    let mut below = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some(layer.clone());
    while let Some(layer) = next.filter(|layer| !seen.contains(layer)) {
        let noted = entry.below.iter().find(|stamp| stamp.layer == layer);
        let place = place_of(store, found, &layer, noted);
        below.extend(noted.filter(|_| !matches!(place, Place::Trash(_))).cloned());
        let info = match &place {
            Place::Pool => info::inspect(store, &layer),
            Place::Trash(path) => info::inspect_file(path, &layer),
            Place::Nowhere => return entry.below.clone(),
        };
        // What is below one that cannot be read nobody knows: it may be any of them.
        let Ok(info) = info else { return entry.below.clone() };
        seen.push(layer);
        next = info.backing;
    }
    below
}

/// Where a layer is.
enum Place {
    Pool,
    Trash(PathBuf),
    Nowhere,
}

/// Where `layer` is: in the pool, in the directory `found`, or in another one of the trash, if it
/// is there as it was `noted`.
fn place_of(store: &Store, found: &Found, layer: &Layer, noted: Option<&FileStamp>) -> Place {
    if store.layout.layer(layer).exists() {
        return Place::Pool;
    }
    let own = found.path.join("layers").join(layer.file_name());
    match noted {
        None if plain::is_there(&own) => Place::Trash(own),
        None => Place::Nowhere,
        Some(noted) => {
            let mut copies = copies(store, layer).into_iter();
            let is_same = |path: &PathBuf| stamp::is_of(noted, path);
            copies.find(is_same).map_or(Place::Nowhere, Place::Trash)
        }
    }
}
