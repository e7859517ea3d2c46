//! What we ask QEMU about its block nodes, decoded leniently.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Qmp, QmpError};
use crate::model::{Layer, LayerId};

#[derive(Deserialize)]
struct NamedNode {
    #[serde(rename = "node-name", default)]
    name: String,
}

#[derive(Deserialize)]
struct Block {
    #[serde(default)]
    qdev: String,
    inserted: Option<Inserted>,
}

#[derive(Deserialize)]
struct Inserted {
    #[serde(rename = "node-name", default)]
    node: String,
}

#[derive(Deserialize)]
struct Chardev {
    label: String,
    #[serde(rename = "frontend-open")]
    open: bool,
}

impl Qmp {
    /// The names of all block nodes (`query-named-block-nodes`, flat).
    pub async fn node_names(&mut self) -> Result<Vec<String>, QmpError> {
        let nodes: Vec<NamedNode> = self.call("query-named-block-nodes", json!({"flat": true})).await?;
        Ok(nodes.into_iter().map(|node| node.name).collect())
    }

    /// The layer the guest's device `target` (`vda`) is on just now (`query-block`). A device is called `dev-<target>`.
    pub async fn active_layer(&mut self, target: &str) -> Result<Option<LayerId>, QmpError> {
        let wanted = crate::qemu::nodes::device_id(target);
        let blocks: Vec<Block> = self.call("query-block", json!({})).await?;
        // A device shows up under its id, or under its path in the machine (`/machine/peripheral/dev-vda/virtio-backend`).
        let is_it = |block: &Block| block.qdev.split('/').any(|part| part == wanted);
        let node = blocks.into_iter().find(is_it).and_then(|block| block.inserted).map(|inserted| inserted.node);
        Ok(node.as_deref().and_then(Layer::id_of_node))
    }

    /// Does somebody in the guest hold the guest agent's port open (`query-chardev`)?
    pub async fn agent_is_listening(&mut self) -> Result<bool, QmpError> {
        let chardevs: Vec<Chardev> = self.call("query-chardev", json!({})).await?;
        Ok(chardevs.iter().any(|chardev| chardev.label == "agent" && chardev.open))
    }

    /// `blockdev-add`.
    pub async fn add_node(&mut self, node: Value) -> Result<(), QmpError> {
        self.call::<Value>("blockdev-add", node).await.map(drop)
    }

    /// `blockdev-del`.
    pub async fn remove_node(&mut self, name: &str) -> Result<(), QmpError> {
        self.call::<Value>("blockdev-del", json!({"node-name": name})).await.map(drop)
    }
}
