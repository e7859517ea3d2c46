//! Disks and network cards as version 1 writes them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Bus, Cdrom, Disk, Layer, Network, Nic, NicModel, PortForward};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskV1 {
    target: String,
    layer: Layer,
    virtual_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
    /// Without one, it is `virtio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bus: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NicV1 {
    mac: String,
    /// Without one, it is `virtio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// As `create --net` takes it. Without one, it is `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// `BUS:SLOT`, two hexadecimal digits each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CdromV1 {
    target: String,
    bus: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iso: Option<PathBuf>,
}

impl From<&Cdrom> for CdromV1 {
    fn from(Cdrom { target, bus, iso }: &Cdrom) -> Self {
        Self { target: target.clone(), bus: bus.to_string(), iso: iso.clone() }
    }
}

impl TryFrom<CdromV1> for Cdrom {
    type Error = Error;

    fn try_from(CdromV1 { target, bus, iso }: CdromV1) -> Result<Self> {
        Ok(Self { target, bus: known("bus", &bus, bus.parse())?, iso })
    }
}

impl From<&Disk> for DiskV1 {
    fn from(disk: &Disk) -> Self {
        let Disk { target, layer, virtual_bytes, read_only, bus, serial } = disk.clone();
        let bus = (bus != Bus::default()).then(|| bus.to_string());
        Self { target, layer, virtual_bytes, read_only, bus, serial }
    }
}

impl TryFrom<DiskV1> for Disk {
    type Error = Error;

    fn try_from(disk: DiskV1) -> Result<Self> {
        let DiskV1 { target, layer, virtual_bytes, read_only, bus, serial } = disk;
        let bus = bus.map_or(Ok(Bus::default()), |bus| known("disk bus", &bus, bus.parse()))?;
        Ok(Self { target, layer, virtual_bytes, read_only, bus, serial })
    }
}

impl From<&Nic> for NicV1 {
    fn from(nic: &Nic) -> Self {
        Self {
            mac: nic.mac.clone(),
            model: (nic.model != NicModel::default()).then(|| nic.model.as_str().to_owned()),
            network: (nic.network != Network::default()).then(|| nic.network.to_string()),
            place: nic.place.map(|place| place.to_string()),
            ports: nic.ports.iter().map(PortForward::to_string).collect(),
        }
    }
}

impl TryFrom<NicV1> for Nic {
    type Error = Error;

    fn try_from(nic: NicV1) -> Result<Self> {
        Ok(Self {
            model: nic.model.map_or(Ok(NicModel::default()), |model| {
                known("network card", &model, model.parse())
            })?,
            network: nic.network.map_or(Ok(Network::default()), |network| {
                known("network", &network, network.parse())
            })?,
            place: nic.place.map(|place| place.parse()).transpose()?,
            ports: nic.ports.iter().map(|port| port.parse()).collect::<Result<_>>()?,
            mac: nic.mac,
        })
    }
}

/// A word that a newer version may know.
fn known<T>(what: &str, word: &str, read: Result<T>) -> Result<T> {
    read.map_err(|_| Error::damaged(format!("{word:?} is not a {what} that this version knows")))
}
