//! VHDX (MS-VHDX, QEMU's `block/vhdx.c`). QEMU refuses differencing images; so do we, with the
//! parent's name.

use std::io;

use super::{Inspection, NAME, Reader, Reference, Role, le32, le64};

/// The two copies of the region table.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const TABLE: usize = 64 << 10;
/// A table has at most so many entries.
const ENTRIES: u32 = 2047;
const METADATA: [u8; 16] = guid(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE_575F_050F_886E);
const PARAMETERS: [u8; 16] = guid(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6_33F0_AA44_E76B);
const SIZE: [u8; 16] = guid(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211_5DBE_D83B_F4B8);
const PARENT: [u8; 16] = guid(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7_D3D8_4834_AB0C);
const HAS_PARENT: u32 = 2;
/// The keys under which a parent is named, the relative path first.
const KEYS: [&str; 3] = ["relative_path", "absolute_win32_path", "volume_path"];

/// A GUID as it is stored: three little-endian numbers and eight bytes.
const fn guid(a: u32, b: u16, c: u16, rest: u64) -> [u8; 16] {
    let (a, b, c, rest) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), rest.to_be_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], rest[0], rest[1], rest[2], rest[3],
        rest[4], rest[5], rest[6], rest[7],
    ]
}

pub(super) fn inspect(reader: &Reader<'_>) -> io::Result<Inspection> {
    if !reader.read(0, 8)?.starts_with(b"vhdxfile") {
        return Ok(Inspection::unusable("it has no VHDX header"));
    }
    let mut found = Inspection { variant: Some("dynamic".to_owned()), ..Inspection::default() };
    let mut seen = false;
    for at in REGION_TABLES {
        let table = reader.read(at, TABLE)?;
        if !table.starts_with(b"regi") {
            continue;
        }
        let count = le32(&table, 8).unwrap_or(0).min(ENTRIES) as usize;
        for entry in table.get(16..).unwrap_or_default().chunks_exact(32).take(count) {
            if entry[..16] == METADATA {
                seen |= metadata(reader, le64(entry, 16).unwrap_or(u64::MAX), &mut found)?;
            }
        }
    }
    if !seen {
        return Ok(Inspection::unusable("its VHDX metadata cannot be read"));
    }
    if !found.names.is_empty() {
        found.variant = Some("differencing".to_owned());
    }
    Ok(found)
}

/// Takes over what the metadata region at `region` says; false when it cannot be read.
fn metadata(reader: &Reader<'_>, region: u64, found: &mut Inspection) -> io::Result<bool> {
    let table = reader.read(region, TABLE)?;
    if !table.starts_with(b"metadata") {
        return Ok(false);
    }
    let count = usize::from(u16::from_le_bytes([
        table.get(10).copied().unwrap_or(0),
        table.get(11).copied().unwrap_or(0),
    ]));
    let (mut parameters, mut parent) = (None, None);
    for entry in table.get(32..).unwrap_or_default().chunks_exact(32).take(count) {
        let at = region.saturating_add(u64::from(le32(entry, 16).unwrap_or(0)));
        let length = le32(entry, 20).unwrap_or(0) as usize;
        match <[u8; 16]>::try_from(&entry[..16]).unwrap_or_default() {
            PARAMETERS => parameters = le32(&reader.read(at, 8)?, 4),
            SIZE => found.virtual_bytes = le64(&reader.read(at, 8)?, 0).unwrap_or(0),
            PARENT => parent = Some(locator(&reader.read(at, length.min(TABLE))?)),
            _ => {}
        }
    }
    let Some(parameters) = parameters else { return Ok(false) };
    if (parameters & HAS_PARENT != 0 || parent.is_some()) && found.names.is_empty() {
        found.names.push(Reference { role: Role::Parent, name: parent.flatten() });
    }
    Ok(true)
}

/// The name in a parent locator: key-value pairs in UTF-16, little-endian.
fn locator(bytes: &[u8]) -> Option<String> {
    let count = usize::from(u16::from_le_bytes([*bytes.get(18)?, *bytes.get(19)?]));
    let text = |at: u32, length: u16| {
        let at = at as usize;
        let raw = bytes.get(at..at.checked_add(usize::from(length).min(NAME))?)?;
        let units: Vec<u16> =
            raw.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
        Some(String::from_utf16_lossy(&units))
    };
    let pairs: Vec<(String, String)> = bytes
        .get(20..)?
        .chunks_exact(12)
        .take(count)
        .filter_map(|entry| {
            let lengths = (
                u16::from_le_bytes([entry[8], entry[9]]),
                u16::from_le_bytes([entry[10], entry[11]]),
            );
            Some((text(le32(entry, 0)?, lengths.0)?, text(le32(entry, 4)?, lengths.1)?))
        })
        .collect();
    KEYS.iter()
        .find_map(|key| pairs.iter().find(|(name, _)| name == key))
        .map(|(_, path)| path.clone())
}
