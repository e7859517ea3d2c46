//! CD-ROM drives, and the ISO images in them. An image stays where it is, and is never written to.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cdrom_request::{self, CdromRequest};
use super::{edit, requirements};
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::boot_files;
use crate::model::{Cdrom, Config, Name, Record};
use crate::qemu::nodes;
use crate::qemu::qmp::{Qmp, QmpError};
use crate::store::{Store, plain};

/// The path of an ISO image, without links, once it has been looked at.
pub(crate) fn iso(path: &Path) -> Result<PathBuf> {
    // As it is spelt: a link of another user's is seen only there.
    boot_files::check_iso(path)?;
    path.canonicalize().on("find", path)
}

/// QEMU locks the file, in the way of the VM whose disk it is.
pub(super) fn refuse_used(store: &Store, iso: &Path) -> Result<()> {
    requirements::refuse_used_twice(store, iso).map_err(|error| Error::refused(error.message()))
}

/// A change of the ISO image in a drive.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// The drive; without one, the only one.
    pub target: Option<String>,
    /// The ISO image; without one, the drive is empty afterwards.
    pub iso: Option<PathBuf>,
    /// Also where the guest has locked the drive.
    pub force: bool,
}

/// Changes the ISO image in a drive, also while the VM runs. A stopped VM without a drive gets one.
/// Returns the drive.
///
/// QEMU is told first. Whatever comes of that, the record then says what is in the drive.
pub(crate) async fn change(context: &Context, name: &Name, change: &Change) -> Result<Cdrom> {
    let iso = change.iso.as_deref().map(iso).transpose()?;
    if let Some(iso) = &iso {
        refuse_used(&context.store, iso)?;
    }
    let mut vm = OpenVm::for_change(context, name, "change").await?;
    let record = vm.record.clone();
    let mut after = record.clone();
    let mut qmp = vm.qmp().await?;
    let index = match drive(name, &record, change)? {
        Some(index) => index,
        None if qmp.is_some() => {
            return Err(Error::refused(format!(
                "{name} has no CD-ROM drive, and cannot get one while it runs"
            ))
            .hint(format!("stop it first: cowhand stop {name}")));
        }
        None => {
            let request = CdromRequest { iso: None, bus: None, target: None };
            after.config.cdroms =
                cdrom_request::named(&[request], &record.config.machine, &record.config.disks);
            0
        }
    };
    after.config.cdroms[index].iso = iso;
    after.config.check_devices()?;
    let wanted = after.config.cdroms[index].clone();
    if let Some(qmp) = qmp.as_mut() {
        let iso = open(&wanted)?;
        let exchanged = exchange(qmp, &wanted, iso.as_ref(), change.force).await;
        if let Err(error) = exchanged {
            let before = record.config.cdroms[index].clone();
            after.config.cdroms[index].iso = left(qmp, &before, &wanted).await?;
            save(context, name, &record, &after)?;
            return Err(refused(name, &wanted, error));
        }
        if let Err(error) = save(context, name, &record, &after) {
            // Else the next snapshot with memory would be of another machine than its record.
            let before = &record.config.cdroms[index];
            if let Ok(iso) = open(before) {
                exchange(qmp, before, iso.as_ref(), true).await?;
            }
            return Err(error);
        }
    } else {
        save(context, name, &record, &after)?;
    }
    Ok(wanted)
}

fn save(context: &Context, name: &Name, before: &Record, after: &Record) -> Result<()> {
    if before == after { Ok(()) } else { edit::save(context, name, before, after) }
}

/// Removes a drive from a VM that does not run.
pub(crate) async fn remove(context: &Context, name: &Name, target: &str) -> Result<()> {
    let vm = OpenVm::for_change(context, name, "change").await?;
    vm.refuse_running("change")?;
    let record = &vm.record;
    let wanted = Change { target: Some(target.to_owned()), iso: None, force: false };
    let mut after = record.clone();
    if let Some(index) = drive(name, record, &wanted)? {
        after.config.cdroms.remove(index);
    }
    save(context, name, record, &after)
}

/// The place of the drive that is meant; `None` where the VM has none at all, and is to get one.
fn drive(name: &Name, record: &Record, change: &Change) -> Result<Option<usize>> {
    let cdroms = &record.config.cdroms;
    let known = cdroms.iter().map(|cdrom| cdrom.target.as_str()).collect::<Vec<_>>().join(", ");
    match (&change.target, cdroms.len()) {
        (None, 0) if change.iso.is_some() => Ok(None),
        (_, 0) => Err(Error::not_found(format!("{name} has no CD-ROM drive"))
            .hint(format!("add one with an ISO image in it: cowhand cdrom insert {name} FILE"))),
        (None, 1) => Ok(Some(0)),
        (None, _) => Err(Error::usage(format!("{name} has several CD-ROM drives: {known}"))
            .hint("say which: --target TARGET")),
        (Some(target), _) => match cdroms.iter().position(|cdrom| cdrom.target == *target) {
            Some(index) => Ok(Some(index)),
            None => Err(Error::not_found(format!("{name} has no CD-ROM drive {target}"))
                .hint(format!("it has: {known}"))),
        },
    }
}

