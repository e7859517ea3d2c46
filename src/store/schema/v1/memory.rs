//! The memory of a snapshot, and the QEMU that wrote memory, as version 1 writes them.

use serde::{Deserialize, Serialize};

use crate::model::{Fingerprint, LayerId, Memory, RamImage};
use crate::store::schema::form::Saved;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryV1 {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<RamImageV1>,
    bytes: u64,
    writer: FingerprintV1,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leased: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "RamImage", deny_unknown_fields)]
pub(crate) struct RamImageV1 {
    id: LayerId,
    compressed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Fingerprint", deny_unknown_fields)]
pub(super) struct FingerprintV1 {
    qemu: String,
    accel: String,
    cpu: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_cpu: Option<String>,
    devices: Vec<String>,
}

impl From<Memory> for MemoryV1 {
    fn from(memory: Memory) -> Self {
        let Memory { image, bytes, writer, leased } = memory;
        Self { image: image.to_form(), bytes, writer: writer.into(), leased }
    }
}

impl From<MemoryV1> for Memory {
    fn from(memory: MemoryV1) -> Self {
        let MemoryV1 { image, bytes, writer, leased } = memory;
        Self { image: Option::from_form(image), bytes, writer: writer.into(), leased }
    }
}

impl Saved for RamImage {
    type Form = RamImageV1;

    fn to_form(&self) -> RamImageV1 {
        RamImageV1 { id: self.id.clone(), compressed: self.compressed }
    }

    fn from_form(RamImageV1 { id, compressed }: RamImageV1) -> Self {
        Self { id, compressed }
    }
}

impl From<Fingerprint> for FingerprintV1 {
    fn from(fingerprint: Fingerprint) -> Self {
        let Fingerprint { qemu, accel, cpu, host_cpu, devices } = fingerprint;
        Self { qemu, accel, cpu, host_cpu, devices }
    }
}

impl From<FingerprintV1> for Fingerprint {
    fn from(fingerprint: FingerprintV1) -> Self {
        let FingerprintV1 { qemu, accel, cpu, host_cpu, devices } = fingerprint;
        Self { qemu, accel, cpu, host_cpu, devices }
    }
}
