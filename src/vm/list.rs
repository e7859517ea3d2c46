//! Looking at VMs and templates. Takes no lock and writes nothing; a record that cannot be read is
//! shown as broken.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::sockets;
use crate::instance::status::{self, Status};
use crate::layer::chain;
use crate::layer::graph::{LayerGraph, Use};
use crate::model::{Chain, Config, Disk, Format, Layer, LayerId, Name, Record};
use crate::qemu::qmp::{GLANCE, Qmp};
use crate::store::{Store, journal};
use crate::sys::confine::observed::Observed;

/// A line of `ls`.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: Name,
    /// What is known of it; `Err` says why nothing is.
    pub about: std::result::Result<About, String>,
    /// The command that was cut short while it changed the VM; the next one that changes it puts
    /// that right.
    pub cut_short: Option<String>,
}

/// What `ls` shows of a VM that can be read.
#[derive(Debug)]
pub struct About {
    /// The record.
    pub record: Record,
    /// What it is doing.
    pub status: Status,
    /// What it was cloned from, by its present name.
    pub from: Option<String>,
    /// Bytes on disk of the layers it names itself.
    pub own_bytes: u64,
    /// The sizes its disks show, added up.
    pub virtual_bytes: u64,
}

/// Every VM and template.
pub async fn list(context: &Context) -> Result<Vec<Row>> {
    let names = context.store.names()?;
    let records: Vec<(Name, Result<Record>)> =
        names.into_iter().map(|name| (name.clone(), context.store.load(&name))).collect();
    let by_uuid: BTreeMap<Uuid, Name> = records
        .iter()
        .filter_map(|(name, record)| Some((record.as_ref().ok()?.uuid, name.clone())))
        .collect();
    let mut rows = Vec::with_capacity(records.len());
    for (name, record) in records {
        let about = match record {
            Ok(record) => {
                let status = status::observe(context, &name).await?;
                Ok(About {
                    from: origin(&record, |uuid| by_uuid.get(&uuid).cloned()),
                    own_bytes: own_bytes(&context.store, &record),
                    virtual_bytes: record.config.disks.iter().map(|disk| disk.virtual_bytes).sum(),
                    record,
                    status,
                })
            }
            Err(error) => Err(reason(&error, &context.store.layout.vm_json(&name))),
        };
        // QEMUs that wait to become clones are nobody's yet: `pool ls` counts them.
        if about.as_ref().is_ok_and(|about: &About| about.record.is_standby()) {
            continue;
        }
        rows.push(Row { cut_short: journal::cut_short(&context.store, &name), name, about });
    }
    Ok(rows)
}

/// Why a record cannot be read, without the path everybody knows.
fn reason(error: &Error, record: &Path) -> String {
    match error.cause().filter(|_| error.file() == Some(record)) {
        Some(why) => format!("vm.json {why}"),
        None => error.full_message(),
    }
}

/// `deb12`, or `web@before`; the recorded name when the source is gone.
fn origin(record: &Record, name_of: impl Fn(Uuid) -> Option<Name>) -> Option<String> {
    let origin = record.origin.as_ref()?;
    let name = name_of(origin.uuid).unwrap_or_else(|| origin.name.clone());
    Some(match &origin.snapshot {
        Some(snapshot) => format!("{name}@{snapshot}"),
        None => name.to_string(),
    })
}

fn own_bytes(store: &Store, record: &Record) -> u64 {
    let mut layers: Vec<&Layer> = record.layers().collect();
    layers.sort();
    layers.dedup();
    layers
        .into_iter()
        .filter_map(|layer| std::fs::metadata(store.layout.layer(layer)).ok())
        .map(|about| about.blocks() * 512)
        .sum()
}

/// What `show` tells.
#[derive(Debug)]
pub struct Details {
    /// The record.
    pub record: Record,
    /// What it is doing.
    pub status: Status,
    /// What it was cloned from.
    pub from: Option<String>,
    /// `kvm` or `tcg`, while it runs.
    pub accel: Option<&'static str>,
    /// Its disks' chains, in the order of the disks, then the NVRAM's; `Err` where one is damaged.
    pub chains: Vec<std::result::Result<Chain, String>>,
    /// The command that was cut short while it changed the VM.
    pub cut_short: Option<String>,
    /// How far its QEMU is confined, while it runs.
    pub confinement: Option<Observed>,
}

#[derive(Deserialize)]
struct Kvm {
    enabled: bool,
}

