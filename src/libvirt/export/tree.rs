//! A VM with its snapshots: the layers as they are, and the XML of each snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use super::super::write;
use super::super::xml::Notes;
use super::domain::Export;
use crate::error::{Error, IoContext, Result};
use crate::layer::{chain, copy, info, inner};
use crate::model::{Disk, Firmware, Format, Layer, Name, Record, Snapshot};
use crate::qemu::firmware;
use crate::qemu::img::Img;
use crate::snapshot::internal;
use crate::store::atomic;
use crate::sys::image_lock;

/// The directory for the XML of snapshots.
const SNAPSHOTS: &str = "snapshots";

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

/// The XML of the domain, and its snapshots.
type Made = (PathBuf, Vec<Written>);

impl Export<'_> {
    /// The layers as they are, and the snapshots.
    pub(super) async fn tree(&mut self) -> Result<Made> {
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
            .map(|disk| {
                (&disk.target, (self.directory.join(disk.layer.file_name()), disk.layer.format))
            })
            .collect();
        let xml = self
            .domain(&record.config, None, |target| files.get(&target.to_owned()).cloned())
            .await?;
        let current = record.current.as_ref().and_then(|head| nearest(record, head, &kept));
        let directory = self.scratch.join(SNAPSHOTS);
        std::fs::create_dir(&directory).on("make", &directory)?;
        let mut written = Vec::new();
        for snapshot in &kept {
            let what = format!("snapshot {}", snapshot.name);
            let is_current = current == Some(&snapshot.name);
            // libvirt removes these files when it reverts from the current one: they must be those
            // of the head.
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
                "it is inside layers that were sealed later, or of other disks: libvirt does not \
                 look for it there",
            );
        }
        let is_number = snapshot.name.as_str().bytes().all(|byte| byte.is_ascii_digit());
        if is_number && tag != snapshot.name.as_str() {
            return Some("QEMU could take its name for the number of another one");
        }
        snapshot.memory.is_some().then_some("it holds memory, which libvirt cannot resume")
    }

    /// Adds the layers of a disk, and of each which one is on it.
    fn walk(
        &self,
        disk: &Disk,
        layers: &mut BTreeSet<Layer>,
        above: &mut BTreeMap<Layer, Layer>,
    ) -> Result<()> {
        let store = &self.context.store;
        let chain = chain::whole(store, &disk.layer)?;
        for pair in chain.links().windows(2) {
            above.insert(pair[1].layer.clone(), pair[0].layer.clone());
        }
        for link in chain.links() {
            let flat = format!(
                "a snapshot becomes one file for each disk: cowhand export --libvirt {}@SNAPSHOT \
                 DIR",
                self.vm
            );
            if link.layer.format == Format::Vhdx {
                return Err(Error::refused(format!(
                    "layer {} is VHDX, which libvirt has not",
                    link.layer
                ))
                .hint(flat));
            }
            if link.layer.format == Format::Qcow2 && info::inspect(store, &link.layer)?.guest_memory
            {
                return Err(Error::refused(format!(
                    "layer {} still holds memory that a revert has loaded",
                    link.layer
                ))
                .hint(format!(
                    "it goes when the VM has been started and stopped: cowhand start {}",
                    self.vm
                ))
                .hint(flat));
            }
            if image_lock::is_written_to(&link.path).on("look at the locks of", &link.path)? {
                return Err(Error::refused(format!(
                    "{} is in use: a running QEMU writes to it",
                    link.path.display()
                )));
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
        let layer = |target: &str| {
            config.disks.iter().find(|disk| disk.target == target).map(|disk| &disk.layer)
        };
        let drives = write::drives(
            config,
            |target| layer(target).map(|layer| (place(layer), layer.format)),
            &mut Notes(Vec::new()),
        );
        let overlay = |(disk, drive): (&Disk, &write::Drive)| {
            // Where nothing follows it, there is none.
            let file = above.get(&disk.layer).map_or_else(
                || self.directory.join(format!("{}-after-{}.qcow2", disk.target, snapshot.name)),
                place,
            );
            (drive.target.clone(), file)
        };
        let overlays: Vec<(String, PathBuf)> = config
            .disks
            .iter()
            .zip(&drives)
            .filter(|(disk, _)| !disk.read_only)
            .map(overlay)
            .collect();
        let uefi = match config.firmware {
            Firmware::Uefi => {
                Some((firmware::find()?.code, self.directory.join(format!("{}_VARS.fd", self.vm))))
            }
            Firmware::Bios => None,
        };
        let domain = self.text(config, &drives, uefi);
        let overlays = is_external(snapshot).then_some(&overlays[..]);
        let parent = snapshot.parent.as_ref().and_then(|parent| nearest(self.record, parent, kept));
        let text = write::snapshot(snapshot, parent, &drives, overlays, &domain);
        self.put(&Path::new(SNAPSHOTS).join(format!("{:03}-{}.xml", at + 1, snapshot.name)), &text)
    }

    /// In the copies, internal snapshots get the names that libvirt looks for, and all others go.
    /// Returns the snapshots that are as they should be.
    async fn name_inner(
        &self,
        kept: &[&Snapshot],
        layers: &BTreeSet<Layer>,
    ) -> Result<BTreeSet<Name>> {
        let inner: Vec<(&Name, &str)> =
            kept.iter().filter_map(|one| Some((&one.name, one.tag()?))).collect();
        let mut named: BTreeSet<Name> = kept.iter().map(|one| one.name.clone()).collect();
        let copies = || layers.iter().map(|layer| self.scratch.join(layer.file_name()));
        let img = Img::find(self.context)?.reading(copies());
        let heads: BTreeSet<&Layer> =
            self.record.config.writable().map(|disk| &disk.layer).collect();
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
            let wanted: Vec<&(&Name, &str)> = inner
                .iter()
                .filter(|(name, _)| named.contains(*name) && heads.contains(layer))
                .collect();
            for tag in tags.iter().filter(|tag| !wanted.iter().any(|(_, wanted)| tag == wanted)) {
                img.delete(&path, tag).await?;
            }
            let renamed: Vec<_> =
                wanted.into_iter().filter(|(name, tag)| name.as_str() != *tag).collect();
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
        next = record
            .snapshots
            .iter()
            .find(|one| one.name == *name)
            .and_then(|one| one.parent.as_ref());
    }
    next
}

fn is_external(snapshot: &Snapshot) -> bool {
    snapshot.tag().is_none()
}
