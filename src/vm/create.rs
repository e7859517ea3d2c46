//! Making a VM from disk files, or from nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use uuid::Uuid;

use crate::change::{self, Executor, Plan, Step};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::chain;
use crate::layer::import::{self, Candidate};
use crate::model::{
    Config, Credentials, Disk, Firmware, Format, KernelBoot, Layer, LogLimit, Name, Nic, Origin, Record, Role, Seed,
    human,
};
use crate::qemu::firmware;
use crate::qemu::probe::Probe;
use crate::store::{Store, VmLock};
use crate::template::freeze;

use super::open;
use super::start::runtime_directory;

/// The least memory a guest can be given: below it no firmware starts.
const MEMORY_MIN: u64 = 1 << 20;
/// A q35 machine has 32 slots on its root bus, some of which we use ourselves.
const DISKS_MAX: usize = 20;

/// What becomes of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Its content is copied into the store.
    #[default]
    Copy,
    /// It stays where it is and is written in place.
    Use,
}

/// A disk file as asked for: `FILE[,copy|use][,format=F][,ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRequest {
    /// The file.
    pub path: PathBuf,
    /// Copy it or use it.
    pub mode: Mode,
    /// What the user says it is.
    pub format: Option<Format>,
    /// The guest shall not write to it.
    pub read_only: bool,
}

impl FromStr for DiskRequest {
    type Err = Error;

    /// Options are taken from the end as long as they are known ones, so that a path may contain commas.
    fn from_str(text: &str) -> Result<Self> {
        let mut request = Self { path: PathBuf::new(), mode: Mode::Copy, format: None, read_only: false };
        let mut rest = text;
        while let Some((before, option)) = rest.rsplit_once(',') {
            match option.split_once('=') {
                None if option == "copy" => request.mode = Mode::Copy,
                None if option == "use" => request.mode = Mode::Use,
                None if option == "ro" => request.read_only = true,
                Some(("format", format)) => request.format = Some(format.parse()?),
                _ => break,
            }
            rest = before;
        }
        if rest.is_empty() {
            return Err(
                Error::usage(format!("{text:?} names no disk file")).hint("write FILE[,copy|use][,format=F][,ro]")
            );
        }
        request.path = rest.into();
        Ok(request)
    }
}

/// A disk that stands on an image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnImage {
    /// The image.
    pub name: Name,
    /// Its identity, where it was looked at before: another one of the same name is not taken for it.
    pub uuid: Option<Uuid>,
    /// The size the guest sees, in bytes; without one, that of the image.
    pub size: Option<u64>,
}

/// A VM as asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Disks from files, in the guest's order.
    pub disks: Vec<DiskRequest>,
    /// An image of the store that the first disk stands on.
    pub image: Option<OnImage>,
    /// Bring in the backing files of the disks as well: those beside them, and those below these directories.
    pub with_backing: Option<Vec<PathBuf>>,
    /// Blank disks behind them, in bytes.
    pub blank: Vec<u64>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// A CPU model.
    pub cpu: Option<String>,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// What UEFI variables are copied from; without a file, from empty ones.
    pub nvram: Option<PathBuf>,
    /// The identity; without one, a new one.
    pub uuid: Option<Uuid>,
    /// A machine type or alias.
    pub machine: String,
    /// A kernel to boot directly.
    pub kernel: Option<KernelBoot>,
    /// Network cards.
    pub nics: Vec<Nic>,
    /// The limit of each log.
    pub log_limit: LogLimit,
    /// Does it start with the host?
    pub autostart: bool,
    /// What cloud-init is told.
    pub seed: Option<Seed>,
    /// What systemd in the guest is given.
    pub credentials: Credentials,
    /// The user's own key-value pairs.
    pub tags: BTreeMap<String, String>,
}

