//! VMs: created, changed, started, stopped, listed. Their state is observed every time, never
//! stored.

pub mod cdrom;
pub mod cdrom_request;
pub mod create;
pub mod disk_request;
pub mod edit;
pub mod list;
pub mod points;
pub mod request;
pub mod requirements;
pub mod select;
pub mod start;
pub mod stop;
