//! The inside of a running guest, through its agent: commands, files, frozen file systems.

pub mod exec;
pub mod files;
pub mod freeze;
pub mod session;