/// Makes the VM `name`. Everything is examined before anything is written.
pub async fn create(context: &Context, name: &Name, request: &Request) -> Result<Record> {
    check(request)?;
    let mut candidates: Vec<Candidate> = Vec::new();
    for disk in &request.disks {
        let ask = import::disk(&disk.path, disk.format);
        candidates.push(match &request.with_backing {
            Some(_) if disk.mode == Mode::Use => import::examine(context, &ask).await?,
            Some(within) => import::examine_with_backing(context, &ask, within).await?,
            None => import::examine(context, &ask).await?,
        });
    }
    let uuid = request.uuid.unwrap_or_else(Uuid::new_v4);
    runtime_directory(context, uuid)?;
    let uefi = (request.firmware == Firmware::Uefi).then(firmware::find).transpose()?;
    let probe = Probe::get(context)?;
    let machine = probe.machine(&request.machine)?;

    let image: Vec<&Name> = request.image.iter().map(|image| &image.name).collect();
    let store_lock = context.store.lock_for(context, &image).await?;
    probe.keep(context);
    change::recover::sweep(context, &store_lock).await?;
    if let Some((other, _)) = context.store.records()?.iter().find(|(_, record)| request.uuid == Some(record.uuid)) {
        return Err(Error::exists(format!("{other} has the UUID {uuid}")).hint("run the command again"));
    }
    for (at, (disk, candidate)) in request.disks.iter().zip(&candidates).enumerate() {
        let is_same =
            |(other, before): (&DiskRequest, &Candidate)| other.mode == Mode::Use && before.id == candidate.id;
        if disk.mode == Mode::Use && request.disks.iter().zip(&candidates).take(at).any(is_same) {
            return Err(Error::refused(format!("{} is named twice", candidate.path.display()))
                .hint("a file is one disk: name it once, or let it be copied"));
        }
        if disk.mode == Mode::Use {
            refuse_used_twice(&context.store, &candidate.path)?;
        }
    }
    // Its lock keeps the image while the VM is made.
    let image = match &request.image {
        Some(image) => Some(open_image(context, image).await?),
        None => None,
    };
    let lock = context.store.claim(context, &store_lock, name)?;
    // Nobody else may come to use the same file before our link to it is there; a copy, which takes long, needs no such care.
    let uses_files = request.disks.iter().any(|disk| disk.mode == Mode::Use);
    let _store_lock = uses_files.then_some(store_lock);

    let mut steps = Vec::new();
    let mut disks = Vec::new();
    if let Some(image) = &image {
        let layer = Layer::new(Format::Qcow2);
        let (backing, virtual_bytes) = (Some(image.layer.clone()), image.virtual_bytes);
        steps.push(Step::MakeLayer { layer: layer.clone(), backing, virtual_bytes });
        disks.push((layer, virtual_bytes, false));
    }
    for (request, candidate) in request.disks.iter().zip(candidates) {
        let virtual_bytes = candidate.virtual_bytes;
        let layer = match request.mode {
            Mode::Copy => copy(&mut steps, candidate),
            Mode::Use => {
                let layer = Layer::new(candidate.format);
                steps.push(Step::LinkFile { file: candidate.path, layer: layer.clone() });
                layer
            }
        };
        disks.push((layer, virtual_bytes, request.read_only));
    }
    for bytes in &request.blank {
        let layer = Layer::new(Format::Qcow2);
        steps.push(Step::MakeLayer { layer: layer.clone(), backing: None, virtual_bytes: *bytes });
        disks.push((layer, *bytes, false));
    }
    let disks = disks
        .into_iter()
        .enumerate()
        .map(|(index, (layer, virtual_bytes, read_only))| Disk {
            target: target(index),
            layer,
            virtual_bytes,
            read_only,
        })
        .collect();
    let nvram = uefi.map(|uefi| {
        // qcow2 from the beginning, so that internal snapshots have it, too.
        let layer = Layer::new(Format::Qcow2);
        let from = request.nvram.clone().unwrap_or(uefi.variables);
        let virtual_bytes = from.metadata().map_or(0, |about| about.len());
        steps.push(Step::WrapFile { from, layer: layer.clone() });
        Disk { target: "nvram".to_owned(), layer, virtual_bytes, read_only: false }
    });
    let record = Record {
        role: Role::Vm,
        uuid,
        created: Timestamp::now(),
        origin: image.as_ref().map(|image| image.origin.clone()),
        config: Config {
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
            log_limit: request.log_limit,
            seed: request.seed.clone(),
            credentials: request.credentials.clone(),
            tags: request.tags.clone(),
        },
        head: None,
        snapshots: Vec::new(),
        warm: None,
        ephemeral: None,
        autostart: request.autostart,
    };
    steps.push(Step::save(&record));
    change::run(context, &lock, Plan::new(steps), &mut Executor::with_no_qemu(context, name)).await?;
    Ok(record)
}

/// An image that a disk is about to stand on.
struct Image {
    origin: Origin,
    layer: Layer,
    virtual_bytes: u64,
    _lock: VmLock,
}

async fn open_image(context: &Context, image: &OnImage) -> Result<Image> {
    let OnImage { name, uuid, size } = image;
    let (lock, record) = open::open(context, name).await?;
    if uuid.is_some_and(|uuid| uuid != record.uuid) {
        return Err(
            Error::refused(format!("image {name} was replaced by another one meanwhile")).hint("run the command again")
        );
    }
    let (Some(_), [disk]) = (record.image(), &record.config.disks[..]) else {
        return Err(Error::refused(format!("{name} is a {}, not an image", record.kind()))
            .hint(format!("make a VM of it with a clone: cowhand clone {name} NEW")));
    };
    freeze::check_untouched(&context.store, name, &record)?;
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
    Ok(Image { origin, layer: disk.layer.clone(), virtual_bytes, _lock: lock })
}

/// Adds the steps that copy a file and its backing files, the lowest first. Returns the layer of the file.
fn copy(steps: &mut Vec<Step>, candidate: Candidate) -> Layer {
    let backing = candidate.backing.map(|below| copy(steps, *below));
    let layer = Layer::new(candidate.format);
    steps.push(Step::CopyFile { from: candidate.path, id: Some(candidate.id), layer: layer.clone(), backing });
    layer
}

