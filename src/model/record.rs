//! A VM or template as it is worked with. How it is written down is another matter: see [`crate::store::schema`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::{Bus, Credentials, Ephemeral, Layer, LogLimit, Memory, Name, Nic, RamImage, Seed, Warm};
use crate::error::{Error, Result};

/// Everything we know of a VM or template. Its name is the name of its directory, its state is observed.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// VM or template.
    pub role: Role,
    /// Identity; also the SMBIOS UUID of the guest.
    pub uuid: Uuid,
    /// When it was made.
    pub created: Timestamp,
    /// What it was cloned from.
    pub origin: Option<Origin>,
    /// The machine, with the head: one writable layer per disk (a template's are sealed).
    pub config: Config,
    /// The snapshot the head stands on.
    pub head: Option<Name>,
    /// Oldest first; a parent always comes before its children.
    pub snapshots: Vec<Snapshot>,
    /// Of a warm template: the guest that has booted already.
    pub warm: Option<Warm>,
    /// Of a VM that is not to stay: until when.
    pub ephemeral: Option<Ephemeral>,
    /// It starts with the host: `start --autostart` includes it. Snapshots and clones do not have this.
    pub autostart: bool,
}

/// What a record stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Role {
    /// It can run.
    Vm,
    /// It is frozen: never started, never written.
    Template {
        /// When it was frozen.
        frozen: Timestamp,
        /// True when host-specific state was stripped from it.
        sealed: bool,
        /// What its files looked like then.
        stamps: Vec<LayerStamp>,
        /// Of an image, which was no VM before: where it is from.
        image: Option<ImageOrigin>,
    },
}

/// Where an image is from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageOrigin {
    /// A path, or an address without its query.
    pub source: String,
    /// The SHA-256 checksum of the whole address, with its query.
    pub address: Option<String>,
    /// The entry of the catalogue that it was asked for by: `debian:12`.
    pub catalogue: Option<String>,
    /// The SHA-256 checksum of the file as it came, in hexadecimal digits, where it was computed.
    pub sha256: Option<String>,
    /// The SHA-512 checksum, likewise.
    pub sha512: Option<String>,
    /// It had the checksum that the user said, or that was published, and read over https or from a file.
    pub verified: bool,
}

/// What a template's file looked like when it was frozen, to notice an edit behind our back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStamp {
    /// Which layer.
    pub layer: Layer,
    /// The file's length in bytes.
    pub bytes: u64,
    /// The file's modification time, nanoseconds since 1970.
    pub modified_ns: i128,
}

/// Where a clone comes from. The UUID follows a rename, the name is what it was called then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The UUID of the source.
    pub uuid: Uuid,
    /// Its name when the clone was made.
    pub name: Name,
    /// The snapshot, when it was not the head.
    pub snapshot: Option<Name>,
    /// True when the source was a template.
    pub template: bool,
}

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
        let card = |(one, other): (&Nic, &Nic)| (one.model, one.place) == (other.model, other.place);
        (self.disks.len(), self.nics.len()) == (other.disks.len(), other.nics.len())
            && self.disks.iter().zip(&other.disks).all(disk)
            && self.nics.iter().zip(&other.nics).all(card)
            && self.cdroms == other.cdroms
    }

    /// Refuses drives and network cards that its machine cannot have.
    pub fn check_devices(&self) -> Result<()> {
        let misplaced = |nic: &&Nic| nic.place.is_some_and(|place| !place.is_possible(self.is_q35()));
        if let Some(place) = self.nics.iter().find(misplaced).and_then(|nic| nic.place) {
            return Err(Error::refused(format!("a machine of type {} has no slot {place}", self.machine)));
        }
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

/// A named, sealed point in the life of a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its name, unique in its VM.
    pub name: Name,
    /// The snapshot the head stood on when it was taken.
    pub parent: Option<Name>,
    /// How it is kept.
    pub kind: SnapshotKind,
    /// When it was taken.
    pub created: Timestamp,
    /// The user's words.
    pub description: String,
    /// True when the guest's file systems were frozen, or nothing was running.
    pub quiesced: bool,
    /// What the VM was doing.
    pub vm_state: VmState,
    /// The guest's memory at that moment.
    pub memory: Option<Memory>,
    /// When `gc` may remove it.
    pub expires: Option<Timestamp>,
    /// The whole configuration at that moment, with the layers that were the head.
    pub config: Config,
}

/// How a snapshot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotKind {
    /// The head's layers were sealed and new overlays put on top.
    External,
    /// Every layer that was written keeps it inside itself (a qcow2 snapshot).
    Internal {
        /// Its name in the images.
        tag: String,
    },
}

impl SnapshotKind {
    /// The word in JSON.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Internal { .. } => "internal",
        }
    }
}

