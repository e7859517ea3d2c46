//! `export --libvirt`: a VM, or a point of it, becomes a directory from which libvirt takes it
//! over.
//!
//! | of | its disks become | its snapshots |
//! |---|---|---|
//! | a VM with snapshots | the layers, as files that back each other | XML for virsh |
//! | a VM without, a template, `VM@S` | one file for each disk | none |
//!
//! That XML is for `virsh snapshot-create --redefine`.
//!
//! The directory is written beside its place and renamed, so it is there whole or not at all.
//! Nothing changes in the store.

mod domain;
mod tree;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use domain::Export;
pub use tree::Written;

use super::Note;
use super::xml::Notes;
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::image::file::{self, Of, Target};
use crate::instance::status;
use crate::model::{Config, Format, Name, PointRef, printable};
use crate::qemu::accel::{self, Host};
use crate::store::atomic;
use crate::sys::files;

/// QEMU may be another user, who has to come through; the files in it are given to that one by
/// libvirt.
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

impl Exported {
    /// The commands with which libvirt takes `vm` over.
    pub fn commands(&self, vm: &Name) -> Vec<String> {
        let create = |snapshot: &Written| {
            let current = if snapshot.is_current { " --current" } else { "" };
            format!(
                "virsh snapshot-create {vm} {} --redefine{current}",
                printable::shell(&snapshot.xml)
            )
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
        return Err(Error::refused(format!(
            "{vm} is running: its disks change while they would be written out"
        ))
        .hint(format!(
            "stop it, or export a snapshot: cowhand export --libvirt {vm}@SNAPSHOT DIR"
        )));
    }
    let directory = std::path::absolute(directory).on("find", directory)?;
    let scratch = scratch(context, &directory)?;
    let mut export = Export {
        context,
        vm,
        record,
        directory: &directory,
        scratch: scratch.path(),
        kind: if accel::choose(context.settings.accel, &Host::observe())?.accel == "kvm" {
            "kvm"
        } else {
            "qemu"
        },
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
        return Err(Error::exists(format!("{} is there already", directory.display()))
            .hint("name a directory that is new"));
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

impl Export<'_> {
    /// One file for each disk.
    async fn flat(
        &mut self,
        config: &Config,
        tag: Option<&str>,
    ) -> Result<(PathBuf, Vec<Written>)> {
        for disk in &config.disks {
            let path = self.scratch.join(format!("{}.qcow2", disk.target));
            let to = Target { path, format: Some(Format::Qcow2), force: false };
            file::export_disk(self.context, Of { disk, tag }, &to).await?;
        }
        let directory = self.directory.to_owned();
        let file =
            move |target: &str| Some((directory.join(format!("{target}.qcow2")), Format::Qcow2));
        let xml = self.domain(config, tag, file).await?;
        Ok((xml, Vec::new()))
    }
}
