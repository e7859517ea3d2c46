//! VMs: made, started, stopped, looked at, removed. Their state is observed every time, never stored.

pub mod create;
mod descriptors;
pub mod edit;
pub mod gc;
pub mod list;
pub mod live;
pub mod logs;
pub mod open;
pub mod ports;
pub mod remove;
pub mod select;
pub mod start;
pub mod status;
pub mod stop;
pub mod undo;
pub mod warm;
