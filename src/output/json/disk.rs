//! The disks of a VM.

use std::path::Path;

use serde::Serialize;

use super::image_file::CheckedImage;
use crate::disk::check::Found;
use crate::disk::resize;
use crate::model::{Format, LayerId};
use crate::vm::list::DiskRow;

/// An entry of `disk ls`.
#[derive(Debug, Serialize)]
pub struct Disk<'a> {
    target: &'a str,
    bus: &'static str,
    /// Where it is the target, null.
    serial: Option<&'a str>,
    format: Format,
    file: &'a Path,
    virtual_bytes: u64,
    allocated_bytes: u64,
    read_only: bool,
}

impl<'a> From<&'a DiskRow> for Disk<'a> {
    fn from(row: &'a DiskRow) -> Self {
        Self {
            target: &row.target,
            bus: row.bus,
            serial: row.serial.as_deref(),
            format: row.format,
            file: &row.file,
            virtual_bytes: row.virtual_bytes,
            allocated_bytes: row.allocated_bytes,
            read_only: row.read_only,
        }
    }
}

/// A layer of `disk check`.
#[derive(Debug, Serialize)]
pub struct CheckedLayer<'a> {
    target: &'a str,
    id: &'a LayerId,
    format: Format,
    damaged: bool,
    /// A running guest writes to it.
    in_use: bool,
    /// Of a format that cannot be checked, null.
    check: Option<CheckedImage>,
}

impl<'a> From<&'a Found> for CheckedLayer<'a> {
    fn from(found: &'a Found) -> Self {
        Self {
            target: &found.target,
            id: &found.layer.id,
            format: found.layer.format,
            damaged: found.is_damaged(),
            in_use: found.in_use,
            check: found.checked.as_ref().map(CheckedImage::from),
        }
    }
}

/// `disk resize`.
#[derive(Debug, Serialize)]
pub struct Resized<'a> {
    target: &'a str,
    before_bytes: u64,
    /// The size now.
    virtual_bytes: u64,
}

impl<'a> Resized<'a> {
    /// The disk `target`, which was resized.
    pub fn new(target: &'a str, resized: &resize::Resized) -> Self {
        Self { target, before_bytes: resized.before, virtual_bytes: resized.after }
    }
}
