//! The overlays that the appliance works on, and the drives it sees.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::appliance::boot::Drive;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::chain;
use crate::model::{Format, Layer};
use crate::qemu::nodes;

/// A directory for overlays that are thrown away.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// An empty one.
    pub(crate) fn new() -> Result<Self> {
        tempfile::tempdir()
            .map(Self)
            .map_err(|source| Error::failed("cannot make a temporary directory").because(source))
    }

    /// The overlay of the disk with this number.
    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.0.path().join(format!("{number}.qcow2"))
    }
}

/// The block nodes of an overlay on the node `below`.
pub(crate) fn overlay_nodes(name: &str, path: &Path, below: &str) -> [Value; 2] {
    let file = format!("{name}-file");
    [
        json!({"driver": "file", "node-name": file, "filename": path, "discard": "unmap"}),
        json!({
            "driver": "qcow2", "node-name": name, "file": file, "backing": below,
            "discard": "unmap",
        }),
    ]
}

/// The block nodes of an image that depends on nothing: itself, read-only until a commit writes to
/// it.
pub(crate) fn base_nodes(name: &str, path: &Path, format: Format) -> [Value; 2] {
    let file = format!("{name}-file");
    let mut node = json!({
        "driver": format.as_str(), "node-name": name, "file": file, "read-only": true,
        "discard": "unmap",
    });
    if format == Format::Qcow2 {
        // Whatever its header says.
        node["backing"] = Value::Null;
    }
    [
        json!({
            "driver": "file", "node-name": file, "filename": path, "auto-read-only": true,
            "discard": "unmap",
        }),
        node,
    ]
}

/// The block nodes of a layer of the store and everything below it.
pub(crate) fn drive(context: &Context, target: &str, layer: &Layer) -> Result<Drive> {
    let chain = chain::read(&context.store, layer)?;
    Ok(Drive {
        target: target.to_owned(),
        nodes: nodes::chain_nodes(&chain, true),
        top: layer.node(),
    })
}
