//! Image files: what their headers say, how they depend on each other, how they are made, copied
//! and merged.
//!
//! [`qcow2`], [`inspect`], [`graph`] and [`collapse`] are pure; [`scan`], [`chain`], [`foreign`],
//! [`opened`], [`sealed`] and [`trashed`] read; [`create`], [`copy`], [`flush`] and [`merge`] act.

pub(crate) mod backing_xattr;
pub(crate) mod blocking;
pub mod chain;
pub(crate) mod collapse;
pub(crate) mod content;
pub(crate) mod copy;
pub mod create;
mod dependents;
pub(crate) mod flush;
pub(crate) mod foreign;
pub(crate) mod garbage;
pub(crate) mod graph;
pub(crate) mod guest_memory;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inner;
pub mod inspect;
pub(crate) mod merge;
pub(crate) mod opened;
pub mod qcow2;
pub(crate) mod scan;
pub mod sealed;
pub(crate) mod stamp;
pub(crate) mod trashed;
