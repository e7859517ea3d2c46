//! What one layer says of itself, by its header and by what is noted beside it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::backing_xattr::{self, RecordedBacking};
use super::opened::{self, Opened};
use super::{foreign, inspect, qcow2};
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{Format, Layer};
use crate::store::{Store, plain};

/// What is known of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Identity and format.
    pub layer: Layer,
    /// Its backing file.
    pub backing: Option<Layer>,
    /// The size the guest sees, in bytes; 0 where only QEMU could tell (vmdk and the like).
    pub virtual_bytes: u64,
    /// Bytes on disk.
    pub allocated_bytes: u64,
    /// How many internal snapshots it carries.
    pub internal_snapshots: u32,
    /// By its note, it was made on another one than its header says.
    pub disputed: bool,
    /// Its active part, too, holds the memory of a guest: see [`super::guest_memory`].
    pub guest_memory: bool,
}

impl LayerInfo {
    /// Would the guest see memory of an earlier one behind what it has now, were the disk grown to
    /// `bytes`? QEMU keeps it there, and does not take it away.
    pub fn would_show_memory(&self, bytes: u64) -> bool {
        self.guest_memory && bytes > self.virtual_bytes
    }

    /// What is known of a file that is used in its place and cannot be read: it has no backing
    /// file.
    pub fn unusable(layer: Layer) -> Self {
        Self {
            layer,
            backing: None,
            virtual_bytes: 0,
            allocated_bytes: 0,
            internal_snapshots: 0,
            disputed: false,
            guest_memory: false,
        }
    }
}

/// Notes beside the file of `layer` what its header says, where nothing is noted yet. No QEMU of a
/// guest may have it open to write.
pub(crate) fn note_backing(store: &Store, layer: &Layer) {
    if backing_xattr::read(store, layer) != RecordedBacking::Nothing {
        return;
    }
    if let Ok(info) = inspect(store, layer)
        && let Err(error) = backing_xattr::make(store, layer, info.backing.as_ref())
    {
        tracing::debug!("the backing file of {layer} is not recorded: {error}");
    }
}

/// Reads what one layer says of itself. What it should not say is damage of this layer; that its
/// file cannot be read is an error of another kind.
pub(crate) fn inspect(store: &Store, layer: &Layer) -> Result<LayerInfo> {
    let path = store.layout.layer(layer);
    let looked = opened::open(store, layer).and_then(|opened| look(&opened, &path, layer));
    looked.map_err(|error| {
        let error = of_the_layer(error, layer);
        match opened::about_link(store, layer) {
            Some(about) if error.kind() == Kind::Damaged => error.hint(about),
            _ => error,
        }
    })
}

/// The same, of a file that is not in its place.
pub(crate) fn inspect_file(path: &Path, layer: &Layer) -> Result<LayerInfo> {
    let opened = Opened { file: plain::open_existing(path)?, in_place: None };
    look(&opened, path, layer).map_err(|error| of_the_layer(error, layer))
}

fn of_the_layer(error: Error, layer: &Layer) -> Error {
    match error.kind() {
        Kind::Refused => {
            Error::damaged(format!("layer {layer} is damaged: {}", error.full_message()))
        }
        _ => error,
    }
}

