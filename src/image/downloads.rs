//! What is left in `downloads/`: downloads that were cut short, or that turned out to be no image
//! that can be used.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::fetch::partial;
use crate::model::printable;
use crate::store::{Store, make_directory};
use crate::sys::{files, flock};

/// How often a directory that is in use is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A directory that no command uses.
#[derive(Debug)]
pub(crate) struct Left {
    /// Where it is.
    pub path: PathBuf,
    /// The address, if it is of a download.
    pub source: Option<String>,
    /// Bytes on disk.
    pub bytes: u64,
    /// How long nothing was written to it. By a clock that was set back, no time at all.
    pub age: Duration,
    /// Nobody begins to use it meanwhile.
    _lock: File,
}

impl Left {
    /// What it is, in words.
    pub(crate) fn what(&self) -> String {
        match &self.source {
            Some(source) => format!("the download of {source}"),
            None => "a file that was read for an image".to_owned(),
        }
    }

    /// Removes it.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).on("remove", &self.path)
    }
}

/// The directory `name`, locked. Waits as long as another command uses it: a download may take
/// long.
pub(crate) async fn claim(context: &Context, name: &str) -> Result<(PathBuf, File)> {
    let path = context.store.layout.downloads().join(name);
    let mut is_told = false;
    loop {
        refuse_strange(&context.store.layout.downloads())?;
        make_directory(&path)?;
        refuse_strange(&path)?;
        let directory = files::open_directory(&path).on("open", &path)?;
        if flock::try_exclusive(&directory).on("lock", &path)? {
            // Whoever had it may have removed it.
            if flock::is_still_at(&directory, &path).on("check", &path)? {
                return Ok((path, directory));
            }
            continue;
        }
        if !is_told {
            context.ui.note("waiting for another command that downloads the same image");
            is_told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Refuses what is there and is no directory: what a link leads to is not ours to empty.
fn refuse_strange(path: &Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(about) if !about.is_dir() => {
            Err(Error::damaged(format!("{} is not a directory", path.display()))
                .hint(format!("move it away: mv {0} {0}.aside", printable::shell(path))))
        }
        _ => Ok(()),
    }
}

/// All that no command uses.
pub(crate) fn left(store: &Store) -> Result<Vec<Left>> {
    let directory = store.layout.downloads();
    if refuse_strange(&directory).is_err() {
        return Ok(Vec::new());
    }
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.on("list", &directory)?,
    };
    let mut left = Vec::new();
    for entry in entries {
        let path = entry.on("list", &directory)?.path();
        // Whatever else lies here is not ours.
        if refuse_strange(&path).is_err() {
            continue;
        }
        let Ok(lock) = files::open_directory(&path) else { continue };
        if !flock::try_exclusive(&lock).on("lock", &path)?
            || !flock::is_still_at(&lock, &path).on("check", &path)?
        {
            continue;
        }
        let (mut bytes, mut newest) = (0, SystemTime::UNIX_EPOCH);
        let files = std::fs::read_dir(&path)
            .on("list", &path)?
            .flatten()
            .filter_map(|file| file.metadata().ok());
        for about in files.chain(path.metadata()) {
            bytes += std::os::unix::fs::MetadataExt::blocks(&about) * 512;
            newest = newest.max(about.modified().unwrap_or(newest));
        }
        let age = SystemTime::now().duration_since(newest).unwrap_or_default();
        left.push(Left { source: partial::source(&path), path, bytes, age, _lock: lock });
    }
    Ok(left)
}
