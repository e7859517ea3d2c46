//! VMDK (QEMU's `block/vmdk.c`): sparse files with a header, and text descriptors that name
//! extents.
//!
//! A sparse file is self-contained when its header gives a capacity: QEMU then reads its own
//! grains. With a capacity of 0 the header points at an embedded descriptor, and QEMU opens every
//! extent named there. A file that begins with neither magic is a descriptor for QEMU's driver,
//! whatever it holds. In both, the text behind `parentFileNameHint` becomes the backing file.

use std::io;

use super::{Inspection, Reader, Reference, Role, find, le32, le64};

/// QEMU reads so much of a descriptor.
const DESCRIPTOR: usize = (1 << 20) - 1;
/// Where QEMU looks for the parent of a file with a header, and how far; we look further.
const HINT_AT: u64 = 0x200;
const HINT_WITHIN: usize = 64 << 10;
const HINT: &[u8] = b"parentFileNameHint";
/// More extents than any disk has.
const EXTENTS: usize = 4096;
const SECTOR: u64 = 512;
const GD_AT_END: u64 = u64::MAX;
const DEFLATE: u16 = 1;

/// How an extent holds its part of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// The bytes themselves (`FLAT`, `VMFS`).
    Flat,
    /// A sparse file with a header (`SPARSE`).
    Sparse,
    /// Another kind, which is not supported.
    Other,
}

/// A line of a descriptor: `RW 2048 FLAT "disk-flat.vmdk" 0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// How it holds them.
    pub kind: ExtentKind,
    /// Its file, as it is spelled.
    pub name: String,
    /// Where it begins in its file, in sectors.
    pub offset: u64,
}

/// Is this the text of a descriptor? As QEMU's probe has it: comments and empty lines, then
/// `version=`.
pub(super) fn is_descriptor(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"# Disk DescriptorFile") {
        return true;
    }
    let first = bytes[..bytes.len().min(4096)].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut lines = first.skip_while(|line| line.is_empty() || line.starts_with(b"#"));
    lines.next().is_some_and(|line| {
        [b"version=1", b"version=2", b"version=3"].iter().any(|word| line == *word)
    })
}

pub(super) fn inspect(reader: &Reader<'_>) -> io::Result<Inspection> {
    let header = reader.read(0, SECTOR as usize)?;
    let mut found = match header.get(..4) {
        Some(b"KDMV") => sparse(reader, &header)?,
        Some(b"COWD") => Inspection {
            variant: Some("vmfsSparse".to_owned()),
            virtual_bytes: u64::from(le32(&header, 12).unwrap_or(0)).saturating_mul(SECTOR),
            ..Inspection::default()
        },
        Some(_) => descriptor(&reader.read(0, DESCRIPTOR)?),
        None => return Ok(Inspection::unusable("it is too short for a VMDK")),
    };
    let within = reader.read(HINT_AT, HINT_WITHIN)?;
    if !found.names.iter().any(|name| name.role == Role::Parent)
        && let Some(parent) = parent(&within)
    {
        found.names.push(parent);
    }
    Ok(found)
}

fn sparse(reader: &Reader<'_>, header: &[u8]) -> io::Result<Inspection> {
    let (capacity, text_at, text_length) = (le64(header, 12), le64(header, 28), le64(header, 36));
    let (Some(capacity), Some(text_at), Some(text_length), Some(directory)) =
        (capacity, text_at, text_length, le64(header, 56))
    else {
        return Ok(Inspection::unusable("its VMDK header is cut short"));
    };
    if capacity == 0 {
        // QEMU reads to the end of the file from there.
        let mut found = descriptor(&reader.read(text_at.saturating_mul(SECTOR), DESCRIPTOR)?);
        if found.names.is_empty() {
            found.names.push(Reference { role: Role::Extent, name: None });
        }
        return Ok(found);
    }
    // What a footer says takes precedence.
    let footer = match directory {
        GD_AT_END => reader.read(
            (reader.length() / SECTOR * SECTOR).saturating_sub(2 * SECTOR),
            SECTOR as usize,
        )?,
        _ => Vec::new(),
    };
    let capacity = le64(&footer, 12).unwrap_or(capacity);
    let compressed =
        header.get(77..79).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])) == Some(DEFLATE);
    let within =
        usize::try_from(text_length.saturating_mul(SECTOR)).unwrap_or(HINT_WITHIN).min(HINT_WITHIN);
    let text = if text_at == 0 {
        Vec::new()
    } else {
        reader.read(text_at.saturating_mul(SECTOR), within)?
    };
    let default = if compressed { "streamOptimized" } else { "monolithicSparse" };
    let mut found = Inspection {
        variant: Some(value(&text, "createType").unwrap_or_else(|| default.to_owned())),
        virtual_bytes: capacity.saturating_mul(SECTOR),
        ..Inspection::default()
    };
    found.names.extend(parent(&text));
    Ok(found)
}

/// A text descriptor. It holds no data, so it always names something.
fn descriptor(text: &[u8]) -> Inspection {
    let mut extents = Vec::new();
    for line in text.split(|byte| matches!(byte, b'\n' | 0)).take(EXTENTS * 4) {
        if extents.len() == EXTENTS {
            break;
        }
        extents.extend(extent(line));
    }
    let mut names: Vec<Reference> = extents
        .iter()
        .map(|extent: &Extent| Reference::new(Role::Extent, extent.name.as_bytes()))
        .collect();
    names.extend(parent(text));
    if names.is_empty() {
        names.push(Reference { role: Role::Extent, name: None });
    }
    Inspection {
        variant: value(text, "createType"),
        virtual_bytes: extents
            .iter()
            .fold(0u64, |sum, extent| sum.saturating_add(extent.sectors))
            .saturating_mul(SECTOR),
        names,
        extents,
        ..Inspection::default()
    }
}

/// `ACCESS SECTORS TYPE "NAME" [OFFSET]`, with any white space, as `sscanf` reads it.
fn extent(line: &[u8]) -> Option<Extent> {
    let line = String::from_utf8_lossy(line);
    let (before, rest) = line.split_once('"')?;
    let (name, behind) = rest.split_once('"').unwrap_or((rest, ""));
    let mut words = before.split_whitespace();
    let (_access, sectors, kind) = (words.next()?, words.next()?, words.next()?);
    let sectors = sectors.parse().ok()?;
    let kind = match kind {
        "FLAT" | "VMFS" => ExtentKind::Flat,
        "SPARSE" => ExtentKind::Sparse,
        _ => ExtentKind::Other,
    };
    let offset = behind.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    Some(Extent { sectors, kind, name: name.to_owned(), offset })
}

/// The parent that a text names. QEMU takes whatever stands between the next two quotes.
fn parent(text: &[u8]) -> Option<Reference> {
    let at = find(text, HINT)?;
    let rest = text.get(at + HINT.len()..)?;
    let name = rest.splitn(3, |byte| *byte == b'"').nth(1).unwrap_or_default();
    Some(Reference::new(Role::Parent, name))
}

/// The value of `key="value"`.
fn value(text: &[u8], key: &str) -> Option<String> {
    let at = find(text, key.as_bytes())?;
    let rest = text.get(at + key.len()..)?.strip_prefix(b"=\"")?;
    let end = rest.iter().take(64).position(|byte| *byte == b'"')?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}
