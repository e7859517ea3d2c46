//! Sealing image files that belong to no VM, in place (see [`pending`]) or into a new file.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Report;
use super::pending::{self, Order};
use super::vm::Sealing;
use crate::appliance::boot::Drive;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::image::{self, Target, Written};
use crate::layer::{create, import};
use crate::model::Format;
use crate::sys::flock;

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

/// The block nodes of an image that stands on nothing: itself, read-only until a commit writes to it.
pub fn base_nodes(name: &str, path: &Path, format: Format) -> [Value; 2] {
    let file = format!("{name}-file");
    let mut node =
        json!({"driver": format.as_str(), "node-name": name, "file": file, "read-only": true, "discard": "unmap"});
    if format == Format::Qcow2 {
        // Whatever its header says.
        node["backing"] = Value::Null;
    }
    [json!({"driver": "file", "node-name": file, "filename": path, "auto-read-only": true, "discard": "unmap"}), node]
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
    fn open(context: &Context, path: &Path, format: Option<Format>) -> Result<Self> {
        if let Some(vm) =
            path.to_str().and_then(|name| name.parse().ok()).filter(|vm| !path.exists() && context.store.exists(vm))
        {
            return Err(Error::not_found(format!("there is no file {vm}; {vm} is a VM"))
                .hint(format!("it is sealed on its way to a template: cowhand template create {vm}")));
        }
        let found = import::examine(context, path, format)?;
        let path = found.path;
        if is_a_layer(context, &path) {
            return Err(Error::refused(format!("{} is a disk of a VM of this store", path.display()))
                .hint("it is sealed with its VM, on its way to a template: cowhand template create VM"));
        }
        let lock = File::open(&path).on("open", &path)?;
        if !flock::try_exclusive(&lock).on("lock", &path)? {
            return Err(Error::locked(format!("another command is sealing {}", path.display())));
        }
        Ok(Self { path, format: found.format, virtual_bytes: found.virtual_bytes, _lock: lock })
    }

    fn drive(&self, number: usize, overlay: &Path) -> Drive {
        let top = format!("top{number}");
        let base = format!("base{number}");
        let mut nodes = base_nodes(&base, &self.path, self.format).to_vec();
        nodes.extend(overlay_nodes(&top, overlay, &base));
        Drive { target: target(number), nodes, top }
    }
}

/// Is it a layer of the store, or a file that is used as one in its place?
fn is_a_layer(context: &Context, path: &Path) -> bool {
    let layers = context.store.layout.layers();
    let used = |entry: std::fs::DirEntry| entry.path().canonicalize().is_ok_and(|layer| layer == path);
    path.starts_with(&layers) || std::fs::read_dir(layers).is_ok_and(|entries| entries.flatten().any(used))
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
    let mut disks: Vec<Disk> = Vec::new();
    for path in paths {
        if path.canonicalize().is_ok_and(|path| disks.iter().any(|other| other.path == path)) {
            return Err(Error::usage(format!("{} is named twice", path.display())));
        }
        disks.push(Disk::open(context, path, format)?);
    }
    if disks.len() > 1 && out.is_some() {
        return Err(Error::usage("--out takes one disk, and these are several")
            .hint("copy them first (cowhand image convert), then seal the copies"));
    }
    if let Some(out) = out {
        let (path, _) = image::check_target(context, out)?;
        if disks.iter().any(|disk| path.canonicalize().is_ok_and(|path| path == disk.path)) {
            return Err(Error::usage(format!("{} is what is sealed, and --out is where to", path.display()))
                .hint("to seal it in place, leave --out out"));
        }
    }
    let locked: Vec<PathBuf> = disks.iter().map(|disk| disk.path.clone()).collect();
    for disk in &disks {
        let Some(order) = Order::pending(&disk.path) else { continue };
        if dry_run || out.is_some() {
            return Err(Error::refused(format!(
                "an earlier `seal` of {} was cut short and has to be completed first",
                disk.path.display()
            ))
            .hint(format!("seal it: cowhand seal {}", disk.path.display())));
        }
        order.carry_on(context, &locked).await?;
    }
    if dry_run || out.is_some() {
        let scratch = Scratch::new()?;
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
        Order::forget(&disk.path);
        if std::fs::metadata(&disk.path).on("read", &disk.path)?.permissions().readonly() {
            return Err(Error::refused(format!("{} is read-only", disk.path.display()))
                .hint("seal it into a new file: --out FILE"));
        }
    }
    let leftovers = Leftovers(locked);
    let beside = |disk: &Disk| disk.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let drives = work_on(&disks, |disk, _| pending::overlay(&disk.path), beside)?;
    let report = sealing.carry_out(context, &drives, false).await?;
    let stamps: Vec<(&Path, Format)> = disks.iter().map(|disk| (disk.path.as_path(), disk.format)).collect();
    let order = Order::give(&stamps)?;
    leftovers.keep();
    order.carry_out(context).await?;
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

/// Disks whose overlays are removed unless they are wanted.
struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        self.0.iter().for_each(|disk| Order::forget(disk));
    }
}
