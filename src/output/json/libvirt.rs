//! Domains of libvirt that come and go.

use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use crate::libvirt::{Note, export};
use crate::model::Name;

/// `import`.
#[derive(Debug, Serialize)]
pub struct Imported<'a> {
    name: &'a Name,
    uuid: Uuid,
    template: bool,
    parts: Vec<Part<'a>>,
}

/// `import --dry-run`.
#[derive(Debug, Serialize)]
pub struct ImportPlan<'a> {
    name: &'a Name,
    dry_run: bool,
    parts: Vec<Part<'a>>,
}

/// `export`.
#[derive(Debug, Serialize)]
pub struct Exported<'a> {
    name: &'a Name,
    xml: &'a Path,
    snapshots: Vec<Snapshot<'a>>,
    /// With which libvirt takes it over.
    commands: &'a [String],
    parts: Vec<Part<'a>>,
}

/// What becomes of a part of a domain.
#[derive(Debug, Serialize)]
struct Part<'a> {
    what: &'a str,
    fate: &'static str,
    how: &'a str,
}

/// A snapshot that was written.
#[derive(Debug, Serialize)]
struct Snapshot<'a> {
    name: &'a Name,
    xml: &'a Path,
    current: bool,
}

impl<'a> Imported<'a> {
    /// The VM or template `name`, with what became of each part.
    pub fn new(name: &'a Name, uuid: Uuid, template: bool, notes: &'a [Note]) -> Self {
        Self { name, uuid, template, parts: parts(notes) }
    }
}

impl<'a> ImportPlan<'a> {
    /// The VM `name` as it would be.
    pub fn new(name: &'a Name, notes: &'a [Note]) -> Self {
        Self { name, dry_run: true, parts: parts(notes) }
    }
}

impl<'a> Exported<'a> {
    /// The VM `name`, which was written.
    pub fn new(name: &'a Name, exported: &'a export::Exported, commands: &'a [String]) -> Self {
        let snapshots = exported.snapshots.iter().map(Snapshot::from).collect();
        Self { name, xml: &exported.xml, snapshots, commands, parts: parts(&exported.notes) }
    }
}

fn parts(notes: &[Note]) -> Vec<Part<'_>> {
    notes.iter().map(Part::from).collect()
}

impl<'a> From<&'a Note> for Part<'a> {
    fn from(note: &'a Note) -> Self {
        Self { what: &note.what, fate: note.fate.as_str(), how: &note.how }
    }
}

impl<'a> From<&'a export::Written> for Snapshot<'a> {
    fn from(written: &'a export::Written) -> Self {
        Self { name: &written.name, xml: &written.xml, current: written.is_current }
    }
}
