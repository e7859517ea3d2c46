//! Tables of VMs: all of them, one of them, and what can be taken back of what was done to them.

use super::grid::{keyed, table};
use crate::maintenance::undo::Undoable;
use crate::model::{LogLimit, human};
use crate::output::time;
use crate::vm::list::{About, Details, Row};

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
        &[
            "NAME", "STATE", ">CPU", ">MEMORY", ">DISK (OWN/VIRTUAL)", ">SNAPSHOTS", "FROM",
            "EXPIRES",
        ],
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
        about
            .record
            .ephemeral
            .as_ref()
            .and_then(|ephemeral| ephemeral.expires)
            .map_or("-".to_owned(), time::left),
    ]
}

/// `cowhand show`.
pub fn details(name: &str, details: &Details) -> String {
    let record = &details.record;
    let config = &record.config;
    let state = if record.is_template() { record.kind() } else { details.status.state.as_str() };
    let mut lines = vec![
        ("name", name.to_owned()),
        (
            "state",
            details
                .status
                .detail
                .as_ref()
                .map_or(state.to_owned(), |detail| format!("{state} ({detail})")),
        ),
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
    let reaches_out = config.nics.iter().any(|nic| nic.network.exceptions().is_some());
    lines.extend(details.confinement.iter().map(|about| {
        let unfiltered = reaches_out && !about.destinations;
        let none = if unfiltered { "; no filter of destinations" } else { "" };
        ("confined", format!("{about}{none}"))
    }));
    lines.extend(details.cut_short.clone().map(|operation| ("cut short", operation)));
    lines.extend(details.from.clone().map(|from| ("from", from)));
    if let Some(image) = record.image() {
        let asked = image.catalogue.as_ref().map(|entry| format!(" ({entry})")).unwrap_or_default();
        lines.push(("source", format!("{}{asked}", image.source)));
        let verified = if image.verified { "verified" } else { "not verified" };
        lines.push(("sha256", format!("{} {verified}", image.sha256.as_deref().unwrap_or("-"))));
    }
    lines.extend(record.current.as_ref().map(|head| ("head", format!("on snapshot {head}"))));
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
        lines.push((
            "nic",
            format!(
                "{} {}  on {}{place}  {}",
                nic.mac,
                nic.network,
                nic.model.as_str(),
                ports.join(" ")
            ),
        ));
    }
    if let Some(seed) = &config.seed {
        let hostname =
            seed.hostname.as_ref().map(|name| format!(", hostname {name}")).unwrap_or_default();
        lines.push((
            "cloud-init",
            format!("{} of user-data{hostname}", human(seed.user_data.len() as u64)),
        ));
    }
    if !config.credentials.is_empty() {
        lines.push(("credentials", config.credentials.names().collect::<Vec<_>>().join(", ")));
    }
    if record.autostart {
        lines.push(("autostart", "on".to_owned()));
    }
    if !config.limits.are_none() {
        lines.push(("limits", config.limits.to_string()));
    }
    if config.log_limit != LogLimit::default() {
        lines.push(("log.max", config.log_limit.bytes().map_or("none".to_owned(), human)));
    }
    lines.extend(config.tags.iter().map(|(key, value)| ("tag", format!("{key}={value}"))));
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
