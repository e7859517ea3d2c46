//! The trash: what was taken out of use, whole, until it is emptied. One directory per occasion:
//! `<UTC time>-<what>-<name>/` with `entry.json`, `layers/` and, for a VM, `vm/`.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Store, atomic, make_directory};
use crate::error::{Error, IoContext, Result};
use crate::model::{Layer, Name};

/// What a directory of the trash says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The verb that put it there: `rm`, `revert`, `snapshot-rm`.
    pub what: String,
    /// The VM it belonged to.
    pub vm: Name,
    /// When.
    pub when: Timestamp,
}

/// A directory of the trash and what it says of itself (`None`: unreadable).
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub entry: Option<Entry>,
    /// When it was put there; where nothing says so, when the directory was last changed.
    pub when: Timestamp,
    /// How much it holds on disk, in bytes.
    pub bytes: u64,
}

impl Store {
    /// A name for a new directory of the trash. Deciding it first lets a journal repeat the move.
    pub fn trash_name(what: &str, vm: &Name) -> String {
        let now = Timestamp::now();
        format!("{}-{what}-{vm}", now.strftime("%Y%m%dT%H%M%S%3fZ"))
    }

    /// Makes (or finds again) the trash directory `directory`.
    pub fn open_trash(&self, directory: &str, what: &str, vm: &Name) -> Result<PathBuf> {
        let path = self.layout.trash().join(directory);
        let about = path.join("entry.json");
        if !about.exists() {
            make_directory(&path.join("layers"))?;
            let entry = Entry { what: what.to_owned(), vm: vm.clone(), when: Timestamp::now() };
            let text =
                serde_json::to_vec(&entry).map_err(|error| Error::failed("cannot describe trash").because(error))?;
            atomic::write(&about, &text)?;
        }
        Ok(path)
    }

    /// Moves a layer into a trash directory; one that is not in the pool any more has been moved already.
    pub fn trash_layer(&self, trash: &Path, layer: &Layer) -> Result<()> {
        let from = self.layout.layer(layer);
        match std::fs::rename(&from, trash.join("layers").join(layer.file_name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("move to the trash", &from),
            _ => Ok(()),
        }
    }

    /// Everything in the trash, oldest first.
    pub fn list_trash(&self) -> Result<Vec<Found>> {
        let trash = self.layout.trash();
        let entries = match std::fs::read_dir(&trash) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).on("list", &trash),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.on("list", &trash)?.path();
            let about: Option<Entry> =
                std::fs::read(path.join("entry.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
            let changed = path.metadata().and_then(|about| about.modified()).ok().and_then(|time| time.try_into().ok());
            let when = about.as_ref().map(|entry| entry.when).or(changed).unwrap_or_else(Timestamp::now);
            found.push(Found { bytes: bytes_below(&path), entry: about, when, path });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }
}

/// Bytes on disk below a directory; links are not followed.
fn bytes_below(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => bytes_below(&entry.path()),
            Ok(about) => about.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
