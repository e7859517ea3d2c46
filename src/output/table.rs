//! Tables: no lines, two spaces between columns, the same on a terminal and in a pipe.

use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};

use crate::disk::check::Found;
use crate::doctor::{Finding, Level};
use crate::ephemeral::pool::Shelf;
use crate::image::catalogue::Entry;
use crate::image::file::Seen;
use crate::layer::inspect::Role;
use crate::libvirt::{Fate, Note};
use crate::model::{Cdrom, LogLimit, Name, human, printable};
use crate::output::{time, tree};
use crate::snapshot;
use crate::template;
use crate::vm::list::{About, ChainRow, Details, DiskRow, Row};
use crate::vm::undo::Undoable;

/// A table from headings (a leading `>` aligns a column to the right) and rows.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.trim_start_matches('>')));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable::line(cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if headings[index].starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// A line for each key and its value.
fn keyed(lines: Vec<(&str, String)>) -> String {
    let line = |(key, value): (&str, String)| format!("{key:<9} {}", printable::line(value.trim_end()));
    lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `cowhand ls`.
pub fn vms(rows: &[&Row]) -> String {
    let line = |row: &&Row| match &row.about {
        Ok(about) => vm(row, about),
        Err(reason) => {
            let mut line = vec![row.name.to_string(), "broken".to_owned()];
            line.extend(["-", "-", "-", "-", "-"].map(str::to_owned));
            line.push(reason.clone());
            line
        }
    };
    table(
        &["NAME", "STATE", ">CPU", ">MEMORY", ">DISK (OWN/VIRTUAL)", ">SNAPSHOTS", "FROM", "EXPIRES"],
        rows.iter().map(line),
    )
}

fn vm(row: &Row, about: &About) -> Vec<String> {
    let config = &about.record.config;
    let state = match (about.record.is_template(), &about.status.detail) {
        (true, _) => about.record.kind().to_owned(),
        (false, Some(detail)) => format!("{} ({detail})", about.status.state.as_str()),
        (false, None) => about.status.state.as_str().to_owned(),
    };
    vec![
        row.name.to_string(),
        state,
        config.cpus.to_string(),
        human(config.memory_bytes),
        format!("{} / {}", human(about.own_bytes), human(about.virtual_bytes)),
        about.record.snapshots.len().to_string(),
        about.from.clone().unwrap_or_else(|| "-".to_owned()),
        about.record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.expires).map_or("-".to_owned(), time::left),
    ]
}

/// `cowhand show`.
pub fn details(name: &str, details: &Details) -> String {
    let record = &details.record;
    let config = &record.config;
    let state = if record.is_template() { record.kind() } else { details.status.state.as_str() };
    let mut lines = vec![
        ("name", name.to_owned()),
        ("state", details.status.detail.as_ref().map_or(state.to_owned(), |detail| format!("{state} ({detail})"))),
        ("uuid", record.uuid.to_string()),
        ("created", time::minute(record.created)),
        ("machine", config.machine.clone()),
        ("cpus", config.cpus.to_string()),
        ("memory", human(config.memory_bytes)),
        ("firmware", format!("{:?}", config.firmware).to_lowercase()),
    ];
    lines.extend(details.accel.map(|accel| ("accel", accel.to_owned())));
    lines.extend(config.cpu.clone().map(|cpu| ("cpu", cpu)));
    lines.extend(details.status.pid.map(|pid| ("pid", pid.to_string())));
    lines.extend(details.cut_short.clone().map(|operation| ("cut short", operation)));
    lines.extend(details.from.clone().map(|from| ("from", from)));
    if let Some(image) = record.image() {
        let asked = image.catalogue.as_ref().map(|entry| format!(" ({entry})")).unwrap_or_default();
        lines.push(("source", format!("{}{asked}", image.source)));
        let verified = if image.verified { "verified" } else { "not verified" };
        lines.push(("sha256", format!("{} {verified}", image.sha256.as_deref().unwrap_or("-"))));
    }
    lines.extend(record.head.as_ref().map(|head| ("head", format!("on snapshot {head}"))));
    if let Some(boot) = &config.kernel {
        lines.push(("kernel", boot.kernel.display().to_string()));
        lines.extend(boot.initrd.as_ref().map(|initrd| ("initrd", initrd.display().to_string())));
        lines.extend(boot.append.clone().map(|append| ("append", append)));
    }
    for (disk, chain) in config.volumes().zip(&details.chains) {
        let what = match chain {
            Ok(chain) => format!(
                "{} on {}, {}, {} on disk, {} layer(s){}",
                human(disk.virtual_bytes),
                disk.bus_word(),
                disk.layer.format,
                human(chain.active().allocated_bytes),
                chain.links().len(),
                if disk.read_only { ", read-only" } else { "" }
            ),
            Err(reason) => reason.clone(),
        };
        lines.push(("disk", format!("{}  {what}", disk.target)));
    }
    for drive in &config.cdroms {
        let iso = drive.iso.as_ref().map_or("empty".to_owned(), |iso| iso.display().to_string());
        lines.push(("cdrom", format!("{}  on {}, {iso}", drive.target, drive.bus)));
    }
    for nic in &config.nics {
        let ports: Vec<String> = nic.ports.iter().map(|port| format!("{port}")).collect();
        let place = nic.place.map(|place| format!(" in PCI slot {place}")).unwrap_or_default();
        lines.push(("nic", format!("{} user, {}{place}  {}", nic.mac, nic.model.as_str(), ports.join(" "))));
    }
    if let Some(seed) = &config.seed {
        let hostname = seed.hostname.as_ref().map(|name| format!(", hostname {name}")).unwrap_or_default();
        lines.push(("cloud-init", format!("{} of user-data{hostname}", human(seed.user_data.len() as u64))));
    }
    if !config.credentials.is_empty() {
        lines.push(("credentials", config.credentials.names().collect::<Vec<_>>().join(", ")));
    }
    if record.autostart {
        lines.push(("autostart", "on".to_owned()));
    }
    if config.log_limit != LogLimit::default() {
        lines.push(("log.max", config.log_limit.bytes().map_or("none".to_owned(), human)));
    }
    lines.extend(config.tags.iter().map(|(key, value)| ("tag", format!("{key}={value}"))));
    keyed(lines)
}

