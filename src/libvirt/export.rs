//! `export --libvirt`: a VM, or a point of it, becomes a directory from which libvirt takes it over.
//!
//! | of | its disks become | its snapshots |
//! |---|---|---|
//! | a VM with snapshots | the layers, as files that back each other | XML for `virsh snapshot-create --redefine` |
//! | a VM without, a template, `VM@S` | one file for each disk | none |
//!
//! The directory is written beside its place and renamed, so it is there whole or not at all. Nothing changes in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::xml::Notes;
use super::{Note, write};
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::image::file::{self, Of, Target};
use crate::instance::status;
use crate::layer::{chain, copy, info, inner};
use crate::model::{Config, Disk, Firmware, Format, Layer, Name, Nic, PointRef, Record, Snapshot, printable};
use crate::qemu::accel::{self, Host};
use crate::qemu::firmware;
use crate::qemu::img::Img;
use crate::snapshot::internal;
use crate::store::atomic;
use crate::sys::{files, image_lock};

/// The directory for the XML of snapshots.
const SNAPSHOTS: &str = "snapshots";
/// QEMU may be another user, who has to come through; the files in it are given to that one by libvirt.
const DIRECTORY_MODE: u32 = 0o711;

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The XML of the domain.
    pub xml: PathBuf,
    /// Its snapshots, the parents first.
    pub snapshots: Vec<Written>,
    /// What becomes of each part of the VM.
    pub notes: Vec<Note>,
}

/// A snapshot that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its name.
    pub name: Name,
    /// Its XML.
    pub xml: PathBuf,
    /// The disks follow it.
    pub is_current: bool,
}

impl Exported {
    /// The commands with which libvirt takes `vm` over.
    pub fn commands(&self, vm: &Name) -> Vec<String> {
        let create = |snapshot: &Written| {
            let current = if snapshot.is_current { " --current" } else { "" };
            format!("virsh snapshot-create {vm} {} --redefine{current}", printable::shell(&snapshot.xml))
        };
        let define = format!("virsh define {}", printable::shell(&self.xml));
        std::iter::once(define).chain(self.snapshots.iter().map(create)).collect()
    }
}

/// Writes `point` into the new directory `directory`.
pub async fn export(context: &Context, point: &PointRef, directory: &Path) -> Result<Exported> {
    // Keeps the layers from being merged meanwhile.
    let opened = OpenVm::open(context, &point.vm).await?;
    let (vm, record) = (&point.vm, &opened.record);
    if point.snapshot.is_none() && opened.is_running()? {
        return Err(Error::refused(format!("{vm} is running: its disks change while they would be written out"))
            .hint(format!("stop it, or export a snapshot: cowhand export --libvirt {vm}@SNAPSHOT DIR")));
    }
    let directory = std::path::absolute(directory).on("find", directory)?;
    let scratch = scratch(context, &directory)?;
    let mut export = Export {
        context,
        vm,
        record,
        directory: &directory,
        scratch: scratch.path(),
        kind: if accel::choose(context.settings.accel, &Host::observe())?.accel == "kvm" { "kvm" } else { "qemu" },
        notes: Notes(Vec::new()),
    };
    let (xml, snapshots) = match &point.snapshot {
        None if !record.snapshots.is_empty() => export.tree().await?,
        None => export.flat(&record.config, None).await?,
        Some(name) => {
            let snapshot = record.snapshot(vm, name)?;
            export.flat(&snapshot.config, snapshot.tag()).await?
        }
    };
    let notes = export.notes.0;
    if point.snapshot.is_none() && status::is_running(context, vm)? {
        return Err(Error::refused(format!("{vm} was started by hand while it was written out")));
    }
    let mode = std::fs::Permissions::from_mode(DIRECTORY_MODE);
    std::fs::set_permissions(scratch.path(), mode).on("open", scratch.path())?;
    atomic::sync_directory(scratch.path())?;
    files::rename_new(scratch.path(), &directory).on("make", &directory)?;
    drop(scratch.keep());
    atomic::sync_directory(directory.parent().unwrap_or(Path::new("/")))?;
    Ok(Exported { xml, snapshots, notes })
}

/// A directory beside the one that is to be made, which must not be there.
fn scratch(context: &Context, directory: &Path) -> Result<tempfile::TempDir> {
    if directory.symlink_metadata().is_ok() {
        return Err(
            Error::exists(format!("{} is there already", directory.display())).hint("name a directory that is new")
        );
    }
    let parent = directory.parent().unwrap_or(Path::new("/"));
    let real = parent.canonicalize().on("find", parent)?;
    if context.store.layout.root().canonicalize().is_ok_and(|root| real.starts_with(root)) {
        return Err(Error::refused(format!(
            "{} lies in the store, which is not written to by hand",
            directory.display()
        )));
    }
    if directory.to_str().is_none() {
        return Err(Error::refused(format!("the path {} is not UTF-8", directory.display())));
    }
    tempfile::Builder::new().prefix(".cowhand-").tempdir_in(parent).on("write in", parent)
}

