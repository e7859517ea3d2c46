//! Tables of snapshots: all of a VM's, or one of them.

use super::grid::{keyed, table};
use crate::model::{Name, Snapshot, human};
use crate::output::time;
use crate::snapshot;

/// `cowhand snapshot ls`.
pub fn snapshots(rows: &[snapshot::list::Row]) -> String {
    table(
        &[
            "NAME", "PARENT", "CREATED (UTC)", "KIND", ">SIZE", "VM WAS", "QUIESCED",
            "EXPIRES (UTC)", "DESCRIPTION",
        ],
        rows.iter().map(|row| {
            let snapshot = &row.snapshot;
            vec![
                format!("{}{}", snapshot.name, if row.current { " *" } else { "" }),
                snapshot.parent.as_ref().map_or("-".to_owned(), |parent| parent.to_string()),
                time::minute(snapshot.created),
                kind(snapshot).to_owned(),
                size(row),
                snapshot.vm_state.as_str().to_owned(),
                if snapshot.quiesced { "yes" } else { "no" }.to_owned(),
                snapshot.expires.map_or("-".to_owned(), time::minute),
                snapshot.description.clone(),
            ]
        }),
    )
}

/// What a snapshot takes on the disk, layers and memory; an internal one lies in a layer that is
/// another's, too.
pub fn size(row: &snapshot::list::Row) -> String {
    match row.snapshot.tag() {
        Some(_) => "-".to_owned(),
        None => human(row.bytes + row.snapshot.memory.as_ref().map_or(0, |memory| memory.bytes)),
    }
}

/// `cowhand snapshot show`: what virsh calls snapshot-info.
pub fn snapshot(vm: &Name, row: &snapshot::list::Row) -> String {
    let snapshot = &row.snapshot;
    let names = |names: &[Name]| match names {
        [] => "-".to_owned(),
        names => names.iter().map(Name::to_string).collect::<Vec<_>>().join(", "),
    };
    let mut lines = vec![
        ("name", snapshot.name.to_string()),
        ("vm", vm.to_string()),
        ("current", if row.current { "yes" } else { "no" }.to_owned()),
        ("kind", kind(snapshot).to_owned()),
        ("created", format!("{} UTC", time::minute(snapshot.created))),
        ("vm was", snapshot.vm_state.as_str().to_owned()),
        ("quiesced", if snapshot.quiesced { "yes" } else { "no" }.to_owned()),
        ("parent", snapshot.parent.as_ref().map_or("-".to_owned(), Name::to_string)),
        ("children", names(&row.children)),
        ("below it", names(&row.descendants)),
        ("size", size(row)),
    ];
    if let Some(memory) = &snapshot.memory {
        let place =
            if memory.image.is_some() { human(memory.bytes) } else { "in the image".to_owned() };
        lines.push((
            "memory",
            format!("{place} (QEMU {}, {})", memory.writer.qemu, memory.writer.accel),
        ));
    }
    lines.extend(snapshot.expires.map(|at| ("expires", format!("{} UTC", time::minute(at)))));
    lines.extend(
        (!snapshot.description.is_empty()).then(|| ("described", snapshot.description.clone())),
    );
    for disk in snapshot.config.writable() {
        lines.push(("disk", format!("{}  {}", disk.target, disk.layer.file_name())));
    }
    keyed(lines)
}

/// What a snapshot holds: `disk`, `disk+memory`, `internal`, `internal+memory`.
pub fn kind(snapshot: &Snapshot) -> &'static str {
    match (snapshot.tag().is_some(), snapshot.memory.is_some()) {
        (false, false) => "disk",
        (false, true) => "disk+memory",
        (true, false) => "internal",
        (true, true) => "internal+memory",
    }
}