/// What came of the wish to freeze a guest's file systems for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiesced {
    /// They were frozen.
    Frozen,
    /// The guest stood still, or did not run: what is on its disks is all there is.
    Still,
    /// Nobody wanted it; or there was memory to go with the disks, which needs none.
    NotAsked,
    /// The guest agent is not there, or does not answer.
    Absent,
    /// Somebody else had frozen them.
    AlreadyFrozen,
    /// The guest did not answer in time.
    Hung,
    /// The guest, or a hook in it, said no.
    Refused,
    /// They were frozen, and could not be thawed.
    NotThawed,
}

impl Quiesced {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Still => "still",
            Self::NotAsked => "not-asked",
            Self::Absent => "absent",
            Self::AlreadyFrozen => "already-frozen",
            Self::Hung => "hung",
            Self::Refused => "refused",
            Self::NotThawed => "not-thawed",
        }
    }
}

/// What a VM was doing when its snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VmState {
    Running,
    Paused,
    Stopped,
}

impl VmState {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What a VM is doing, as observed just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// QEMU runs and so do the guest's CPUs.
    Running,
    /// QEMU runs, the guest's CPUs stand still.
    Paused,
    /// No QEMU, and the last one ended in order.
    Stopped,
    /// No QEMU, and the last one left its sockets behind.
    Crashed,
}

impl State {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
        }
    }

    /// Is there a QEMU?
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

impl Snapshot {
    /// The name it has inside the images, when it is an internal one.
    pub fn tag(&self) -> Option<&str> {
        match &self.kind {
            SnapshotKind::External => None,
            SnapshotKind::Internal { tag } => Some(tag),
        }
    }

    /// The file its memory lies in.
    pub fn ram_image(&self) -> Option<&RamImage> {
        self.memory.as_ref().and_then(|memory| memory.image.as_ref())
    }
}

impl Record {
    /// Is it a template?
    pub fn is_template(&self) -> bool {
        matches!(self.role, Role::Template { .. })
    }

    /// Where it is from, if it is an image.
    pub fn image(&self) -> Option<&ImageOrigin> {
        match &self.role {
            Role::Template { image, .. } => image.as_ref(),
            Role::Vm => None,
        }
    }

    /// What it is, in words.
    pub fn kind(&self) -> &'static str {
        match &self.role {
            Role::Vm => "VM",
            Role::Template { image: Some(_), .. } => "image",
            Role::Template { image: None, .. } => "template",
        }
    }

    /// The snapshot called `name`; `current` is the one the head stands on.
    pub fn snapshot(&self, vm: &Name, name: &Name) -> Result<&Snapshot> {
        let wanted = if name.as_str() == super::PointRef::CURRENT {
            self.head.as_ref().ok_or_else(|| Error::not_found(format!("VM {vm} stands on no snapshot")))?
        } else {
            name
        };
        self.snapshots.iter().find(|snapshot| snapshot.name == *wanted).ok_or_else(|| {
            let known: Vec<&str> =
                self.snapshots.iter().rev().take(10).map(|snapshot| snapshot.name.as_str()).collect();
            let more = if self.snapshots.len() > known.len() { ", …" } else { "" };
            let error = Error::not_found(format!("VM {vm} has no snapshot {wanted}"));
            if known.is_empty() {
                error.hint(format!("{vm} has no snapshots; the VMs and what they have: cowhand ls -a"))
            } else {
                error.hint(format!("it has: {}{more}", known.join(", ")))
            }
        })
    }

    /// The snapshots whose parent is `name`.
    pub fn children<'a>(&'a self, name: &'a Name) -> impl Iterator<Item = &'a Snapshot> {
        self.snapshots.iter().filter(move |snapshot| snapshot.parent.as_ref() == Some(name))
    }

    /// Is it a QEMU that waits to become a clone?
    pub fn is_shell(&self) -> bool {
        self.ephemeral.as_ref().is_some_and(|ephemeral| ephemeral.shell)
    }

    /// Is it a layer of a template, or of a snapshot?
    pub fn keeps(&self, layer: &Layer) -> bool {
        let of_template = self.config.volumes().filter(|_| self.is_template());
        let mut kept = of_template.chain(self.snapshots.iter().flat_map(|snapshot| snapshot.config.volumes()));
        kept.any(|disk| disk.layer == *layer)
    }

    /// Every layer the record names: the head's, the snapshots' and the warm guest's.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.config
            .volumes()
            .chain(self.snapshots.iter().flat_map(|snapshot| snapshot.config.volumes()))
            .chain(self.warm.iter().flat_map(|warm| warm.config.volumes()))
            .map(|disk| &disk.layer)
    }
}
