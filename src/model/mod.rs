//! Names, layers, VMs and snapshots as plain data. No I/O happens here; every other room may use
//! it.

pub(crate) mod bus;
mod chain;
mod config;
mod credential;
mod file_id;
mod layer;
mod limits;
mod log_limit;
mod memory;
mod merge;
mod name;
mod network;
mod nic;
pub(crate) mod pci;
mod port;
pub(crate) mod printable;
mod record;
mod seed;
mod size;
mod snapshot;
mod systemd_credential;
mod warm;

pub use bus::Bus;
pub use chain::{Chain, Link};
pub use config::{Cdrom, Config, Disk, Firmware, KernelBoot};
pub use credential::{hash_password, public_key};
pub use file_id::FileId;
pub use layer::{Format, Layer, LayerId};
pub use limits::Limits;
pub use log_limit::LogLimit;
pub use memory::{Fingerprint, Memory, RamImage};
pub use merge::{Merge, MergeKind};
pub use name::{Name, PointRef};
pub use network::{Destination, Exceptions, Network};
pub use nic::{GUEST_ADDRESS, Nic, NicModel, PortForward, Protocol};
pub use pci::PciSlot;
pub use port::{PORTS, port_name};
pub use record::{FileStamp, ImageOrigin, Origin, Record, Role, State};
pub use seed::Seed;
pub use size::{human, parse_age, parse_size, parse_time};
pub use snapshot::{Quiesced, Snapshot, SnapshotKind, VmState};
pub use systemd_credential::{Credentials, LONGEST as LONGEST_CREDENTIALS};
pub use warm::{Ephemeral, Owner, Warm, WarmImage};