/// Everything about one VM or template.
pub async fn show(context: &Context, name: &Name) -> Result<Details> {
    let store = &context.store;
    let record = store.load(name)?;
    let status = status::observe(context, name).await?;
    let names = store.names()?;
    let name_of = |uuid| {
        names.iter().find(|name| store.load(name).is_ok_and(|record| record.uuid == uuid)).cloned()
    };
    let accel = match sockets::of(context, name).filter(|_| status.state.is_live()) {
        Some(sockets) => accel(&sockets.status()).await,
        None => None,
    };
    let chains = record
        .config
        .volumes()
        .map(|disk| chain::of_disk(store, disk).map_err(|error| error.full_message()))
        .collect();
    let cut_short = journal::cut_short(store, name);
    // What has ended since is not looked at.
    let confinement = status.pid.and_then(|pid| Observed::of(pid).ok());
    let from = origin(&record, name_of);
    Ok(Details { from, accel, chains, cut_short, confinement, status, record })
}

async fn accel(socket: &Path) -> Option<&'static str> {
    let mut qmp = Qmp::connect(socket, GLANCE).await.ok()?;
    let kvm: Kvm = qmp.call("query-kvm", json!({})).await.ok()?;
    Some(if kvm.enabled { "kvm" } else { "tcg" })
}

/// A disk of `disk ls`.
#[derive(Debug)]
pub struct DiskRow {
    /// `vda`, …
    pub target: String,
    /// The word for its bus.
    pub bus: &'static str,
    /// The serial number that the guest sees, where it is not the target.
    pub serial: Option<String>,
    /// The active layer's format.
    pub format: Format,
    /// The active layer's file.
    pub file: PathBuf,
    /// The size the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// Bytes on disk of the active layer.
    pub allocated_bytes: u64,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// The disks of `name`.
pub fn disks(context: &Context, name: &Name) -> Result<Vec<DiskRow>> {
    let record = context.store.load(name)?;
    Ok(record
        .config
        .volumes()
        .map(|disk| {
            let file = context.store.layout.layer(&disk.layer);
            let allocated_bytes = std::fs::metadata(&file).map_or(0, |about| about.blocks() * 512);
            DiskRow {
                target: disk.target.clone(),
                bus: disk.bus_word(),
                serial: disk.serial.clone(),
                format: disk.layer.format,
                file,
                virtual_bytes: disk.virtual_bytes,
                allocated_bytes,
                read_only: disk.read_only,
            }
        })
        .collect())
}

/// The chain of one disk, with who else depends on each layer.
#[derive(Debug)]
pub struct ChainRow {
    /// `vda`, …
    pub target: String,
    /// Active layer first, base last.
    pub chain: Chain,
    /// Per layer of the chain: the snapshots of this VM it belongs to.
    pub snapshots: Vec<Vec<Name>>,
    /// Per layer of the chain: the other VMs and templates that name it or depend on it.
    pub shared_by: Vec<Vec<Name>>,
}

/// The chains of the disks of `name`, or of the one called `target`.
pub fn chains(context: &Context, name: &Name, target: Option<&str>) -> Result<Vec<ChainRow>> {
    let record = context.store.load(name)?;
    if let Some(target) = target {
        disk(name, &record, target)?;
    }
    let graph = LayerGraph::scan(&context.store)?;
    let mut rows = Vec::new();
    for disk in
        record.config.volumes().filter(|disk| target.is_none_or(|target| disk.target == target))
    {
        let chain = chain::read(&context.store, &disk.layer)?;
        let ids: Vec<&LayerId> = chain.links().iter().map(|link| &link.layer.id).collect();
        let own = |r#use: &Use| match r#use {
            Use::Snapshot(vm, snapshot) if vm == name => Some(snapshot.clone()),
            _ => None,
        };
        rows.push(ChainRow {
            target: disk.target.clone(),
            snapshots: ids
                .iter()
                .map(|id| graph.uses(id).iter().filter_map(own).collect())
                .collect(),
            shared_by: ids.iter().map(|id| graph.sharers(name, id)).collect(),
            chain,
        });
    }
    Ok(rows)
}

/// The disk `target` of a VM, or an error that names those it has.
pub fn disk<'a>(name: &Name, record: &'a Record, target: &str) -> Result<&'a Disk> {
    disk_of(name, &record.config, target)
}

/// The same, of a configuration.
pub fn disk_of<'a>(name: &Name, config: &'a Config, target: &str) -> Result<&'a Disk> {
    config.volumes().find(|disk| disk.target == target).ok_or_else(|| {
        let known: Vec<&str> = config.volumes().map(|disk| disk.target.as_str()).collect();
        Error::not_found(format!("{name} has no disk {target}"))
            .hint(format!("it has: {}", known.join(", ")))
    })
}
