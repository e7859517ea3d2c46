//! The machine as it is configured: QEMU's argument vector comes from it, and its disks and drives.

use std::collections::BTreeMap;
use std::path::PathBuf;

use uuid::Uuid;

use super::{Bus, Credentials, Layer, Limits, LogLimit, Nic, Seed};
use crate::error::{Error, Result};

/// The machine: everything that goes into QEMU's argument vector, and its disks.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// A versioned machine type, such as `pc-q35-7.2`.
    pub machine: String,
    /// A CPU model; `None` means the best the accelerator has.
    pub cpu: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// What runs first.
    pub firmware: Firmware,
    /// Boot a kernel of the host instead of the firmware's boot device.
    pub kernel: Option<KernelBoot>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// The VM generation id (`vmgenid`): new with every clone and every revert.
    pub generation: Uuid,
    /// The disks, in the order the guest sees them.
    pub disks: Vec<Disk>,
    /// The variable store of UEFI firmware.
    pub nvram: Option<Disk>,
    /// The CD-ROM drives.
    pub cdroms: Vec<Cdrom>,
    /// How much it may take from the host.
    pub limits: Limits,
    /// How much of its output is kept.
    pub log_limit: LogLimit,
    /// What cloud-init is told in the guest.
    pub seed: Option<Seed>,
    /// What systemd in the guest is given.
    pub credentials: Credentials,
    /// The user's own key-value pairs.
    pub tags: BTreeMap<String, String>,
}

impl Config {
    /// The disks and the NVRAM: everything with a layer.
    pub fn volumes(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().chain(&self.nvram)
    }

    /// Are the devices the same, with the same ISO images in the CD-ROM drives?
    pub fn has_devices_of(&self, other: &Self) -> bool {
        let disk = |(one, other): (&Disk, &Disk)| {
            (&one.target, one.bus, &one.serial) == (&other.target, other.bus, &other.serial)
        };
        let card =
            |(one, other): (&Nic, &Nic)| (one.model, one.place) == (other.model, other.place);
        (self.disks.len(), self.nics.len()) == (other.disks.len(), other.nics.len())
            && self.disks.iter().zip(&other.disks).all(disk)
            && self.nics.iter().zip(&other.nics).all(card)
            && self.cdroms == other.cdroms
    }

    /// Refuses drives and network cards that its machine cannot have.
    pub fn check_devices(&self) -> Result<()> {
        let misplaced =
            |nic: &&Nic| nic.place.is_some_and(|place| !place.is_possible(self.is_q35()));
        if let Some(place) = self.nics.iter().find(misplaced).and_then(|nic| nic.place) {
            return Err(Error::refused(format!(
                "a machine of type {} has no slot {place}",
                self.machine
            )));
        }
        self.nics.iter().try_for_each(Nic::check_ports)?;
        if self.disks.len() + self.cdroms.len() + self.nics.len() > super::bus::DEVICES {
            return Err(super::bus::too_many());
        }
        let disks = self.disks.iter().map(|disk| (disk.bus, disk.read_only));
        let cdroms: Vec<Bus> = self.cdroms.iter().map(|cdrom| cdrom.bus).collect();
        super::bus::check(&self.machine, &disks.collect::<Vec<_>>(), &cdroms)
    }

    /// Is its chipset Q35, and not i440FX?
    pub fn is_q35(&self) -> bool {
        super::bus::is_q35(&self.machine)
    }

    /// The volumes a guest writes to: the ones a snapshot is made of.
    pub fn writable(&self) -> impl Iterator<Item = &Disk> {
        self.volumes().filter(|disk| !disk.read_only)
    }

    /// The same, to be changed.
    pub fn writable_mut(&mut self) -> impl Iterator<Item = &mut Disk> {
        self.disks.iter_mut().chain(&mut self.nvram).filter(|disk| !disk.read_only)
    }
}

/// A disk, and the layer on top of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name: `vda`, `sdb`, … or `nvram`. A guest may call it otherwise.
    pub target: String,
    /// The active layer.
    pub layer: Layer,
    /// The size the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// The guest cannot write to it; such a disk is in no snapshot.
    pub read_only: bool,
    /// What it is connected to in the guest. The variables of UEFI are flash memory, and have none.
    pub bus: Bus,
    /// The serial number that the guest sees; without one, the name of the disk.
    pub serial: Option<String>,
}

impl Disk {
    /// A disk on the bus `virtio` that the guest can write to.
    pub fn new(target: &str, layer: Layer, virtual_bytes: u64) -> Self {
        let target = target.to_owned();
        Self { target, layer, virtual_bytes, read_only: false, bus: Bus::Virtio, serial: None }
    }

    /// The word for what connects it: its bus, or `pflash`.
    pub fn bus_word(&self) -> &'static str {
        if self.target == "nvram" { "pflash" } else { self.bus.as_str() }
    }
}

/// A CD-ROM drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cdrom {
    /// Its name: `sdb`, `hda`. A guest calls it otherwise.
    pub target: String,
    /// What it is connected to: `sata`, `ide`, `scsi` or `usb`.
    pub bus: Bus,
    /// The ISO image in it, a file of the host; `None` is no medium.
    pub iso: Option<PathBuf>,
}

/// What runs first in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Firmware {
    #[default]
    Bios,
    Uefi,
}

/// Files of the host that QEMU boots directly (`-kernel`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelBoot {
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    pub append: Option<String>,
}
