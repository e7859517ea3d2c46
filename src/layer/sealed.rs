//! What the file of a sealed layer was when it was sealed, noted in an extended attribute of the
//! file (`user.cowhand.sealed`, see `xattr(7)`): which layer it is, its length, when it was written
//! to, and what it begins with. Nothing writes to a sealed layer but a merge, so a file that is
//! shorter, or another one, has lost data. Every guest above would read something else than it has
//! written.
//!
//! As with [`super::note`], there is a note only while it is certain: it is taken away before a
//! merge, and written again after it. Where the file system has no such attributes there are no
//! notes, and nothing is missed. A file that is used in its place has none.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr, lremovexattr};
use rustix::io::Errno;

use super::{opened, qcow2};
use crate::error::{Error, IoContext, Result};
use crate::model::Layer;
use crate::store::Store;

const NAME: &str = "user.cowhand.sealed";
/// The first word of a note.
const VERSION: u32 = 1;
/// The longest note: a layer's id and four numbers.
const LONGEST: usize = 128;
/// How often a layer is looked at that seems to have changed: a merge beside it takes the note away
/// and writes another.
const LOOKS: usize = 3;

/// How the file of a sealed layer differs from what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has lost data, or is another file. In words.
    Lost(String),
    /// It was written to, and is as long and begins as it did.
    Written,
}

/// What is noted with a file.
#[derive(Debug, PartialEq, Eq)]
enum RecordedLook {
    /// Nothing that can be read.
    Nothing,
    /// This.
    Look(Look),
    /// Something, by a newer version. It stays as it is.
    Newer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    id: String,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    start: u64,
}

/// Notes what the file of `layer` is now, if nothing is noted. What was written to it is on the
/// disk first: a power cut would leave a shorter file.
pub fn note(store: &Store, layer: &Layer) {
    let noted = || -> Result<()> {
        let opened = opened::open(store, layer)?;
        let path = store.layout.layer(layer);
        if opened.in_place.is_some()
            || !matches!(read(&opened.file).on("read the note of", &path)?, RecordedLook::Nothing)
        {
            return Ok(());
        }
        opened.file.sync_data().on("flush", &path)?;
        let text = Look::of(&opened.file, layer).on("read", &path)?.text();
        fsetxattr(&opened.file, NAME, text.as_bytes(), XattrFlags::empty())
            .map_err(std::io::Error::from)
            .on("note", &path)
    };
    if let Err(error) = noted() {
        tracing::debug!(
            "what layer {layer} is when it is sealed is not noted: {}",
            error.full_message()
        );
    }
}

/// Takes the note away, because the layer is going to be written. Was there one?
pub fn forget(store: &Store, layer: &Layer) -> bool {
    match lremovexattr(store.layout.layer(layer), NAME) {
        Ok(()) => true,
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT) => false,
        Err(error) => {
            tracing::debug!("the note that {layer} is sealed stays: {error}");
            false
        }
    }
}

/// Is the file of `layer` what it was when it was sealed, as far as that was noted? Otherwise, how
/// it has changed.
pub fn change(store: &Store, layer: &Layer) -> Result<Option<Change>> {
    let path = store.layout.layer(layer);
    let mut found = None;
    for _ in 0..LOOKS {
        let opened = opened::open(store, layer)?;
        if opened.in_place.is_some() {
            return Ok(None);
        }
        // Of what a newer version has noted this one says nothing.
        let RecordedLook::Look(noted) = read(&opened.file).on("read the note of", &path)? else {
            return Ok(None);
        };
        found = noted.change(&Look::of(&opened.file, layer).on("read", &path)?);
        if found.is_none() {
            break;
        }
    }
    Ok(found)
}

/// Refuses a layer that has lost what it had when it was sealed.
pub fn refuse_lost(store: &Store, layer: &Layer) -> Result<()> {
    match change(store, layer)? {
        Some(Change::Lost(why)) => Err(Error::damaged(format!("layer {layer} is damaged: {why}"))
            .hint(format!(
                "its file is {}; bring it back from a backup",
                store.layout.layer(layer).display()
            ))),
        _ => Ok(()),
    }
}

fn read(file: &File) -> std::io::Result<RecordedLook> {
    let mut bytes = [0_u8; LONGEST];
    match fgetxattr(file, NAME, &mut bytes[..]) {
        Ok(length) => Ok(RecordedLook::parse(&bytes[..length])),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(RecordedLook::Nothing),
        // Longer than any of this version's.
        Err(Errno::RANGE) => Ok(RecordedLook::Newer),
        Err(error) => Err(error.into()),
    }
}

impl RecordedLook {
    fn parse(bytes: &[u8]) -> Self {
        let word = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u32>().ok();
        match std::str::from_utf8(bytes).ok().and_then(Look::parse) {
            Some(look) => Self::Look(look),
            None if bytes
                .split(|byte| *byte == b' ')
                .next()
                .and_then(word)
                .is_some_and(|n| n > VERSION) =>
            {
                Self::Newer
            }
            None => Self::Nothing,
        }
    }
}

