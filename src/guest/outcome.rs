//! How a command in a guest ended, or why it did not.

use crate::error::Error;
use crate::qemu::agent::AgentError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    /// The exit code, or 128 plus the signal that ended it.
    pub code: u8,
    /// The guest agent kept only the beginning of the output.
    pub truncated: bool,
}

/// Why it did not end by itself.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It took longer than it may, and was ended.
    TimedOut,
    /// The same, where only the agent could be spoken to, which ends nothing.
    GoesOn {
        /// Its process id in the guest.
        pid: i64,
    },
    /// The guest has no such program.
    NotFound(String),
    /// The guest has it and cannot run it.
    NotExecutable(String),
    /// We could not get so far.
    Ours(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::Ours(error.into())
    }
}
