//! The files of a domain's disks and CD-ROM drives, as far as they may be used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::devices::{CdromDrive, Disk};
use super::domain::Domain;
use super::request::Request;
use super::xml::Notes;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::{Bus, bus, printable};
use crate::vm::cdrom;
use crate::vm::cdrom_request::CdromRequest;
use crate::vm::disk_request::{DiskRequest, Mode};

/// The files that may be used.
pub(super) struct Files<'a> {
    store: PathBuf,
    beside: Option<&'a Path>,
    within: &'a [PathBuf],
    /// Files that may be disks wherever they lie.
    known: &'a [PathBuf],
}

impl<'a> Files<'a> {
    pub(super) fn of(context: &Context, request: &'a Request) -> Self {
        let root = context.store.layout.root();
        let store = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        Self { store, beside: request.beside.as_deref(), within: &request.within, known: &[] }
    }

    /// The files that the XML of a snapshot may name: those of the domain, too.
    pub(super) fn of_snapshot(
        context: &Context,
        request: &'a Request,
        known: &'a [PathBuf],
    ) -> Self {
        Self { beside: request.snapshots_beside.as_deref(), known, ..Self::of(context, request) }
    }

    /// The same as [`Self::allow`], for a disk: those of the domain may be disks of its snapshots.
    fn allow_disk(&self, file: &Path, what: &str, hint: &str) -> Result<PathBuf> {
        match file.canonicalize() {
            Ok(real) if file.is_absolute() && self.known.contains(&real) => Ok(real),
            _ => self.allow(file, what, hint),
        }
    }

    /// Refuses a file that the XML alone names. Else, its path without links, which leads to the
    /// same file later.
    pub(super) fn allow(&self, file: &Path, what: &str, hint: &str) -> Result<PathBuf> {
        if !file.is_absolute() {
            return Err(Error::refused(format!(
                "the path of {what} is not absolute: {}",
                file.display()
            )));
        }
        let real = match file.canonicalize() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let error = Error::not_found(format!("{what} is not there: {}", file.display()));
                return Err(if hint.is_empty() {
                    error
                } else {
                    error.hint(format!("say where it is: {hint}"))
                });
            }
            other => other.on("find", file)?,
        };
        if real.starts_with(&self.store) {
            return Err(Error::refused(format!("{what} belongs to the store: {}", file.display())));
        }
        let Some(beside) = self.beside else { return Ok(real) };
        let is_beside =
            beside.canonicalize().is_ok_and(|directory| real.parent() == Some(&directory));
        let below = |directory: &PathBuf| {
            directory.canonicalize().is_ok_and(|directory| real.starts_with(directory))
        };
        if is_beside || self.within.iter().any(below) {
            return Ok(real);
        }
        let directory = printable::shell(real.parent().unwrap_or(Path::new("/")));
        let error = Error::refused(format!(
            "{what} is {}, which only the XML names; an XML from elsewhere could name any file",
            file.display()
        ))
        .hint(format!("if its files may be used: --with-backing={directory}"));
        Err(if hint.is_empty() { error } else { error.hint(format!("or name the file: {hint}")) })
    }
}

/// The disks, and what becomes of each.
pub(super) fn disks(
    domain: &Domain,
    request: &Request,
    files: &Files<'_>,
    notes: &mut Notes,
) -> Result<Vec<DiskRequest>> {
    let (mut wanted, mut taken) = (Vec::new(), BTreeSet::new());
    let known: Vec<&str> = domain
        .devices
        .disks
        .iter()
        .map(|disk| disk.target.as_str())
        .chain(domain.devices.cdroms.iter().map(|drive| drive.target.as_str()))
        .collect();
    if let Some(unknown) = request.files.keys().find(|target| !known.contains(&target.as_str())) {
        return Err(Error::usage(format!("{} has no disk {unknown}", request.shown)).hint(
            format!(
                "it has: {}",
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ),
        ));
    }
    for (at, disk) in domain.devices.disks.iter().enumerate() {
        let Disk { target, bus, serial, file, format, read_only, is_shared, .. } = disk;
        let hint = format!("--disk {target}=FILE");
        let (path, format) = match (request.files.get(target), file) {
            // Its format is asked of the file.
            (Some(path), Err(_)) => (path.clone(), None),
            (Some(path), Ok(_)) => (path.clone(), *format),
            (None, Ok(path)) => {
                (files.allow_disk(path, &format!("disk {target}"), &hint)?, *format)
            }
            (None, Err(why)) if at == 0 => {
                return Err(Error::refused(format!(
                    "disk {target}, from which it boots, does not come over: it {why}"
                ))
                .hint(format!("make a file of it, then: {hint}")));
            }
            (None, Err(why)) => {
                notes.left(format!("disk {target}"), format!("{why}; with a file of it: {hint}"));
                continue;
            }
        };
        if *is_shared && request.mode == Mode::Use {
            return Err(Error::refused(format!(
                "disk {target} is shareable or transient: \
                 the VM would write to it for good, and alone"
            ))
            .hint("copy it: --disk-mode copy"));
        }
        let becomes = free_target(target, *bus, &mut taken);
        disk.note(&path, &becomes, notes);
        wanted.push(DiskRequest {
            path,
            mode: request.mode,
            format,
            read_only: *read_only,
            bus: Some(*bus),
            serial: serial.clone(),
            target: Some(becomes),
        });
    }
    Ok(wanted)
}

/// The CD-ROM drives. One whose image cannot be used comes over empty.
pub(super) fn cdroms(
    domain: &Domain,
    request: &Request,
    files: &Files<'_>,
    disks: &[DiskRequest],
    notes: &mut Notes,
) -> Result<Vec<CdromRequest>> {
    let mut taken: BTreeSet<String> = disks.iter().filter_map(|disk| disk.target.clone()).collect();
    let mut wanted = Vec::new();
    for CdromDrive { target, bus, file } in &domain.devices.cdroms {
        let what = format!("CD-ROM {target}");
        let hint = format!("--disk {target}=FILE");
        let found = match (request.files.get(target), file) {
            (Some(path), _) => Ok(Some(cdrom::iso(path)?)),
            (None, Ok(None)) => Ok(None),
            (None, Ok(Some(path))) => files
                .allow(path, "its image", &hint)
                .and_then(|path| cdrom::iso(&path))
                .map(Some)
                .map_err(|error| format!("{}; another one: {hint}", error.message())),
            (None, Err(why)) => Err(format!("{why}; with a file: {hint}")),
        };
        let becomes = free_target(target, *bus, &mut taken);
        let renamed = if *target == becomes { String::new() } else { format!(", as {becomes}") };
        let iso = match found {
            Ok(iso) => {
                let medium =
                    iso.as_ref().map_or("empty".to_owned(), |iso| iso.display().to_string());
                notes.kept(what, format!("{medium} on {bus}{renamed}"));
                iso
            }
            Err(why) => {
                notes.changed(what, format!("is empty, on {bus}{renamed}: {why}"));
                None
            }
        };
        wanted.push(CdromRequest { iso, bus: Some(*bus), target: Some(becomes) });
    }
    Ok(wanted)
}

/// The name that a drive has in the domain, if it can have that here.
fn free_target(target: &str, bus: Bus, taken: &mut BTreeSet<String>) -> String {
    let becomes = match bus::is_target(target) && !taken.contains(target) {
        true => target.to_owned(),
        false => bus.free_target(taken),
    };
    taken.insert(becomes.clone());
    becomes
}
