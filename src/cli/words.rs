//! Arguments that several verbs read alike.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// What was said with `--with-backing`, which may be repeated and may name a directory.
pub(super) fn within(said: Vec<OsString>) -> Option<Vec<PathBuf>> {
    (!said.is_empty()).then(|| {
        said.into_iter().filter(|directory| !directory.is_empty()).map(PathBuf::from).collect()
    })
}

/// `K=V`.
pub(super) fn tag_pair(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::usage(format!("{text:?} is not K=V"))),
    }
}