/// `cowhand disk ls`.
pub fn disks(rows: &[DiskRow]) -> String {
    table(
        &["TARGET", "BUS", "FORMAT", ">VIRTUAL", ">ON DISK", "FILE"],
        rows.iter().map(|row| {
            vec![
                row.target.clone(),
                row.bus.to_owned(),
                row.format.to_string(),
                human(row.virtual_bytes),
                human(row.allocated_bytes),
                row.file.display().to_string(),
            ]
        }),
    )
}

/// `cowhand cdrom ls`.
pub fn cdroms(drives: &[Cdrom]) -> String {
    let file = |drive: &Cdrom| drive.iso.as_ref().map_or("-".to_owned(), |iso| iso.display().to_string());
    table(
        &["TARGET", "BUS", "FILE"],
        drives.iter().map(|drive| vec![drive.target.clone(), drive.bus.to_string(), file(drive)]),
    )
}

/// `cowhand disk chain`.
pub fn chains(rows: &[ChainRow]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        for (depth, link) in row.chain.links().iter().enumerate() {
            let join = |names: &[Name]| match names {
                [] => "-".to_owned(),
                names => names.iter().map(|name| name.to_string()).collect::<Vec<_>>().join(", "),
            };
            lines.push(vec![
                if depth == 0 { row.target.clone() } else { String::new() },
                link.layer.file_name(),
                human(link.virtual_bytes),
                human(link.allocated_bytes),
                join(&row.snapshots[depth]),
                join(&row.shared_by[depth]),
            ]);
        }
    }
    table(&["DISK", "LAYER", ">VIRTUAL", ">ON DISK", "SNAPSHOTS", "SHARED BY"], lines)
}

/// `cowhand snapshot ls`.
pub fn snapshots(rows: &[snapshot::list::Row]) -> String {
    table(
        &["NAME", "PARENT", "CREATED (UTC)", "KIND", ">SIZE", "VM WAS", "QUIESCED", "EXPIRES (UTC)", "DESCRIPTION"],
        rows.iter().map(|row| {
            let snapshot = &row.snapshot;
            vec![
                format!("{}{}", snapshot.name, if row.current { " *" } else { "" }),
                snapshot.parent.as_ref().map_or("-".to_owned(), |parent| parent.to_string()),
                time::minute(snapshot.created),
                tree::kind(snapshot).to_owned(),
                size(row),
                snapshot.vm_state.as_str().to_owned(),
                if snapshot.quiesced { "yes" } else { "no" }.to_owned(),
                snapshot.expires.map_or("-".to_owned(), time::minute),
                snapshot.description.clone(),
            ]
        }),
    )
}

