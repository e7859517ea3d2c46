//! Opening the file of a layer: one of the store's own, or a user's that is used in its place.

use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::foreign;
use crate::error::{Error, IoContext, Result};
use crate::model::{Format, Layer};
use crate::store::{Store, plain};
use crate::sys::fault;
use crate::sys::files::{Pinned, Refusal};

/// The file of a layer, open for reading.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The file itself: the same one whatever becomes of its path.
    pub file: File,
    /// A user's file that is used in its place, and where it lies.
    pub in_place: Option<Pinned>,
}

/// Opens the file of `layer`. A file that is used in its place belongs to whoever may write to its
/// directory: what lies there now can be a link, a FIFO, or nothing, which is damage of this layer.
/// That we cannot open any file (`EMFILE`, `EIO`) is none.
pub(crate) fn open(store: &Store, layer: &Layer) -> Result<Opened> {
    let path = store.layout.layer(layer);
    let missing = || {
        Error::damaged(format!("layer {layer} is missing from the store"))
            .hint(format!("its file should be {}", path.display()))
    };
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY).bits().cast_signed();
    match File::options().read(true).custom_flags(flags).open(&path) {
        Ok(file) if file.metadata().on("read", &path)?.is_file() => {
            Ok(Opened { file, in_place: None })
        }
        Ok(_) => Err(Error::damaged(format!(
            "layer {layer} is damaged: {} is not a regular file",
            path.display()
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(missing()),
        // The layer is a link of ours.
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            match std::fs::read_link(&path) {
                Ok(target) => {
                    // In the words of the user.
                    let target: PathBuf = target.components().collect();
                    let stray = || {
                        Error::damaged(format!(
                            "layer {layer} is damaged: {} is a link to {}",
                            path.display(),
                            target.display()
                        ))
                    };
                    if !may_be_in_place(store, &target) {
                        return Err(stray());
                    }
                    let pinned = in_place(layer, &target)?;
                    if !may_be_in_place(store, &pinned.path) {
                        return Err(stray());
                    }
                    fault::point("a file in its place, opened").on("open", &target)?;
                    Ok(Opened {
                        file: pinned.file.try_clone().on("read", &target)?,
                        in_place: Some(pinned),
                    })
                }
                Err(error) if error.kind() == ErrorKind::NotFound => Err(missing()),
                Err(error) => Err(error).on("read", &path),
            }
        }
        Err(error) => match plain::damage(&path) {
            Some(damage) => {
                Err(Error::damaged(format!("layer {layer} is damaged: {}", damage.message())))
            }
            None => Err(error).on("read", &path),
        },
    }
}

/// What a layer that is the user's `file`, an absolute path, links to: that path with `/.` before
/// it. So our links are told from those that somebody has put in the place of a layer that he moved
/// elsewhere. (Earlier versions did not tell them apart.)
pub(crate) fn link_target(file: &Path) -> PathBuf {
    let mut target = OsString::from("/.");
    target.push(file);
    target.into()
}

/// Can the file of `layer`, which cannot be used, have had no backing file? It is a user's, which
/// is used in its place; or, where that is not certain, in a format that has none.
pub(crate) fn had_no_backing(store: &Store, layer: &Layer) -> bool {
    std::fs::read_link(store.layout.layer(layer)).is_ok_and(|target| {
        may_be_in_place(store, &target) && (layer.format != Format::Qcow2 || is_certain(&target))
    })
}

/// Where `layer` may have been moved to: what a link leads to which we have not certainly made.
fn moved_to(store: &Store, layer: &Layer) -> Option<PathBuf> {
    let target = std::fs::read_link(store.layout.layer(layer)).ok()?;
    (!is_certain(&target)).then_some(target)
}

/// Have we certainly made the link that leads to `target`?
fn is_certain(target: &Path) -> bool {
    target.as_os_str().as_bytes().starts_with(b"/./")
}

/// What can be done where `layer` may have been moved elsewhere, and is damaged.
pub(crate) fn about_link(store: &Store, layer: &Layer) -> Option<String> {
    let target = moved_to(store, layer)?;
    let path = store.layout.layer(layer);
    Some(format!(
        "{} is a link; if the layer was moved to {}, move it back; if that was a file of yours and \
         is gone for good, remove the link",
        path.display(),
        target.display()
    ))
}

/// Links of ours lead to absolute paths, and not to layers.
fn may_be_in_place(store: &Store, target: &Path) -> bool {
    let layers = store.layout.layers();
    let is_layer = target.starts_with(&layers)
        || layers.canonicalize().is_ok_and(|layers| target.starts_with(layers));
    target.is_absolute() && !is_layer
}

fn in_place(layer: &Layer, target: &Path) -> Result<Pinned> {
    let unusable = |error: Error| {
        let why = error.full_message();
        let damaged =
            format!("layer {layer}, a file that is used in its place, cannot be used: {why}");
        error.hints().iter().fold(Error::damaged(damaged), |damaged, hint| damaged.hint(hint))
    };
    let pinned = match Pinned::open(target) {
        Ok(pinned) => pinned,
        Err(Refusal::Io(error)) if !is_about_the_path(&error) => {
            return Err(error).on("open", target);
        }
        Err(refusal) => return Err(unusable(foreign::refused(target, refusal))),
    };
    let about = pinned.file.metadata().on("read", target)?;
    foreign::refuse_unless_regular(target, &about).map_err(unusable)?;
    Ok(pinned)
}

/// Is it what somebody has made of the path, and not the state that we or the host are in?
fn is_about_the_path(error: &std::io::Error) -> bool {
    let errnos =
        [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::ACCESS, Errno::PERM, Errno::NAMETOOLONG];
    errnos.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
