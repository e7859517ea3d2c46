//! Sealing image files that belong to no VM, in place (see [`pending`]) or into a new file.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Report;
use super::overlay::{Scratch, base_nodes, overlay_nodes};
use super::pending::{self, GivenDisk, Work};
use super::run::Sealing;
use crate::appliance::boot::Drive;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::image::file::{self as image_file, Target, Written};
use crate::layer::foreign;
use crate::layer::foreign::rule::{Ask, Spelling};
use crate::layer::{create, import};
use crate::model::{FileId, Format};
use crate::sys::files::Pinned;
use crate::sys::flock;

/// One image.
struct Disk {
    /// Opened once, and locked against other `seal`s; QEMU's own locks are of another kind.
    file: Pinned,
    format: Format,
    virtual_bytes: u64,
}

impl Disk {
    async fn open(context: &Context, path: &Path, format: Option<Format>) -> Result<Self> {
        if let Some(vm) = path
            .to_str()
            .and_then(|name| name.parse().ok())
            .filter(|vm| !path.exists() && context.store.exists(vm))
        {
            return Err(Error::not_found(format!("there is no file {vm}; {vm} is a VM")).hint(
                format!("it is sealed on its way to a template: cowhand template create {vm}"),
            ));
        }
        let file = Pinned::open(path).map_err(|refusal| foreign::refused(path, refusal))?;
        let about = file.file.metadata().on("look at", &file.path)?;
        let ask = Ask { path: &file.path, said: format, spelling: Spelling::Option };
        let found = import::examine(context, &ask).await?;
        // Whoever owns the directory may have exchanged the file, and exchanged it back.
        let id = FileId { device: about.dev(), inode: about.ino() };
        if found.id != id || !flock::is_still_at(&file.file, &found.path).on("look at", path)? {
            return Err(Error::refused(format!(
                "{} was replaced while it was looked at",
                path.display()
            )));
        }
        if is_a_layer(context, &file.path, &about) {
            return Err(Error::refused(format!(
                "{} is a disk of a VM of this store",
                path.display()
            ))
            .hint(
                "it is sealed with its VM, on its way to a template: cowhand template create VM",
            ));
        }
        if !flock::try_exclusive(&file.file).on("lock", path)? {
            return Err(Error::locked(format!("another command is sealing {}", path.display())));
        }
        Ok(Self { file, format: found.format, virtual_bytes: found.virtual_bytes })
    }

    fn is(&self, about: &std::fs::Metadata) -> bool {
        self.file
            .file
            .metadata()
            .is_ok_and(|mine| (mine.dev(), mine.ino()) == (about.dev(), about.ino()))
    }

    fn given(&self) -> GivenDisk<'_> {
        GivenDisk { file: &self.file, format: self.format }
    }

    fn drive(&self, number: usize, overlay: &Path) -> Drive {
        let top = format!("top{number}");
        let base = format!("base{number}");
        // The file that is open, and not what its path leads to by then.
        let mut nodes = base_nodes(&base, &self.file.proc_path(), self.format).to_vec();
        nodes.extend(overlay_nodes(&top, overlay, &base));
        Drive { target: target(number), nodes, top }
    }

    /// Refuses a disk that could not be written to at the end.
    fn refuse_read_only(&self) -> Result<()> {
        let path = &self.file.path;
        if self.file.file.metadata().on("look at", path)?.permissions().readonly() {
            return Err(Error::refused(format!("{} is read-only", path.display()))
                .hint("seal it into a new file: --out FILE"));
        }
        std::fs::File::options()
            .write(true)
            .open(self.file.proc_path())
            .map(drop)
            .on("write to", path)
    }
}

/// Is it a layer of the store, or a file that is used as one in its place?
fn is_a_layer(context: &Context, path: &Path, about: &std::fs::Metadata) -> bool {
    let layers = context.store.layout.layers();
    let used = |entry: std::fs::DirEntry| {
        entry
            .path()
            .metadata()
            .is_ok_and(|layer| (layer.dev(), layer.ino()) == (about.dev(), about.ino()))
    };
    path.starts_with(&layers)
        || std::fs::read_dir(layers).is_ok_and(|entries| entries.flatten().any(used))
}

/// As the disks of a VM are called.
fn target(number: usize) -> String {
    format!("vd{}", char::from(b'a' + u8::try_from(number).unwrap_or(25).min(25)))
}

/// Seals `paths`, which are the disks of one guest. With `out`, they stay as they are and the one
/// disk goes, sealed, into a new file.
pub(crate) async fn seal(
    context: &Context,
    paths: &[PathBuf],
    format: Option<Format>,
    out: Option<&Target>,
    dry_run: bool,
    sealing: &Sealing,
) -> Result<(Report, Option<Written>)> {
    let mut disks: Vec<Disk> = Vec::new();
    for path in paths {
        if path.metadata().is_ok_and(|about| disks.iter().any(|other| other.is(&about))) {
            return Err(Error::usage(format!("{} is named twice", path.display())));
        }
        disks.push(Disk::open(context, path, format).await?);
    }
    if disks.len() > 1 && out.is_some() {
        return Err(Error::usage("--out takes one disk, and these are several")
            .hint("copy them first (cowhand image convert), then seal the copies"));
    }
    if let Some(out) = out {
        let (path, _) = image_file::check_target(context, out)?;
        if path.metadata().is_ok_and(|about| disks.iter().any(|disk| disk.is(&about))) {
            return Err(Error::usage(format!(
                "{} is what is sealed, and --out is where to",
                path.display()
            ))
            .hint("to seal it in place, leave --out out"));
        }
    }
    let given: Vec<GivenDisk<'_>> = disks.iter().map(Disk::given).collect();
    disks.iter().try_for_each(|disk| pending::refuse_old(context, &disk.file.path))?;
    pending::carry_on(context, &given, !dry_run && out.is_none()).await?;
    if dry_run {
        let scratch = Scratch::new()?;
        let drives = work_on(&disks, |number| scratch.path(number))?;
        return Ok((sealing.carry_out(context, &drives, true).await?, None));
    }
    if out.is_none() {
        disks.iter().try_for_each(Disk::refuse_read_only)?;
    }
    let work = Work::begin(context)?;
    let drives = work_on(&disks, |number| work.overlay(number))?;
    let report = sealing.carry_out(context, &drives, false).await?;
    let Some(out) = out else {
        work.commit(context, &given).await?;
        return Ok((report, None));
    };
    let below = disks[0].file.held()?;
    let written =
        image_file::convert_overlay(context, &work.overlay(0), (&below, disks[0].format), out)
            .await?;
    Ok((report, Some(written)))
}

/// Overlays on the disks, and the drives made of them. No overlay says what it depends on: QEMU is
/// told.
fn work_on(disks: &[Disk], place: impl Fn(usize) -> PathBuf) -> Result<Vec<Drive>> {
    let mut drives = Vec::new();
    for (number, disk) in disks.iter().enumerate() {
        let overlay = place(number);
        create::empty_at(&overlay, None, disk.virtual_bytes)?;
        drives.push(disk.drive(number, &overlay));
    }
    Ok(drives)
}
