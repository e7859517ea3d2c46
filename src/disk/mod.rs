//! Disks of a VM, by hand: merge layers, grow them, check them. [`plan`] decides and is pure, the
//! others act.

pub mod check;
pub mod merge;
pub(crate) mod plan;
pub mod resize;
