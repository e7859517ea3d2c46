//! Snapshots as version 1 writes them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::config::ConfigV1;
use super::memory::MemoryV1;
use crate::error::{Error, Result};
use crate::model::{Memory, Name, Snapshot, SnapshotKind, VmState};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SnapshotV1 {
    name: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<Name>,
    kind: KindV1,
    created: Timestamp,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    quiesced: bool,
    vm_state: VmStateV1,
    /// The name inside the images, of an internal snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryV1>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    config: ConfigV1,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindV1 {
    External,
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VmStateV1 {
    Running,
    Paused,
    Stopped,
}

impl From<&Snapshot> for SnapshotV1 {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            name: snapshot.name.clone(),
            parent: snapshot.parent.clone(),
            kind: match snapshot.kind {
                SnapshotKind::External => KindV1::External,
                SnapshotKind::Internal { .. } => KindV1::Internal,
            },
            tag: snapshot.tag().map(str::to_owned),
            memory: snapshot.memory.clone().map(MemoryV1::from),
            expires: snapshot.expires,
            created: snapshot.created,
            description: snapshot.description.clone(),
            quiesced: snapshot.quiesced,
            vm_state: match snapshot.vm_state {
                VmState::Running => VmStateV1::Running,
                VmState::Paused => VmStateV1::Paused,
                VmState::Stopped => VmStateV1::Stopped,
            },
            config: ConfigV1::from(&snapshot.config),
        }
    }
}

impl TryFrom<SnapshotV1> for Snapshot {
    type Error = Error;

    fn try_from(snapshot: SnapshotV1) -> Result<Self> {
        Ok(Self {
            name: snapshot.name,
            parent: snapshot.parent,
            kind: match (snapshot.kind, snapshot.tag) {
                (KindV1::External, _) => SnapshotKind::External,
                (KindV1::Internal, Some(tag)) => SnapshotKind::Internal { tag },
                (KindV1::Internal, None) => {
                    return Err(Error::damaged("an internal snapshot has no tag"));
                }
            },
            memory: snapshot.memory.map(Memory::from),
            expires: snapshot.expires,
            created: snapshot.created,
            description: snapshot.description,
            quiesced: snapshot.quiesced,
            vm_state: match snapshot.vm_state {
                VmStateV1::Running => VmState::Running,
                VmStateV1::Paused => VmState::Paused,
                VmStateV1::Stopped => VmState::Stopped,
            },
            config: snapshot.config.try_into()?,
        })
    }
}
