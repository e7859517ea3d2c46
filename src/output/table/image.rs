//! Tables of what VMs are made from: templates and their pools, images, the catalogue, image files.

use std::path::Path;

use super::grid::{keyed, table};
use crate::ephemeral::standby::StandbyStatus;
use crate::image::catalogue::Entry;
use crate::image::file::Seen;
use crate::layer::inspect::Role;
use crate::model::{Name, human};
use crate::output::time;
use crate::template;

/// `cowhand template ls`.
pub fn templates(rows: &[template::list::Row]) -> String {
    table(
        &["NAME", "FROZEN (UTC)", "SEALED", "WARM", ">SIZE", "DEPENDENTS"],
        rows.iter().map(|row| {
            let dependents: Vec<String> =
                row.dependents.iter().map(|name| name.to_string()).collect();
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
                format!(
                    "{} / {}",
                    human(row.bytes),
                    human(disk.map_or(0, |disk| disk.virtual_bytes))
                ),
                time::minute(row.frozen),
                if image.is_some_and(|image| image.verified) { "yes" } else { "no" }.to_owned(),
                if dependents.is_empty() { "-".to_owned() } else { dependents.join(", ") },
                image.map_or("-".to_owned(), |image| image.source.clone()),
            ]
        }),
    )
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
pub fn pool(statuses: &[StandbyStatus]) -> String {
    table(
        &["TEMPLATE", ">WANTED", ">WAITING"],
        statuses.iter().map(|status| {
            vec![status.template.to_string(), status.wanted.to_string(), status.waiting.to_string()]
        }),
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
    let named =
        || about.names.iter().filter(|name| name.role != Role::Backing || name.name.is_none());
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
    fn a_name_that_cannot_be_read_is_told_and_a_thousand_names_are_not_shown() {
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
        about.names = (0..1000)
            .map(|_| Reference { role: Role::Extent, name: Some("x".repeat(5000)) })
            .collect();
        let shown = image(Path::new("x.vmdk"), &about);
        assert!(shown.contains("and 980 more") && shown.len() < 8000, "{} bytes", shown.len());
    }
}
