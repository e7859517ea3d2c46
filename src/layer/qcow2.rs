//! The qcow2 header (QEMU's `docs/interop/qcow2.txt`): read without starting a program, and written
//! for an empty image.
//!
//! An empty image is a header, a refcount table, refcount blocks and a zeroed L1 table; writing it
//! ourselves takes a tenth of a millisecond where `qemu-img create` takes fifteen. Everything that
//! moves data is left to QEMU.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::Format;

/// How much of a file [`parse`] wants to see: the header and its extensions lie in the first
/// cluster.
pub const HEADER_BYTES: usize = 4096;

const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const HEADER_LENGTH: u32 = 104;
const EXTENSION_BACKING_FORMAT: u32 = 0xE279_2ACA;
const INCOMPATIBLE_DIRTY_OR_CORRUPT: u64 = 0b11;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Dirty, corrupt, an external data file, the type of the compression, extended L2 entries.
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
const CLUSTER_BITS_VALID: std::ops::RangeInclusive<u32> = 9..=21;
/// The largest L1 table that QEMU reads, in bytes.
const MAX_L1: u64 = 32 << 20;
/// The largest refcount table that QEMU reads, in bytes.
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// The bits of an L1 entry that say where the L2 table is.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// One L1 entry covers an L2 table of 8192 clusters: 512 MiB.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
/// QEMU refuses a larger L1 table (32 MiB), which stands for 2 PiB here.
const MAX_VIRTUAL: u64 = MAX_L1 / 8 * BYTES_PER_L1_ENTRY;

/// What a qcow2 header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The size the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// The backing file, as spelled in the header.
    pub backing_file: Option<String>,
    /// The backing file's format, where the header spells it out.
    pub backing_format: Option<String>,
    /// How many internal snapshots there are.
    pub snapshots: u32,
    /// The image is encrypted.
    pub encrypted: bool,
    /// Guest data lies in another file.
    pub data_file: bool,
}

/// Reads a header from the first [`HEADER_BYTES`] of a file. `Ok(None)`: this is not a qcow2 image.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>> {
    if be32(bytes, 0) != Some(MAGIC) {
        return Ok(None);
    }
    let truncated = || Error::damaged("the qcow2 header is cut short");
    let field32 = |at| be32(bytes, at).ok_or_else(truncated);
    let field64 = |at| be64(bytes, at).ok_or_else(truncated);
    let version = field32(4)?;
    if !(2..=3).contains(&version) {
        return Err(Error::refused(format!("qcow2 version {version} is not supported")));
    }
    let (name_at, name_length) = (field64(8)?, field32(16)? as usize);
    let text = |at: usize, length: usize| {
        let raw =
            at.checked_add(length).and_then(|end| bytes.get(at..end)).ok_or_else(truncated)?;
        String::from_utf8(raw.to_vec())
            .map_err(|_| Error::refused("the name of the backing file is not UTF-8"))
    };
    let backing_file = match name_at {
        0 => None,
        at => Some(text(usize::try_from(at).map_err(|_| truncated())?, name_length)?),
    };
    let (features, mut at) =
        if version == 2 { (0, 72) } else { (field64(72)?, field32(100)? as usize) };
    let mut backing_format = None;
    while let (Some(kind), Some(length)) = (be32(bytes, at), be32(bytes, at + 4)) {
        if kind == 0 || (name_at != 0 && at as u64 >= name_at) {
            break;
        }
        if kind == EXTENSION_BACKING_FORMAT {
            backing_format = Some(text(at + 8, length as usize)?);
        }
        at = at.saturating_add(8).saturating_add((length as usize).next_multiple_of(8));
    }
    Ok(Some(Header {
        virtual_bytes: field64(24)?,
        backing_file,
        backing_format,
        snapshots: field32(60)?,
        encrypted: field32(32)? != 0,
        data_file: features & INCOMPATIBLE_DATA_FILE != 0,
    }))
}

