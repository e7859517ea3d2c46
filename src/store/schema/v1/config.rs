//! The configuration of a machine as version 1 writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::model::{
    Cdrom, Config, Credentials, Disk, Firmware, KernelBoot, Limits, LogLimit, Nic, Seed, bus,
};
use crate::store::schema::devices::{CdromV1, DiskV1, NicV1};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigV1 {
    machine: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu: Option<String>,
    memory_bytes: u64,
    cpus: u32,
    firmware: FirmwareV1,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<KernelV1>,
    nics: Vec<NicV1>,
    generation: Uuid,
    disks: Vec<DiskV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nvram: Option<DiskV1>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cdroms: Vec<CdromV1>,
    /// Bytes in a second, of all disks together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_max_bytes: Option<u64>,
    /// Reads and writes in a second, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    io_max_operations: Option<u64>,
    /// Bytes; 0 is no limit, and no value the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_max_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<SeedV1>,
    /// In base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    credentials: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedV1 {
    user_data: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    meta_data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    network_config: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vendor_data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FirmwareV1 {
    Bios,
    Uefi,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelV1 {
    kernel: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initrd: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    append: Option<String>,
}

impl From<&Seed> for SeedV1 {
    fn from(seed: &Seed) -> Self {
        let Seed { user_data, meta_data, network_config, vendor_data, hostname } = seed.clone();
        Self { user_data, meta_data, network_config, vendor_data, hostname }
    }
}

impl From<SeedV1> for Seed {
    fn from(seed: SeedV1) -> Self {
        let SeedV1 { user_data, meta_data, network_config, vendor_data, hostname } = seed;
        Self { user_data, meta_data, network_config, vendor_data, hostname }
    }
}

impl From<&Config> for ConfigV1 {
    fn from(config: &Config) -> Self {
        Self {
            machine: config.machine.clone(),
            cpu: config.cpu.clone(),
            memory_bytes: config.memory_bytes,
            cpus: config.cpus,
            firmware: match config.firmware {
                Firmware::Bios => FirmwareV1::Bios,
                Firmware::Uefi => FirmwareV1::Uefi,
            },
            kernel: config.kernel.clone().map(|KernelBoot { kernel, initrd, append }| KernelV1 {
                kernel,
                initrd,
                append,
            }),
            nics: config.nics.iter().map(NicV1::from).collect(),
            generation: config.generation,
            disks: config.disks.iter().map(DiskV1::from).collect(),
            nvram: config.nvram.as_ref().map(DiskV1::from),
            cdroms: config.cdroms.iter().map(CdromV1::from).collect(),
            io_max_bytes: config.limits.io,
            io_max_operations: config.limits.iops,
            log_max_bytes: config.log_limit.to_saved(),
            seed: config.seed.as_ref().map(SeedV1::from),
            credentials: config.credentials.encoded().clone(),
            tags: config.tags.clone(),
        }
    }
}

impl TryFrom<ConfigV1> for Config {
    type Error = Error;

    fn try_from(config: ConfigV1) -> Result<Self> {
        let nics: Vec<Nic> = config.nics.into_iter().map(Nic::try_from).collect::<Result<_>>()?;
        let is_q35 = bus::is_q35(&config.machine);
        if let Some(place) =
            nics.iter().filter_map(|nic| nic.place).find(|place| !place.is_possible(is_q35))
        {
            return Err(Error::damaged(format!(
                "a network card is in PCI slot {place}, which its machine has not"
            )));
        }
        Ok(Self {
            machine: config.machine,
            cpu: config.cpu,
            memory_bytes: config.memory_bytes,
            cpus: config.cpus,
            firmware: match config.firmware {
                FirmwareV1::Bios => Firmware::Bios,
                FirmwareV1::Uefi => Firmware::Uefi,
            },
            kernel: config.kernel.map(|KernelV1 { kernel, initrd, append }| KernelBoot {
                kernel,
                initrd,
                append,
            }),
            nics,
            generation: config.generation,
            disks: config.disks.into_iter().map(Disk::try_from).collect::<Result<_>>()?,
            nvram: config.nvram.map(Disk::try_from).transpose()?,
            cdroms: config.cdroms.into_iter().map(Cdrom::try_from).collect::<Result<_>>()?,
            limits: Limits::from_saved(config.io_max_bytes, config.io_max_operations),
            log_limit: LogLimit::from_saved(config.log_max_bytes),
            seed: config.seed.map(Seed::from),
            credentials: Credentials::from_encoded(config.credentials)?,
            tags: config.tags,
        })
    }
}
