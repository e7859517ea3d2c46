//! The verbs that put something into the trash.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

/// The verb that put a directory into the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Rm,
    Revert,
    Set,
    Undo,
    Reset,
    SnapshotRm,
    Gc,
    DiskCommit,
    DiskStream,
    Seal,
    /// `doctor --repair`.
    Doctor,
    /// One that this version does not know. Its directory is kept and listed like any other.
    Other(String),
}

impl Kind {
    /// Every verb that is known.
    pub const ALL: [Self; 11] = [
        Self::Rm,
        Self::Revert,
        Self::Set,
        Self::Undo,
        Self::Reset,
        Self::SnapshotRm,
        Self::Gc,
        Self::DiskCommit,
        Self::DiskStream,
        Self::Seal,
        Self::Doctor,
    ];

    /// The word in the entry and in the name of the directory.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Rm => "rm",
            Self::Revert => "revert",
            Self::Set => "set",
            Self::Undo => "undo",
            Self::Reset => "reset",
            Self::SnapshotRm => "snapshot-rm",
            Self::Gc => "gc",
            Self::DiskCommit => "disk-commit",
            Self::DiskStream => "disk-stream",
            Self::Seal => "seal",
            Self::Doctor => "doctor",
            Self::Other(word) => word,
        }
    }

    /// Does it take heads of a VM out of use? Nothing depends on those.
    pub fn keeps_a_head(&self) -> bool {
        matches!(self, Self::Revert | Self::Reset | Self::Undo)
    }

    /// Is it a change that `undo` takes back?
    pub fn can_be_undone(&self) -> bool {
        matches!(self, Self::Revert | Self::Reset | Self::Rm | Self::Set)
    }
}

impl From<String> for Kind {
    fn from(word: String) -> Self {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).unwrap_or(Self::Other(word))
    }
}

impl FromStr for Kind {
    type Err = Infallible;

    fn from_str(word: &str) -> Result<Self, Infallible> {
        Ok(Self::from(word.to_owned()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_is_read_back_from_its_word_and_any_other_word_is_kept() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        let other: Kind = "dance".to_owned().into();
        assert_eq!(other, Kind::Other("dance".into()));
        assert_eq!(other.to_string(), "dance");
        assert!(!other.can_be_undone() && !other.keeps_a_head());
    }
}
