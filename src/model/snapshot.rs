//! Snapshots: how they are kept, and what the VM was doing when they were taken.

use jiff::Timestamp;

use super::{Config, Memory, Name, RamImage};

/// A named, sealed point in the life of a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its name, unique in its VM.
    pub name: Name,
    /// The snapshot the head depended on when it was taken.
    pub parent: Option<Name>,
    /// How it is kept.
    pub kind: SnapshotKind,
    /// When it was taken.
    pub created: Timestamp,
    /// The user's words.
    pub description: String,
    /// True when the guest's file systems were frozen, or nothing was running.
    pub quiesced: bool,
    /// What the VM was doing.
    pub vm_state: VmState,
    /// The guest's memory at that moment.
    pub memory: Option<Memory>,
    /// When `gc` may remove it.
    pub expires: Option<Timestamp>,
    /// The whole configuration at that moment, with the layers that were the head.
    pub config: Config,
}

/// How a snapshot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotKind {
    /// The head's layers were sealed and new overlays put on top.
    External,
    /// Every layer that was written keeps it inside itself (a qcow2 snapshot).
    Internal {
        /// Its name in the images.
        tag: String,
    },
}

impl SnapshotKind {
    /// The word in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Internal { .. } => "internal",
        }
    }
}

/// What came of the wish to freeze a guest's file systems for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiesced {
    /// They were frozen.
    Frozen,
    /// The guest stood still, or did not run: what is on its disks is all there is.
    Still,
    /// Nobody wanted it; or there was memory to go with the disks, which needs none.
    NotAsked,
    /// The guest agent is not there, or does not answer.
    Absent,
    /// Another program had frozen them.
    AlreadyFrozen,
    /// The guest did not answer in time.
    Hung,
    /// The guest, or a hook in it, said no.
    Refused,
    /// They were frozen, and could not be thawed.
    NotThawed,
}

impl Quiesced {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Still => "still",
            Self::NotAsked => "not-asked",
            Self::Absent => "absent",
            Self::AlreadyFrozen => "already-frozen",
            Self::Hung => "hung",
            Self::Refused => "refused",
            Self::NotThawed => "not-thawed",
        }
    }
}

/// What a VM was doing when its snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VmState {
    Running,
    Paused,
    Stopped,
}

impl VmState {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Snapshot {
    /// The name it has inside the images, when it is an internal one.
    pub fn tag(&self) -> Option<&str> {
        match &self.kind {
            SnapshotKind::External => None,
            SnapshotKind::Internal { tag } => Some(tag),
        }
    }

    /// The file its memory lies in.
    pub fn ram_image(&self) -> Option<&RamImage> {
        self.memory.as_ref().and_then(|memory| memory.image.as_ref())
    }
}