/// Exchanges the image in a drive of a running VM: `blockdev-add`, `blockdev-open-tray`,
/// `blockdev-remove-medium`, `blockdev-insert-medium`, `blockdev-close-tray`. QEMU's
/// `blockdev-change-medium` does the same with a node of a name of its own, by which nobody could
/// tell later what is in the drive.
async fn exchange(
    qmp: &mut Qmp,
    cdrom: &Cdrom,
    image: Option<&File>,
    force: bool,
) -> Result<(), QmpError> {
    let id = nodes::device_id(&cdrom.target);
    let now = qmp.root_node(&cdrom.target).await?;
    let node = cdrom.iso.as_ref().map(|iso| (nodes::iso_node(&cdrom.target, iso), iso));
    if now == node.as_ref().map_or("", |(node, _)| node) {
        return Ok(());
    }
    if let Some(((node, iso), image)) = node.as_ref().zip(image) {
        // One that a command which was killed has left.
        let _ = qmp.remove_node(node).await;
        let set = qmp.add_fd(image.as_fd()).await?;
        let path = format!("/dev/fdset/{set}");
        let added = qmp.add_node(nodes::iso(&cdrom.target, iso, Path::new(&path))).await;
        // The node has a descriptor of its own.
        let _ = qmp.remove_fd(set).await;
        added?;
    }
    let exchanged = async {
        qmp.call::<Value>("blockdev-open-tray", json!({"id": id, "force": force})).await?;
        if !now.is_empty() {
            qmp.call::<Value>("blockdev-remove-medium", json!({"id": id})).await?;
        }
        if let Some((node, _)) = &node {
            qmp.call::<Value>("blockdev-insert-medium", json!({"id": id, "node-name": node}))
                .await?;
            qmp.call::<Value>("blockdev-close-tray", json!({"id": id})).await?;
        }
        Ok(())
    };
    let exchanged = exchanged.await;
    // Whichever of the two is in no drive.
    for node in [Some(now), node.map(|(node, _)| node)]
        .into_iter()
        .flatten()
        .filter(|node| !node.is_empty())
    {
        let _ = qmp.remove_node(&node).await;
    }
    exchanged
}

/// The image of a drive, open: QEMU reaches no file that it was not started with, so the image is
/// handed over as it is.
fn open(cdrom: &Cdrom) -> Result<Option<File>> {
    let open = |iso: &PathBuf| {
        boot_files::check_iso(iso)?;
        plain::open_existing(iso)
    };
    cdrom.iso.as_ref().map(open).transpose()
}

/// What is in the drive after an exchange that failed.
async fn left(qmp: &mut Qmp, before: &Cdrom, wanted: &Cdrom) -> Result<Option<PathBuf>> {
    let node = qmp.root_node(&wanted.target).await?;
    let has = |cdrom: &&Cdrom| {
        cdrom.iso.as_ref().is_some_and(|iso| nodes::iso_node(&cdrom.target, iso) == node)
    };
    Ok([before, wanted].into_iter().find(has).and_then(|cdrom| cdrom.iso.clone()))
}

/// Refuses a running VM in whose drives there is something else than its record says: memory that
/// is saved of it would be taken up in another machine.
pub(crate) async fn refuse_difference(qmp: &mut Qmp, name: &Name, config: &Config) -> Result<()> {
    for cdrom in &config.cdroms {
        let node = qmp.root_node(&cdrom.target).await?;
        let noted =
            cdrom.iso.as_ref().map(|iso| nodes::iso_node(&cdrom.target, iso)).unwrap_or_default();
        if node != noted {
            return Err(Error::refused(format!(
                "CD-ROM drive {} of {name} has not in it what the record of {name} says: a command \
                 was killed while it changed that",
                cdrom.target
            ))
            .hint(format!(
                "insert an image again, or eject it: cowhand cdrom eject {name} --target {}",
                cdrom.target
            )));
        }
    }
    Ok(())
}

fn refused(name: &Name, cdrom: &Cdrom, error: QmpError) -> Error {
    let is_locked =
        |message: &str| message.contains("is locked") || message.contains("is not open");
    if matches!(&error, QmpError::Refused { message, .. } if is_locked(message)) {
        return Error::refused(format!(
            "the guest of {name} has locked its CD-ROM drive {}",
            cdrom.target
        ))
        .hint("unmount the CD in the guest and run the command again, or say --force");
    }
    Error::from(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::model::Bus;

    #[test]
    fn a_locked_drive_is_told_from_other_refusals() {
        let name: Name = "web".parse().expect("a name");
        let cdrom = Cdrom { target: "sda".into(), bus: Bus::Sata, iso: None };
        let told = |message: &str| {
            let (command, class, message) = ("x".into(), "GenericError".into(), message.into());
            refused(&name, &cdrom, QmpError::Refused { command, class, message })
        };
        let locked = told("Tray of device 'dev-sda' is not open");
        assert!(
            locked.kind() == Kind::Refused && locked.message().contains("has locked"),
            "{locked:?}"
        );
        assert_eq!(told("No space left on device").kind(), Kind::Qemu);
    }
}
