//! Which layer a file is, and what it depends on, noted beside its header: an extended attribute of
//! the file (`user.cowhand.backing`, see `xattr(7)`). Its words, and spaces behind them:
//!
//! | word | |
//! |---|---|
//! | first | the name of the backing file, or nothing |
//! | second | the layer's id; files that were exchanged are told by it |
//! | third | only while a merge is under way: the backing file afterwards, or `-` for none |
//!
//! (Earlier versions did not note the id, or had no note during a merge.) What the header says is
//! what QEMU and others go by. A header that says something else than the note was written by
//! somebody else, and the layer is not used: a guest's QEMU writes to its layer, so it can write
//! another layer's name into the header if somebody has taken it over. The note it cannot change
//! (`sys/seccomp.rs`).
//!
//! Where the file system has no such attributes there are no notes, and nothing is noticed. A file
//! that is used in its place has none: its owner could write them.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, getxattr, lgetxattr, lsetxattr};
use rustix::io::Errno;

use crate::model::{Layer, LayerId};
use crate::store::Store;

const NAME: &str = "user.cowhand.backing";
/// Names of files of ours are short, and so is an id.
const LONGEST: usize = 64;
/// The length of a note. A disk that is full has room for a note that is as long as the one before.
const LENGTH: usize = 48;
/// In the place of a name: it depends on nothing.
const NONE: &str = "-";

/// What is noted of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecordedBacking {
    /// Nothing.
    Nothing,
    /// It depends on this layer, or on none.
    On(Option<Layer>),
    /// A merge puts it from one layer on another one, or on none, and has not said yet that it has.
    Between(Layer, Option<Layer>),
}

impl RecordedBacking {
    /// May the header say that the layer depends on `backing`?
    pub(crate) fn allows(&self, backing: Option<&Layer>) -> bool {
        match self {
            Self::Nothing => true,
            Self::On(noted) => noted.as_ref() == backing,
            Self::Between(before, after) => backing == Some(before) || backing == after.as_ref(),
        }
    }

    /// What the layer depends on by its note; `None`: nothing is noted. What a merge takes it off
    /// is right as long as that layer is there: it holds what it held.
    pub(crate) fn by_note(self, store: &Store) -> Option<Option<Layer>> {
        match self {
            Self::Nothing => None,
            Self::On(noted) => Some(noted),
            Self::Between(before, _) if store.layout.layer(&before).exists() => Some(Some(before)),
            Self::Between(_, after) => Some(after),
        }
    }

    /// Is this layer one of those that it may depend on?
    pub(crate) fn names(&self, backing: &Layer) -> bool {
        *self != Self::Nothing && self.allows(Some(backing))
    }
}

/// Notes that `layer` depends on `backing`.
pub(crate) fn write(store: &Store, layer: &Layer, backing: Option<&Layer>) -> io::Result<()> {
    let name = backing.map(Layer::file_name).unwrap_or_default();
    set(store, layer, &format!("{name} {}", layer.id), XattrFlags::empty())
}

