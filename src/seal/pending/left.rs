//! The directories of commands in the store: which there are, what earlier commands have left in
//! them, and how that is cleared up.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::order::{ORDER, Order, read};
use crate::error::{IoContext, Result};
use crate::store::Store;
use crate::sys::{files, flock};

pub(super) fn overlay(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{number}.qcow2"))
}

/// A directory of an earlier command, which is not at work any more.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) directory: PathBuf,
    /// Nobody else takes it meanwhile.
    _lock: File,
    pub(super) order: Option<Order>,
    /// There is an order that cannot be read.
    pub(super) is_damaged: bool,
    age: Duration,
    bytes: u64,
}

/// Is there no such directory?
fn is_none(error: &std::io::Error) -> bool {
    Errno::from_io_error(error)
        .is_some_and(|errno| [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].contains(&errno))
}

/// The directories of commands, at work or not.
pub(super) fn directories(store: &Store) -> Result<Vec<PathBuf>> {
    let all = store.layout.sealing();
    let entries = match std::fs::read_dir(&all) {
        // Of what is no directory `doctor` tells.
        Err(error) if is_none(&error) => return Ok(Vec::new()),
        other => other.on("list", &all)?,
    };
    let mut directories = Vec::new();
    for entry in entries {
        let entry = entry.on("list", &all)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            directories.push(entry.path());
        }
    }
    directories.sort();
    Ok(directories)
}

/// What earlier commands have left. One that is at work keeps its directory to itself.
pub(super) fn found(store: &Store) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for directory in directories(store)? {
        let lock = match files::open_directory(&directory) {
            // It has just come to its end.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.on("open", &directory)?,
        };
        if !flock::try_exclusive(&lock).on("lock", &directory)?
            || !flock::is_still_at(&lock, &directory).unwrap_or(false)
        {
            continue;
        }
        let order = read(&directory.join(ORDER));
        let inside = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let age = lock
            .metadata()
            .and_then(|about| about.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        found.push(Found {
            bytes: inside
                .filter_map(|file| file.metadata().ok())
                .map(|about| about.blocks() * 512)
                .sum(),
            age: age.unwrap_or_default(),
            is_damaged: order.is_err(),
            order: order.ok().flatten(),
            directory,
            _lock: lock,
        });
    }
    Ok(found)
}

pub(super) fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).on("remove", directory)
        }
        _ => Ok(()),
    }
}

/// What an earlier command has left, for those who look after the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    /// Where.
    pub directory: PathBuf,
    /// The disks it is for; none when they are not known.
    pub disks: Vec<PathBuf>,
    /// Some of it may be in the disks: only the next `seal` of them knows how to go on.
    pub started: bool,
    /// It counts for nothing.
    pub is_waste: bool,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Everything earlier commands have left that are not at work any more.
pub(crate) fn left(store: &Store) -> Result<Vec<Left>> {
    Ok(found(store)?.into_iter().map(Left::from).collect())
}

impl From<Found> for Left {
    fn from(found: Found) -> Self {
        let started = found.is_damaged || found.order.as_ref().is_some_and(|order| order.started);
        let disks = found
            .order
            .into_iter()
            .flat_map(|order| order.disks)
            .map(|disk| disk.path)
            .collect::<Vec<_>>();
        Self {
            is_waste: disks.is_empty() && !started,
            directory: found.directory,
            disks,
            started,
            bytes: found.bytes,
        }
    }
}

/// Removes what counts for nothing, and what was not begun for longer than `age`. What may be in
/// the disks in part stays.
pub(crate) fn sweep(store: &Store, age: Duration, dry_run: bool) -> Result<Vec<Left>> {
    let all = store.layout.sealing();
    let guard = match files::open_directory(&all) {
        Err(error) if is_none(&error) => return Ok(Vec::new()),
        other => other.on("open", &all)?,
    };
    flock::exclusive(&guard).on("lock", &all)?;
    let mut swept = Vec::new();
    for found in found(store)? {
        let started = found.is_damaged || found.order.as_ref().is_some_and(|order| order.started);
        if started || (found.order.is_some() && found.age < age) {
            continue;
        }
        if !dry_run {
            remove(&found.directory)?;
        }
        swept.push(found.into());
    }
    Ok(swept)
}
