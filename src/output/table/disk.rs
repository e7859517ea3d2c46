//! Tables of disks and CD-ROM drives, their chains, and what was found wrong with them.

use super::grid::table;
use crate::disk::check::Found;
use crate::model::{Cdrom, Name, human};
use crate::vm::list::{ChainRow, DiskRow};

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
    let file =
        |drive: &Cdrom| drive.iso.as_ref().map_or("-".to_owned(), |iso| iso.display().to_string());
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

/// `cowhand disk check`.
pub fn checks(found: &[Found]) -> String {
    table(
        &["DISK", "LAYER", "FOUND"],
        found
            .iter()
            .map(|found| vec![found.target.clone(), found.layer.file_name(), found.words()]),
    )
}
