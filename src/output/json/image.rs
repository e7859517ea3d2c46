//! Images in the store, and those of the catalogue.

use serde::Serialize;

use crate::image::add::Added;
use crate::image::catalogue::Entry;
use crate::maintenance::prune::Pruned;
use crate::model::{Format, Name};
use crate::output::time::rfc3339;
use crate::template::list::Row;

/// An entry of `image ls`.
#[derive(Debug, Serialize)]
pub struct Image<'a> {
    name: &'a Name,
    format: Option<Format>,
    virtual_bytes: Option<u64>,
    bytes: u64,
    source: Option<&'a str>,
    catalogue: Option<&'a str>,
    sha256: Option<&'a str>,
    verified: bool,
    dependents: &'a [Name],
    created: String,
}

impl<'a> From<&'a Row> for Image<'a> {
    fn from(row: &'a Row) -> Self {
        let (disk, image) = (row.record.config.disks.first(), row.record.image());
        Self {
            name: &row.name,
            format: disk.map(|disk| disk.layer.format),
            virtual_bytes: disk.map(|disk| disk.virtual_bytes),
            bytes: row.bytes,
            source: image.map(|image| image.source.as_str()),
            catalogue: image.and_then(|image| image.catalogue.as_deref()),
            sha256: image.and_then(|image| image.sha256.as_deref()),
            verified: image.is_some_and(|image| image.verified),
            dependents: &row.dependents,
            created: rfc3339(row.frozen),
        }
    }
}

/// An entry of `image ls --catalogue`.
#[derive(Debug, Serialize)]
pub struct CatalogueImage<'a> {
    name: &'a str,
    version: &'a str,
    /// Other words for the version.
    aliases: &'a [String],
    url: String,
    /// Where its checksum is.
    sums: Option<String>,
    format: Format,
    /// The user that cloud-init makes in it.
    user: Option<&'a str>,
}

impl<'a> From<&'a Entry> for CatalogueImage<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            name: &entry.name,
            version: &entry.version,
            aliases: &entry.aliases,
            url: entry.shown_url(),
            sums: entry.shown_sums(),
            format: entry.format,
            user: entry.user.as_deref(),
        }
    }
}

/// `image add`.
#[derive(Debug, Serialize)]
pub struct AddedImage<'a> {
    name: &'a Name,
    virtual_bytes: u64,
    sha256: Option<&'a str>,
    verified: bool,
}

impl<'a> From<&'a Added> for AddedImage<'a> {
    fn from(added: &'a Added) -> Self {
        let image = added.record.image();
        Self {
            name: &added.name,
            virtual_bytes: added.record.config.disks.first().map_or(0, |disk| disk.virtual_bytes),
            sha256: image.and_then(|image| image.sha256.as_deref()),
            verified: image.is_some_and(|image| image.verified),
        }
    }
}

/// An entry of `image prune`.
#[derive(Debug, Serialize)]
pub struct PrunedImage<'a> {
    /// Of what is left of a download, null.
    image: Option<&'a Name>,
    /// In words.
    what: &'a str,
    bytes: u64,
}

impl<'a> From<&'a Pruned> for PrunedImage<'a> {
    fn from(pruned: &'a Pruned) -> Self {
        Self { image: pruned.image.as_ref(), what: &pruned.what, bytes: pruned.bytes }
    }
}
