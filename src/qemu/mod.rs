//! QEMU: its argument vector, its process, QMP, the guest-agent protocol, and the engine for block
//! jobs while nothing runs.

pub mod accel;
pub mod agent;
pub mod cmdline;
pub mod confinement;
pub mod devices;
pub mod firmware;
pub mod img;
pub mod lines;
pub mod networks;
pub mod nodes;
pub mod offline;
pub mod probe;
pub mod process;
pub mod qmp;
pub mod ram;
pub mod sockets;
