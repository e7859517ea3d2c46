//! Snapshots that a VM has from the beginning, since the guest had them elsewhere.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::cdrom_request;
use super::disk_request::{DiskRequest, Mode};
use super::request::{Point, Request};
use crate::change::Planned;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::import::{self, Candidate};
use crate::model::{Config, Disk, FileId, Firmware, Format, Layer, Snapshot, SnapshotKind};
use crate::qemu::firmware;
use crate::qemu::probe::Probe;
use crate::steps::layers::{CopyFile, WrapFile};

/// The layers that are made of files of the user's.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Those that the VM writes to, or reads as disks of their own: they back no other layer.
    heads: Vec<(FileId, Layer, bool)>,
    /// All others. A file becomes one layer, whoever names it.
    sealed: Vec<(FileId, Layer)>,
}

impl Copies {
    /// Adds the steps that copy the file of a disk of the VM, with its backing files, as far as
    /// these are not copied yet.
    pub(super) fn head(
        &mut self,
        steps: &mut Vec<Planned>,
        candidate: Candidate,
        read_only: bool,
    ) -> Result<Layer> {
        let id = candidate.id;
        let layer = self.copy(steps, candidate)?;
        self.heads.push((id, layer.clone(), read_only));
        Ok(layer)
    }

    /// The layer of a file that backs others, or that a snapshot has sealed.
    fn sealed(&mut self, steps: &mut Vec<Planned>, candidate: Candidate) -> Result<Layer> {
        if let Some((_, layer)) = self.sealed.iter().find(|(id, _)| *id == candidate.id) {
            return same_format(layer, &candidate);
        }
        let id = candidate.id;
        let layer = self.copy(steps, candidate)?;
        self.sealed.push((id, layer.clone()));
        Ok(layer)
    }

    /// The layer of a file that the VM has as a disk, if it has it, and whether the VM only reads
    /// it.
    fn of_head(&self, candidate: &Candidate) -> Option<(&Layer, bool)> {
        let found = self.heads.iter().find(|(id, ..)| *id == candidate.id);
        found.map(|(_, layer, read_only)| (layer, *read_only))
    }

    fn copy(&mut self, steps: &mut Vec<Planned>, candidate: Candidate) -> Result<Layer> {
        let backing = candidate.backing.map(|below| self.sealed(steps, *below)).transpose()?;
        let layer = Layer::new(candidate.format);
        let (from, id) = (candidate.path, Some(candidate.id));
        steps.push(CopyFile { from, id, layer: layer.clone(), backing }.into());
        Ok(layer)
    }
}

/// The same file in two formats would be two disks.
fn same_format(layer: &Layer, file: &Candidate) -> Result<Layer> {
    if layer.format == file.format {
        return Ok(layer.clone());
    }
    let path = file.path.display();
    Err(Error::refused(format!(
        "{path} is {} in one place and {} in another",
        layer.format, file.format
    )))
}

/// Examines the disk files of a request, and lists the backing files.
pub(super) async fn examine(context: &Context, request: &Request) -> Result<Vec<Candidate>> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for disk in &request.disks {
        let ask = import::disk(&disk.path, disk.format);
        candidates.push(match &request.with_backing {
            Some(_) if disk.mode == Mode::Use => import::examine(context, &ask).await?,
            Some(within) => import::examine_with_backing(context, &ask, within).await?,
            None => import::examine(context, &ask).await?,
        });
    }
    Ok(candidates)
}

/// Examines the disk files of a snapshot.
pub(crate) async fn examine_point(context: &Context, request: &Request) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for disk in &request.disks {
        let ask = import::disk(&disk.path, disk.format);
        let within = request.with_backing.as_deref().unwrap_or_default();
        candidates.push(import::examine_again(context, &ask, within).await?);
    }
    Ok(candidates)
}

/// A disk of a file, on the layer `layer`.
pub(super) fn disk(request: &Request, ask: &DiskRequest, layer: Layer, virtual_bytes: u64) -> Disk {
    Disk {
        read_only: ask.read_only,
        bus: ask.bus.unwrap_or(request.bus),
        serial: ask.serial.clone(),
        ..Disk::new(ask.target.as_deref().unwrap_or_default(), layer, virtual_bytes)
    }
}