/// What a snapshot takes on the disk, layers and memory; an internal one lies in a layer that is another's, too.
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
        ("kind", tree::kind(snapshot).to_owned()),
        ("created", format!("{} UTC", time::minute(snapshot.created))),
        ("vm was", snapshot.vm_state.as_str().to_owned()),
        ("quiesced", if snapshot.quiesced { "yes" } else { "no" }.to_owned()),
        ("parent", snapshot.parent.as_ref().map_or("-".to_owned(), Name::to_string)),
        ("children", names(&row.children)),
        ("below it", names(&row.descendants)),
        ("size", size(row)),
    ];
    if let Some(memory) = &snapshot.memory {
        let place = if memory.image.is_some() { human(memory.bytes) } else { "in the image".to_owned() };
        lines.push(("memory", format!("{place} (QEMU {}, {})", memory.writer.qemu, memory.writer.accel)));
    }
    lines.extend(snapshot.expires.map(|at| ("expires", format!("{} UTC", time::minute(at)))));
    lines.extend((!snapshot.description.is_empty()).then(|| ("described", snapshot.description.clone())));
    for disk in snapshot.config.writable() {
        lines.push(("disk", format!("{}  {}", disk.target, disk.layer.file_name())));
    }
    keyed(lines)
}

/// `cowhand undo --list`.
pub fn undoables(rows: &[Undoable]) -> String {
    table(
        &[">N", "VM", "WHEN (UTC)", ">SIZE", "COMMAND", "CAN BE TAKEN BACK"],
        rows.iter().zip(1..).map(|(row, nth)| {
            vec![
                nth.to_string(),
                row.vm.to_string(),
                time::minute(row.entry.when),
                human(row.bytes),
                row.entry.operation.clone(),
                row.obstacle.clone().map_or_else(|| "yes".to_owned(), |why| format!("no: {why}")),
            ]
        }),
    )
}

/// `cowhand template ls`.
pub fn templates(rows: &[template::list::Row]) -> String {
    table(
        &["NAME", "FROZEN (UTC)", "SEALED", "WARM", ">SIZE", "DEPENDENTS"],
        rows.iter().map(|row| {
            let dependents: Vec<String> = row.dependents.iter().map(|name| name.to_string()).collect();
            vec![
                row.name.to_string(),
                time::minute(row.frozen),
                if row.sealed { "yes" } else { "no" }.to_owned(),
                if row.record.warm.is_some() { "yes" } else { "no" }.to_owned(),
                human(row.bytes),
                if dependents.is_empty() { "-".to_owned() } else { dependents.join(", ") },
            ]
        }),
    )
}

/// `cowhand image ls`.
pub fn images(rows: &[template::list::Row]) -> String {
    table(
        &["NAME", "FORMAT", ">DISK (OWN/VIRTUAL)", "ADDED (UTC)", "VERIFIED", "USED BY", "SOURCE"],
        rows.iter().map(|row| {
            let disk = row.record.config.disks.first();
            let dependents: Vec<String> = row.dependents.iter().map(Name::to_string).collect();
            let image = row.record.image();
            vec![
                row.name.to_string(),
                disk.map_or("-".to_owned(), |disk| disk.layer.format.to_string()),
                format!("{} / {}", human(row.bytes), human(disk.map_or(0, |disk| disk.virtual_bytes))),
                time::minute(row.frozen),
                if image.is_some_and(|image| image.verified) { "yes" } else { "no" }.to_owned(),
                if dependents.is_empty() { "-".to_owned() } else { dependents.join(", ") },
                image.map_or("-".to_owned(), |image| image.source.clone()),
            ]
        }),
    )
}

/// `cowhand import`: what comes over, what is changed, what is left out.
pub fn domain(notes: &[Note]) -> String {
    let mut text = String::new();
    for (fate, heading) in [(Fate::Kept, "comes over"), (Fate::Changed, "is changed"), (Fate::Left, "is left out")] {
        let notes = notes.iter().filter(|note| note.fate == fate);
        let rows: Vec<Vec<String>> = notes.map(|note| vec![format!("  {}", note.what), note.how.clone()]).collect();
        if !rows.is_empty() {
            text.push_str(&format!("{heading}:\n{}\n", without_heading(&table(&["", ""], rows))));
        }
    }
    text.trim_end().to_owned()
}

/// The lines of a table behind the first.
fn without_heading(table: &str) -> &str {
    table.split_once('\n').map_or("", |(_, rows)| rows)
}

/// `cowhand image ls --catalogue`.
pub fn catalogue(entries: &[Entry]) -> String {
    table(
        &["IMAGE", "ALSO", "USER", "ADDRESS"],
        entries.iter().map(|entry| {
            vec![
                format!("{}:{}", entry.name, entry.version),
                if entry.aliases.is_empty() { "-".to_owned() } else { entry.aliases.join(", ") },
                entry.user.clone().unwrap_or_else(|| "-".to_owned()),
                entry.shown_url(),
            ]
        }),
    )
}

