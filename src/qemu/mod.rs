//! QEMU: its argument vector, its process, QMP, the guest-agent protocol, and the engine for block
//! jobs while nothing runs.

pub mod accel;
pub mod agent;
pub mod cmdline;
pub mod confinement;
pub(crate) mod devices;
pub(crate) mod firmware;
pub mod img;
pub mod lines;
pub(crate) mod networks;
pub(crate) mod nodes;
pub(crate) mod offline;
pub(crate) mod probe;
pub(crate) mod process;
pub mod qmp;
pub(crate) mod ram;
pub mod sockets;