/// The configuration of a request, with the disks that were made for it, and UEFI variables if it
/// has UEFI.
pub(super) fn config(
    request: &Request,
    machine: String,
    disks: Vec<Disk>,
    steps: &mut Vec<Planned>,
) -> Result<Config> {
    let disks = named(disks);
    let cdroms = cdrom_request::named(&request.cdroms, &machine, &disks);
    let uefi = (request.firmware == Firmware::Uefi).then(firmware::find).transpose()?;
    let nvram = uefi.map(|uefi| {
        // qcow2 from the beginning, so that internal snapshots have it, too.
        let layer = Layer::new(Format::Qcow2);
        let from = request.nvram.clone().unwrap_or(uefi.variables);
        let virtual_bytes = from.metadata().map_or(0, |about| about.len());
        steps.push(WrapFile { from, layer: layer.clone() }.into());
        Disk::new("nvram", layer, virtual_bytes)
    });
    Ok(Config {
        machine,
        cpu: request.cpu.clone(),
        memory_bytes: request.memory_bytes,
        cpus: request.cpus,
        firmware: request.firmware,
        kernel: request.kernel.clone(),
        nics: request.nics.clone(),
        generation: Uuid::new_v4(),
        disks,
        nvram,
        cdroms,
        limits: request.limits,
        log_limit: request.log_limit,
        seed: request.seed.clone(),
        credentials: request.credentials.clone(),
        tags: request.tags.clone(),
    })
}

/// The snapshots of `points`, whose files were examined, and the steps that make their layers where
/// the head has them not.
pub(super) fn snapshots(
    points: &[Point],
    files: Vec<Vec<Candidate>>,
    probe: &Probe,
    copies: &mut Copies,
    steps: &mut Vec<Planned>,
) -> Result<Vec<Snapshot>> {
    let mut snapshots = Vec::new();
    for (point, files) in points.iter().zip(files) {
        let request = &point.machine;
        let mut disks = Vec::new();
        for (at, (ask, file)) in request.disks.iter().zip(files).enumerate() {
            let virtual_bytes =
                point.sizes.get(at).copied().flatten().unwrap_or(file.virtual_bytes);
            let layer = match copies.of_head(&file) {
                // What an internal snapshot is in goes on to be written to, and what is read-only
                // stays as it is.
                Some((layer, false)) if point.tag.is_some() && !ask.read_only => {
                    same_format(layer, &file)?
                }
                Some((layer, true)) if ask.read_only => same_format(layer, &file)?,
                Some(_) => {
                    let path = file.path.display();
                    return Err(Error::refused(format!(
                        "the VM writes to {path}, which snapshot {} has sealed",
                        point.name
                    )));
                }
                None => copies.sealed(steps, file)?,
            };
            if disks.iter().any(|other: &Disk| other.layer == layer) {
                return Err(Error::refused(format!(
                    "two disks of snapshot {} are the same file",
                    point.name
                )));
            }
            disks.push(disk(request, ask, layer, virtual_bytes));
        }
        snapshots.push(Snapshot {
            name: point.name.clone(),
            parent: point.parent.clone(),
            kind: match &point.tag {
                Some(tag) => SnapshotKind::Internal { tag: tag.clone() },
                None => SnapshotKind::External,
            },
            created: point.created,
            description: point.description.clone(),
            quiesced: point.quiesced,
            vm_state: point.vm_state,
            memory: None,
            expires: None,
            config: config(request, probe.machine(&request.machine)?, disks, steps)?,
        });
    }
    Ok(snapshots)
}

/// The disks with a name each: their own, or the next that their bus has.
pub(super) fn named(disks: Vec<Disk>) -> Vec<Disk> {
    let mut taken: BTreeSet<String> = disks.iter().map(|disk| disk.target.clone()).collect();
    let named = |mut disk: Disk| {
        if disk.target.is_empty() {
            disk.target = disk.bus.free_target(&taken);
            taken.insert(disk.target.clone());
        }
        disk
    };
    disks.into_iter().map(named).collect()
}
