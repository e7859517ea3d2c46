//! Snapshots: taken, looked at, reverted to, removed. [`plan`] decides and is pure, the others act.

pub mod create;
pub(crate) mod delete;
pub(crate) mod internal;
pub(crate) mod internal_steps;
pub mod list;
pub(crate) mod live_steps;
pub(crate) mod memory;
pub(crate) mod memory_steps;
pub(crate) mod plan;
pub(crate) mod rename;
pub mod revert;
