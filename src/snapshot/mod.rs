//! Snapshots: taken, looked at, reverted to, removed. [`plan`] decides and is pure, the others act.

pub mod bystanders;
pub mod create;
pub mod delete;
pub mod internal;
pub mod list;
pub mod memory;
pub mod outcome;
pub mod plan;
pub mod rename;
pub mod revert;
pub mod undoable;
