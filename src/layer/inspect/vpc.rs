//! VHD, which QEMU calls vpc ("Virtual Hard Disk Image Format Specification", QEMU's
//! `block/vpc.c`).

use std::io;

use super::{Inspection, Reader, Reference, Role, be32, be64};

const FOOTER: u64 = 512;
const COOKIE: &[u8] = b"conectix";

/// Does the file end as a fixed VHD does?
pub(super) fn has_footer(reader: &Reader<'_>) -> io::Result<bool> {
    let Some(at) = reader.length().checked_sub(FOOTER) else { return Ok(false) };
    let footer = reader.read(at, FOOTER as usize)?;
    Ok(footer.starts_with(COOKIE) && be32(&footer, 60) == Some(2))
}

pub(super) fn inspect(reader: &Reader<'_>) -> io::Result<Inspection> {
    let mut footer = reader.read(0, FOOTER as usize)?;
    if !footer.starts_with(COOKIE) {
        footer = reader.read(reader.length().saturating_sub(FOOTER), FOOTER as usize)?;
    }
    if !footer.starts_with(COOKIE) {
        return Ok(Inspection::unusable("it has no VHD footer"));
    }
    let kind = be32(&footer, 60).unwrap_or(0);
    let variant = match kind {
        2 => "fixed".to_owned(),
        3 => "dynamic".to_owned(),
        4 => "differencing".to_owned(),
        other => format!("type {other}"),
    };
    let mut found = Inspection {
        variant: Some(variant),
        virtual_bytes: be64(&footer, 48).unwrap_or(0),
        ..Inspection::default()
    };
    if !matches!(kind, 2 | 3) {
        found.names.push(Reference { role: Role::Parent, name: parent(reader, &footer)? });
    }
    Ok(found)
}

/// The parent's name in the dynamic header, which is UTF-16 in big-endian order.
fn parent(reader: &Reader<'_>, footer: &[u8]) -> io::Result<Option<String>> {
    let header = reader.read(be64(footer, 16).unwrap_or(u64::MAX), 1024)?;
    if !header.starts_with(b"cxsparse") {
        return Ok(None);
    }
    let units = header
        .get(64..576)
        .unwrap_or_default()
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Ok(Some(String::from_utf16_lossy(&units)).filter(|name| !name.is_empty()))
}
