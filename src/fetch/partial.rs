//! What is known of a download that was cut short. The file beside it is as long as what has come,
//! and has another name than this: no name of an address begins with a dot.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::body::Version;
use super::digest::Hasher;
use super::http;
use crate::error::{Error, IoContext, Result};
use crate::store::{atomic, plain};
use crate::sys::boot;

const SCHEMA: u32 = 1;

/// `.download.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Partial {
    schema: u32,
    /// The address, as it may be shown.
    url: String,
    /// The SHA-256 checksum of all of it: a query can be a secret.
    key: String,
    /// The boot of the host in which it was begun: after a power cut, what is in the file need not
    /// be what was written.
    boot: Option<String>,
    validator: Option<String>,
    total: Option<u64>,
}

impl Partial {
    pub(super) fn new(url: &Url, version: &Version) -> Self {
        Self {
            schema: SCHEMA,
            url: http::shown(url),
            key: key(url),
            boot: boot::id(),
            validator: version.validator.clone(),
            total: version.total,
        }
    }

    /// The one in `directory`, if it is of `url` and can be gone on with.
    pub(super) fn load(directory: &Path, url: &Url) -> Option<Self> {
        let partial = read(directory)?;
        let is_it = partial.schema == SCHEMA && partial.key == key(url);
        (is_it && partial.boot.is_some() && partial.boot == boot::id()).then_some(partial)
    }

    pub(super) fn version(&self) -> Version {
        Version { validator: self.validator.clone(), total: self.total }
    }

    pub(super) fn save(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::failed("cannot write JSON").because(error))?;
        atomic::write_unflushed(&path(directory), &text)
    }
}

/// The address that a download in `directory` is from, as it may be shown.
pub(crate) fn source(directory: &Path) -> Option<String> {
    read(directory).map(|partial| partial.url)
}

fn read(directory: &Path) -> Option<Partial> {
    serde_json::from_slice(&plain::read_if_possible(&path(directory))?).ok()
}

fn path(directory: &Path) -> PathBuf {
    directory.join(".download.json")
}

/// What tells one address from another: the SHA-256 checksum of it.
pub(crate) fn key(url: &Url) -> String {
    let mut hasher = Hasher::new(None);
    hasher.update(url.as_str().as_bytes());
    hasher.finish().sha256.to_string()
}

/// Removes everything that is in `directory`.
pub(super) fn forget(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory).on("list", directory)? {
        remove(&entry.on("list", directory)?.path())?;
    }
    // So that what comes now is not taken for what was there.
    File::open(directory).and_then(|directory| directory.sync_all()).on("flush", directory)
}

/// Removes a file that may be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).on("remove", path),
        _ => Ok(()),
    }
}
