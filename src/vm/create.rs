//! Making a VM from disk files, or from nothing.

use jiff::Timestamp;
use uuid::Uuid;

use crate::change::{self, OpenVm, Plan, Run};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::sockets;
use crate::layer::chain;
use crate::layer::import::Candidate;
use crate::model::{Cdrom, Disk, Firmware, Format, Layer, Name, Origin, Record, Role, human};
use crate::qemu::firmware;
use crate::qemu::probe::Probe;
use crate::steps::layers::{CreateOverlay, LinkFile};
use crate::steps::record::WriteRecord;
use crate::template::freeze;

use super::cdrom;
use super::disk_request::{DiskRequest, Mode};
use super::points::{self, Copies};
use super::request::{OnImage, Request};
use super::requirements::{check, refuse_used_twice};

/// Makes the VM `name`. Everything is examined before anything is written.
pub(crate) async fn create(context: &Context, name: &Name, request: &Request) -> Result<Record> {
    check(request)?;
    let candidates = points::examine(context, request).await?;
    let mut sealed = Vec::new();
    for point in &request.points {
        check(&point.machine)?;
        sealed.push(points::examine_point(context, &point.machine).await?);
    }
    let uuid = request.uuid.unwrap_or_else(Uuid::new_v4);
    sockets::directory(context, uuid)?;
    if request.firmware == Firmware::Uefi {
        firmware::find()?;
    }
    let probe = Probe::get(context)?;
    let machine = probe.machine(&request.machine)?;

    let image: Vec<&Name> = request.image.iter().map(|image| &image.name).collect();
    let store_lock = context.lock_store_for(&image).await?;
    probe.keep(context);
    change::recover::sweep(context, &store_lock).await?;
    let records = context.store.records()?;
    if let Some((other, _)) = records.iter().find(|(_, record)| request.uuid == Some(record.uuid)) {
        return Err(
            Error::exists(format!("{other} has the UUID {uuid}")).hint("run the command again")
        );
    }
    for (at, (disk, candidate)) in request.disks.iter().zip(&candidates).enumerate() {
        let is_same = |(other, before): (&DiskRequest, &Candidate)| {
            other.mode == Mode::Use && before.id == candidate.id
        };
        if disk.mode == Mode::Use && request.disks.iter().zip(&candidates).take(at).any(is_same) {
            return Err(Error::refused(format!("{} is named twice", candidate.path.display()))
                .hint("a file is one disk: name it once, or let it be copied"));
        }
        if disk.mode == Mode::Use {
            refuse_used_twice(&context.store, &candidate.path)?;
            let is_iso = |cdrom: &Cdrom| cdrom.iso.as_ref() == Some(&candidate.path);
            if let Some((other, _)) =
                records.iter().find(|(_, record)| record.config.cdroms.iter().any(is_iso))
            {
                return Err(Error::refused(format!(
                    "{} is in a CD-ROM drive of {other}, so no guest can write to it",
                    candidate.path.display()
                )));
            }
        }
    }
    for iso in request.cdroms.iter().filter_map(|cdrom| cdrom.iso.as_ref()) {
        cdrom::refuse_used(&context.store, iso)?;
        let is_disk = |(disk, candidate): (&DiskRequest, &Candidate)| {
            disk.mode == Mode::Use && candidate.path == *iso
        };
        if request.disks.iter().zip(&candidates).any(is_disk) {
            return Err(Error::refused(format!(
                "{} is a disk of the VM and in its CD-ROM drive",
                iso.display()
            )));
        }
    }
    // Its lock keeps the image while the VM is made.
    let image = match &request.image {
        Some(image) => Some(open_image(context, image).await?),
        None => None,
    };
    let (mut steps, mut disks, mut copies) = (Vec::new(), Vec::new(), Copies::default());
    if let Some(image) = &image {
        let layer = Layer::new(Format::Qcow2);
        let (backing, virtual_bytes) = (Some(image.layer.clone()), image.virtual_bytes);
        steps.push(CreateOverlay { layer: layer.clone(), backing, virtual_bytes }.into());
        disks.push(Disk { bus: request.bus, ..Disk::new("", layer, virtual_bytes) });
    }
    for (ask, candidate) in request.disks.iter().zip(candidates) {
        let virtual_bytes = candidate.virtual_bytes;
        let layer = match ask.mode {
            Mode::Copy => copies.head(&mut steps, candidate, ask.read_only)?,
            Mode::Use => {
                let layer = Layer::new(candidate.format);
                steps.push(LinkFile { file: candidate.path, layer: layer.clone() }.into());
                layer
            }
        };
        disks.push(points::disk(request, ask, layer, virtual_bytes));
    }
    for bytes in &request.blank {
        let layer = Layer::new(Format::Qcow2);
        steps.push(
            CreateOverlay { layer: layer.clone(), backing: None, virtual_bytes: *bytes }.into(),
        );
        disks.push(Disk { bus: request.bus, ..Disk::new("", layer, *bytes) });
    }
    let config = points::config(request, machine, disks, &mut steps)?;
    let snapshots = points::snapshots(&request.points, sealed, &probe, &mut copies, &mut steps)?;
    let record = Record {
        role: Role::Vm,
        uuid,
        created: Timestamp::now(),
        origin: image.as_ref().map(|image| image.origin.clone()),
        config,
        current: request.current.clone(),
        snapshots,
        warm: None,
        ephemeral: None,
        autostart: request.autostart,
    };
    let plan = Plan::before(steps).pivot(WriteRecord::of(&record));
    let lock = context.store.claim(&context.operation, &store_lock, name)?;
    // Nobody else may come to use the same file before our link to it is there; a copy, which takes
    // long, needs no such care.
    let uses_files = request.disks.iter().any(|disk| disk.mode == Mode::Use);
    let _store_lock = uses_files.then_some(store_lock);
    change::run(&lock, plan, &mut Run::with_no_qemu(context, name)).await?;
    Ok(record)
}

/// An image that a disk is about to depend on.
struct Image<'a> {
    origin: Origin,
    layer: Layer,
    virtual_bytes: u64,
    _opened: OpenVm<'a>,
}

async fn open_image<'a>(context: &'a Context, image: &OnImage) -> Result<Image<'a>> {
    let OnImage { name, uuid, size } = image;
    let opened = OpenVm::open(context, name).await?;
    let record = &opened.record;
    if uuid.is_some_and(|uuid| uuid != record.uuid) {
        return Err(Error::refused(format!("image {name} was replaced by another one meanwhile"))
            .hint("run the command again"));
    }
    let (Some(_), [disk]) = (record.image(), &record.config.disks[..]) else {
        return Err(Error::refused(format!("{name} is a {}, not an image", record.kind()))
            .hint(format!("make a VM of it with a clone: cowhand clone {name} NEW")));
    };
    freeze::check_untouched(&context.store, name, record)?;
    let least = chain::whole(&context.store, &disk.layer)?.active().virtual_bytes;
    let virtual_bytes = size.unwrap_or(least);
    if virtual_bytes < least {
        return Err(Error::refused(format!(
            "a disk of {} is smaller than image {name}, which has {}",
            human(virtual_bytes),
            human(least)
        ))
        .hint("leave out --disk-size, or say a larger one"));
    }
    let origin = Origin { uuid: record.uuid, name: name.clone(), snapshot: None, template: true };
    let layer = disk.layer.clone();
    Ok(Image { origin, layer, virtual_bytes, _opened: opened })
}
