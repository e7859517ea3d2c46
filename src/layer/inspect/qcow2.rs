//! qcow2 (QEMU's `docs/interop/qcow2.txt`): versions 2 and 3.

use std::io;

use super::{Inspection, NAME, Reader, Reference, Role, be32, be64};
use crate::layer::qcow2;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const BACKING_FORMAT: u32 = 0xE279_2ACA;
const DATA_FILE: u32 = 0x4441_5441;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// How much of the first cluster is looked at for extensions.
const EXTENSIONS: usize = 64 << 10;

pub(super) fn inspect(reader: &Reader<'_>) -> io::Result<Inspection> {
    let start = reader.read(0, EXTENSIONS)?;
    let field = |at| be32(&start, at);
    let (Some(MAGIC), Some(version @ 2..=3), Some(size), Some(encryption), Some(snapshots)) =
        (field(0), field(4), be64(&start, 24), field(32), field(60))
    else {
        return Ok(Inspection::unusable("it has no qcow2 header of version 2 or 3"));
    };
    let (name_at, name_length) = (be64(&start, 8).unwrap_or(0), field(16).unwrap_or(0));
    // Fields behind the end of a version 3 header that is cut short read as zeros for QEMU, or stop
    // it.
    let (features, header) = if version == 2 {
        (0, 72)
    } else {
        (be64(&start, 72).unwrap_or(u64::MAX), field(100).unwrap_or(104))
    };
    let mut found = Inspection {
        variant: Some(format!("version {version}")),
        virtual_bytes: size,
        snapshots,
        encrypted: encryption != 0,
        ..Inspection::default()
    };
    if name_at != 0 {
        let length = usize::try_from(name_length).unwrap_or(NAME).min(NAME);
        found.names.push(Reference::new(Role::Backing, &reader.read(name_at, length)?));
    }
    let mut data_file = None;
    for (kind, bytes) in extensions(&start, header as usize) {
        let text = || String::from_utf8_lossy(&bytes[..bytes.len().min(NAME)]).into_owned();
        match kind {
            BACKING_FORMAT => found.backing_format = Some(text()),
            DATA_FILE => data_file = Some(Reference::new(Role::DataFile, bytes)),
            _ => {}
        }
    }
    // The bit decides for QEMU; the name alone is on its way to being one, so it counts as well.
    if features & INCOMPATIBLE_DATA_FILE != 0 || data_file.is_some() {
        found.names.push(data_file.unwrap_or(Reference { role: Role::DataFile, name: None }));
    }
    found.unusable = qcow2::problem(&start, reader.length());
    Ok(found)
}

/// The header extensions: what they are and what they hold.
fn extensions(start: &[u8], header: usize) -> impl Iterator<Item = (u32, &[u8])> {
    let mut at = header;
    std::iter::from_fn(move || {
        let (kind, length) = (be32(start, at)?, be32(start, at.checked_add(4)?)? as usize);
        if kind == 0 {
            return None;
        }
        let from = at.checked_add(8)?;
        let bytes = start.get(from..from.checked_add(length)?.min(start.len()))?;
        at = from.checked_add(length.checked_next_multiple_of(8)?)?;
        Some((kind, bytes))
    })
}
