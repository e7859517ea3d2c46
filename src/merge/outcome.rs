//! What became of the disks when a snapshot was removed.

use crate::model::Name;

/// What was done to the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The snapshot.
    pub name: Name,
    /// Per disk and layer.
    pub outcomes: Vec<Outcome>,
    /// The changes that cannot be undone any more, because they need a layer that was merged or
    /// removed.
    pub lost_undo: Vec<String>,
}

/// What became of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `vda`, …
    pub target: String,
    /// What was done.
    pub what: What,
    /// About how many bytes moved.
    pub bytes: u64,
}

/// What became of a layer that nobody names any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The layer above was committed into it.
    Committed,
    /// It was streamed into the layer above.
    Streamed,
    /// It went into the trash.
    Trashed,
    /// It was inside the layer, which stays.
    Internal,
    /// It stays, for this reason.
    Kept(String),
}
