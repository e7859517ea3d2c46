//! What touches everything in a store: removing VMs and images, undoing the last
//! change, collecting garbage.

pub mod gc;
pub mod prune;
pub(crate) mod remove;
pub(crate) mod undo;
