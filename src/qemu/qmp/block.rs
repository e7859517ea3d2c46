//! What we ask QEMU about its block nodes, decoded leniently.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Qmp, QmpError};
use crate::model::{Disk, Layer, LayerId, Limits};
use crate::qemu::nodes;

#[derive(Deserialize)]
struct Chardev {
    label: String,
    #[serde(rename = "frontend-open")]
    open: bool,
}

#[derive(Deserialize)]
struct Node {
    #[serde(rename = "node-name")]
    name: String,
    #[serde(default)]
    file: String,
}

impl Qmp {
    /// The layer the guest's device `target` (`vda`, `nvram`) is on just now: the `drive` property
    /// of the device (`qom-get`), which is the name of its root node. `None` while a block job has
    /// put a filter on top.
    ///
    /// `query-block` would tell, too, but describes every backing file at every level: minutes for
    /// a chain of 250.
    pub async fn active_layer(&mut self, target: &str) -> Result<Option<LayerId>, QmpError> {
        Ok(Layer::id_of_node(&self.root_node(target).await?))
    }

    /// The block node that the guest's device `target` is on just now, whoever made it.
    pub async fn root_node(&mut self, target: &str) -> Result<String, QmpError> {
        let (path, property) = match target {
            "nvram" => ("/machine".to_owned(), "pflash1"),
            disk => (format!("/machine/peripheral/{}", nodes::device_id(disk)), "drive"),
        };
        self.call("qom-get", json!({"path": path, "property": property})).await
    }

    /// Limits what all disks of the guest together read and write in a second
    /// (`block_set_io_throttle`); a limit that is not there is taken away. It stays with the device
    /// whatever becomes of the nodes below it.
    pub async fn limit_disk(&mut self, disk: &Disk, limits: Limits) -> Result<(), QmpError> {
        let arguments = json!({
            "id": nodes::throttled(disk), "group": "limits",
            "bps": limits.io.unwrap_or(0), "bps_rd": 0, "bps_wr": 0,
            "iops": limits.iops.unwrap_or(0), "iops_rd": 0, "iops_wr": 0,
        });
        self.call::<Value>("block_set_io_throttle", arguments).await.map(drop)
    }

    /// Does a program in the guest hold the guest agent's port open (`query-chardev`)?
    pub async fn agent_is_listening(&mut self) -> Result<bool, QmpError> {
        let chardevs: Vec<Chardev> = self.call("query-chardev", json!({})).await?;
        Ok(chardevs.iter().any(|chardev| chardev.label == "agent" && chardev.open))
    }

    /// The layers that are open, and the files behind them (`query-named-block-nodes`).
    pub async fn open_layers(&mut self) -> Result<Vec<(LayerId, String)>, QmpError> {
        let nodes: Vec<Node> = self.call("query-named-block-nodes", json!({"flat": true})).await?;
        Ok(nodes
            .into_iter()
            .filter_map(|node| Some((Layer::id_of_file_node(&node.name)?, node.file)))
            .collect())
    }

    /// Writes out what QEMU still holds of a node in its caches, metadata too: `blockdev-reopen`
    /// with the options it has does that, and nothing else.
    pub async fn flush_node(&mut self, reopened: Value) -> Result<(), QmpError> {
        self.call::<Value>("blockdev-reopen", json!({"options": [reopened]})).await.map(drop)
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
