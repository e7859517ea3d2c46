//! What a warm template has beside its disks, as version 1 writes it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::ConfigV1;
use super::memory::FingerprintV1;
use crate::error::{Error, Result};
use crate::model::{LayerId, Warm, WarmImage};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WarmV1 {
    image: WarmImageV1,
    made: Timestamp,
    writer: FingerprintV1,
    helper: u32,
    kernel: String,
    #[serde(default)]
    pool: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    leased: Vec<usize>,
    config: ConfigV1,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "WarmImage", deny_unknown_fields)]
struct WarmImageV1 {
    id: LayerId,
    memory_bytes: u64,
    state_bytes: u64,
    modified_ns: i64,
}

impl From<Warm> for WarmV1 {
    fn from(warm: Warm) -> Self {
        let Warm { image, made, writer, helper, kernel, pool, leased, config } = warm;
        let WarmImage { id, memory_bytes, state_bytes, modified_ns } = image;
        Self {
            image: WarmImageV1 { id, memory_bytes, state_bytes, modified_ns },
            made,
            writer: writer.into(),
            helper,
            kernel,
            pool,
            leased,
            config: ConfigV1::from(&config),
        }
    }
}

impl TryFrom<WarmV1> for Warm {
    type Error = Error;

    fn try_from(warm: WarmV1) -> Result<Self> {
        let WarmV1 { image, made, writer, helper, kernel, pool, leased, config } = warm;
        let WarmImageV1 { id, memory_bytes, state_bytes, modified_ns } = image;
        Ok(Self {
            image: WarmImage { id, memory_bytes, state_bytes, modified_ns },
            made,
            writer: writer.into(),
            helper,
            kernel,
            pool,
            leased,
            config: config.try_into()?,
        })
    }
}
