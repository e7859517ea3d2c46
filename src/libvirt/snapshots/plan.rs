//! What becomes of the snapshots of a domain.
//!
//! | snapshot | its disks | becomes |
//! |---|---|---|
//! | internal | are inside the qcow2 files of its `<domain>` | one inside the copies |
//! | external | are the files of its `<domain>`; `<disks>` has those above | one of these files |
//!
//! Memory does not come over: it would have to be resumed by a QEMU with the same devices at the
//! same addresses.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use super::super::drives::Files;
use super::super::machine::machine_of;
use super::super::request::Request;
use super::super::xml::Notes;
use super::super::{Fate, Note};
use super::Snapshot;
use super::order::{before, name_for, ordered};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::layer::import::Candidate;
use crate::layer::{foreign, inner};
use crate::model::{FileId, Firmware, Format, Name};
use crate::vm::disk_request::DiskRequest;
use crate::vm::points::examine_point;
use crate::vm::request as vm_request;
use crate::vm::request::Point;

/// How the tags begin that cowhand makes itself.
const OURS: &str = "cw-";

/// The snapshots that come over.
#[derive(Debug, Default)]
pub(in crate::libvirt) struct Found {
    pub(in crate::libvirt) points: Vec<Point>,
    pub(in crate::libvirt) current: Option<Name>,
}

/// The disks of the domain today.
struct Today<'a> {
    machine: &'a vm_request::Request,
    /// The files of each, the one that is written to first.
    chains: Vec<Vec<FileId>>,
    /// Where they lie.
    paths: Vec<PathBuf>,
    /// The format of each file, of theirs and of the snapshots that were planned.
    formats: Vec<(FileId, Format)>,
    /// What becomes of the domain.
    notes: Vec<Note>,
}

/// A snapshot that can come over.
struct Planned {
    point: Point,
    /// The files of its disks.
    files: Vec<FileId>,
    /// The format of each of them, and of those that back them.
    formats: Vec<(FileId, Format)>,
    /// What is different in its machine.
    notes: Vec<Note>,
}

/// Plans the snapshots of `request` beside the machine of today. One that cannot come over is left
/// out, with the reason; those after it follow the one before it.
pub(in crate::libvirt) async fn plan(
    context: &Context,
    request: &Request,
    machine: &vm_request::Request,
    notes: &mut Notes,
) -> Result<Found> {
    let snapshots = ordered(request, notes)?;
    let candidates = examine_point(context, machine).await?;
    let mut today = Today {
        machine,
        chains: candidates.iter().map(|file| file.chain().map(|file| file.id).collect()).collect(),
        paths: candidates
            .iter()
            .flat_map(|file| file.chain().map(|file| file.path.clone()))
            .collect(),
        formats: candidates
            .iter()
            .flat_map(Candidate::chain)
            .map(|file| (file.id, file.format))
            .collect(),
        notes: notes.0.clone(),
    };
    let mut planned: Vec<Result<Planned>> = Vec::new();
    let mut names: Vec<Name> = Vec::new();
    for snapshot in &snapshots {
        let name = name_for(&snapshot.name, &names);
        let found = point(context, request, name.clone(), snapshot, &today).await;
        today.formats.extend(found.iter().flat_map(|found| found.formats.iter().copied()));
        planned.push(found);
        names.push(name);
    }
    leave_out_merged(&mut planned);
    let mut found = Found::default();
    let mut names: BTreeMap<&str, Name> = BTreeMap::new();
    let mut last = None;
    for (snapshot, planned) in snapshots.iter().zip(planned) {
        let what = format!("snapshot {}", snapshot.name);
        let Planned { mut point, files, notes: differences, .. } = match planned {
            Ok(planned) => planned,
            // That a file cannot be read says nothing of the snapshot: it may work the next time.
            Err(error) if error.kind() == Kind::Failed => {
                return Err(error.hint("for the domain alone: leave out --snapshots"));
            }
            Err(error) => {
                notes.left(what, error.full_message());
                continue;
            }
        };
        point.parent = before(snapshot, &snapshots, &names);
        names.insert(&snapshot.name, point.name.clone());
        let kind = if point.tag.is_some() { "internal" } else { "external" };
        if point.name.as_str() == snapshot.name {
            notes.kept(what.clone(), kind);
        } else {
            notes.changed(what.clone(), format!("{kind}, as {}", point.name));
        }
        if snapshot.has_memory {
            notes
                .left(format!("{what}, memory"), "a revert boots the guest from the disks of then");
        }
        if point.machine.firmware == Firmware::Uefi && machine.firmware == Firmware::Uefi {
            notes.changed(format!("{what}, UEFI variables"), "are those of today");
        }
        differences
            .into_iter()
            .for_each(|note| notes.add(note.fate, format!("{what}, {}", note.what), note.how));
        let is_before =
            files.iter().all(|file| today.chains.iter().any(|chain| chain.contains(file)));
        if is_before && last.as_ref().is_none_or(|(time, _)| *time <= snapshot.created) {
            last = Some((snapshot.created, point.name.clone()));
        }
        found.points.push(point);
    }
    // The one that libvirt says, or the last one whose files the disks still have.
    let said = snapshots.iter().find(|snapshot| request.current.as_ref() == Some(&snapshot.name));
    found.current = match said {
        Some(said) => {
            names.get(said.name.as_str()).cloned().or_else(|| before(said, &snapshots, &names))
        }
        None => last.map(|(_, name)| name),
    };
    Ok(found)
}

