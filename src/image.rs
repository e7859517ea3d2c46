//! Image files: looked at, checked and converted wherever they lie, and made of a point of a VM. Nothing here changes the store.
//!
//! The format of a file a user names is taken from its first bytes or from what the user says; QEMU is always told.

use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::layer::{census, chain, qcow2};
use crate::model::{Disk, Format, Layer, PointRef};
use crate::qemu::img::{Checked, Img, Info, Inside};
use crate::sys::image_lock;
use crate::vm::{list, open, status};

/// The format of a file: as said, else as its first bytes announce.
fn format_of(path: &Path, said: Option<Format>) -> Result<Format> {
    let about = path.metadata().on("read", path)?;
    if about.is_dir() {
        return Err(Error::refused(format!("{} is a directory, not an image", path.display())));
    }
    let seen = qcow2::sniff(&census::read_start(path)?);
    match said {
        Some(said) if said != seen && said != Format::Raw => {
            Err(Error::refused(format!("{} is {seen} by its header, not {said}", path.display())))
        }
        Some(said) => Ok(said),
        // A guest can write a header of its own choice into a raw disk.
        None if seen != Format::Raw && path.extension().is_some_and(|name| name == "raw" || name == "img") => {
            Err(Error::refused(format!("{} is raw by its name, and {seen} by its header", path.display()))
                .hint("if you trust what is in it, say what it is: -f FORMAT"))
        }
        None => Ok(seen),
    }
}

/// What is known of an image, with its internal snapshots.
pub async fn info(context: &Context, path: &Path, format: Option<Format>) -> Result<Info> {
    let format = format_of(path, format)?;
    Img::find(context)?.info(&std::path::absolute(path).on("find", path)?, format).await
}

/// Checks an image; with `repair`, puts right what can be.
pub async fn check(context: &Context, path: &Path, format: Option<Format>, repair: bool) -> Result<Option<Checked>> {
    let format = format_of(path, format)?;
    let in_use = image_lock::is_written_to(path).on("look at the locks of", path)?;
    if repair && in_use {
        return Err(Error::refused(format!("{} is in use: a running QEMU writes to it", path.display())));
    }
    if format == Format::Raw {
        return Ok(None);
    }
    let path = std::path::absolute(path).on("find", path)?;
    Img::find(context)?.check(&path, format, in_use, repair).await.map(Some)
}

/// Where the content of a new file comes from.
#[derive(Debug)]
pub struct Target {
    /// The file.
    pub path: PathBuf,
    /// Its format; without one, its name tells, else it is qcow2.
    pub format: Option<Format>,
    /// Replace a file that is there.
    pub force: bool,
}

impl Target {
    fn resolve(&self) -> Result<(PathBuf, Format)> {
        let path = std::path::absolute(&self.path).on("find", &self.path)?;
        if path.is_dir() {
            return Err(Error::usage(format!("{} is a directory: name a file in it", path.display())));
        }
        if path.exists() && !self.force {
            return Err(Error::exists(format!("{} is there already", path.display())).hint("to replace it: --force"));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        if !directory.is_dir() {
            return Err(Error::not_found(format!("there is no directory {}", directory.display())));
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let guessed = match extension {
            "img" => Some(Format::Raw),
            "vhd" => Some(Format::Vpc),
            other => other.parse().ok(),
        };
        Ok((path, self.format.or(guessed).unwrap_or(Format::Qcow2)))
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Converts an image, with everything it stands on, into a new file.
pub async fn convert(context: &Context, from: &Path, format: Option<Format>, to: &Target) -> Result<Written> {
    let format = format_of(from, format)?;
    if image_lock::is_written_to(from).on("look at the locks of", from)? {
        return Err(Error::refused(format!("{} is in use: a running QEMU writes to it", from.display()))
            .hint("if it belongs to a VM of the store: cowhand image export VM@SNAPSHOT FILE"));
    }
    write(context, &std::path::absolute(from).on("find", from)?, format, None, to).await
}

/// Flattens one disk of a point into a file, also while the VM runs.
pub async fn export(context: &Context, point: &PointRef, target: Option<&str>, to: &Target) -> Result<Written> {
    let vm = &point.vm;
    // Keeps the layers from being merged meanwhile.
    let (_lock, record) = open::open(context, vm).await?;
    let (config, tag) = match &point.snapshot {
        Some(name) => {
            let snapshot = record.snapshot(vm, name)?;
            (&snapshot.config, snapshot.tag())
        }
        None if status::is_running(context, vm)? => {
            return Err(Error::refused(format!("{vm} is running: its disks change while they would be written out"))
                .hint(format!(
                    "export a snapshot: cowhand snapshot create {vm} NOW && cowhand image export {vm}@NOW FILE"
                )));
        }
        None => (&record.config, None),
    };
    let disk: &Disk = match (target, &config.disks[..]) {
        (Some(target), _) => list::disk_of(vm, config, target)?,
        (None, [disk]) => disk,
        (None, []) => return Err(Error::refused(format!("{point} has no disk"))),
        (None, many) => {
            let names: Vec<&str> = many.iter().map(|disk| disk.target.as_str()).collect();
            return Err(Error::usage(format!("{point} has {} disks, and a file holds one", many.len()))
                .hint(format!("say which: --disk {}", names.join(" or --disk "))));
        }
    };
    let layer: &Layer = &disk.layer;
    chain::read(&context.store, layer)?;
    let inside = tag.map(|tag| Inside { tag, virtual_bytes: disk.virtual_bytes });
    write(context, &context.store.layout.layer(layer), layer.format, inside, to).await
}

/// Refuses a target that cannot be written, before anything is done for it.
pub fn check_target(context: &Context, to: &Target) -> Result<(PathBuf, Format)> {
    let (path, into) = to.resolve()?;
    let inside = |root: &Path| {
        path.parent().and_then(|parent| parent.canonicalize().ok()).is_some_and(|parent| parent.starts_with(root))
    };
    if context.store.layout.root().canonicalize().is_ok_and(|root| inside(&root)) {
        return Err(Error::refused(format!("{} lies in the store, which is not written to by hand", path.display())));
    }
    if path.exists() && image_lock::is_written_to(&path).on("look at the locks of", &path)? {
        return Err(Error::refused(format!("{} is in use: a running QEMU writes to it", path.display())));
    }
    Ok((path, into))
}

/// Writes beside the target and renames, so that a file that is there is whole.
async fn write(
    context: &Context,
    from: &Path,
    format: Format,
    within: Option<Inside<'_>>,
    to: &Target,
) -> Result<Written> {
    let (path, into) = check_target(context, to)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let img = Img::find(context)?;
    let partial = tempfile::Builder::new().prefix(".cowhand-").tempfile_in(directory).on("write in", directory)?;
    let task = context.ui.task(&format!("writing {}", path.display()), 0);
    match within {
        None => img.convert((from, format), (partial.path(), into)).await?,
        Some(within) => {
            let whole =
                tempfile::Builder::new().prefix(".cowhand-").tempfile_in(directory).on("write in", directory)?;
            img.convert_inner((from, format), &within, whole.path()).await?;
            img.convert((whole.path(), Format::Qcow2), (partial.path(), into)).await?;
        }
    }
    drop(task);
    partial.as_file().sync_all().on("flush", partial.path())?;
    partial.persist(&path).map_err(|error| error.error).on("replace", &path)?;
    let bytes = path.metadata().map(|about| std::os::unix::fs::MetadataExt::blocks(&about) * 512).on("read", &path)?;
    Ok(Written { path, format: into, bytes })
}
