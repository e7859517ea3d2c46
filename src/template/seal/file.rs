//! Sealing image files that belong to no VM, in place or into a new file.
//!
//! ```text
//! disk.qcow2 ◀── .disk.qcow2.cowhand-sealing     the appliance works on it; thrown away unless all of it worked
//!            ◀── .disk.qcow2.cowhand-sealed      renamed: from here on it is carried on, by whoever comes next
//! disk.qcow2                                     committed (`block-commit`), overlay removed
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Report;
use super::vm::Sealing;
use crate::appliance::boot::Drive;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::image::{self, Target, Written};
use crate::layer::create;
use crate::model::Format;
use crate::qemu::img::Img;
use crate::qemu::offline::Offline;
use crate::qemu::qmp::jobs::Milestone;
use crate::store::atomic;
use crate::sys::{flock, image_lock};

/// A directory for overlays that are thrown away.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// An empty one.
    pub fn new() -> Result<Self> {
        tempfile::tempdir()
            .map(Self)
            .map_err(|source| Error::failed("cannot make a temporary directory").because(source))
    }

    /// The overlay of the disk with this number.
    pub fn path(&self, number: usize) -> PathBuf {
        self.0.path().join(format!("{number}.qcow2"))
    }
}

/// The block nodes of an overlay on the node `below`.
pub fn overlay_nodes(name: &str, path: &Path, below: &str) -> [Value; 2] {
    let file = format!("{name}-file");
    [
        json!({"driver": "file", "node-name": file, "filename": path, "discard": "unmap"}),
        json!({"driver": "qcow2", "node-name": name, "file": file, "backing": below, "discard": "unmap"}),
    ]
}

/// One image.
struct Disk {
    path: PathBuf,
    format: Format,
    virtual_bytes: u64,
    /// Keeps other `seal`s away; QEMU's own locks are of another kind.
    _lock: File,
}

impl Disk {
    async fn open(context: &Context, path: &Path, format: Option<Format>) -> Result<Self> {
        let format = image::format_of(path, format)?;
        let path = path.canonicalize().on("find", path)?;
        if path.starts_with(context.store.layout.layers()) {
            return Err(Error::refused(format!("{} belongs to a VM", path.display()))
                .hint("seal the VM: cowhand template create VM"));
        }
        if image_lock::is_written_to(&path).on("look at the locks of", &path)? {
            return Err(Error::refused(format!("{} is in use: a running QEMU writes to it", path.display())));
        }
        let lock = File::open(&path).on("open", &path)?;
        if !flock::try_exclusive(&lock).on("lock", &path)? {
            return Err(Error::locked(format!("another command is sealing {}", path.display())));
        }
        let info = Img::find(context)?.info(&path, format).await?;
        Ok(Self { path, format, virtual_bytes: info.virtual_bytes, _lock: lock })
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.cowhand-{ending}"))
    }

    /// The overlay that is thrown away, and the one that is carried on.
    fn overlays(&self) -> (PathBuf, PathBuf) {
        (self.beside("sealing"), self.beside("sealed"))
    }

    /// Itself, read-only, with whatever it stands on.
    fn nodes(&self, number: usize) -> [Value; 2] {
        let file = format!("base{number}-file");
        [
            json!({"driver": "file", "node-name": file, "filename": self.path, "auto-read-only": true, "discard": "unmap"}),
            json!({"driver": self.format.as_str(), "node-name": format!("base{number}"), "file": file, "read-only": true, "discard": "unmap"}),
        ]
    }

    fn drive(&self, number: usize, overlay: &Path) -> Drive {
        let top = format!("top{number}");
        let mut nodes = self.nodes(number).to_vec();
        nodes.extend(overlay_nodes(&top, overlay, &format!("base{number}")));
        Drive { target: target(number), nodes, top }
    }
}

/// As the disks of a VM are called.
fn target(number: usize) -> String {
    format!("vd{}", char::from(b'a' + u8::try_from(number).unwrap_or(25).min(25)))
}