/// Each external snapshot puts a file of its own on those before. Where two have the same one, the
/// later has been merged into the earlier.
fn leave_out_merged(planned: &mut [Result<Planned>]) {
    for at in 0..planned.len() {
        let (before, from) = planned.split_at_mut(at);
        let Some(Ok(Planned { point, files, .. })) = from.first() else { continue };
        if point.tag.is_some() {
            continue;
        }
        let writable: Vec<&FileId> = point
            .machine
            .disks
            .iter()
            .zip(files)
            .filter(|(disk, _)| !disk.read_only)
            .map(|(_, id)| id)
            .collect();
        for earlier in before {
            let is_same = earlier.as_ref().is_ok_and(|earlier| {
                earlier.point.tag.is_none()
                    && earlier.files.iter().any(|file| writable.contains(&file))
            });
            if is_same {
                *earlier =
                    Err(Error::refused("what was written after it has been merged into its files"));
            }
        }
    }
}

/// The snapshot, but for its place in the tree; or why it does not come over.
async fn point(
    context: &Context,
    request: &Request,
    name: Name,
    snapshot: &Snapshot,
    today: &Today<'_>,
) -> Result<Planned> {
    let domain = snapshot.domain.as_ref().map_err(|why| Error::refused(why.as_str()))?;
    // The files that the user names are those of today.
    let then = Request {
        files: BTreeMap::new(),
        shown: format!("snapshot {}", snapshot.name),
        snapshots: Vec::new(),
        ..request.clone()
    };
    let mut notes = Notes(domain.notes.clone());
    let files = Files::of_snapshot(context, request, &today.paths);
    let (mut machine, _) = machine_of(context, domain, &then, &files, &mut notes).await?;
    arrange(&mut machine.disks, &today.machine.disks)?;
    let candidates = examine_point(context, &machine).await?;
    let ids: Vec<FileId> = candidates.iter().map(|file| file.id).collect();
    if (1..ids.len()).any(|at| ids[..at].contains(&ids[at])) {
        return Err(Error::refused("two of its disks are the same file"));
    }
    let formats: Vec<_> =
        candidates.iter().flat_map(Candidate::chain).map(|file| (file.id, file.format)).collect();
    let is_other = |one: &(FileId, Format)| {
        today.formats.iter().any(|other| other.0 == one.0 && other.1 != one.1)
    };
    if formats.iter().any(is_other) {
        return Err(Error::refused(
            "one of its files has another format in the domain or in another snapshot",
        ));
    }
    let mut insides = 0;
    let mut sizes = Vec::new();
    for (at, (disk, file)) in machine.disks.iter().zip(&candidates).enumerate() {
        let target = disk.target.as_deref().unwrap_or_default();
        let kind = if disk.read_only {
            "no"
        } else {
            snapshot.disks.get(target).map_or("no", String::as_str)
        };
        sizes.push(None);
        match kind {
            "internal" => {
                sizes[at] = inside(snapshot, file)?;
                insides += 1;
            }
            "external" => {}
            _ if disk.read_only => {}
            "manual" => {
                return Err(Error::refused(format!("disk {target} was copied by another program")));
            }
            _ => return Err(Error::refused(format!("disk {target} is not in it"))),
        }
        refuse_written(today, at, kind, file)?;
    }
    let is_written =
        |file: &Candidate| today.chains.iter().any(|chain| chain.first() == Some(&file.id));
    let writable = || machine.disks.iter().zip(&candidates).filter(|(disk, _)| !disk.read_only);
    let (all, of_today) =
        (writable().count(), writable().filter(|(_, file)| is_written(file)).count());
    if all == 0 {
        return Err(Error::refused("it has no disk that is written to"));
    }
    if insides != 0 && (insides != all || !(of_today == 0 || of_today == all)) {
        return Err(Error::refused(
            "some of its disks are kept inside the files of today, and others elsewhere",
        ));
    }
    if insides != 0 && machine.firmware == Firmware::Uefi {
        return Err(Error::refused("UEFI variables are not read from it"));
    }
    let is_new = |note: &Note| note.fate != Fate::Kept && !today.notes.contains(note);
    Ok(Planned {
        files: ids,
        formats,
        notes: notes.0.into_iter().filter(is_new).collect(),
        point: Point {
            name,
            parent: None,
            created: snapshot.created.unwrap_or_else(Timestamp::now),
            description: snapshot.description.clone(),
            vm_state: snapshot.state,
            quiesced: snapshot.was_off,
            tag: (insides != 0).then(|| snapshot.name.clone()),
            machine,
            sizes,
        },
    })
}

