//! A VM or template as it is worked with. How it is written down is another matter: see
//! [`crate::store::schema`].

use jiff::Timestamp;
use uuid::Uuid;

use super::{Config, Ephemeral, Layer, LayerId, Name, Snapshot, Warm};
use crate::error::{Error, Result};

/// Everything we know of a VM or template. Its name is the name of its directory, its state is
/// observed.
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
    /// The current snapshot: the one the head is based on.
    pub current: Option<Name>,
    /// Oldest first; a parent always comes before its children.
    pub snapshots: Vec<Snapshot>,
    /// Of a warm template: the guest that has booted already.
    pub warm: Option<Warm>,
    /// Of a VM that is not to stay: until when.
    pub ephemeral: Option<Ephemeral>,
    /// It starts with the host: `start --autostart` includes it. Snapshots and clones do not have
    /// this.
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
        stamps: Vec<FileStamp>,
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
    /// It had the checksum that the user said, or that was published, and read over https or from a
    /// file.
    pub verified: bool,
}

/// What a template's file looked like when it was frozen, to notice an edit behind our back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStamp {
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

    /// The snapshot called `name`; `current` is the one the head is based on.
    pub fn snapshot(&self, vm: &Name, name: &Name) -> Result<&Snapshot> {
        let wanted = if name.as_str() == super::PointRef::CURRENT {
            self.current
                .as_ref()
                .ok_or_else(|| Error::not_found(format!("VM {vm} has no current snapshot")))?
        } else {
            name
        };
        self.snapshots.iter().find(|snapshot| snapshot.name == *wanted).ok_or_else(|| {
            let known: Vec<&str> = self
                .snapshots
                .iter()
                .rev()
                .take(10)
                .map(|snapshot| snapshot.name.as_str())
                .collect();
            let more = if self.snapshots.len() > known.len() { ", …" } else { "" };
            let error = Error::not_found(format!("VM {vm} has no snapshot {wanted}"));
            if known.is_empty() {
                error.hint(format!(
                    "{vm} has no snapshots; the VMs and what they have: cowhand ls -a"
                ))
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
    pub fn is_standby(&self) -> bool {
        self.ephemeral.as_ref().is_some_and(|ephemeral| ephemeral.standby)
    }

    /// Is it a layer of a template, or of a snapshot?
    pub fn keeps(&self, layer: &Layer) -> bool {
        let of_template = self.config.volumes().filter(|_| self.is_template());
        let mut kept =
            of_template.chain(self.snapshots.iter().flat_map(|snapshot| snapshot.config.volumes()));
        kept.any(|disk| disk.layer == *layer)
    }

    /// The ids of the files of guests' memory that the record names: the snapshots' and the warm
    /// guest's.
    pub fn memory_images(&self) -> impl Iterator<Item = &LayerId> {
        let of_snapshots =
            self.snapshots.iter().filter_map(Snapshot::ram_image).map(|image| &image.id);
        of_snapshots.chain(self.warm.iter().map(|warm| &warm.image.id))
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
