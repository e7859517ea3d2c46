//! What a warm template has beside its disks, and VMs that are not to stay.

use jiff::Timestamp;

use super::{Config, Fingerprint, LayerId};

/// A guest that has booted and stands still: its memory, its devices, and the disks that go with
/// them.
#[derive(Debug, Clone, PartialEq)]
pub struct Warm {
    /// Its files: memory, and devices.
    pub image: WarmImage,
    /// When it was made.
    pub made: Timestamp,
    /// The QEMU that wrote it.
    pub writer: Fingerprint,
    /// The version of the helper's protocol.
    pub helper: u32,
    /// The guest's kernel, for people.
    pub kernel: String,
    /// How many standby clones wait in its pool.
    pub pool: u32,
    /// The network cards, by their place, on which the guest has [`GUEST_ADDRESS`].
    pub leased: Vec<usize>,
    /// The machine, on layers that hold what the guest has written while it booted.
    pub config: Config,
}

/// The files of a warm template: `ram/<id>.mem` and `ram/<id>.state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WarmImage {
    /// Their identity, as random as a layer's.
    pub id: LayerId,
    /// Bytes of memory on disk: what the guest never touched takes none.
    pub memory_bytes: u64,
    /// Bytes of the devices' state.
    pub state_bytes: u64,
    /// The memory file's modification time, nanoseconds since 1970.
    pub modified_ns: i64,
}

impl WarmImage {
    /// The memory as a file of `ram/`.
    pub fn memory(&self) -> String {
        format!("{}.mem", self.id)
    }

    /// The devices' state.
    pub fn state(&self) -> String {
        format!("{}.state", self.id)
    }
}

impl Warm {
    /// Bytes on disk, of its files.
    pub fn bytes(&self) -> u64 {
        self.image.memory_bytes + self.image.state_bytes
    }
}

/// Why and how long a VM is there that is not to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ephemeral {
    /// It goes with this process.
    pub owner: Option<Owner>,
    /// It goes then at the latest.
    pub expires: Option<Timestamp>,
    /// It is a standby clone: a QEMU that waits in the pool to become a VM.
    pub standby: bool,
}

/// A process, so that it cannot be taken for another one of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since the host was (`proc(5)`, `starttime`).
    pub started: u64,
    /// The host's boot id.
    pub boot: String,
    /// Its PID namespace (the inode of `/proc/<pid>/ns/pid`): in another one, numbers mean other
    /// processes.
    pub namespace: u64,
}
