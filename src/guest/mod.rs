//! The inside of a running guest, seen from the host: commands, files, identity, frozen file
//! systems.
//!
//! Where the guest can run it, the [`helper`](crate::helper) does the work; it is sent there when
//! it is first needed. Else the guest agent does what it can.

pub(crate) mod agent_exec;
pub(crate) mod copy;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod freeze;
pub(crate) mod identity;
pub(crate) mod install;
pub(crate) mod network;
pub(crate) mod outcome;
pub(crate) mod port;
pub(crate) mod session;

use crate::error::Error;
use crate::model::Name;
use crate::qemu::agent::AgentError;

/// While file systems are frozen for a snapshot the agent runs nothing and tells nothing; that
/// takes a moment.
pub(crate) fn is_frozen(error: &AgentError) -> bool {
    matches!(error, AgentError::Refused { message, .. } if message.contains("frozen"))
}

/// Somebody froze the guest and did not thaw it; until then its agent runs nothing.
pub(crate) fn stays_frozen(name: &Name, error: AgentError) -> Error {
    let error =
        Error::qemu(format!("the file systems of {name} stay frozen, so nothing can be run in it"))
            .because(error);
    error.hint(format!("thaw them on its console (fsfreeze --unfreeze /): cowhand console {name}"))
}
