//! The trash: what was taken out of use, whole, until it is emptied. One directory per occasion:
//! `<UTC time>-<what>-<name>/` with `entry.json`, `layers/`, `ram/`, the record before (`vm.json`)
//! or all of a removed VM (`vm/`).

pub(in crate::store) mod entry;
pub(in crate::store) mod kind;
mod removed;

use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

pub use entry::Entry;
pub use kind::Kind;

use super::schema::trash::Needs;
use super::{Store, atomic, make_directory, plain, schema};
use crate::error::{self, Error, IoContext, Result};
use crate::model::printable;
use crate::model::{FileStamp, Layer, LayerId, Name, RamImage};
use crate::sys::{fault, files};

/// Reads what the directory `path` says of itself. What was put there from another directory is
/// refused: it tells of other layers. So is what was written in another store than this one.
fn read(path: &Path, store: &Store) -> Result<Entry> {
    let about = path.join("entry.json");
    let text = plain::read(&about)?
        .ok_or_else(|| Error::not_found(format!("{} is not there", about.display())))?;
    let entry = schema::parse_entry(&text)?;
    let record =
        ["vm.json", "vm/vm.json"].iter().find_map(|file| plain::read_if_possible(&path.join(file)));
    let whose = record.and_then(|text| schema::whose(&text));
    let directory = path.file_name().unwrap_or_default().to_string_lossy();
    let is_its = match entry.uuid.zip(whose) {
        // The VM may have been renamed since then; the verb stays.
        Some((uuid, whose)) => whose.uuid == uuid && is_named_for(&directory, &entry.what),
        None => directory.ends_with(&format!("-{}-{}", entry.what, entry.vm)),
    };
    match is_its {
        true if !store.is_own(entry.store) => Err(Error::damaged(format!(
            "its entry.json was written in another store (`{}` of {})",
            printable::line(entry.what.as_str()),
            entry.vm
        ))),
        true => Ok(entry),
        false => Err(Error::damaged(format!(
            "its entry.json is that of another directory (`{}` of {})",
            printable::line(entry.what.as_str()),
            entry.vm
        ))),
    }
}

/// Does the name of a directory, `<UTC time>-<what>-<name>`, say this verb?
fn is_named_for(directory: &str, what: &Kind) -> bool {
    let behind_time = directory.split_once('-').map(|(_, rest)| rest);
    behind_time.is_some_and(|rest| rest.starts_with(&format!("{what}-")))
}

/// A directory of the trash and what it says of itself, or why that cannot be read.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub entry: Result<Entry>,
    /// When it was put there; where nothing says so, when the directory was last changed.
    pub when: Timestamp,
    /// How much it holds on disk, in bytes.
    pub bytes: u64,
}

impl Found {
    /// The layers that what is in it depends on, as long as it can be had back.
    pub fn below(&self) -> Vec<LayerId> {
        needs(&self.path).into_iter().flat_map(Needs::layers).collect()
    }

    /// Has a newer version put it there? What it needs nobody knows.
    pub fn is_newer(&self) -> bool {
        self.entry.as_ref().is_err_and(Error::is_newer)
    }

    /// Why nothing in it can be taken back; `None` when its entry is fine, or was not written yet.
    pub fn fault(&self) -> Option<String> {
        let error =
            self.entry.as_ref().err().filter(|error| error.kind() != error::Kind::NotFound)?;
        Some(error.full_message())
    }
}

impl Store {
    /// A name for a new directory of the trash. Deciding it first lets a journal repeat the move.
    pub fn trash_name(what: &Kind, vm: &Name) -> String {
        let now = Timestamp::now();
        format!("{}-{what}-{vm}", now.strftime("%Y%m%dT%H%M%S%3fZ"))
    }

    /// Makes the trash directory `directory`, which says `entry` of itself, or finds it again.
    pub fn open_trash(&self, directory: &str, entry: &Entry) -> Result<PathBuf> {
        let path = self.layout.trash().join(directory);
        let (about, layers) = (path.join("entry.json"), path.join("layers"));
        let made = make_directory(&layers).and_then(|()| {
            match about.try_exists().on("look for", &about)? {
                true => Ok(()),
                false => write_entry(&path, &self.own(entry))
                    .and_then(|()| atomic::sync_directory(&self.layout.trash())),
            }
        });
        if let Err(error) = made {
            // Only if they are empty. Whoever tries again makes what is missing.
            let _ = std::fs::remove_dir(&layers).and_then(|()| std::fs::remove_dir(&path));
            return Err(error);
        }
        Ok(path)
    }

    fn own(&self, entry: &Entry) -> Entry {
        Entry { store: self.id(), ..entry.clone() }
    }

