//! Snapshots.

use serde::Serialize;

use crate::merge::outcome::{self, Outcome, What};
use crate::model::{self, Fingerprint, Name};
use crate::output::time::{milliseconds, rfc3339};
use crate::snapshot::create::Taken;
use crate::snapshot::list::Row;
use crate::snapshot::revert;

/// An entry of `snapshot ls` and `snapshot tree`.
#[derive(Debug, Serialize)]
pub struct Snapshot<'a> {
    name: &'a Name,
    parent: Option<&'a Name>,
    kind: &'static str,
    /// It has the guest's memory.
    memory: bool,
    memory_bytes: Option<u64>,
    expires: Option<String>,
    vm_state: &'static str,
    created: String,
    /// It is the current snapshot.
    current: bool,
    description: &'a str,
    quiesced: bool,
    bytes: u64,
    children: &'a [Name],
}

impl<'a> From<&'a Row> for Snapshot<'a> {
    fn from(row: &'a Row) -> Self {
        let snapshot = &row.snapshot;
        Self {
            name: &snapshot.name,
            parent: snapshot.parent.as_ref(),
            kind: snapshot.kind.as_str(),
            memory: snapshot.memory.is_some(),
            memory_bytes: snapshot.memory.as_ref().map(|memory| memory.bytes),
            expires: snapshot.expires.map(rfc3339),
            vm_state: snapshot.vm_state.as_str(),
            created: rfc3339(snapshot.created),
            current: row.current,
            description: &snapshot.description,
            quiesced: snapshot.quiesced,
            bytes: row.bytes,
            children: &row.children,
        }
    }
}

/// `snapshot show`: the entry, and all that was written down.
#[derive(Debug, Serialize)]
pub struct SnapshotInFull<'a> {
    #[serde(flatten)]
    entry: Snapshot<'a>,
    descendants: &'a [Name],
    /// Its name in the images, if it is an internal one.
    tag: Option<&'a str>,
    /// What wrote the memory.
    memory_writer: Option<Writer<'a>>,
    machine: &'a str,
    /// The size of the guest's memory, whether it was kept or not.
    memory_size_bytes: u64,
    cpus: u32,
    disks: Vec<Disk<'a>>,
}

/// The QEMU that wrote a guest's memory.
#[derive(Debug, Serialize)]
struct Writer<'a> {
    qemu: &'a str,
    accel: &'a str,
    cpu: &'a str,
    /// Left out where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_cpu: Option<&'a str>,
    devices: &'a [String],
}

/// A disk as it was.
#[derive(Debug, Serialize)]
struct Disk<'a> {
    target: &'a str,
    layer: String,
    virtual_bytes: u64,
}

impl<'a> From<&'a Row> for SnapshotInFull<'a> {
    fn from(row: &'a Row) -> Self {
        let (snapshot, config) = (&row.snapshot, &row.snapshot.config);
        Self {
            entry: Snapshot::from(row),
            descendants: &row.descendants,
            tag: snapshot.tag(),
            memory_writer: snapshot.memory.as_ref().map(|memory| Writer::from(&memory.writer)),
            machine: &config.machine,
            memory_size_bytes: config.memory_bytes,
            cpus: config.cpus,
            disks: config.volumes().map(Disk::from).collect(),
        }
    }
}

impl<'a> From<&'a Fingerprint> for Writer<'a> {
    fn from(writer: &'a Fingerprint) -> Self {
        Self {
            qemu: &writer.qemu,
            accel: &writer.accel,
            cpu: &writer.cpu,
            host_cpu: writer.host_cpu.as_deref(),
            devices: &writer.devices,
        }
    }
}

impl<'a> From<&'a model::Disk> for Disk<'a> {
    fn from(disk: &'a model::Disk) -> Self {
        Self {
            target: &disk.target,
            layer: disk.layer.file_name(),
            virtual_bytes: disk.virtual_bytes,
        }
    }
}

/// `snapshot create`: the entry, and what it cost.
#[derive(Debug, Serialize)]
pub struct TakenSnapshot<'a> {
    #[serde(flatten)]
    entry: Snapshot<'a>,
    /// How long the guest stood still.
    pause_ms: f64,
    /// How long its file systems were frozen.
    freeze_ms: f64,
    quiesce: &'static str,
    total_ms: f64,
}

impl<'a> TakenSnapshot<'a> {
    /// The snapshot of `row`, which was taken.
    pub fn new(row: &'a Row, taken: &Taken) -> Self {
        Self {
            entry: Snapshot::from(row),
            pause_ms: milliseconds(taken.paused),
            freeze_ms: milliseconds(taken.frozen),
            quiesce: taken.quiesce.as_str(),
            total_ms: milliseconds(taken.total),
        }
    }
}

/// `snapshot revert`: the VM, the snapshot that it is based on, and what it is doing.
#[derive(Debug, Serialize)]
pub struct Reverted<'a> {
    name: &'a Name,
    head: &'a Name,
    state: &'static str,
}

impl<'a> Reverted<'a> {
    /// The VM `name`, which was taken back.
    pub fn new(name: &'a Name, reverted: &'a revert::Reverted) -> Self {
        Self { name, head: &reverted.name, state: reverted.state.as_str() }
    }
}

/// A snapshot of `snapshot rm`.
#[derive(Debug, Serialize)]
pub struct RemovedSnapshot<'a> {
    name: &'a Name,
    disks: Vec<LeftLayer<'a>>,
    /// The changes that cannot be undone any more.
    lost_undo: &'a [String],
    dry_run: bool,
}

/// What became of one layer.
#[derive(Debug, Serialize)]
struct LeftLayer<'a> {
    target: &'a str,
    what: &'static str,
    bytes: u64,
    /// Why it was `kept`.
    reason: Option<&'a str>,
}

impl<'a> RemovedSnapshot<'a> {
    /// What was removed; with `dry_run`, what would be.
    pub fn new(removed: &'a outcome::Removed, dry_run: bool) -> Self {
        let disks = removed.outcomes.iter().map(LeftLayer::from).collect();
        Self { name: &removed.name, disks, lost_undo: &removed.lost_undo, dry_run }
    }
}

impl<'a> From<&'a Outcome> for LeftLayer<'a> {
    fn from(outcome: &'a Outcome) -> Self {
        let (what, reason) = match &outcome.what {
            What::Committed => ("committed", None),
            What::Streamed => ("streamed", None),
            What::Trashed => ("trashed", None),
            What::Internal => ("internal", None),
            What::Kept(why) => ("kept", Some(why.as_str())),
        };
        Self { target: &outcome.target, what, bytes: outcome.bytes, reason }
    }
}
