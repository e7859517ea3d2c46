//! Image files: what their headers say, how they stand on each other, how they are made, copied and merged.
//!
//! [`qcow2`], [`inspect`], [`pool`] and [`collapse`] are pure; [`census`], [`chain`], [`foreign`], [`opened`], [`sealed`] and [`trashed`] read; [`create`], [`copy`],
//! [`flush`] and [`merge`] act.

pub mod blocking;
pub mod census;
pub mod chain;
pub mod collapse;
pub mod content;
pub mod copy;
pub mod create;
mod dependents;
pub mod flush;
pub mod foreign;
pub mod garbage;
pub mod guest_memory;
pub mod import;
pub mod info;
pub mod inner;
pub mod inspect;
pub mod merge;
pub mod note;
pub mod opened;
pub mod pool;
pub mod qcow2;
pub mod sealed;
pub mod stamp;
pub mod trashed;
