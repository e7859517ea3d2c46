//! VMs: created, changed, started, stopped, listed. Their state is observed every time, never
//! stored.

pub(crate) mod cdrom;
pub(crate) mod cdrom_request;
pub(crate) mod create;
pub(crate) mod disk_request;
pub(crate) mod edit;
pub mod list;
pub(crate) mod points;
pub(crate) mod request;
pub(crate) mod requirements;
pub(crate) mod select;
pub(crate) mod start;
pub(crate) mod stop;
