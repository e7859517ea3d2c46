//! The JSON forms of results. Their keys are a contract: see `docs/cli.md`.

use std::path::Path;

use serde_json::{Value, json};

use super::time::{milliseconds, rfc3339};
use crate::clone::Cloned;
use crate::disk::check::Found;
use crate::doctor::Finding;
use crate::image::catalogue::Entry;
use crate::image::file::Seen;
use crate::model::{Cdrom, Merge, Name, Protocol};
use crate::qemu::img::Checked;
use crate::snapshot;
use crate::template;
use crate::vm::list::{ChainRow, Details, DiskRow, Row};

/// An entry of `ls`.
pub fn vm(row: &Row) -> Value {
    match &row.about {
        Ok(about) => {
            let config = &about.record.config;
            let mut entry = json!({
                "name": row.name,
                "state": about.status.state.as_str(),
                "memory_bytes": config.memory_bytes,
                "cpus": config.cpus,
                "template": about.record.is_template(),
                "image": about.record.image().is_some(),
                "from": about.from,
                "snapshots": about.record.snapshots.len(),
                "disk_bytes": about.own_bytes,
                "virtual_bytes": about.virtual_bytes,
                "autostart": about.record.autostart,
                "expires": about.record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.expires).map(rfc3339),
                "tags": config.tags,
            });
            if let Some(detail) = &about.status.detail {
                entry["reason"] = json!(detail);
            }
            if let Some(operation) = &row.cut_short {
                entry["cut_short"] = json!(operation);
            }
            entry
        }
        Err(reason) => json!({
            "name": row.name, "state": "broken", "memory_bytes": null, "cpus": null, "template": null, "image": null, "from": null,
            "snapshots": null, "disk_bytes": null, "virtual_bytes": null, "autostart": null, "expires": null, "reason": reason,
        }),
    }
}

