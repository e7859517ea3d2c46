//! Commands in guests, and files that were copied.

use std::time::Duration;

use serde::Serialize;

use crate::clone::Kind;
use crate::model::Name;
use crate::output::time::milliseconds;

/// `exec`, and `run`: how a command ended. A stream is of the type `T`, so that it need not be
/// copied.
#[derive(Debug, Serialize)]
pub struct Ended<'a, T: Serialize> {
    /// What the program exits with.
    pub exit_code: u8,
    /// What the command wrote to its standard output.
    pub stdout: &'a T,
    /// What it wrote to its standard error.
    pub stderr: &'a T,
    /// One of the streams is not whole.
    pub truncated: bool,
    /// The command took too long and was ended.
    pub timed_out: bool,
    /// What `run` adds. Left out of `exec`.
    #[serde(flatten)]
    pub run: Option<&'a Run<'a>>,
}

/// `run`: what it adds to how the command ended.
#[derive(Debug, Serialize)]
pub struct Run<'a> {
    /// Of a VM that was kept.
    name: Option<&'a Name>,
    /// Of a VM that was made, as the next two.
    kind: Option<&'static str>,
    /// How long it took until the guest's CPUs ran.
    running_ms: Option<f64>,
    /// How long it took until the command could start.
    ms: Option<f64>,
    teardown_ms: f64,
}

impl<'a> Run<'a> {
    /// The VM, if it was `kept`; how it was `made`, until when its CPUs ran, and until when a
    /// command could start; how long it took to clear up.
    pub fn new(
        kept: Option<&'a Name>,
        made: Option<(Kind, Duration, Duration)>,
        teardown: Duration,
    ) -> Self {
        Self {
            name: kept,
            kind: made.map(|(kind, _, _)| kind.as_str()),
            running_ms: made.map(|(_, running, _)| milliseconds(running)),
            ms: made.map(|(_, _, took)| milliseconds(took)),
            teardown_ms: milliseconds(teardown),
        }
    }

    /// Is the VM still there?
    pub fn is_kept(&self) -> bool {
        self.name.is_some()
    }
}

/// `cp`.
#[derive(Debug, Serialize)]
pub struct Copied {
    bytes: u64,
}

impl Copied {
    /// So many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { bytes }
    }
}
