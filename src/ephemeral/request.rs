//! What is asked of a run: where its guest comes from, what is done in it, what becomes of it.

use std::path::PathBuf;
use std::time::Duration;

use crate::guest::copy;
use crate::guest::exec;
use crate::model::{Limits, Name, Network, PointRef, PortForward};

/// Where the guest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Warmth {
    /// From memory where that can be, else it boots.
    #[default]
    Either,
    /// From memory, or not at all.
    Warm,
    /// It boots.
    Cold,
}

/// What becomes of the VM afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Keep {
    /// It goes.
    #[default]
    Never,
    /// It stays if the command failed.
    OnFailure,
    /// It stays.
    Always,
}

/// A run as asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// A template, a snapshot or a stopped VM.
    pub source: PointRef,
    /// What to call the VM; made up without it.
    pub name: Option<Name>,
    /// Where the guest comes from.
    pub warmth: Warmth,
    /// What becomes of it.
    pub keep: Keep,
    /// It goes so long after it was made, whatever became of us.
    pub ttl: Duration,
    /// If it is kept: for so long; for ever without it.
    pub keep_for: Option<Duration>,
    /// What to copy into the guest before: from the host, to the guest.
    pub copy_in: Vec<(PathBuf, String)>,
    /// What to copy out of it afterwards, also when the command has failed: from the guest, to the
    /// host.
    pub copy_out: Vec<(String, PathBuf)>,
    /// How it is copied out.
    pub copy_rules: copy::Rules,
    /// How long the copies before the command may take together, and those after it.
    pub copy_limit: Duration,
    /// Ports of the host that lead into it.
    pub ports: Vec<PortForward>,
    /// What it reaches instead of what the template says.
    pub network: Option<Network>,
    /// Its limits instead of those of the template.
    pub limits: Option<Limits>,
    /// How many runs may go on at once.
    pub most: Option<u32>,
    /// The command.
    pub command: exec::Request,
}
