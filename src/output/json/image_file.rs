//! Image files outside the store.

use std::path::Path;

use serde::Serialize;

use crate::image::file::{Seen, Written};
use crate::layer::inspect::Reference;
use crate::model::Format;
use crate::qemu::img::{Checked, Inner};

/// `image info`.
#[derive(Debug, Serialize)]
pub struct ImageFile<'a> {
    file: &'a Path,
    format: &'a str,
    virtual_bytes: u64,
    allocated_bytes: u64,
    backing: Option<&'a str>,
    backing_format: Option<&'a str>,
    variant: Option<&'a str>,
    names: Vec<NamedFile<'a>>,
    encrypted: bool,
    snapshots: Vec<InnerSnapshot<'a>>,
}

/// Another file that an image names.
#[derive(Debug, Serialize)]
struct NamedFile<'a> {
    role: String,
    /// Where it cannot be read, null.
    name: Option<&'a str>,
}

/// A snapshot inside an image.
#[derive(Debug, Serialize)]
struct InnerSnapshot<'a> {
    id: &'a str,
    name: &'a str,
    vm_state_bytes: u64,
    /// Seconds since 1970.
    created: i64,
}

impl<'a> ImageFile<'a> {
    /// The image at `file`.
    pub fn new(file: &'a Path, about: &'a Seen) -> Self {
        let info = &about.info;
        Self {
            file,
            format: &info.format,
            virtual_bytes: info.virtual_bytes,
            allocated_bytes: info.allocated_bytes,
            backing: info.backing.as_deref(),
            backing_format: info.backing_format.as_deref(),
            variant: about.variant.as_deref(),
            names: about.names.iter().map(NamedFile::from).collect(),
            encrypted: info.encrypted,
            snapshots: info.snapshots.iter().map(InnerSnapshot::from).collect(),
        }
    }
}

impl<'a> From<&'a Reference> for NamedFile<'a> {
    fn from(reference: &'a Reference) -> Self {
        Self { role: reference.role.to_string(), name: reference.name.as_deref() }
    }
}

impl<'a> From<&'a Inner> for InnerSnapshot<'a> {
    fn from(inner: &'a Inner) -> Self {
        Self {
            id: &inner.id,
            name: &inner.name,
            vm_state_bytes: inner.vm_state_bytes,
            created: inner.created,
        }
    }
}

/// `image check`, and `check` of `disk check`.
#[derive(Debug, Serialize)]
pub struct CheckedImage {
    corruptions: u64,
    leaks: u64,
    errors: u64,
    /// Corruptions and leaks that were put right.
    fixed: u64,
}

impl From<&Checked> for CheckedImage {
    fn from(checked: &Checked) -> Self {
        Self {
            corruptions: checked.corruptions,
            leaks: checked.leaks,
            errors: checked.errors,
            fixed: checked.corruptions_fixed + checked.leaks_fixed,
        }
    }
}

/// `image check` of a format in which there is nothing to check.
#[derive(Debug, Serialize)]
pub struct Unchecked {
    format: Format,
}

impl Unchecked {
    /// An image of `format`.
    pub fn new(format: Format) -> Self {
        Self { format }
    }
}

/// `image convert` and `image export`.
#[derive(Debug, Serialize)]
pub struct WrittenImage<'a> {
    file: &'a Path,
    format: Format,
    bytes: u64,
}

impl<'a> From<&'a Written> for WrittenImage<'a> {
    fn from(written: &'a Written) -> Self {
        Self { file: &written.path, format: written.format, bytes: written.bytes }
    }
}
