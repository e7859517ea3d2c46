//! What a layer stands on, noted beside its header: an extended attribute of its file (`user.cowhand.backing`, see `xattr(7)`). The header is what
//! counts; the note tells `doctor` that somebody else has written into it.
//!
//! It is there only while it is certain: taken away before QEMU is told to write a header, and written again when that is done. Where the file
//! system has no such attributes there are no notes, and nothing is missed. A file that is used in its place has none: its owner could write them.

use rustix::fs::{XattrFlags, lgetxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;

use super::census;
use crate::model::Layer;
use crate::store::Store;

const NAME: &str = "user.cowhand.backing";
/// A backing file name of ours is short.
const LONGEST: usize = 64;

/// What is noted of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noted {
    /// Nothing.
    Nothing,
    /// It stands on this layer, or on none.
    On(Option<Layer>),
}

/// Notes what the header says now.
pub fn write(store: &Store, layer: &Layer) {
    let Ok(info) = census::inspect(store, layer) else { return forget(store, layer) };
    let name = info.backing.map(|backing| backing.file_name()).unwrap_or_default();
    if lsetxattr(store.layout.layer(layer), NAME, name.as_bytes(), XattrFlags::empty()).is_err() {
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
pub fn read(store: &Store, layer: &Layer) -> Noted {
    let mut bytes = [0_u8; LONGEST];
    let Ok(length) = lgetxattr(store.layout.layer(layer), NAME, &mut bytes[..]) else { return Noted::Nothing };
    match std::str::from_utf8(&bytes[..length]) {
        Ok("") => Noted::On(None),
        Ok(name) => Layer::from_file_name(name).map_or(Noted::Nothing, |layer| Noted::On(Some(layer))),
        Err(_) => Noted::Nothing,
    }
}
