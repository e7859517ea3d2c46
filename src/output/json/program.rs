//! The program itself.

use std::path::Path;

use serde::Serialize;

/// `version`.
#[derive(Debug, Serialize)]
pub struct Version {
    name: &'static str,
    version: &'static str,
    /// In a build that no package was made of, null.
    commit: Option<&'static str>,
}

impl Version {
    /// The program as it was built from `commit`.
    pub fn new(version: &'static str, commit: Option<&'static str>) -> Self {
        Self { name: "cowhand", version, commit }
    }
}

/// `man`: where the manual pages are.
#[derive(Debug, Serialize)]
pub struct Man<'a> {
    directory: &'a Path,
}

impl<'a> Man<'a> {
    /// The manual pages in `directory`.
    pub fn new(directory: &'a Path) -> Self {
        Self { directory }
    }
}
