//! What puts a finding right, as plain data, and what came of it.

pub(super) mod apply;
mod aside;
mod layers;
mod records;

use std::path::PathBuf;

use crate::error::Result;
use crate::model::{Layer, Name, RamImage};

/// A repair, as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Undo or complete the change that was cut short.
    Recover(Name),
    /// Remove what is left of a VM that never came to be.
    Sweep(Name),
    /// Put the spare copy of a record in the place of one that cannot be read.
    RestoreRecord(Name),
    /// Take away a spare copy that names what is not whole, from beside a record that is.
    SetSpareAside(Name),
    /// Take over a VM whose record was written in another store.
    TakeOver(Name),
    /// Write the spare copy of a record anew.
    RenewSpare(Name),
    /// Take an unreadable journal away from a VM that is whole without it.
    SetJournalAside(Name),
    /// Bring a layer that is named back out of the trash.
    RestoreLayer {
        /// Who names it, or what depends on it.
        vm: Name,
        /// Which.
        layer: Layer,
        /// The directory of the trash.
        trash: PathBuf,
    },
    /// Bring the memory of a snapshot back out of the trash.
    RestoreMemory {
        /// Whose snapshot it is.
        vm: Name,
        /// Which.
        image: RamImage,
    },
    /// Write the right backing file into a layer's header.
    SetBacking {
        /// Which layer.
        layer: Layer,
        /// What it was made on.
        backing: Option<Layer>,
    },
    /// Move layers that nobody uses into the trash.
    TrashUnused {
        /// Those that were seen.
        layers: Vec<Layer>,
    },
    /// Move a half-written file into the trash.
    TrashFile(PathBuf),
    /// Move what lies in the place of a file of the store, and is none, into the trash.
    SetAside(PathBuf),
    /// Remove a temporary file that nobody writes any more.
    RemoveTemporary(PathBuf),
    /// Set permission bits.
    SetModes(Vec<(PathBuf, u32)>),
    /// Remove what a QEMU that crashed has left of its sockets.
    ClearSockets(Name),
    /// Forget a job that has ended and that nobody asks for.
    Dismiss {
        /// Of which VM.
        vm: Name,
        /// The job.
        job: String,
    },
    /// Thaw a guest that was left frozen.
    Thaw(Name),
    /// Take the layers that the disks are really on for their heads.
    Adopt(Name),
    /// Start the process that limits the logs of a running VM.
    LimitLogs(Name),
    /// Write `store.json` anew.
    WriteStoreFile,
}

/// What came of a remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Applied {
    /// It was done; in words.
    Done(String),
    /// Nothing was to be done: it belonged to a command that was at work, or somebody else has put
    /// it right.
    NotNeeded,
}

impl Applied {
    /// It was done; in words.
    fn done(words: &str) -> Result<Self> {
        Ok(Self::Done(words.to_owned()))
    }
}
