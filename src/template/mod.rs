//! Templates: VMs that are frozen for ever. They cannot be started or changed, and name whoever
//! depends on them.

pub(crate) mod freeze;
pub mod list;
pub(crate) mod windows;
