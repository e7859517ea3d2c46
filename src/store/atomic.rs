//! Writing a small file so that a crash or a power cut leaves the old one or the new one, whole.

use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::error::{IoContext, Result};
use crate::sys::{fault, files};

/// Replaces `path` with `bytes`: temporary file (0600) beside it, fsync, rename, fsync of the
/// directory.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".tmp")
        .tempfile_in(directory)
        .on("write in", directory)?;
    file.write_all(bytes).on("write", path)?;
    file.as_file().sync_all().on("flush", path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    fault::point(&format!("{name}, written")).on("replace", path)?;
    file.persist(path).map_err(|error| error.error).on("replace", path)?;
    fault::point(&format!("{name}, in its place")).on("flush", directory)?;
    sync_directory(directory)
}

/// Writes `path` where it does not exist; one that somebody else has written meanwhile stays.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".tmp")
        .tempfile_in(directory)
        .on("write in", directory)?;
    file.write_all(bytes).on("write", path)?;
    file.as_file().sync_all().on("flush", path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    fault::point(&format!("{name}, written")).on("create", path)?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != ErrorKind::AlreadyExists => {
            Err(error.error).on("create", path)
        }
        _ => sync_directory(directory),
    }
}

/// [`write`] without the flushes: after a power cut there may be the old file, the new one, or none
/// that can be read.
pub(crate) fn write_unflushed(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".")
        .suffix(".tmp")
        .tempfile_in(directory)
        .on("write in", directory)?;
    file.write_all(bytes).on("write", path)?;
    file.persist(path).map(drop).map_err(|error| error.error).on("replace", path)
}

/// Makes a rename from one directory to another survive a power cut: the new name first, so that
/// the file never has none.
pub(crate) fn sync_rename(from: &Path, to: &Path) -> Result<()> {
    [to, from].into_iter().filter_map(Path::parent).try_for_each(sync_directory)
}

/// Makes renames, creations and removals in `directory` survive a power cut.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    files::open_directory(directory)
        .and_then(|directory| directory.sync_all())
        .on("flush", directory)
}