    /// Moves a layer out of a trash directory, back into the pool; one that is not in there has
    /// been moved already.
    pub fn restore_layer(&self, trash: &Path, layer: &Layer) -> Result<()> {
        let from = trash.join("layers").join(layer.file_name());
        fault::point("a layer, on its way out of the trash").on("move out of the trash", &from)?;
        let to = self.layout.layer(layer);
        match files::rename_new(&from, &to) {
            // What is in the pool by this name belongs to another VM.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = format!(
                    "layer {layer} cannot be taken out of the trash: {} is there",
                    to.display()
                );
                Err(Error::refused(there).hint("whose it is: cowhand doctor"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && to.exists() => Ok(()),
            other => other.on("move out of the trash", &from),
        }
    }

    /// Is there a file of this layer in the trash directory?
    pub fn is_in_trash(trash: &Path, layer: &Layer) -> bool {
        plain::is_there(&trash.join("layers").join(layer.file_name()))
    }

    /// Moves memory into a trash directory, or back out of it. Where the two are on different file
    /// systems, it stays where it is, and is found there.
    pub fn move_memory(&self, trash: &Path, image: &RamImage, back: bool) -> Result<()> {
        let (here, there) = (self.layout.ram(image), trash.join("ram").join(image.file_name()));
        let (from, to) = if back { (&there, &here) } else { (&here, &there) };
        if !plain::is_there(from) {
            return Ok(());
        }
        if let Some(directory) = to.parent() {
            make_directory(directory)?;
        }
        match std::fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices && !back => Ok(()),
            Err(error) => Err(error).on("move", from),
            Ok(()) => atomic::sync_rename(from, to),
        }
    }

    /// Moves `layers` into a trash directory, so that a power cut does not bring them back.
    pub fn trash_layers(&self, trash: &Path, layers: &[Layer]) -> Result<()> {
        layers.iter().try_for_each(|layer| self.trash_layer(trash, layer))?;
        if layers.is_empty() { Ok(()) } else { self.flush_trashed(trash) }
    }

    /// Makes moves of layers into a trash directory survive a power cut: the new names first.
    pub fn flush_trashed(&self, trash: &Path) -> Result<()> {
        atomic::sync_directory(&trash.join("layers"))?;
        atomic::sync_directory(&self.layout.layers())
    }

    /// Moves a layer into a trash directory, without a flush; one that is not in the pool any more
    /// has been moved already.
    pub fn trash_layer(&self, trash: &Path, layer: &Layer) -> Result<()> {
        let from = self.layout.layer(layer);
        fault::point("a layer, on its way to the trash").on("move to the trash", &from)?;
        match std::fs::rename(&from, trash.join("layers").join(layer.file_name())) {
            // It is not the layer that is missing.
            Err(error)
                if error.kind() != io::ErrorKind::NotFound || from.symlink_metadata().is_ok() =>
            {
                Err(error).on("move to the trash", &from)
            }
            _ => Ok(()),
        }
    }

    /// Tells the trash that a layer whose file looked like `before` looks like `after` now, and
    /// means the same.
    pub fn stamp_anew(&self, before: &FileStamp, after: &FileStamp) -> Result<()> {
        for mut found in self.list_trash()? {
            let Ok(entry) = &mut found.entry else { continue };
            if !entry.below.contains(before) {
                continue;
            }
            for stamp in entry.below.iter_mut().filter(|stamp| *stamp == before) {
                *stamp = after.clone();
            }
            write_entry(&found.path, entry)?;
        }
        Ok(())
    }

    /// The layers that something in the trash depends on, as long as it can be had back.
    pub fn below_trash(&self) -> Result<Vec<LayerId>> {
        let all = self.trash_entries()?.into_iter().filter_map(|path| needs(&path));
        Ok(all.flat_map(Needs::layers).collect())
    }

    /// The changes that can be undone only as long as these layers are what they were.
    pub fn undoable_on(&self, layers: &[&LayerId]) -> Result<Vec<Entry>> {
        let mut on = self.trash_entries()?;
        on.retain(|path| {
            needs(path).into_iter().flat_map(Needs::layers).any(|id| layers.contains(&&id))
        });
        Ok(on
            .iter()
            .filter_map(|path| read(path, self).ok())
            .filter(Entry::can_be_undone)
            .collect())
    }

