//! CD-ROM drives.

use std::path::Path;

use serde::Serialize;

use crate::model;

/// `cdrom insert` and `cdrom eject`; an entry of `cdrom ls` and `show`.
#[derive(Debug, Serialize)]
pub struct Cdrom<'a> {
    target: &'a str,
    bus: &'static str,
    /// Of a drive without an image, null.
    file: Option<&'a Path>,
}

impl<'a> From<&'a model::Cdrom> for Cdrom<'a> {
    fn from(drive: &'a model::Cdrom) -> Self {
        Self { target: &drive.target, bus: drive.bus.as_str(), file: drive.iso.as_deref() }
    }
}

/// `cdrom rm`: the drive that was removed.
#[derive(Debug, Serialize)]
pub struct NoCdrom<'a> {
    target: &'a str,
}

impl<'a> NoCdrom<'a> {
    /// The drive `target`.
    pub fn new(target: &'a str) -> Self {
        Self { target }
    }
}
