//! A VM as asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::cdrom_request::CdromRequest;
use super::disk_request::DiskRequest;
use crate::model::{
    Bus, Credentials, Firmware, KernelBoot, Limits, LogLimit, Name, Nic, Seed, VmState,
};

/// A disk that depends on an image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OnImage {
    /// The image.
    pub name: Name,
    /// Its identity, where it was looked at before: another one of the same name is not taken for
    /// it.
    pub uuid: Option<Uuid>,
    /// The size the guest sees, in bytes; without one, that of the image.
    pub size: Option<u64>,
}

/// A VM as asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// Disks from files, in the guest's order.
    pub disks: Vec<DiskRequest>,
    /// An image of the store that the first disk depends on.
    pub image: Option<OnImage>,
    /// Bring in the backing files of the disks as well: those beside them, and those below these
    /// directories.
    pub with_backing: Option<Vec<PathBuf>>,
    /// Blank disks behind them, in bytes.
    pub blank: Vec<u64>,
    /// CD-ROM drives.
    pub cdroms: Vec<CdromRequest>,
    /// The bus of all disks of which nothing else is said.
    pub bus: Bus,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// A CPU model.
    pub cpu: Option<String>,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// What UEFI variables are copied from; without a file, from empty ones.
    pub nvram: Option<PathBuf>,
    /// The identity; without one, a new one.
    pub uuid: Option<Uuid>,
    /// A machine type or alias.
    pub machine: String,
    /// A kernel to boot directly.
    pub kernel: Option<KernelBoot>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// How much it may take from the host.
    pub limits: Limits,
    /// The limit of each log.
    pub log_limit: LogLimit,
    /// Does it start with the host?
    pub autostart: bool,
    /// What cloud-init is told.
    pub seed: Option<Seed>,
    /// What systemd in the guest is given.
    pub credentials: Credentials,
    /// The user's own key-value pairs.
    pub tags: BTreeMap<String, String>,
    /// Snapshots, the parents before their children.
    pub points: Vec<Point>,
    /// The snapshot that the disks follow.
    pub current: Option<Name>,
}

/// A snapshot as asked for.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// Its name.
    pub name: Name,
    /// The snapshot before it, which comes earlier in the list.
    pub parent: Option<Name>,
    /// When it was taken.
    pub created: Timestamp,
    /// The user's words.
    pub description: String,
    /// What the VM was doing.
    pub vm_state: VmState,
    /// It had been shut down.
    pub quiesced: bool,
    /// Its name inside the images, if it is an internal one. Otherwise its disk files are those
    /// that were sealed by it.
    pub tag: Option<String>,
    /// The machine and the disk files of then.
    pub machine: Request,
    /// The size of each disk, in bytes, where it is not that of its file.
    pub sizes: Vec<Option<u64>>,
}