fn look(opened: &Opened, path: &Path, layer: &Layer) -> Result<LayerInfo> {
    let Opened { file, in_place } = opened;
    let about = file.metadata().on("read", path)?;
    let mut info = LayerInfo {
        layer: layer.clone(),
        backing: None,
        virtual_bytes: if layer.format == Format::Raw { about.len() } else { 0 },
        allocated_bytes: about.blocks() * 512,
        internal_snapshots: 0,
        disputed: false,
        guest_memory: false,
    };
    let (noted, whose) = if in_place.is_some() {
        (RecordedBacking::Nothing, None)
    } else {
        backing_xattr::read_file(file)
    };
    if let Some(other) = whose.filter(|id| *id != layer.id) {
        return Err(Error::damaged(format!(
            "layer {layer} is damaged: its file is that of layer {other}; were files exchanged?"
        ))
        .hint(format!("its file is {}", path.display()))
        .hint(format!(
            "if it is that of {layer} after all: setfattr --remove user.cowhand.backing {}",
            path.display()
        )));
    }
    if layer.format == Format::Qcow2 {
        let damaged = |why: &str| {
            Error::damaged(format!("layer {layer} is damaged: {why}"))
                .hint(format!("its file is {}", path.display()))
        };
        let bytes = start(file, path)?;
        let header = qcow2::parse(&bytes).map_err(|error| damaged(&error.full_message()))?;
        let header = header.ok_or_else(|| damaged("it has no qcow2 header"))?;
        // A table of a running VM may have been moved to the end of the file meanwhile.
        let tables = match tables(file, path, &bytes)? {
            Err(_) => tables(file, path, &start(file, path)?)?,
            tables => tables,
        };
        let l1 = tables.map_err(|why| damaged(&why))?;
        if header.data_file {
            return Err(damaged("it keeps its data in another file"));
        }
        info.virtual_bytes = header.virtual_bytes;
        info.internal_snapshots = header.snapshots;
        info.guest_memory = l1[qcow2::memory_entries(&bytes, &l1)].iter().any(|byte| *byte != 0);
        if let Some(name) = header.backing_file {
            let backing = Layer::from_file_name(&name).ok_or_else(|| {
                damaged(&format!("its backing file {name:?} is not a layer of the store"))
            })?;
            // It had none when it was taken; its owner has written it, and may not choose among our
            // layers.
            if in_place.is_some() {
                return Err(damaged(&format!(
                    "it is a file in its place, and names the backing file {name:?}"
                )));
            }
            if header
                .backing_format
                .as_deref()
                .is_some_and(|format| format != backing.format.as_str())
            {
                return Err(damaged(&format!(
                    "it takes its backing file {name:?} for {}",
                    header.backing_format.as_deref().unwrap_or_default()
                )));
            }
            info.backing = Some(backing);
        }
        // A merge may have begun between the two looks.
        info.disputed =
            !noted.allows(info.backing.as_ref()) && backing_xattr::read_file(file).0 == noted;
    } else if layer.format != Format::Raw && !foreign::is_alone(file, path, layer.format)? {
        // A file that is used in its place can have been changed by its owner.
        return Err(Error::damaged(format!(
            "layer {layer} is damaged: it names other files, or is not {}",
            layer.format
        )));
    }
    Ok(info)
}

/// The L1 table of the qcow2 image that begins with `start`; or what is wrong with its header, or
/// with where its tables are. The tables of the second level are not read, since there may be
/// gigabytes of them; `disk check` and `doctor --deep` do that.
fn tables(file: &File, path: &Path, start: &[u8]) -> Result<Result<Vec<u8>, String>> {
    let length = || Ok::<_, Error>(file.metadata().on("read", path)?.len());
    if let Some(why) = qcow2::problem(start, length()?) {
        return Ok(Err(why));
    }
    let (at, bytes) = qcow2::l1_table(start);
    let mut l1 = vec![0; bytes];
    inspect::Source::read_at(file, at, &mut l1).on("read", path)?;
    // The length after the table: QEMU makes room for an L2 table first, and then enters it.
    Ok(match qcow2::lost_l2_table(start, &l1, length()?) {
        Some(why) => Err(why),
        None => Ok(l1),
    })
}

/// The first bytes of a layer, enough for its header.
pub(crate) fn read_start(store: &Store, layer: &Layer) -> Result<Vec<u8>> {
    start(&opened::open(store, layer)?.file, &store.layout.layer(layer))
}

fn start(file: &File, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![0; qcow2::HEADER_BYTES];
    let length = inspect::Source::read_at(file, 0, &mut bytes).on("read", path)?;
    bytes.truncate(length);
    Ok(bytes)
}
