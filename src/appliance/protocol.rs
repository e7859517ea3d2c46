//! What the two sides say to each other: one JSON object a line. The host sends one [`Job`]; the
//! appliance sends [`Event`]s, the last of which is [`Event::Done`] or [`Event::Failed`].

use serde::{Deserialize, Serialize};

use crate::seal::{Plan, Report};

/// The name of the virtio-serial port.
pub(crate) const PORT: &str = "cowhand.appliance";
/// The serial number of the disk with the files a job carries along.
pub(crate) const PAYLOAD: &str = "payload";

/// The longest line, in bytes: a report of some hundred thousand paths.
pub(crate) const LINE: u64 = 16 << 20;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// To the operating system on the disks.
    pub plan: Plan,
    /// Change nothing: only say what would be.
    pub dry_run: bool,
    /// There is a network card.
    pub network: bool,
    /// The VM's names for its disks, in the order in which the guest sees them.
    pub disks: Vec<String>,
}

/// What is going on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// The appliance is up.
    Hello {
        /// Its kernel.
        kernel: String,
    },
    /// An operation begins.
    Operation {
        /// Which.
        name: String,
    },
    /// Something the user should know.
    Warning {
        /// In words.
        text: String,
    },
    /// What a program in the guest's tree has printed.
    Output {
        /// A part of it.
        text: String,
    },
    /// It is done, everything is written, nothing is mounted any more.
    Done {
        /// What was done.
        report: Report,
        /// The most memory that was in use, in bytes.
        peak_bytes: u64,
    },
    /// It was not done.
    Failed {
        /// The kind of error (`refused`, `failed`, …).
        kind: String,
        /// What failed, and why.
        message: String,
        /// What to do about it.
        hints: Vec<String>,
    },
}
