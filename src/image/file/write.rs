//! Writing an image into a new file.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::progress::watched;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::layer::inspect::{self, Content};
use crate::model::{Format, printable};
use crate::qemu::img::{Img, Inside, Source};
use crate::sys::cage::Held;
use crate::sys::{files, image_lock};

/// A file that is to be written.
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
            return Err(Error::usage(format!(
                "{} is a directory: name a file in it",
                path.display()
            )));
        }
        if let Some(what) = files::special_at(&path) {
            return Err(Error::refused(format!(
                "{} is {what}, not an ordinary file",
                path.display()
            ))
            .hint("name a file, which can be new"));
        }
        // A link that leads nowhere would be replaced, too.
        if path.symlink_metadata().is_ok() && !self.force {
            return Err(Error::exists(format!("{} is there already", path.display()))
                .hint("to replace it: --force"));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        if !directory.is_dir() {
            return Err(Error::not_found(format!("there is no directory {}", directory.display())));
        }
        let extension =
            path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
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

/// Refuses a target that cannot be written, before anything is done for it.
pub fn check_target(context: &Context, to: &Target) -> Result<(PathBuf, Format)> {
    let (path, into) = to.resolve()?;
    let inside = |root: &Path| {
        path.parent()
            .and_then(|parent| parent.canonicalize().ok())
            .is_some_and(|parent| parent.starts_with(root))
    };
    if context.store.layout.root().canonicalize().is_ok_and(|root| inside(&root)) {
        return Err(Error::refused(format!(
            "{} lies in the store, which is not written to by hand",
            path.display()
        )));
    }
    if path.exists() && image_lock::is_written_to(&path).on("look at the locks of", &path)? {
        return Err(Error::refused(format!(
            "{} is in use: a running QEMU writes to it",
            path.display()
        )));
    }
    Ok((path, into))
}

/// What is written into a new file.
pub(super) struct Origin<'a> {
    pub(super) path: &'a Path,
    pub(super) source: Source<'a>,
    /// The most the guest sees of it, in bytes.
    pub(super) virtual_bytes: u64,
    /// Other files that are read.
    pub(super) others: Vec<PathBuf>,
    /// Open files that are read.
    pub(super) held: Vec<&'a Held>,
    /// Only what an internal snapshot holds, of an image in this format.
    pub(super) within: Option<(Inside<'a>, Format)>,
}

/// Writes beside the target and renames, so that a file that is there is whole.
pub(super) async fn write(context: &Context, from: Origin<'_>, to: &Target) -> Result<Written> {
    let (path, into) = check_target(context, to)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let img = Img::find(context)?.reading(from.others).holding(from.held);
    let temporary = || {
        tempfile::Builder::new()
            .prefix(".cowhand-")
            .tempfile_in(directory)
            .on("write in", directory)
    };
    let partial = temporary()?;
    let task = context.ui.task(&format!("writing {}", path.display()), 0);
    let task = task.as_ref();
    match from.within {
        None => {
            let converted =
                img.convert((from.path, from.source), (partial.path(), into), from.virtual_bytes);
            watched(task, partial.as_file(), converted).await?;
        }
        Some((within, format)) => {
            let whole = temporary()?;
            watched(
                task,
                whole.as_file(),
                img.convert_inner((from.path, format), &within, whole.path()),
            )
            .await?;
            let source = Source::alone(whole.path(), Format::Qcow2);
            let converted =
                img.convert((whole.path(), source), (partial.path(), into), within.virtual_bytes);
            watched(task, partial.as_file(), converted).await?;
        }
    }
    partial.as_file().sync_all().on("flush", partial.path())?;
    partial.persist(&path).map_err(|error| error.error).on("replace", &path)?;
    let file = File::open(&path).on("open", &path)?;
    if into == Format::Raw
        && let content = inspect::content(&file).on("read", &path)?
        && content != Content::Raw
    {
        // The guest wrote these bytes. Without a format, `create` would ask.
        context.ui.note(&format!(
            "{} looks like {content}; to use it as the disk it is: --disk {},format=raw",
            path.display(),
            printable::shell(&path)
        ));
    }
    let bytes = file.metadata().map(|about| about.blocks() * 512).on("read", &path)?;
    Ok(Written { path, format: into, bytes })
}
