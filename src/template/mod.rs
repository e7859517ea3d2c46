//! Templates: VMs that are frozen for ever. They cannot be started or changed, and name whoever
//! stands on them.

pub mod freeze;
pub mod list;
pub mod windows;