/// Puts the disks of a snapshot into the order of today's. They have to be the same ones.
fn arrange(disks: &mut [DiskRequest], today: &[DiskRequest]) -> Result<()> {
    let is_same = |one: &DiskRequest, other: &DiskRequest| {
        (&one.target, one.read_only) == (&other.target, other.read_only)
    };
    let place = |disk: &DiskRequest| today.iter().position(|other| is_same(disk, other));
    if disks.len() != today.len() || disks.iter().any(|disk| place(disk).is_none()) {
        return Err(Error::refused(
            "its disks are not those that the domain has today, by their names",
        ));
    }
    disks.sort_by_key(place);
    Ok(())
}

/// What is written to today is not what it was then, and neither is what it backs.
fn refuse_written(today: &Today<'_>, at: usize, kind: &str, file: &Candidate) -> Result<()> {
    for (depth, file) in file.chain().enumerate() {
        let own = today.chains.iter().position(|chain| chain.first() == Some(&file.id));
        let is_own = depth == 0 && own == Some(at);
        let is_allowed = is_own && (kind == "internal" || today.machine.disks[at].read_only);
        if own.is_some() && !is_allowed {
            let path = file.path.display();
            return Err(Error::refused(format!(
                "the domain writes to {path}, which it has sealed"
            )));
        }
    }
    Ok(())
}

/// The size of the disk as it is inside the file under the name of the snapshot.
fn inside(snapshot: &Snapshot, file: &Candidate) -> Result<Option<u64>> {
    let (path, name) = (&file.path, &snapshot.name);
    if file.format != Format::Qcow2 {
        let why = format!("{} is {}, which has no snapshots inside", path.display(), file.format);
        return Err(Error::refused(why));
    }
    let found = inner::read(&foreign::open(path)?.file, path)?;
    let mut own = found.iter().filter(|inner| inner.name == *name);
    let (Some(inner), None) = (own.next(), own.next()) else {
        return Err(Error::refused(format!(
            "it is not inside {}, or more than once",
            path.display()
        )));
    };
    if name.starts_with(OURS) {
        return Err(Error::refused(format!(
            "names that begin with {OURS} are those of cowhand's own"
        )));
    }
    Ok(inner.virtual_bytes.filter(|bytes| bytes.is_multiple_of(512) && *bytes > 0))
}
