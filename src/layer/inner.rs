//! Internal snapshots, as the snapshot table of a qcow2 image has them.
//!
//! Source: QEMU's `docs/interop/qcow2.txt`, "Snapshots".

use std::path::Path;

use super::inspect::Source;
use super::qcow2::{be16, be32, be64};
use crate::error::{Error, IoContext, Result};

/// The most snapshots that are read, and the longest table in bytes.
const MOST: u32 = 1000;
const LONGEST: usize = 4 << 20;
/// The fixed part of an entry.
const FIXED: usize = 40;

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inner {
    /// QEMU's number for it.
    pub id: String,
    /// Its tag.
    pub name: String,
    /// The size of the disk at that moment, in bytes; images of version 2 do not say.
    pub virtual_bytes: Option<u64>,
}

/// Reads the snapshot table of a qcow2 image whose header has been looked at. `shown` is the image
/// in messages.
pub(crate) fn read(image: &dyn Source, shown: &Path) -> Result<Vec<Inner>> {
    let bad =
        || Error::refused(format!("the snapshot table of {} cannot be read", shown.display()));
    let mut header = [0; 72];
    let read = image.read_at(0, &mut header).on("read", shown)?;
    let (count, at) = (be32(&header, 60).ok_or_else(bad)?, be64(&header, 64).ok_or_else(bad)?);
    if read < header.len() || count > MOST {
        return Err(bad());
    }
    let mut table =
        vec![0; LONGEST.min(usize::try_from(image.length().saturating_sub(at)).unwrap_or(LONGEST))];
    let read = image.read_at(at, &mut table).on("read", shown)?;
    table.truncate(read);
    let (mut found, mut next) = (Vec::new(), 0_usize);
    for _ in 0..count {
        let entry = table.get(next..).ok_or_else(bad)?;
        let short = |at| be16(entry, at).map(usize::from).ok_or_else(bad);
        let (id_length, name_length) = (short(12)?, short(14)?);
        let extra =
            be32(entry, 36).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(bad)?;
        let id_at = FIXED.checked_add(extra).ok_or_else(bad)?;
        let text = |at: usize, length: usize| {
            let bytes =
                at.checked_add(length).and_then(|end| entry.get(at..end)).ok_or_else(bad)?;
            String::from_utf8(bytes.to_vec()).map_err(|_| bad())
        };
        found.push(Inner {
            id: text(id_at, id_length)?,
            name: text(id_at + id_length, name_length)?,
            virtual_bytes: be64(entry, FIXED + 8).filter(|_| extra >= 16),
        });
        next = next.saturating_add((id_at + id_length + name_length).next_multiple_of(8));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 512];
        image[60..64].copy_from_slice(&2_u32.to_be_bytes());
        image[64..72].copy_from_slice(&128_u64.to_be_bytes());
        let mut at = 128;
        for (id, name, size) in [("1", "first", 1_u64 << 30), ("12", "a, b", 2 << 30)] {
            image[at + 12..at + 14]
                .copy_from_slice(&u16::try_from(id.len()).expect("short").to_be_bytes());
            image[at + 14..at + 16]
                .copy_from_slice(&u16::try_from(name.len()).expect("short").to_be_bytes());
            image[at + 36..at + 40].copy_from_slice(&16_u32.to_be_bytes());
            image[at + 48..at + 56].copy_from_slice(&size.to_be_bytes());
            let words = [id, name].concat();
            image[at + 56..at + 56 + words.len()].copy_from_slice(words.as_bytes());
            at += (56 + words.len()).next_multiple_of(8);
        }
        image
    }

    #[test]
    fn names_numbers_and_sizes_are_read() {
        let image = image();
        let found = read(&&image[..], Path::new("x")).expect("a table");
        let found: Vec<_> =
            found.iter().map(|one| (&*one.id, &*one.name, one.virtual_bytes)).collect();
        assert_eq!(found, [("1", "first", Some(1 << 30)), ("12", "a, b", Some(2 << 30))]);
        let mut more = image;
        more[60..64].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(read(&&more[..], Path::new("x")).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_table_nothing_panics(
            at in 60..400_usize,
            bytes in proptest::collection::vec(any::<u8>(), 1..40),
        ) {
            let mut image = image();
            let end = (at + bytes.len()).min(image.len());
            image[at..end].copy_from_slice(&bytes[..end - at]);
            let _ = read(&&image[..], Path::new("x"));
        }
    }
}
