//! Block nodes as QEMU's `-blockdev` and `blockdev-add` take them (`BlockdevOptions` in QEMU's
//! QAPI). Pure.
//!
//! Every layer has two nodes wherever it is open, `f-<id>` for the file and `l-<id>` for the format
//! on top of it, so that a block job is written the same way for a running VM and for the offline
//! engine. Formats and backing files are spelled out.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::model::{Bus, Chain, Disk, Format, Layer, Link};

/// The qdev id of the guest's device `target`.
pub(crate) fn device_id(target: &str) -> String {
    format!("dev-{target}")
}

/// The device with the block backend of the guest's disk, as `block_set_io_throttle` finds it. That
/// of a virtio disk is a child of its PCI device.
pub(crate) fn throttled(disk: &Disk) -> String {
    let device = device_id(&disk.target);
    match disk.bus {
        Bus::Virtio => format!("/machine/peripheral/{device}/virtio-backend"),
        _ => device,
    }
}

/// The ISO image in a CD-ROM drive, which QEMU opens at `path`.
pub(crate) fn iso(target: &str, iso: &Path, path: &Path) -> Value {
    let file = json!({"driver": "file", "filename": path.to_string_lossy(), "read-only": true});
    json!({"driver": "raw", "node-name": iso_node(target, iso), "read-only": true, "file": file})
}

/// The node name of an ISO image in a drive: it tells which image it is, by a part of the SHA-256
/// checksum of its path.
pub(crate) fn iso_node(target: &str, iso: &Path) -> String {
    let sum = Sha256::digest(iso.as_os_str().as_encoded_bytes());
    let digits: String = sum.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("cd-{target}-{digits}")
}

/// The nodes of a chain in the order they have to be added: base first, active layer last.
pub(crate) fn chain_nodes(chain: &Chain, writable: bool) -> Vec<Value> {
    let links = chain.links();
    let mut nodes = Vec::with_capacity(links.len() * 2);
    for (depth, link) in links.iter().enumerate().rev() {
        let backing = links.get(depth + 1).map(|below| &below.layer);
        nodes.extend(layer_nodes(link, backing, writable && depth == 0));
    }
    nodes
}

/// The two nodes of one layer, depending on `backing`.
pub(crate) fn layer_nodes(link: &Link, backing: Option<&Layer>, writable: bool) -> [Value; 2] {
    [file_node(&link.layer, &link.path.to_string_lossy()), stacked(&link.layer, backing, writable)]
}

/// The format node of a layer that depends on `backing`.
fn stacked(layer: &Layer, backing: Option<&Layer>, writable: bool) -> Value {
    let mut format = format_node(layer, writable);
    // A VMDK never has one here; said, so that a parent which its owner writes into its header
    // later is not followed.
    if matches!(layer.format, Format::Qcow2 | Format::Vmdk) {
        format["backing"] = backing.map_or(Value::Null, |layer| Value::String(layer.node()));
    }
    format
}

/// The options of a layer's format node as they are, written out once more for `blockdev-reopen`,
/// while it is written to.
pub(crate) fn reopened(layer: &Layer, backing: Option<&Layer>) -> Value {
    stacked(layer, backing, true)
}

/// The nodes of an overlay that is to be put on top of a running VM's head by `blockdev-snapshot`:
/// QEMU connects it there.
pub(crate) fn overlay_nodes(layer: &Layer, path: &Path) -> [Value; 2] {
    let mut format = format_node(layer, true);
    format["backing"] = Value::Null;
    [file_node(layer, &path.to_string_lossy()), format]
}

fn file_node(layer: &Layer, path: &str) -> Value {
    // auto-read-only: QEMU opens the file for writing only while the format node above is writable,
    // which a commit changes.
    json!({
        "driver": "file",
        "node-name": layer.file_node(),
        "filename": path,
        "auto-read-only": true,
        "discard": "unmap",
    })
}

fn format_node(layer: &Layer, writable: bool) -> Value {
    json!({
        "driver": layer.format.as_str(),
        "node-name": layer.node(),
        "file": layer.file_node(),
        "read-only": !writable,
        "discard": "unmap",
    })
}