/// `show`.
pub fn details(name: &Name, details: &Details) -> Value {
    let record = &details.record;
    let config = &record.config;
    let disks: Vec<Value> = config
        .volumes()
        .zip(&details.chains)
        .map(|(disk, chain)| {
            let links = chain.as_ref().map(|chain| chain.links()).unwrap_or_default();
            let mut entry = json!({
                "target": disk.target,
                "bus": disk.bus_word(),
                "serial": disk.serial,
                "format": disk.layer.format,
                "virtual_bytes": disk.virtual_bytes,
                "allocated_bytes": links.first().map(|link| link.allocated_bytes),
                "read_only": disk.read_only,
                "chain": links.iter().map(|link| link.layer.file_name()).collect::<Vec<_>>(),
            });
            if let Err(reason) = chain {
                entry["reason"] = json!(reason);
            }
            entry
        })
        .collect();
    let nics: Vec<Value> = config
        .nics
        .iter()
        .map(|nic| {
            let port = |port: &crate::model::PortForward| {
                let protocol = if port.protocol == Protocol::Udp { "udp" } else { "tcp" };
                json!({"protocol": protocol, "address": port.address, "host": port.host, "guest": port.guest})
            };
            json!({"mac": nic.mac, "mode": "user", "model": nic.model.as_str(), "pci": nic.place.map(|place| place.to_string()), "ports": nic.ports.iter().map(port).collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "name": name,
        "state": details.status.state.as_str(),
        "reason": details.status.detail,
        "template": record.is_template(),
        "image": record.image().map(|image| json!({
            "source": image.source, "catalogue": image.catalogue, "sha256": image.sha256, "verified": image.verified,
        })),
        "uuid": record.uuid,
        "created": rfc3339(record.created),
        "machine": config.machine,
        "accel": details.accel,
        "cpu": config.cpu,
        "memory_bytes": config.memory_bytes,
        "cpus": config.cpus,
        "firmware": format!("{:?}", config.firmware).to_lowercase(),
        "kernel": config.kernel.as_ref().map(|boot| json!({
            "kernel": boot.kernel, "initrd": boot.initrd, "append": boot.append,
        })),
        "from": details.from,
        "disks": disks,
        "cdroms": config.cdroms.iter().map(cdrom).collect::<Vec<_>>(),
        "nics": nics,
        "generation": config.generation,
        "log_max_bytes": config.log_limit.bytes(),
        "tags": config.tags,
        "cloud_init": config.seed.as_ref().map(|seed| json!({
            "user_data_bytes": seed.user_data.len(), "hostname": seed.hostname,
        })),
        "credentials": config.credentials.names().collect::<Vec<_>>(),
        "autostart": record.autostart,
        "head": record.head,
        "expires": record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.expires).map(rfc3339),
        "cut_short": details.cut_short,
        "pid": details.status.pid,
    })
}

/// `cdrom ls`, `insert`, `eject`.
pub fn cdrom(drive: &Cdrom) -> Value {
    json!({"target": drive.target, "bus": drive.bus.as_str(), "file": drive.iso})
}

/// `disk ls`.
pub fn disk(row: &DiskRow) -> Value {
    json!({
        "target": row.target,
        "bus": row.bus,
        "serial": row.serial,
        "format": row.format,
        "file": row.file,
        "virtual_bytes": row.virtual_bytes,
        "allocated_bytes": row.allocated_bytes,
        "read_only": row.read_only,
    })
}

/// `disk chain`.
pub fn chain(row: &ChainRow) -> Value {
    let layers: Vec<Value> = row
        .chain
        .links()
        .iter()
        .enumerate()
        .map(|(depth, link)| {
            json!({
                "id": link.layer.id,
                "file": link.path,
                "format": link.layer.format,
                "virtual_bytes": link.virtual_bytes,
                "allocated_bytes": link.allocated_bytes,
                "snapshots": row.snapshots[depth],
                "shared_by": row.shared_by[depth],
            })
        })
        .collect();
    json!({"target": row.target, "layers": layers})
}

/// An entry of `snapshot ls`.
pub fn snapshot(row: &snapshot::list::Row) -> Value {
    let snapshot = &row.snapshot;
    json!({
        "name": snapshot.name,
        "parent": snapshot.parent,
        "kind": snapshot.kind.as_str(),
        "memory": snapshot.memory.is_some(),
        "memory_bytes": snapshot.memory.as_ref().map(|memory| memory.bytes),
        "expires": snapshot.expires.map(rfc3339),
        "vm_state": snapshot.vm_state.as_str(),
        "created": rfc3339(snapshot.created),
        "current": row.current,
        "description": snapshot.description,
        "quiesced": snapshot.quiesced,
        "bytes": row.bytes,
        "children": row.children,
    })
}

/// `snapshot show`: the entry, and all that was written down.
pub fn snapshot_in_full(row: &snapshot::list::Row) -> Value {
    let mut entry = snapshot(row);
    let config = &row.snapshot.config;
    entry["descendants"] = json!(row.descendants);
    entry["tag"] = json!(row.snapshot.tag());
    entry["memory_writer"] = json!(row.snapshot.memory.as_ref().map(|memory| &memory.writer));
    entry["machine"] = json!(config.machine);
    entry["memory_size_bytes"] = json!(config.memory_bytes);
    entry["cpus"] = json!(config.cpus);
    let disks = config.volumes().map(
        |disk| json!({"target": disk.target, "layer": disk.layer.file_name(), "virtual_bytes": disk.virtual_bytes}),
    );
    entry["disks"] = disks.collect();
    entry
}

/// `snapshot create`: the entry, and what it cost.
pub fn taken(row: &snapshot::list::Row, taken: &snapshot::create::Taken) -> Value {
    let mut entry = snapshot(row);
    entry["pause_ms"] = json!(milliseconds(taken.paused));
    entry["freeze_ms"] = json!(milliseconds(taken.frozen));
    entry["quiesce"] = json!(taken.quiesce.as_str());
    entry["total_ms"] = json!(milliseconds(taken.total));
    entry
}

/// An entry of `clone`.
pub fn cloned(clone: &Cloned) -> Value {
    json!({"name": clone.name, "kind": clone.kind.as_str(), "ms": milliseconds(clone.took), "reason": clone.reason})
}

/// An entry of `template ls`.
pub fn template(row: &template::list::Row) -> Value {
    json!({
        "name": row.name,
        "sealed": row.sealed,
        "warm": row.record.warm.is_some(),
        "dependents": row.dependents,
        "bytes": row.bytes,
        "created": rfc3339(row.frozen),
    })
}

/// An entry of `image ls`.
pub fn stored_image(row: &template::list::Row) -> Value {
    let disk = row.record.config.disks.first();
    let image = row.record.image();
    json!({
        "name": row.name,
        "format": disk.map(|disk| disk.layer.format),
        "virtual_bytes": disk.map(|disk| disk.virtual_bytes),
        "bytes": row.bytes,
        "source": image.map(|image| &image.source),
        "catalogue": image.and_then(|image| image.catalogue.as_ref()),
        "sha256": image.and_then(|image| image.sha256.as_ref()),
        "verified": image.is_some_and(|image| image.verified),
        "dependents": row.dependents,
        "created": rfc3339(row.frozen),
    })
}

/// An entry of `image ls --catalogue`.
pub fn catalogue(entry: &Entry) -> Value {
    json!({
        "name": entry.name, "version": entry.version, "aliases": entry.aliases, "url": entry.shown_url(), "sums": entry.shown_sums(),
        "format": entry.format, "user": entry.user,
    })
}

/// A merge of `disk commit`, `disk stream` and `flatten`.
pub fn merge(merge: &Merge) -> Value {
    json!({
        "target": merge.target,
        "kind": merge.kind,
        "top": merge.top.id,
        "base": merge.base.id,
        "layers": merge.between.len() + 1,
        "bytes": merge.bytes,
    })
}

/// `doctor`.
pub fn findings(findings: &[Finding]) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "vm": finding.vm,
            "level": finding.level.as_str(),
            "message": finding.message,
            "hint": finding.hint,
            "repairable": finding.remedy.is_some() && !finding.repaired,
            "repaired": finding.repaired,
        })
    };
    findings.iter().map(finding).collect()
}