/// Why QEMU would not open this image, or would read something else from it than was written: a
/// field that no image has, or tables that are not in a file of `length` bytes. `start` is what
/// [`parse`] takes. The limits are those of QEMU's `block/qcow2.c`.
pub fn problem(start: &[u8], length: u64) -> Option<String> {
    let field32 = |at| be32(start, at).unwrap_or(0);
    let field64 = |at| be64(start, at).unwrap_or(0);
    let bits = field32(20);
    if !CLUSTER_BITS_VALID.contains(&bits) {
        return Some(format!("its cluster size (2^{bits}) is not valid"));
    }
    let cluster = 1_u64 << bits;
    let incompatible = if field32(4) == 2 { 0 } else { field64(72) };
    if field32(4) != 2 {
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Some(format!(
                "it needs a feature of qcow2 that is not known (bit {})",
                unknown.trailing_zeros()
            ));
        }
        let (order, header) = (field32(96), u64::from(field32(100)));
        if order > 6 {
            return Some(format!("its refcounts have 2^{order} bits"));
        }
        if header < u64::from(HEADER_LENGTH) || header > cluster {
            return Some(format!("its header is said to have {header} bytes"));
        }
    }
    let (size, l1_at, l1_entries) = (field64(24), field64(40), u64::from(field32(36)));
    let entry = if incompatible & INCOMPATIBLE_EXTENDED_L2 == 0 { 8 } else { 16 };
    if l1_entries * 8 > MAX_L1 || size.div_ceil(cluster / entry * cluster) > l1_entries {
        return Some(format!("its L1 table has {l1_entries} entries for a disk of {size} bytes"));
    }
    let (refcounts_at, refcount_clusters) = (field64(48), u64::from(field32(56)));
    if refcount_clusters == 0 || refcount_clusters * cluster > MAX_REFCOUNT_TABLE {
        return Some(format!("its refcount table has {refcount_clusters} clusters"));
    }
    let (snapshots, snapshots_at) = (u64::from(field32(60)), field64(64));
    // The last cluster of a refcount table may be cut off at its zeros, and a table that has no
    // entry is nowhere. Names and numbers of an internal snapshot come on top.
    let tables = [
        ("L1", l1_at, l1_entries * 8),
        ("refcount", refcounts_at, 8),
        ("snapshot", snapshots_at, snapshots * 40),
    ];
    tables.into_iter().filter(|(_, _, bytes)| *bytes > 0).find_map(|(name, at, bytes)| {
        if at == 0 || at % cluster != 0 {
            return Some(format!("its {name} table is said to be at {at}"));
        }
        let end = at.checked_add(bytes);
        (end.is_none_or(|end| end > length)).then(|| {
            format!("its {name} table is at {at}, and the file ends at {length}: it was cut short")
        })
    })
}

/// Where the L1 table of an image is that has no [`problem`], and its length in bytes.
pub fn l1_table(start: &[u8]) -> (u64, usize) {
    (be64(start, 40).unwrap_or(0), be32(start, 36).unwrap_or(0) as usize * 8)
}

/// Which table of the second level, as its entry in the first says, is not in a file of `length`
/// bytes. QEMU reads zeros from behind the end of a file, so the guest would see all that such a
/// table led to as never written.
pub fn lost_l2_table(start: &[u8], l1: &[u8], length: u64) -> Option<String> {
    let cluster = 1_u64 << be32(start, 20).unwrap_or(CLUSTER_BITS).min(*CLUSTER_BITS_VALID.end());
    l1.chunks_exact(8).filter_map(|entry| be64(entry, 0)).map(|entry| entry & L1_OFFSET).find_map(
        |at| {
            if at % cluster != 0 {
                return Some(format!("one of its L2 tables is said to be at {at}"));
            }
            (at != 0 && at + cluster > length).then(|| {
                format!(
                    "one of its L2 tables is at {at}, \
                     and the file ends at {length}: it was cut short"
                )
            })
        },
    )
}

/// Which bytes of the L1 table lie behind what stands for the disk: there QEMU keeps the memory of
/// a guest (`qcow2_vm_state_offset` in `block/qcow2.h`). `start` is that of an image without a
/// [`problem`].
pub fn memory_entries(start: &[u8], l1: &[u8]) -> Range<usize> {
    let bits = be32(start, 20).unwrap_or(CLUSTER_BITS).min(*CLUSTER_BITS_VALID.end());
    let extended =
        be32(start, 4) != Some(2) && be64(start, 72).unwrap_or(0) & INCOMPATIBLE_EXTENDED_L2 != 0;
    let covered = ((1_u64 << bits) / if extended { 16 } else { 8 }) << bits;
    let first = be64(start, 24).unwrap_or(u64::MAX).div_ceil(covered);
    usize::try_from(first).unwrap_or(usize::MAX).saturating_mul(8).min(l1.len())..l1.len()
}