struct Export<'a> {
    context: &'a Context,
    vm: &'a Name,
    record: &'a Record,
    /// What it will be.
    directory: &'a Path,
    /// What it is called until then.
    scratch: &'a Path,
    /// `kvm` or `qemu`.
    kind: &'static str,
    notes: Notes,
}

/// The XML of the domain, and its snapshots.
type Made = (PathBuf, Vec<Written>);

impl Export<'_> {
    /// One file for each disk.
    async fn flat(&mut self, config: &Config, tag: Option<&str>) -> Result<Made> {
        for disk in &config.disks {
            let path = self.scratch.join(format!("{}.qcow2", disk.target));
            let to = Target { path, format: Some(Format::Qcow2), force: false };
            file::export_disk(self.context, Of { disk, tag }, &to).await?;
        }
        let directory = self.directory.to_owned();
        let file = move |target: &str| Some((directory.join(format!("{target}.qcow2")), Format::Qcow2));
        let xml = self.domain(config, tag, file).await?;
        Ok((xml, Vec::new()))
    }

    /// The XML of the domain with this configuration.
    async fn domain(
        &mut self,
        config: &Config,
        tag: Option<&str>,
        file: impl Fn(&str) -> Option<(PathBuf, Format)>,
    ) -> Result<PathBuf> {
        let uefi = self.uefi(config, tag).await?;
        let drives = write::drives(config, file, &mut self.notes);
        self.tell(config);
        let text = self.text(config, &drives, uefi);
        self.put(Path::new(&format!("{}.xml", self.vm)), &text)
    }

    fn text(&self, config: &Config, drives: &[write::Drive], uefi: Option<(PathBuf, PathBuf)>) -> String {
        write::domain(&write::Parts { name: self.vm, uuid: self.record.uuid, kind: self.kind, drives, uefi }, config)
    }

    fn put(&self, name: &Path, text: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        // A kernel's command line or a description can have secrets in it.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all())).on("write", &path)?;
        Ok(self.directory.join(name))
    }

    /// Writes the UEFI variables.
    async fn uefi(&mut self, config: &Config, tag: Option<&str>) -> Result<Option<(PathBuf, PathBuf)>> {
        let (Firmware::Uefi, Some(nvram)) = (config.firmware, &config.nvram) else { return Ok(None) };
        let name = format!("{}_VARS.fd", self.vm);
        let to = Target { path: self.scratch.join(&name), format: Some(Format::Raw), force: false };
        file::export_disk(self.context, Of { disk: nvram, tag }, &to).await?;
        let code = firmware::find()?.code;
        self.notes.kept("firmware", format!("UEFI, {}", code.display()));
        Ok(Some((code, self.directory.join(name))))
    }

    /// What becomes of all but the disks.
    fn tell(&mut self, config: &Config) {
        let notes = &mut self.notes;
        for nic in &config.nics {
            let what = format!("network card {}", nic.mac);
            notes.kept(what.clone(), "user network");
            if !nic.ports.is_empty() {
                let ports: Vec<String> = nic.ports.iter().map(ToString::to_string).collect();
                notes.left(format!("{what}, ports"), format!("{}: libvirt forwards none here", ports.join(" ")));
            }
        }
        notes.kept("domain type", self.kind);
        notes.kept("machine", format!("{}, which the QEMU of libvirt has to have", config.machine));
        let (_, words) = write::cpu(self.kind, config.cpu.as_deref());
        words.into_iter().for_each(|word| notes.left("CPU model", format!("{word}: libvirt has no such word")));
        let moved = |nic: &&Nic| nic.place.is_some() && write::place(nic, config.is_q35()).is_none();
        for nic in config.nics.iter().filter(moved) {
            notes.changed(format!("network card {}, PCI", nic.mac), "libvirt gives it another slot");
        }
        if self.record.autostart {
            notes.left("autostart", format!("virsh autostart {}", self.vm));
        }
        if config.kernel.is_some() {
            notes.kept("kernel", "stays where it is");
        }
        if config.seed.is_some() {
            notes.left("cloud-init", "its seed is made anew for each start, which libvirt does not do");
        }
        if !config.credentials.is_empty() {
            notes.left("credentials", "would be readable in the XML");
        }
        let tags = config.tags.keys().filter(|key| *key != "description");
        tags.for_each(|key| notes.left(format!("tag.{key}"), "has no counterpart"));
        notes.changed("PCI addresses", "of devices other than placed network cards are those that libvirt gives");
    }

    /// The layers as they are, and the snapshots.
    async fn tree(&mut self) -> Result<Made> {
        let record = self.record;
        let mut kept: Vec<&Snapshot> = Vec::new();
        for snapshot in &record.snapshots {
            match self.why_not(snapshot) {
                None => kept.push(snapshot),
                Some(why) => self.notes.left(format!("snapshot {}", snapshot.name), why),
            }
        }
        let configs = kept.iter().map(|snapshot| &snapshot.config);
        let (mut layers, mut above) = (BTreeSet::new(), BTreeMap::new());
        for disk in configs.flat_map(|config| &config.disks) {
            self.walk(disk, &mut layers, &mut above)?;
        }
        let mut above_head = BTreeMap::new();
        for disk in &record.config.disks {
            self.walk(disk, &mut layers, &mut above_head)?;
        }
        above.extend(above_head.clone());
        for layer in &layers {
            // Under its own name, by which the layers on it know it.
            copy::out(self.context, layer, &self.scratch.join(layer.file_name())).await?;
        }
        let named = self.name_inner(&kept, &layers).await?;
        for snapshot in kept.extract_if(.., |snapshot| !named.contains(&snapshot.name)) {
            let why = "there is another one of that name or number inside the images";
            self.notes.left(format!("snapshot {}", snapshot.name), why);
        }
        let files: BTreeMap<&String, (PathBuf, Format)> = record
            .config
            .disks
            .iter()
            .map(|disk| (&disk.target, (self.directory.join(disk.layer.file_name()), disk.layer.format)))
            .collect();
        let xml = self.domain(&record.config, None, |target| files.get(&target.to_owned()).cloned()).await?;
        let current = record.head.as_ref().and_then(|head| nearest(record, head, &kept));
        let directory = self.scratch.join(SNAPSHOTS);
        std::fs::create_dir(&directory).on("make", &directory)?;
        let mut written = Vec::new();
        for snapshot in &kept {
            let what = format!("snapshot {}", snapshot.name);
            let is_current = current == Some(&snapshot.name);
            // libvirt removes these files when it reverts from the current one: they must be those of the head.
            let above = if is_current { &above_head } else { &above };
            let xml = self.snapshot(snapshot, &kept, above, written.len())?;
            self.notes.kept(what.clone(), snapshot.kind.as_str());
            if snapshot.memory.is_some() {
                self.notes.left(format!("{what}, memory"), "libvirt's machine has other devices");
            }
            if snapshot.config.firmware == Firmware::Uefi {
                self.notes.changed(format!("{what}, UEFI variables"), "are those of today");
            }
            written.push(Written { name: snapshot.name.clone(), xml, is_current });
        }
        atomic::sync_directory(&directory)?;
        Ok((xml, written))
    }

    /// Why a snapshot cannot come over.
    fn why_not(&self, snapshot: &Snapshot) -> Option<&'static str> {
        let tag = snapshot.tag()?;
        if snapshot.config.nvram.is_some() {
            return Some("libvirt has no internal snapshots of a domain with UEFI");
        }
        if !internal::is_in_head(self.record, snapshot) {
            return Some(
                "it is inside layers that were sealed later, or of other disks: libvirt does not look for it there",
            );
        }
        let is_number = snapshot.name.as_str().bytes().all(|byte| byte.is_ascii_digit());
        if is_number && tag != snapshot.name.as_str() {
            return Some("QEMU could take its name for the number of another one");
        }
        snapshot.memory.is_some().then_some("it holds memory, which libvirt cannot resume")
    }

    /// Adds the layers of a disk, and of each which one is on it.
    fn walk(&self, disk: &Disk, layers: &mut BTreeSet<Layer>, above: &mut BTreeMap<Layer, Layer>) -> Result<()> {
        let store = &self.context.store;
        let chain = chain::whole(store, &disk.layer)?;
        for pair in chain.links().windows(2) {
            above.insert(pair[1].layer.clone(), pair[0].layer.clone());
        }
        for link in chain.links() {
            let flat =
                format!("a snapshot becomes one file for each disk: cowhand export --libvirt {}@SNAPSHOT DIR", self.vm);
            if link.layer.format == Format::Vhdx {
                return Err(Error::refused(format!("layer {} is VHDX, which libvirt has not", link.layer)).hint(flat));
            }
            if link.layer.format == Format::Qcow2 && info::inspect(store, &link.layer)?.guest_memory {
                return Err(Error::refused(format!(
                    "layer {} still holds memory that a revert has loaded",
                    link.layer
                ))
                .hint(format!("it goes when the VM has been started and stopped: cowhand start {}", self.vm))
                .hint(flat));
            }
            if image_lock::is_written_to(&link.path).on("look at the locks of", &link.path)? {
                return Err(Error::refused(format!("{} is in use: a running QEMU writes to it", link.path.display())));
            }
            layers.insert(link.layer.clone());
        }
        Ok(())
    }

    /// Writes the XML of a snapshot.
    fn snapshot(
        &self,
        snapshot: &Snapshot,
        kept: &[&Snapshot],
        above: &BTreeMap<Layer, Layer>,
        at: usize,
    ) -> Result<PathBuf> {
        let place = |layer: &Layer| self.directory.join(layer.file_name());
        let config = &snapshot.config;
        let layer = |target: &str| config.disks.iter().find(|disk| disk.target == target).map(|disk| &disk.layer);
        let drives = write::drives(
            config,
            |target| layer(target).map(|layer| (place(layer), layer.format)),
            &mut Notes(Vec::new()),
        );
        let overlay = |(disk, drive): (&Disk, &write::Drive)| {
            // Where nothing follows it, there is none.
            let file = above
                .get(&disk.layer)
                .map_or_else(|| self.directory.join(format!("{}-after-{}.qcow2", disk.target, snapshot.name)), place);
            (drive.target.clone(), file)
        };
        let overlays: Vec<(String, PathBuf)> =
            config.disks.iter().zip(&drives).filter(|(disk, _)| !disk.read_only).map(overlay).collect();
        let uefi = match config.firmware {
            Firmware::Uefi => Some((firmware::find()?.code, self.directory.join(format!("{}_VARS.fd", self.vm)))),
            Firmware::Bios => None,
        };
        let domain = self.text(config, &drives, uefi);
        let overlays = is_external(snapshot).then_some(&overlays[..]);
        let parent = snapshot.parent.as_ref().and_then(|parent| nearest(self.record, parent, kept));
        let text = write::snapshot(snapshot, parent, &drives, overlays, &domain);
        self.put(&Path::new(SNAPSHOTS).join(format!("{:03}-{}.xml", at + 1, snapshot.name)), &text)
    }

    /// In the copies, internal snapshots get the names that libvirt looks for, and all others go. Returns
    /// the snapshots that are as they should be.
    async fn name_inner(&self, kept: &[&Snapshot], layers: &BTreeSet<Layer>) -> Result<BTreeSet<Name>> {
        let inner: Vec<(&Name, &str)> = kept.iter().filter_map(|one| Some((&one.name, one.tag()?))).collect();
        let mut named: BTreeSet<Name> = kept.iter().map(|one| one.name.clone()).collect();
        let copies = || layers.iter().map(|layer| self.scratch.join(layer.file_name()));
        let img = Img::find(self.context)?.reading(copies());
        let heads: BTreeSet<&Layer> = self.record.config.writable().map(|disk| &disk.layer).collect();
        let mut inside: BTreeMap<&Layer, Vec<String>> = BTreeMap::new();
        for layer in layers.iter().filter(|layer| layer.format == Format::Qcow2) {
            let path = self.scratch.join(layer.file_name());
            let found = inner::read(&File::open(&path).on("open", &path)?, &path)?;
            if heads.contains(layer) {
                for (name, tag) in &inner {
                    let is_other = |one: &&inner::Inner| {
                        one.name != *tag && (one.name == name.as_str() || one.id == name.as_str())
                    };
                    let own = found.iter().filter(|one| one.name == *tag).count();
                    if own != 1 || found.iter().any(|one| is_other(&one)) {
                        named.remove(*name);
                    }
                }
            }
            inside.insert(layer, found.into_iter().map(|one| one.name).collect());
        }
        for (layer, tags) in inside {
            let path = self.scratch.join(layer.file_name());
            let wanted: Vec<&(&Name, &str)> =
                inner.iter().filter(|(name, _)| named.contains(*name) && heads.contains(layer)).collect();
            for tag in tags.iter().filter(|tag| !wanted.iter().any(|(_, wanted)| tag == wanted)) {
                img.delete(&path, tag).await?;
            }
            let renamed: Vec<_> = wanted.into_iter().filter(|(name, tag)| name.as_str() != *tag).collect();
            if renamed.is_empty() {
                continue;
            }
            let now = internal::free_tag();
            img.snapshot(&path, &now).await?;
            for (name, tag) in renamed {
                img.apply(&path, tag).await?;
                img.snapshot(&path, name.as_str()).await?;
                img.delete(&path, tag).await?;
            }
            img.apply(&path, &now).await?;
            img.delete(&path, &now).await?;
        }
        Ok(named)
    }
}

/// The snapshot `name`, or the nearest ancestor of it that is exported.
fn nearest<'a>(record: &'a Record, name: &'a Name, kept: &[&Snapshot]) -> Option<&'a Name> {
    let mut next = Some(name);
    while let Some(name) = next.filter(|name| !kept.iter().any(|one| one.name == **name)) {
        next = record.snapshots.iter().find(|one| one.name == *name).and_then(|one| one.parent.as_ref());
    }
    next
}

fn is_external(snapshot: &Snapshot) -> bool {
    snapshot.tag().is_none()
}