/// `vda`, `vdb`, …
fn target(index: usize) -> String {
    format!("vd{}", char::from(b'a' + u8::try_from(index).unwrap_or(25).min(25)))
}

/// Refuses what no VM can be, without looking at any image.
pub fn check(request: &Request) -> Result<()> {
    check_machine(request.memory_bytes, request.cpus, request.cpu.as_deref())?;
    let size = request.image.iter().filter_map(|image| image.size);
    if let Some(bytes) = size.into_iter().find(|bytes| *bytes == 0 || !bytes.is_multiple_of(512)) {
        return Err(Error::usage(format!("a disk of {bytes} bytes is not a whole number of 512-byte sectors")));
    }
    if request.image.iter().count() + request.disks.len() + request.blank.len() > DISKS_MAX {
        return Err(Error::usage(format!("a VM has at most {DISKS_MAX} disks")));
    }
    if request.blank.contains(&0) {
        return Err(Error::usage("a disk of 0 bytes is no disk").hint("say, for example, --size 20G"));
    }
    if let Some(bytes) = request.blank.iter().find(|bytes| !bytes.is_multiple_of(512)) {
        return Err(Error::usage(format!("a disk of {bytes} bytes is not a whole number of 512-byte sectors")));
    }
    let has_disk = request.image.is_some() || !request.disks.is_empty() || !request.blank.is_empty();
    if !has_disk && request.kernel.is_none() {
        return Err(Error::usage("a VM needs something to boot from").hint(
            "--image debian:12 for a cloud image, --disk FILE for an image file, --size 20G for a blank disk, or --kernel FILE",
        ));
    }
    if let Some(boot) = &request.kernel {
        check_kernel(boot)?;
    }
    Ok(())
}

/// The kernel and initrd have to be there, or QEMU would say so much later.
pub fn check_kernel(boot: &KernelBoot) -> Result<()> {
    for (what, path) in [("kernel", Some(&boot.kernel)), ("initrd", boot.initrd.as_ref())] {
        let Some(path) = path else { continue };
        if path.to_str().is_none() {
            return Err(Error::refused(format!("the path of the {what} is not UTF-8: {}", path.display())));
        }
        if !path.is_file() {
            return Err(Error::not_found(format!("there is no {what} {}", path.display()))
                .hint("it is not copied into the store; name another: cowhand set NAME kernel=FILE initrd=FILE"));
        }
    }
    Ok(())
}

/// Numbers no machine can have, and names that would be taken for options.
pub(super) fn check_machine(memory_bytes: u64, cpus: u32, cpu: Option<&str>) -> Result<()> {
    if memory_bytes < MEMORY_MIN {
        return Err(
            Error::usage(format!("{memory_bytes} bytes of memory are too few")).hint("say, for example, --memory 1G")
        );
    }
    if !memory_bytes.is_multiple_of(1 << 20) {
        return Err(Error::usage(format!("{memory_bytes} bytes of memory are not a whole number of MiB")));
    }
    if cpus == 0 || cpus > 255 {
        return Err(Error::usage(format!("a machine has 1 to 255 CPUs, not {cpus}")));
    }
    if let Some(cpu) = cpu.filter(|cpu| !cpu.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+,=".contains(c))) {
        return Err(Error::usage(format!("{cpu:?} is not a CPU model")).hint("see: qemu-system-x86_64 -cpu help"));
    }
    Ok(())
}

fn refuse_used_twice(store: &Store, file: &Path) -> Result<()> {
    if store.layout.root().canonicalize().is_ok_and(|root| file.starts_with(root)) {
        return Err(Error::refused(format!("{} belongs to the store", file.display()))
            .hint("clone the VM it belongs to: cowhand clone NAME NEW"));
    }
    let Ok(entries) = std::fs::read_dir(store.layout.layers()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == file) {
            return Err(Error::refused(format!("{} is used by another VM of this store", file.display()))
                .hint("give each VM a file of its own: --disk FILE,copy"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_path_may_contain_commas_and_options_come_last() {
        let disk: DiskRequest = "/a,b/c.img,use,format=raw,ro".parse().expect("a disk");
        assert_eq!(disk.path, Path::new("/a,b/c.img"));
        assert_eq!((disk.mode, disk.format, disk.read_only), (Mode::Use, Some(Format::Raw), true));
        let plain: DiskRequest = "json:{},x".parse().expect("a disk");
        assert_eq!((plain.path.as_path(), plain.mode), (Path::new("json:{},x"), Mode::Copy));
        assert!(",use".parse::<DiskRequest>().is_err());
        assert!("a.img,format=floppy".parse::<DiskRequest>().is_err());
    }

    #[test]
    fn machines_that_cannot_be_are_refused() {
        assert!(check_machine(1 << 30, 2, Some("Skylake-Client,+vmx")).is_ok());
        for (memory, cpus, cpu) in
            [(0, 1, None), (1 << 30, 0, None), ((1 << 30) + 1, 1, None), (1 << 30, 1, Some("a b"))]
        {
            assert!(check_machine(memory, cpus, cpu).is_err());
        }
    }
}