impl Look {
    fn of(file: &File, layer: &Layer) -> std::io::Result<Self> {
        let mut bytes = [0; qcow2::HEADER_BYTES];
        let length = file.read_at(&mut bytes, 0)?;
        let about = file.metadata()?;
        let modified = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
        Ok(Self {
            id: layer.id.to_string(),
            bytes: about.len(),
            modified,
            start: digest(&bytes[..length]),
        })
    }

    fn text(&self) -> String {
        format!("{VERSION} {} {} {} {:x}", self.id, self.bytes, self.modified, self.start)
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let [version, id, bytes, modified, start] = words[..] else { return None };
        if version != VERSION.to_string() {
            return None;
        }
        Some(Self {
            id: id.to_owned(),
            bytes: bytes.parse().ok()?,
            modified: modified.parse().ok()?,
            start: u64::from_str_radix(start, 16).ok()?,
        })
    }

    fn change(&self, now: &Self) -> Option<Change> {
        if self.id != now.id {
            return Some(Change::Lost(format!("its file is that of layer {}", self.id)));
        }
        if self.bytes != now.bytes {
            return Some(Change::Lost(format!(
                "its file has {} bytes, and had {} when the layer was sealed",
                now.bytes, self.bytes
            )));
        }
        if self.start != now.start {
            return Some(Change::Lost(
                "its header is not what it was when the layer was sealed".to_owned(),
            ));
        }
        // An older time is what a power cut or `tar` leaves.
        (now.modified > self.modified).then_some(Change::Written)
    }
}

/// FNV-1a, 64 bits: against accidents. Who may write to the file may write the note, too.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::skipped::skipped;
    use proptest::prelude::*;

    fn look() -> Look {
        Look {
            id: "abcdefghij".into(),
            bytes: 327_680,
            modified: 1_700_000_000_123_456_789,
            start: digest(b"QFI"),
        }
    }

    #[test]
    fn what_is_noted_is_read_back_and_anything_else_is_no_note() {
        assert_eq!(Look::parse(&look().text()), Some(look()));
        assert!(look().text().len() <= LONGEST);
        for text in [
            "", "1", "2 abcdefghij 1 2 3", "1 abcdefghij 1 2 3 4", "1 abcdefghij -1 2 3",
            "1 abcdefghij 1 2 x",
        ] {
            assert_eq!(Look::parse(text), None, "{text:?}");
        }
        assert_eq!(RecordedLook::parse(look().text().as_bytes()), RecordedLook::Look(look()));
        assert_eq!(RecordedLook::parse(b"1 abcdefghij 1 2 x"), RecordedLook::Nothing);
        assert_eq!(RecordedLook::parse(b"2 abcdefghij \xff"), RecordedLook::Newer);
    }

    #[test]
    fn what_a_newer_version_has_noted_stays_and_says_nothing_to_this_one() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        store.prepare().expect("a store");
        let layer = Layer::new(crate::model::Format::Qcow2);
        super::super::create::empty(&store, &layer, None, 1 << 20).expect("a layer");
        let file = File::open(store.layout.layer(&layer)).expect("it is there");
        for newer in ["2 and so on".to_owned(), format!("2 {}", "long ".repeat(100))] {
            match fsetxattr(&file, NAME, newer.as_bytes(), XattrFlags::empty()) {
                Err(Errno::NOTSUP) => {
                    let why = format!("no extended attributes in {}", room.path().display());
                    return skipped(&why);
                }
                other => other.expect("it is noted"),
            }
            note(&store, &layer);
            assert_eq!(change(&store, &layer).expect("it can be read"), None);
            let mut bytes = vec![0; 1000];
            let length = fgetxattr(&file, NAME, &mut bytes[..]).expect("it is there");
            assert_eq!(&bytes[..length], newer.as_bytes());
        }
    }

    #[test]
    fn a_lost_byte_another_header_and_another_layer_are_damage_and_a_later_time_is_told() {
        let lost = |now: Look| matches!(look().change(&now), Some(Change::Lost(_)));
        assert!(lost(Look { bytes: 327_679, ..look() }));
        assert!(lost(Look { start: 0, ..look() }));
        assert!(lost(Look { id: "jihgfedcba".into(), ..look() }));
        assert_eq!(
            look().change(&Look { modified: look().modified + 1, ..look() }),
            Some(Change::Written)
        );
        for earlier in [0, 1, 123_456_789] {
            assert_eq!(
                look().change(&Look { modified: look().modified - earlier, ..look() }),
                None
            );
        }
    }

    proptest! {
        #[test]
        fn an_odd_note_is_never_a_panic(text in ".{0,140}") {
            let _ = Look::parse(&text);
        }
    }
}