    /// An entry of the trash that cannot be read: which layers it needs is unknown.
    pub fn torn_entry(&self) -> Result<Option<String>> {
        let torn = self.trash_entries()?.into_iter().find(|path| needs(path).is_none());
        Ok(torn.map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()))
    }

    /// The internal snapshots that something in the trash needs to be taken back; `None` when some
    /// entry cannot be read, and may need another.
    pub fn undo_snapshots(&self) -> Result<Option<Vec<String>>> {
        let all: Option<Vec<Needs>> =
            self.trash_entries()?.iter().map(|path| needs(path)).collect();
        Ok(all.map(|all| all.into_iter().filter_map(|needs| needs.undo_snapshot).collect()))
    }

    /// The directories of the trash that say what they are, sorted. A name is never used again.
    pub fn trash_entries(&self) -> Result<Vec<PathBuf>> {
        let mut directories = self.trash_directories()?;
        // One that cannot be reached has an entry, too.
        directories.retain(|path| plain::is_there(&path.join("entry.json")) || leads_nowhere(path));
        Ok(directories)
    }

    /// Everything in the trash, oldest first.
    pub fn list_trash(&self) -> Result<Vec<Found>> {
        let found = |path: PathBuf| {
            let entry = read(&path, self);
            let changed = path
                .metadata()
                .and_then(|about| about.modified())
                .ok()
                .and_then(|time| time.try_into().ok());
            let when = entry
                .as_ref()
                .ok()
                .map(|entry| entry.when)
                .or(changed)
                .unwrap_or_else(Timestamp::now);
            Found { bytes: bytes_below(&path), entry, when, path }
        };
        Ok(self.trash_directories()?.into_iter().map(found).collect())
    }

    /// All of its directories, by name, which begins with the time.
    fn trash_directories(&self) -> Result<Vec<PathBuf>> {
        let trash = self.layout.trash();
        let entries = match std::fs::read_dir(&trash) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.refuse_unreachable(&trash)?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(error).on("list", &trash),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.on("list", &trash)?;
            // What else lies there nobody of ours has put there. A directory may have been moved to
            // another file system, with a link in its place.
            let is_ours = |kind: FileType| kind.is_dir() || kind.is_symlink();
            paths.extend(entry.file_type().is_ok_and(is_ours).then(|| entry.path()));
        }
        paths.sort();
        Ok(paths)
    }
}

/// Is it a link to what cannot be reached just now?
fn leads_nowhere(path: &Path) -> bool {
    path.is_symlink() && !path.exists()
}

/// What the directory `path` needs; `None`: nobody knows.
fn needs(path: &Path) -> Option<Needs> {
    if leads_nowhere(path) {
        return None;
    }
    match plain::read(&path.join("entry.json")).ok()? {
        Some(text) => Needs::parse(&text),
        // It was not written yet, or the directory has gone.
        None => Some(Needs::default()),
    }
}

fn write_entry(directory: &Path, entry: &Entry) -> Result<()> {
    atomic::write(&directory.join("entry.json"), &schema::render_entry(entry)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Format;

    #[test]
    fn an_entry_that_cannot_be_read_is_named() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        store.prepare().expect("a store");
        let name = "20260101T000000000Z-revert-vm";
        let entry =
            Entry::new(Kind::Revert, &"vm".parse().expect("a name"), "snapshot revert vm@s");
        let trash = store.open_trash(name, &entry).expect("trash");
        assert_eq!(store.torn_entry().expect("trash"), None);
        std::fs::write(trash.join("entry.json"), "{\"schema\": 2, \"wh").expect("an entry");
        assert_eq!(store.torn_entry().expect("trash").as_deref(), Some(name));
    }

    #[test]
    fn an_entry_with_another_verb_than_its_directory_is_refused_though_the_vm_is_the_same() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        store.prepare().expect("a store");
        let text = include_bytes!("../../tests/fixtures/vm-v1.json");
        let record = schema::parse_record(text).expect("a record");
        let vm: Name = "rm-vm".parse().expect("a name");
        for (directory, what, is_its) in [
            ("20260101T000000000Z-revert-rm-vm", Kind::Revert, true),
            ("20260102T000000000Z-revert-rm-vm", Kind::Rm, false),
            ("20260103T000000000Z-snapshot-rm-rm-vm", Kind::SnapshotRm, true),
            ("20260104T000000000Z-snapshot-rm-rm-vm", Kind::Rm, false),
            // Since then it was renamed.
            ("20260105T000000000Z-set-old", Kind::Set, true),
        ] {
            let entry = Entry::new(what, &vm, "a command").of(&record);
            let trash = store.open_trash(directory, &entry).expect("trash");
            std::fs::write(trash.join("vm.json"), text).expect("a record");
            let error = read(&trash, &store).err().map(|error| error.full_message());
            let is_refused =
                error.as_ref().is_some_and(|error| error.contains("that of another directory"));
            assert_eq!((error.is_none(), is_refused), (is_its, !is_its), "{directory}: {error:?}");
        }
    }

    #[test]
    fn what_was_begun_is_carried_on_and_no_layer_is_taken_for_moved_that_is_not() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        store.prepare().expect("a store");
        let layer = Layer::new(Format::Qcow2);
        std::fs::write(store.layout.layer(&layer), "data").expect("a file");
        let entry =
            Entry::new(Kind::Revert, &"vm".parse().expect("a name"), "snapshot revert vm@s");
        let trash = store.open_trash("20260101T000000000Z-revert-vm", &entry).expect("trash");
        // The first attempt got as far as the entry.
        std::fs::remove_dir(trash.join("layers")).expect("it is empty");
        store.trash_layer(&trash, &layer).expect_err("there is nowhere to move it");
        store.open_trash("20260101T000000000Z-revert-vm", &entry).expect("trash");
        store.trash_layer(&trash, &layer).expect("it is moved");
        store.trash_layer(&trash, &layer).expect("it was moved already");
        assert!(
            trash.join("layers").join(layer.file_name()).exists()
                && !store.layout.layer(&layer).exists()
        );
    }
}
