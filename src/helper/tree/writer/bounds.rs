//! What a tree may bring at most, which paths it may have, and why something else is refused.

use std::io;
use std::path::PathBuf;

use super::super::{Entry, from_letters};
use crate::model::human;

/// The longest path of an entry, in bytes: what the kernel takes (`PATH_MAX` without the final
/// zero).
pub(super) const LONGEST_PATH: usize = 4095;
/// The longest component of a path, in bytes (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// What a tree may bring at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// The lengths of all files together, in bytes. Holes count, too: a sparse file counts as long
    /// as it appears.
    pub bytes: u64,
    /// Files, directories and links together.
    pub entries: u64,
}

impl Budget {
    /// No limit, for a tree from this host.
    pub(crate) const UNLIMITED: Self = Self { bytes: u64::MAX, entries: u64::MAX };
}

impl Default for Budget {
    /// 64 GiB and 1,000,000 entries: more than the artifacts of a job, and less than fills a host.
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 1_000_000 }
    }
}

/// Why what arrives is not taken. It is the source of the [`io::Error`] that the writer returns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The tree itself is a symbolic link.
    #[error("it is a symbolic link")]
    Link,
    /// The files are longer than [`Budget::bytes`].
    #[error("the files are longer than {} together", human(*.0))]
    TooManyBytes(u64),
    /// There are more entries than [`Budget::entries`].
    #[error("there are more than {0} files, directories and links")]
    TooManyEntries(u64),
    /// A path that no file below the target can have.
    #[error("{0:?} is not a path below the target")]
    Path(PathBuf),
    /// An entry outside the directories that are open, or a second root.
    #[error("{} arrives out of order", .0.display())]
    Order(PathBuf),
    /// Data that belongs to no file, or lies outside it, or before other data.
    #[error("data arrives that belongs to no file")]
    Data,
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(io::ErrorKind::InvalidData, refusal)
    }
}

impl Refusal {
    /// The refusal behind an error of a writer, if it is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// The bytes of an entry's path: empty for the root, else names separated by single slashes, none
/// of which means another place.
pub(super) fn checked(entry: &Entry) -> Result<Vec<u8>, Refusal> {
    let bad = || Refusal::Path(entry.path());
    let path = from_letters(&entry.path).ok_or_else(bad)?;
    let good = |name: &[u8]| {
        (1..=LONGEST_NAME).contains(&name.len())
            && name != b"."
            && name != b".."
            && !name.contains(&0)
    };
    match path.is_empty()
        || path.len() <= LONGEST_PATH && path.split(|byte| *byte == b'/').all(good)
    {
        true => Ok(path),
        false => Err(bad()),
    }
}
