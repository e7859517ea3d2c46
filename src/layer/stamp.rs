//! What a sealed layer's file looks like, to notice that it is not what it was: a template edited
//! behind our back, or a layer that was merged with another meanwhile.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::chain;
use crate::error::{IoContext, Result};
use crate::model::{FileStamp, Layer, Name, Record};
use crate::store::Store;

/// What it looks like now.
pub(crate) fn of(store: &Store, layer: &Layer) -> Result<FileStamp> {
    of_file(&store.layout.layer(layer), layer)
}

/// The same, of a file that is not in its place.
fn of_file(path: &Path, layer: &Layer) -> Result<FileStamp> {
    let about = std::fs::metadata(path).on("read", path)?;
    let modified_ns = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
    Ok(FileStamp { layer: layer.clone(), bytes: about.len(), modified_ns })
}

/// The stamps of everything that `layer` depends on.
pub(crate) fn below(store: &Store, layer: &Layer) -> Result<Vec<FileStamp>> {
    chain::read(store, layer)?.links()[1..].iter().map(|link| of(store, &link.layer)).collect()
}

/// Why something that depends on these layers means nothing any more, if so: one of them is not
/// what it was, or a VM writes to it now. A merge that had no data to move makes a layer the head
/// of a VM, and leaves its file as it was.
pub(crate) fn obstacle(
    store: &Store,
    records: &[(Name, Record)],
    stamps: &[FileStamp],
) -> Option<Obstacle> {
    if let Some(layer) = changed(store, stamps) {
        return Some(Obstacle::Changed(layer.clone()));
    }
    let below = |layer: &Layer| stamps.iter().any(|stamp| stamp.layer == *layer);
    records.iter().filter(|(_, record)| !record.is_template()).find_map(|(name, record)| {
        let disk = record.config.writable().find(|disk| below(&disk.layer))?;
        Some(Obstacle::Written(disk.layer.clone(), name.clone()))
    })
}

/// Why what depends on a layer means nothing any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It is not what it was.
    Changed(Layer),
    /// This VM writes to it.
    Written(Layer, Name),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(layer) => {
                write!(f, "it depends on layer {layer}, which was merged or removed since then")
            }
            Self::Written(layer, name) => {
                write!(
                    f,
                    "it depends on layer {layer}, which was merged since then: {name} writes to it"
                )
            }
        }
    }
}

/// The first of these layers that is not what it was, if any.
pub(crate) fn changed<'a>(store: &Store, stamps: &'a [FileStamp]) -> Option<&'a Layer> {
    stamps
        .iter()
        .find(|old| of(store, &old.layer).map_or(true, |now| !is_same(old, &now)))
        .map(|old| &old.layer)
}

/// Does the file at `path`, which is not in its place, look as the layer did?
pub(crate) fn is_of(old: &FileStamp, path: &Path) -> bool {
    of_file(path, &old.layer).is_ok_and(|now| is_same(old, &now))
}

fn is_same(old: &FileStamp, now: &FileStamp) -> bool {
    old.layer == now.layer
        && old.bytes == now.bytes
        && is_same_time(old.modified_ns, now.modified_ns)
}

/// Is the time of a file, in nanoseconds, what it was? `tar` and `rsync` may bring it back with
/// whole seconds.
pub(crate) fn is_same_time(old: i128, now: i128) -> bool {
    const SECOND: i128 = 1_000_000_000;
    old == now || (now % SECOND == 0 && old.div_euclid(SECOND) == now.div_euclid(SECOND))
}