/// `cowhand pool ls`.
pub fn pool(shelves: &[Shelf]) -> String {
    table(
        &["TEMPLATE", ">WANTED", ">WAITING"],
        shelves
            .iter()
            .map(|shelf| vec![shelf.template.to_string(), shelf.wanted.to_string(), shelf.waiting.to_string()]),
    )
}

/// `cowhand doctor`: a line each, hints below; `quiet` leaves out what is as it should be.
pub fn findings(findings: &[Finding], quiet: bool) -> String {
    let mut text = String::new();
    for finding in findings.iter().filter(|finding| !quiet || finding.repaired || finding.level > Level::Info) {
        let style = match finding.level {
            Level::Ok => super::GREEN,
            Level::Info => super::CYAN,
            Level::Warn => super::YELLOW,
            Level::Fail => super::RED,
        };
        let vm = finding.vm.as_ref().map(|vm| format!("{vm}: ")).unwrap_or_default();
        let repaired = if finding.repaired { "repaired: " } else { "" };
        text.push_str(&format!(
            "{style}{:<5}{style:#} {:<12} {repaired}{vm}{}\n",
            finding.level.as_str(),
            finding.check,
            super::message(&finding.message, 19)
        ));
        if let Some(hint) = finding.hint.as_ref().filter(|_| !finding.repaired) {
            text.push_str(&format!("{:<19}{}\n", "", super::message(hint, 19)));
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let repaired = findings.iter().filter(|finding| finding.repaired).count();
    let repaired = if repaired > 0 { format!(", {repaired} repaired") } else { String::new() };
    if !quiet {
        text.push_str(&format!("{} failed, {} warnings{repaired}\n", count(Level::Fail), count(Level::Warn)));
    }
    text
}

/// `cowhand disk check`.
pub fn checks(found: &[Found]) -> String {
    table(
        &["DISK", "LAYER", "FOUND"],
        found.iter().map(|found| vec![found.target.clone(), found.layer.file_name(), found.words()]),
    )
}

/// How many of the files that an image names are shown; JSON has all of them.
const NAMES: usize = 20;
/// The longest name that is shown, in characters.
const NAME: usize = 200;

/// The beginning of what an image says.
fn abridged(text: &str) -> String {
    match text.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `cowhand image info`.
pub fn image(path: &Path, about: &Seen) -> String {
    let info = &about.info;
    let mut lines = vec![
        ("file", path.display().to_string()),
        ("format", info.format.clone()),
        ("virtual", human(info.virtual_bytes)),
        ("on disk", human(info.allocated_bytes)),
    ];
    if let Some(backing) = &info.backing {
        let format = info.backing_format.as_deref().unwrap_or("unnamed format");
        lines.push(("backing", abridged(&format!("{backing} ({format})"))));
    }
    // The backing file has a line of its own, where its name can be read.
    let named = || about.names.iter().filter(|name| name.role != Role::Backing || name.name.is_none());
    lines.extend(named().take(NAMES).map(|name| ("names", abridged(&name.to_string()))));
    match named().count().saturating_sub(NAMES) {
        0 => {}
        more => lines.push(("names", format!("and {more} more"))),
    }
    if info.encrypted {
        lines.push(("encrypted", "yes".to_owned()));
    }
    for inner in &info.snapshots {
        let memory = match inner.vm_state_bytes {
            0 => "disk".to_owned(),
            bytes => format!("disk and {} of memory", human(bytes)),
        };
        lines.push(("snapshot", format!("{} {}  {memory}", inner.id, inner.name)));
    }
    keyed(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::inspect::Reference;
    use crate::qemu::img::Info;

    #[test]
    fn an_image_whose_backing_file_has_no_name_that_can_be_read_says_so_and_a_thousand_names_are_not_shown() {
        let info = Info {
            format: "qcow2".into(),
            virtual_bytes: 1 << 20,
            allocated_bytes: 0,
            backing: None,
            backing_format: None,
            snapshots: Vec::new(),
            encrypted: false,
        };
        let unreadable = Reference { role: Role::Backing, name: None };
        let mut about = Seen { info, variant: None, names: vec![unreadable] };
        let shown = image(Path::new("x.qcow2"), &about);
        assert!(shown.contains("backing file whose name cannot be read"), "{shown}");
        about.names = (0..1000).map(|_| Reference { role: Role::Extent, name: Some("x".repeat(5000)) }).collect();
        let shown = image(Path::new("x.vmdk"), &about);
        assert!(shown.contains("and 980 more") && shown.len() < 8000, "{} bytes", shown.len());
    }
}
