//! Version 1 of `vm.json`. Released: fields may be added with a default, nothing else may change.

mod config;
mod ephemeral;
mod memory;
mod snapshot;
mod warm;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use config::ConfigV1;
use ephemeral::EphemeralV1;
use snapshot::SnapshotV1;
use warm::WarmV1;

use crate::error::{Error, Result};
use crate::model::{
    Ephemeral, FileStamp, ImageOrigin, Layer, Name, Origin, Record, Role, Snapshot, Warm,
};

/// A VM or template, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordV1 {
    schema: u32,
    uuid: Uuid,
    /// The VM that it was written for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
    /// The store that it was written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<Uuid>,
    created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template: Option<TemplateV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<OriginV1>,
    config: ConfigV1,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<Name>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<SnapshotV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warm: Option<WarmV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ephemeral: Option<EphemeralV1>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    autostart: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateV1 {
    frozen: Timestamp,
    sealed: bool,
    stamps: Vec<StampV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<ImageV1>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageV1 {
    source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    catalogue: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha512: Option<String>,
    verified: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StampV1 {
    layer: Layer,
    bytes: u64,
    /// Nanoseconds since 1970 fit into 64 bits until the year 2262.
    modified_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OriginV1 {
    uuid: Uuid,
    name: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    snapshot: Option<Name>,
    template: bool,
}

impl From<&ImageOrigin> for ImageV1 {
    fn from(image: &ImageOrigin) -> Self {
        let ImageOrigin { source, address, catalogue, sha256, sha512, verified } = image.clone();
        Self { source, address, catalogue, sha256, sha512, verified }
    }
}

impl From<ImageV1> for ImageOrigin {
    fn from(image: ImageV1) -> Self {
        let ImageV1 { source, address, catalogue, sha256, sha512, verified } = image;
        Self { source, address, catalogue, sha256, sha512, verified }
    }
}

impl RecordV1 {
    /// The identity of its VM or template.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The name of the VM that it was written for, if it says.
    pub fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    /// The store that it was written in, if it says.
    pub fn store(&self) -> Option<Uuid> {
        self.store
    }

    /// The same record, written for `name` in the store `store`.
    pub fn written(self, name: Option<&Name>, store: Option<Uuid>) -> Self {
        Self { name: name.cloned(), store, ..self }
    }
}

impl From<&Record> for RecordV1 {
    fn from(record: &Record) -> Self {
        let template = match &record.role {
            Role::Vm => None,
            Role::Template { frozen, sealed, stamps, image } => Some(TemplateV1 {
                frozen: *frozen,
                sealed: *sealed,
                stamps: stamps.iter().map(StampV1::from).collect(),
                image: image.as_ref().map(ImageV1::from),
            }),
        };
        Self {
            schema: 1,
            uuid: record.uuid,
            name: None,
            store: None,
            created: record.created,
            template,
            origin: record.origin.clone().map(|Origin { uuid, name, snapshot, template }| {
                OriginV1 { uuid, name, snapshot, template }
            }),
            config: ConfigV1::from(&record.config),
            head: record.current.clone(),
            snapshots: record.snapshots.iter().map(SnapshotV1::from).collect(),
            warm: record.warm.clone().map(WarmV1::from),
            ephemeral: record.ephemeral.clone().map(EphemeralV1::from),
            autostart: record.autostart,
        }
    }
}

impl TryFrom<RecordV1> for Record {
    type Error = Error;

    fn try_from(record: RecordV1) -> Result<Self> {
        let role = match record.template {
            None => Role::Vm,
            Some(template) => Role::Template {
                frozen: template.frozen,
                sealed: template.sealed,
                stamps: template.stamps.into_iter().map(FileStamp::from).collect(),
                image: template.image.map(ImageOrigin::from),
            },
        };
        let record = Self {
            role,
            uuid: record.uuid,
            created: record.created,
            origin: record.origin.map(|OriginV1 { uuid, name, snapshot, template }| Origin {
                uuid,
                name,
                snapshot,
                template,
            }),
            config: record.config.try_into()?,
            current: record.head,
            snapshots: record
                .snapshots
                .into_iter()
                .map(Snapshot::try_from)
                .collect::<Result<_>>()?,
            warm: record.warm.map(Warm::try_from).transpose()?,
            ephemeral: record.ephemeral.map(Ephemeral::from),
            autostart: record.autostart,
        };
        check_disks(&record)?;
        check_tree(&record)?;
        Ok(record)
    }
}

/// Two disks of a VM are two files.
fn check_disks(record: &Record) -> Result<()> {
    for config in record.snapshots.iter().map(|snapshot| &snapshot.config).chain([&record.config]) {
        let mut seen: BTreeMap<&Layer, &str> = BTreeMap::new();
        for disk in config.volumes() {
            if let Some(other) = seen.insert(&disk.layer, &disk.target) {
                return Err(Error::damaged(format!(
                    "{other} and {} are the same layer, {}",
                    disk.target, disk.layer
                )));
            }
        }
    }
    Ok(())
}

/// A record whose snapshots do not form a tree is damaged, and better refused than walked.
fn check_tree(record: &Record) -> Result<()> {
    let mut seen: BTreeSet<&Name> = BTreeSet::new();
    for snapshot in &record.snapshots {
        if seen.contains(&snapshot.name) {
            return Err(Error::damaged(format!("two snapshots are called {}", snapshot.name)));
        }
        if let Some(parent) = snapshot.parent.as_ref().filter(|parent| !seen.contains(parent)) {
            return Err(Error::damaged(format!(
                "the parent of snapshot {}, {parent}, does not exist",
                snapshot.name
            )));
        }
        seen.insert(&snapshot.name);
    }
    match record.current.as_ref().filter(|head| !seen.contains(head)) {
        Some(head) => Err(Error::damaged(format!("the current snapshot {head} does not exist"))),
        None => Ok(()),
    }
}

impl From<&FileStamp> for StampV1 {
    fn from(stamp: &FileStamp) -> Self {
        let modified_ns = i64::try_from(stamp.modified_ns).unwrap_or(i64::MAX);
        Self { layer: stamp.layer.clone(), bytes: stamp.bytes, modified_ns }
    }
}

impl From<StampV1> for FileStamp {
    fn from(stamp: StampV1) -> Self {
        Self { layer: stamp.layer, bytes: stamp.bytes, modified_ns: stamp.modified_ns.into() }
    }
}
