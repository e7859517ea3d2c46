//! Snapshots: taken, looked at, reverted to, removed. [`plan`] decides and is pure, the others act.

pub mod create;
pub mod delete;
pub mod internal;
pub mod internal_steps;
pub mod list;
pub mod live_steps;
pub mod memory;
pub mod memory_steps;
pub mod plan;
pub mod rename;
pub mod revert;
