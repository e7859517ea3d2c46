//! VMs that are not to stay: made for one command, waiting in a pool, or with a date on which they
//! go. Nothing of them is kept for an undo.
//!
//! Their record says who looks after them and until when. Whoever that is removes them at the end;
//! should it be killed, `gc` does, and so does the next `run`.

pub(crate) mod discard;
pub(crate) mod gitlab;
pub(crate) mod make;
pub(crate) mod queue;
pub(crate) mod request;
pub mod reset;
pub(crate) mod run;
pub mod standby;
pub(crate) mod testbed;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::error::Result;
use crate::model::{Ephemeral, Name};
use crate::sys::owner;

/// One that goes with this process, and `ttl` from now at the latest.
pub fn ours(ttl: Duration) -> Ephemeral {
    Ephemeral { owner: owner::ours(), expires: Some(from_now(ttl)), standby: false }
}

/// A name nobody has for a VM of `template`: `pool-deb12-1a2b3c`. A long template's is cut to what
/// a name may be.
pub fn name(kind: &str, template: &Name) -> Result<Name> {
    let random = Uuid::new_v4().simple().to_string();
    let stem: String = template.as_str().chars().take(40).collect();
    format!("{kind}-{}-{}", stem.trim_end_matches(['-', '.', '_']), &random[..6]).parse()
}

/// The time so long from now.
pub fn from_now(ttl: Duration) -> Timestamp {
    let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_add(ttl).unwrap_or(Timestamp::MAX)
}
