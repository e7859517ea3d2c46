//! Image files: what their headers say, how they stand on each other, how they are made, copied and
//! merged.
//!
//! [`qcow2`], [`inspect`], [`graph`] and [`collapse`] are pure; [`scan`], [`chain`], [`foreign`],
//! [`opened`], [`sealed`] and [`trashed`] read; [`create`], [`copy`], [`flush`] and [`merge`] act.

pub mod backing_xattr;
pub mod blocking;
pub mod chain;
pub mod collapse;
pub mod content;
pub mod copy;
pub mod create;
mod dependents;
pub mod flush;
pub mod foreign;
pub mod garbage;
pub mod graph;
pub mod guest_memory;
pub mod import;
pub mod info;
pub mod inner;
pub mod inspect;
pub mod merge;
pub mod opened;
pub mod qcow2;
pub mod scan;
pub mod sealed;
pub mod stamp;
pub mod trashed;
