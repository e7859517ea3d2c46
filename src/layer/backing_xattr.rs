//! Which layer a file is, and what it stands on, noted beside its header: an extended attribute of
//! the file (`user.cowhand.backing`, see `xattr(7)`), the name of the backing file or nothing, a
//! space, and the layer's id. Of what it stands on the header is what counts; the note tells
//! `doctor` that somebody else has written into it. Files that were exchanged are told by the id.
//! (Earlier versions did not note it.)
//!
//! It is there only while it is certain: taken away before QEMU is told to write a header, and
//! written again when that is done. Where the file system has no such attributes there are no
//! notes, and nothing is missed. A file that is used in its place has none: its owner could write
//! them.

use std::fs::File;
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, lgetxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;

use crate::model::{Layer, LayerId};
use crate::store::Store;

const NAME: &str = "user.cowhand.backing";
/// A backing file name of ours is short, and so is an id.
const LONGEST: usize = 64;

/// What is noted of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedBacking {
    /// Nothing.
    Nothing,
    /// It stands on this layer, or on none.
    On(Option<Layer>),
}

/// Notes what the header says now.
pub fn write(store: &Store, layer: &Layer, backing: Option<&Layer>) {
    let name = backing.map(Layer::file_name).unwrap_or_default();
    let text = format!("{name} {}", layer.id);
    if lsetxattr(store.layout.layer(layer), NAME, text.as_bytes(), XattrFlags::empty()).is_err() {
        forget(store, layer);
    }
}

/// Takes the note away: the header is about to change.
pub fn forget(store: &Store, layer: &Layer) {
    match lremovexattr(store.layout.layer(layer), NAME) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT) => {}
        Err(error) => tracing::debug!("the note of {layer} stays: {error}"),
    }
}

/// What is noted.
pub fn read(store: &Store, layer: &Layer) -> RecordedBacking {
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
pub fn read_file(file: &File) -> (RecordedBacking, Option<LayerId>) {
    let mut bytes = [0_u8; LONGEST];
    fgetxattr(file, NAME, &mut bytes[..])
        .map_or((RecordedBacking::Nothing, None), |length| parse(&bytes[..length]))
}

/// Does a note say that the file at `path` is that of `layer`?
pub fn is_of(path: &Path, layer: &Layer) -> bool {
    let mut bytes = [0_u8; LONGEST];
    lgetxattr(path, NAME, &mut bytes[..])
        .is_ok_and(|length| parse(&bytes[..length]).1.as_ref() == Some(&layer.id))
}

fn parse(bytes: &[u8]) -> (RecordedBacking, Option<LayerId>) {
    let Ok(text) = std::str::from_utf8(bytes) else { return (RecordedBacking::Nothing, None) };
    let (name, id) = text.split_once(' ').unwrap_or((text, ""));
    let noted = match name {
        "" => RecordedBacking::On(None),
        name => Layer::from_file_name(name)
            .map_or(RecordedBacking::Nothing, |layer| RecordedBacking::On(Some(layer))),
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
        for odd in [&b"x y z"[..], b"\xff", b"../x.qcow2 ../x"] {
            assert_eq!(parse(odd), (RecordedBacking::Nothing, None));
        }
    }
}