/// The same, where nothing is noted yet.
pub(crate) fn make(store: &Store, layer: &Layer, backing: Option<&Layer>) -> io::Result<()> {
    let name = backing.map(Layer::file_name).unwrap_or_default();
    match set(store, layer, &format!("{name} {}", layer.id), XattrFlags::CREATE) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Notes that a merge is about to put `layer` from `before` on `after`, and makes that survive a
/// power cut, as what the merge writes into the header does.
pub(crate) fn begin(
    store: &Store,
    layer: &Layer,
    before: &Layer,
    after: Option<&Layer>,
) -> io::Result<()> {
    let after = after.map_or_else(|| NONE.to_owned(), Layer::file_name);
    let text = format!("{} {} {after}", before.file_name(), layer.id);
    set(store, layer, &text, XattrFlags::empty())?;
    File::open(store.layout.layer(layer))?.sync_all()
}

fn set(store: &Store, layer: &Layer, text: &str, how: XattrFlags) -> io::Result<()> {
    let text = format!("{text:LENGTH$}");
    match lsetxattr(store.layout.layer(layer), NAME, text.as_bytes(), how) {
        // Links have none either.
        Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Does the file system of the layers keep such notes?
pub(crate) fn can_be_kept(store: &Store) -> bool {
    let mut none = [0_u8; 0];
    // The directory may be a link to one on another disk.
    getxattr(store.layout.layers(), NAME, &mut none[..]) != Err(Errno::NOTSUP)
}

/// What is noted.
pub(crate) fn read(store: &Store, layer: &Layer) -> RecordedBacking {
    let mut bytes = [0_u8; LONGEST];
    let Ok(length) = lgetxattr(store.layout.layer(layer), NAME, &mut bytes[..]) else {
        return RecordedBacking::Nothing;
    };
    match parse(&bytes[..length]) {
        // Files were exchanged.
        (_, Some(other)) if other != layer.id => RecordedBacking::Nothing,
        (noted, _) => noted,
    }
}

/// What is noted with the file of a layer that is open, and which layer that note is of.
pub(crate) fn read_file(file: &File) -> (RecordedBacking, Option<LayerId>) {
    let mut bytes = [0_u8; LONGEST];
    fgetxattr(file, NAME, &mut bytes[..])
        .map_or((RecordedBacking::Nothing, None), |length| parse(&bytes[..length]))
}

/// Does a note say that the file at `path` is that of `layer`?
pub(crate) fn is_of(path: &Path, layer: &Layer) -> bool {
    let mut bytes = [0_u8; LONGEST];
    lgetxattr(path, NAME, &mut bytes[..])
        .is_ok_and(|length| parse(&bytes[..length]).1.as_ref() == Some(&layer.id))
}

fn parse(bytes: &[u8]) -> (RecordedBacking, Option<LayerId>) {
    let nothing = RecordedBacking::Nothing;
    let Ok(text) = std::str::from_utf8(bytes) else { return (nothing, None) };
    let mut words = text.trim_end_matches(' ').split(' ');
    let mut next = || words.next().unwrap_or_default();
    let (name, id, after) = (next(), next(), next());
    let layer = Layer::from_file_name;
    let noted = match (name, after) {
        ("", "") => RecordedBacking::On(None),
        (name, "") => layer(name).map_or(nothing, |layer| RecordedBacking::On(Some(layer))),
        (name, NONE) => layer(name).map_or(nothing, |on| RecordedBacking::Between(on, None)),
        (name, after) => layer(name)
            .zip(layer(after))
            .map_or(nothing, |(before, after)| RecordedBacking::Between(before, Some(after))),
    };
    (noted, id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_this_and_of_earlier_versions_are_read() {
        let id = |text: &str| text.parse::<LayerId>().expect("an id");
        let on = || RecordedBacking::On(Layer::from_file_name("abcdefghij.qcow2"));
        assert_eq!(parse(b"abcdefghij.qcow2 jihgfedcba"), (on(), Some(id("jihgfedcba"))));
        assert_eq!(parse(b" jihgfedcba"), (RecordedBacking::On(None), Some(id("jihgfedcba"))));
        assert_eq!(parse(b"abcdefghij.qcow2"), (on(), None));
        assert_eq!(parse(b""), (RecordedBacking::On(None), None));
        let layer = |text: &str| Layer::from_file_name(text).expect("a layer");
        let before = || layer("abcdefghij.qcow2");
        let between = |after| (RecordedBacking::Between(before(), after), Some(id("jihgfedcba")));
        assert_eq!(parse(b"abcdefghij.qcow2 jihgfedcba -    "), between(None));
        let after = Some(layer("aaaaaaaaaa.raw"));
        assert_eq!(parse(b"abcdefghij.qcow2 jihgfedcba aaaaaaaaaa.raw "), between(after));
        for odd in [&b"x y z"[..], b"\xff", b"../x.qcow2 ../x"] {
            assert_eq!(parse(odd), (RecordedBacking::Nothing, None));
        }
    }

    #[test]
    fn a_file_system_without_attributes_is_told() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        // proc(5) has none.
        std::os::unix::fs::symlink("/proc", store.layout.layers()).expect("a link");
        assert!(!can_be_kept(&store));
        std::fs::remove_file(store.layout.layers()).expect("it is there");
        std::fs::create_dir(store.layout.layers()).expect("a directory");
        let file = store.layout.layers();
        let set = rustix::fs::setxattr(&file, NAME, b"", XattrFlags::empty());
        assert_eq!(can_be_kept(&store), set.is_ok());
    }
}