/// What `qemu-img check` found.
pub fn checked(checked: &Checked) -> Value {
    json!({
        "corruptions": checked.corruptions,
        "leaks": checked.leaks,
        "errors": checked.errors,
        "fixed": checked.corruptions_fixed + checked.leaks_fixed,
    })
}

/// A layer of `disk check`.
pub fn checked_layer(found: &Found) -> Value {
    json!({
        "target": found.target,
        "id": found.layer.id,
        "format": found.layer.format,
        "damaged": found.is_damaged(),
        "in_use": found.in_use,
        "check": found.checked.as_ref().map(checked),
    })
}

/// `image info`.
pub fn image(path: &Path, about: &Seen) -> Value {
    let info = &about.info;
    let names: Vec<Value> =
        about.names.iter().map(|name| json!({"role": name.role.to_string(), "name": name.name})).collect();
    let snapshots: Vec<Value> = info
        .snapshots
        .iter()
        .map(|inner| json!({"id": inner.id, "name": inner.name, "vm_state_bytes": inner.vm_state_bytes, "created": inner.created}))
        .collect();
    json!({
        "file": path,
        "format": info.format,
        "virtual_bytes": info.virtual_bytes,
        "allocated_bytes": info.allocated_bytes,
        "backing": info.backing,
        "backing_format": info.backing_format,
        "variant": about.variant,
        "names": names,
        "encrypted": info.encrypted,
        "snapshots": snapshots,
    })
}
