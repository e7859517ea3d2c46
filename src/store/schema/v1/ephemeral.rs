//! Why and how long a VM is there that is not to stay, as version 1 writes it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{Ephemeral, Owner};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Ephemeral", deny_unknown_fields)]
pub(super) struct EphemeralV1 {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    shell: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Owner", deny_unknown_fields)]
struct OwnerV1 {
    pid: i32,
    started: u64,
    boot: String,
    namespace: u64,
}

impl From<Ephemeral> for EphemeralV1 {
    fn from(Ephemeral { owner, expires, standby }: Ephemeral) -> Self {
        let owner = owner.map(|Owner { pid, started, boot, namespace }| OwnerV1 {
            pid,
            started,
            boot,
            namespace,
        });
        Self { owner, expires, shell: standby }
    }
}

impl From<EphemeralV1> for Ephemeral {
    fn from(EphemeralV1 { owner, expires, shell }: EphemeralV1) -> Self {
        let owner = owner.map(|OwnerV1 { pid, started, boot, namespace }| Owner {
            pid,
            started,
            boot,
            namespace,
        });
        Self { owner, expires, standby: shell }
    }
}
