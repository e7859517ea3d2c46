//! VDI (QEMU's `block/vdi.c`): dynamic and static images. QEMU opens no parent, and neither is one
//! accepted here.

use std::io;

use super::{Inspection, Reader, Reference, Role, le32, le64};

/// The signature, at byte 64.
pub(super) const MAGIC: [u8; 4] = [0x7f, 0x10, 0xda, 0xbe];
const DYNAMIC: u32 = 1;
const STATIC: u32 = 2;

pub(super) fn inspect(reader: &Reader<'_>) -> io::Result<Inspection> {
    let start = reader.read(0, 512)?;
    if start.get(64..68) != Some(&MAGIC) {
        return Ok(Inspection::unusable("it has no VDI header"));
    }
    let (kind, size) = (le32(&start, 76).unwrap_or(0), le64(&start, 368).unwrap_or(0));
    let variant = match kind {
        DYNAMIC => "dynamic".to_owned(),
        STATIC => "static".to_owned(),
        3 => "undo".to_owned(),
        4 => "differencing".to_owned(),
        other => format!("type {other}"),
    };
    // The UUIDs of the image that this one continues, and of its last change; all zeros: there is
    // none.
    let parents = start.get(424..456).unwrap_or_default();
    let mut found =
        Inspection { variant: Some(variant), virtual_bytes: size, ..Inspection::default() };
    if !matches!(kind, DYNAMIC | STATIC) || parents.iter().any(|byte| *byte != 0) {
        found.names.push(Reference { role: Role::Parent, name: None });
    }
    Ok(found)
}