/// Was the image left behind by a QEMU that died while its reference counts were not written, or
/// found to be damaged?
pub fn is_dirty_or_corrupt(start: &[u8]) -> bool {
    be32(start, 4) != Some(2) && be64(start, 72).unwrap_or(0) & INCOMPATIBLE_DIRTY_OR_CORRUPT != 0
}

/// The bytes of an empty image: `(offset, bytes)` pieces, and the length the file must have.
#[derive(Debug, PartialEq, Eq)]
pub struct Empty {
    /// What to write, and where; the rest of the file is zeros.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// The file's length in bytes.
    pub length: u64,
}

/// An empty image of `virtual_bytes`, depending on `backing` (its name and format) if there is one.
pub fn empty(virtual_bytes: u64, backing: Option<(&str, Format)>) -> Result<Empty> {
    if virtual_bytes > MAX_VIRTUAL {
        return Err(Error::refused(format!(
            "a disk of {virtual_bytes} bytes is too large: qcow2 ends at {MAX_VIRTUAL}"
        )));
    }
    let virtual_bytes = virtual_bytes.next_multiple_of(512);
    let l1_entries = virtual_bytes.div_ceil(BYTES_PER_L1_ENTRY);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
    // One refcount block counts 32768 clusters and the L1 table has at most 512: one block is
    // always enough.
    let (table_at, block_at, l1_at) = (CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
    let used_clusters = 3 + l1_clusters;

    let mut header = Vec::with_capacity(512);
    let put32 = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_be_bytes());
    let put64 = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_be_bytes());
    let extensions = match backing {
        Some((_, format)) => 8 + format.as_str().len().next_multiple_of(8) + 8,
        None => 8,
    };
    put32(&mut header, MAGIC);
    put32(&mut header, 3);
    put64(
        &mut header,
        if backing.is_some() { u64::from(HEADER_LENGTH) + extensions as u64 } else { 0 },
    );
    put32(&mut header, backing.map_or(0, |(name, _)| name.len() as u32));
    put32(&mut header, CLUSTER_BITS);
    put64(&mut header, virtual_bytes);
    put32(&mut header, 0); // not encrypted
    put32(&mut header, l1_entries as u32);
    put64(&mut header, l1_at);
    put64(&mut header, table_at);
    put32(&mut header, 1); // clusters of the refcount table
    put32(&mut header, 0); // no snapshots
    put64(&mut header, 0);
    put64(&mut header, 0); // incompatible features
    put64(&mut header, 0); // compatible features
    put64(&mut header, 0); // autoclear features
    put32(&mut header, 4); // refcounts of 16 bits
    put32(&mut header, HEADER_LENGTH);
    if let Some((name, format)) = backing {
        put32(&mut header, EXTENSION_BACKING_FORMAT);
        put32(&mut header, format.as_str().len() as u32);
        header.extend(format.as_str().as_bytes());
        header.resize(header.len().next_multiple_of(8), 0);
        put64(&mut header, 0);
        header.extend(name.as_bytes());
    } else {
        put64(&mut header, 0);
    }

    let refcounts = (0..used_clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    Ok(Empty {
        pieces: vec![
            (0, header),
            (table_at, block_at.to_be_bytes().to_vec()),
            (block_at, refcounts),
        ],
        length: used_clusters * CLUSTER,
    })
}

/// An image with content, for small ones (UEFI variables): at most what one L2 table maps.
pub fn whole(data: &[u8]) -> Result<Empty> {
    if data.len() as u64 > BYTES_PER_L1_ENTRY {
        return Err(Error::refused("the image is too large to be written in one piece"));
    }
    let mut image = empty(data.len() as u64, None)?;
    let (l1_at, l2_at) = (3 * CLUSTER, image.length);
    let first = l2_at + CLUSTER;
    let clusters = (data.len() as u64).div_ceil(CLUSTER);
    // Bit 63: the cluster is used once.
    let used = |at: u64| (at | 1 << 63).to_be_bytes();
    let refcounts = (0..(first / CLUSTER + clusters)).flat_map(|_| 1u16.to_be_bytes()).collect();
    image.pieces.pop();
    image.pieces.push((2 * CLUSTER, refcounts));
    image.pieces.push((l1_at, used(l2_at).to_vec()));
    image.pieces.push((l2_at, (0..clusters).flat_map(|n| used(first + n * CLUSTER)).collect()));
    image.pieces.push((first, data.to_vec()));
    image.length = first + clusters * CLUSTER;
    Ok(image)
}

pub(super) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