/// Seals `paths`, which are the disks of one guest. With `out`, they stay as they are and the one disk goes, sealed, into a new file.
pub async fn seal(
    context: &Context,
    paths: &[PathBuf],
    format: Option<Format>,
    out: Option<&Target>,
    dry_run: bool,
    sealing: &Sealing,
) -> Result<(Report, Option<Written>)> {
    let mut disks = Vec::new();
    for path in paths {
        let disk = Disk::open(context, path, format).await?;
        if disks.iter().any(|other: &Disk| other.path == disk.path) {
            return Err(Error::usage(format!("{} is named twice", path.display())));
        }
        disks.push(disk);
    }
    if disks.len() > 1 && out.is_some() {
        return Err(Error::usage("--out takes one disk, and these are several")
            .hint("copy them first (cowhand image convert), then seal the copies"));
    }
    if let Some(out) = out {
        image::check_target(context, out)?;
    }
    let scratch = Scratch::new()?;
    if dry_run || out.is_some() {
        let whole = |disk: &Disk| disk.path.to_string_lossy().into_owned();
        let drives = work_on(&disks, |_, number| scratch.path(number), whole)?;
        let report = sealing.carry_out(context, &drives, dry_run).await?;
        let written = match out.filter(|_| !dry_run) {
            Some(out) => Some(image::convert(context, &scratch.path(0), Some(Format::Qcow2), out).await?),
            None => None,
        };
        return Ok((report, written));
    }
    for disk in &disks {
        finish_earlier(context, disk).await?;
        if std::fs::metadata(&disk.path).on("read", &disk.path)?.permissions().readonly() {
            return Err(Error::refused(format!("{} is read-only", disk.path.display()))
                .hint("seal it into a new file: --out FILE"));
        }
    }
    let leftovers = Leftovers(disks.iter().map(|disk| disk.overlays().0).collect());
    let beside = |disk: &Disk| disk.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let drives = work_on(&disks, |disk, _| disk.overlays().0, beside)?;
    let report = sealing.carry_out(context, &drives, false).await?;
    for disk in &disks {
        let (sealing, sealed) = disk.overlays();
        std::fs::rename(&sealing, &sealed).on("rename", &sealing)?;
        atomic::sync_directory(disk.path.parent().unwrap_or(Path::new("/")))?;
    }
    drop(leftovers);
    for disk in &disks {
        commit(context, disk).await?;
    }
    Ok((report, None))
}

/// Overlays on the disks, which they know by `name`, and the drives made of them.
fn work_on(
    disks: &[Disk],
    place: impl Fn(&Disk, usize) -> PathBuf,
    name: impl Fn(&Disk) -> String,
) -> Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let overlay = place(disk, number);
        create::empty_at(&overlay, Some((&name(disk), disk.format)), disk.virtual_bytes)?;
        drives.push(disk.drive(number, &overlay));
    }
    Ok(drives)
}

/// Overlays that are removed unless they have been renamed by then.
struct Leftovers(Vec<PathBuf>);

impl Drop for Leftovers {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What an earlier command has left: an overlay that was not done is nothing, one that was is carried on.
async fn finish_earlier(context: &Context, disk: &Disk) -> Result<()> {
    let (sealing, sealed) = disk.overlays();
    let _ = std::fs::remove_file(&sealing);
    if sealed.exists() {
        commit(context, disk).await?;
        context.ui.note(&format!("{}: an earlier `seal` was cut short and has been completed", disk.path.display()));
    }
    Ok(())
}

/// Commits the overlay into the disk. Doing it again after it was cut short does no harm: the overlay has all of it.
async fn commit(context: &Context, disk: &Disk) -> Result<()> {
    const JOB: &str = "cw-seal";
    let (_, sealed) = disk.overlays();
    let mut engine = Offline::start(context, &[]).await?;
    for node in disk.nodes(0).into_iter().chain(overlay_nodes("top", &sealed, "base0")) {
        engine.qmp.add_node(node).await?;
    }
    let task = context.ui.task(&format!("writing {}", disk.path.display()), 0);
    engine.qmp.call::<Value>("block-commit", json!({"job-id": JOB, "device": "top", "auto-dismiss": false})).await?;
    let job = engine.qmp.wait_for_job(JOB, Milestone::Ready, &*task).await?;
    if job.status == "ready" {
        engine.qmp.complete_job(JOB).await?;
    }
    engine.qmp.wait_for_job(JOB, Milestone::Concluded, &*task).await?;
    engine.qmp.dismiss_job(JOB).await?;
    engine.quit().await;
    File::open(&disk.path).and_then(|file| file.sync_all()).on("flush", &disk.path)?;
    std::fs::remove_file(&sealed).on("remove", &sealed)?;
    atomic::sync_directory(disk.path.parent().unwrap_or(Path::new("/")))
}
