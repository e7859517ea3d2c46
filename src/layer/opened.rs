//! Opening the file of a layer: one of the store's own, or a user's that is used in its place.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::foreign;
use crate::error::{Error, IoContext, Result};
use crate::model::Layer;
use crate::store::{Store, plain};
use crate::sys::fault;
use crate::sys::files::{Pinned, Refusal};

/// The file of a layer, open for reading.
#[derive(Debug)]
pub struct Opened {
    /// The file itself: the same one whatever becomes of its path.
    pub file: File,
    /// A user's file that is used in its place, and where it lies.
    pub in_place: Option<Pinned>,
}

/// Opens the file of `layer`. A file that is used in its place belongs to whoever may write to its
/// directory: what lies there now can be a link, a FIFO, or nothing, which is damage of this layer.
/// That we cannot open any file (`EMFILE`, `EIO`) is none.
pub fn open(store: &Store, layer: &Layer) -> Result<Opened> {
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

/// Is the file of `layer` a user's, which is used in its place? A link that leads to nowhere but
/// the store is none of ours.
pub fn is_in_place(store: &Store, layer: &Layer) -> bool {
    let target = std::fs::read_link(store.layout.layer(layer));
    target.is_ok_and(|target| may_be_in_place(store, &target))
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
