//! VMs: made, started, stopped, looked at, removed. Their state is observed every time, never stored.

pub mod cdrom;
pub mod create;
mod descriptors;
pub mod disk_request;
pub mod edit;
pub mod gc;
pub mod list;
pub mod live;
pub mod logs;
pub mod open;
pub mod points;
pub mod ports;
pub mod remove;
pub mod requirements;
pub mod select;
pub mod start;
pub mod status;
pub mod stop;
pub mod undo;
pub mod warm;
