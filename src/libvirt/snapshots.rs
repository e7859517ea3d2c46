//! The snapshots of a domain, as their XML (`virsh snapshot-dumpxml`) has them; `plan` says what
//! becomes of each. Source: libvirt's "Snapshot XML format"
//! (<https://libvirt.org/formatsnapshot.html>).

mod order;
pub(super) mod plan;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use roxmltree::Node;

use super::domain::{self, Domain};
use super::xml::{self, child, child_text, elements};
use crate::error::{Error, IoContext, Result};
use crate::layer::foreign;
use crate::model::VmState;

/// The longest document, in bytes: it has two domains in it.
pub const LONGEST: usize = 2 * domain::LONGEST;
/// The most snapshots of a domain.
pub const MOST: usize = 500;
/// The longest name in bytes, and how much of a description comes over in characters.
const LONGEST_NAME: usize = 255;
const LONGEST_DESCRIPTION: usize = 4096;

/// A snapshot as its XML has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Its name, which need not be one of ours.
    pub name: String,
    /// The snapshot before it.
    pub parent: Option<String>,
    /// The user's words.
    pub description: String,
    /// When it was taken.
    pub created: Option<Timestamp>,
    /// What the domain was doing.
    pub state: VmState,
    /// It had been shut down.
    pub was_off: bool,
    /// It has memory.
    pub has_memory: bool,
    /// Of each disk, how it is kept: `internal`, `external`, `no`.
    pub disks: BTreeMap<String, String>,
    /// The domain at that moment, or why that is not known.
    pub domain: Result<Domain, String>,
}

/// Reads the XML of snapshots: the files of a directory that end in `.xml`, by their names.
pub fn read(directory: &Path) -> Result<Vec<String>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory).on("read", directory)? {
        let path = entry.on("read", directory)?.path();
        if path.extension().is_some_and(|extension| extension == "xml") {
            paths.push(path);
        }
        if paths.len() > MOST {
            return Err(Error::refused(format!(
                "{} has more than {MOST} files",
                directory.display()
            )));
        }
    }
    if paths.is_empty() {
        return Err(Error::not_found(format!(
            "{} has no file that ends in .xml",
            directory.display()
        ))
        .hint("virsh snapshot-dumpxml DOMAIN SNAPSHOT > DIR/SNAPSHOT.xml"));
    }
    paths.sort();
    let text = |path: &PathBuf| {
        let mut bytes = Vec::new();
        let file = foreign::open(path)?.file;
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes).on("read", path)?;
        String::from_utf8(bytes)
            .map_err(|_| Error::refused(format!("{} is no text", path.display())))
    };
    paths.iter().map(text).collect()
}

/// Reads a snapshot. `shown` is what the document is called in messages.
pub fn parse(text: &str, shown: &str) -> Result<Snapshot> {
    let bad = xml::bad(shown, "snapshot");
    let document = xml::document(text, LONGEST, &bad)?;
    let root = document.root_element();
    if root.tag_name().name() != "domainsnapshot" {
        return Err(bad(format!("its root is <{:.40}>", root.tag_name().name())));
    }
    // With its blanks: they are those of the tag in the image.
    let name =
        child(root, "name").and_then(|name| name.text()).filter(|name| !name.trim().is_empty());
    let name = name.ok_or_else(|| bad("it has no name".into()))?.to_owned();
    if name.len() > LONGEST_NAME {
        return Err(bad(format!("its name has more than {LONGEST_NAME} bytes")));
    }
    let created = child_text(root, "creationTime")
        .and_then(|text| Timestamp::from_second(text.parse().ok()?).ok());
    let memory = child(root, "memory").and_then(|memory| memory.attribute("snapshot"));
    let state = child_text(root, "state").unwrap_or_default();
    let disks = child(root, "disks").into_iter().flat_map(|disks| elements(disks, "disk"));
    let disks: BTreeMap<String, String> = disks
        .filter_map(|disk| {
            Some((disk.attribute("name")?.to_owned(), disk.attribute("snapshot")?.to_owned()))
        })
        .collect();
    let description = child_text(root, "description").unwrap_or_default();
    let description = description.chars().take(LONGEST_DESCRIPTION).collect();
    Ok(Snapshot {
        name,
        parent: child(root, "parent")
            .and_then(|parent| Some(child(parent, "name")?.text()?.to_owned())),
        description,
        created,
        state: match state.as_str() {
            "running" | "blocked" | "shutdown" | "disk-snapshot" => VmState::Running,
            "paused" | "pmsuspended" => VmState::Paused,
            _ => VmState::Stopped,
        },
        was_off: state == "shutoff",
        has_memory: memory
            .map_or(matches!(state.as_str(), "running" | "paused"), |memory| memory != "no"),
        disks,
        domain: then(root),
    })
}

fn then(root: Node<'_, '_>) -> Result<Domain, String> {
    let Some(domain) = child(root, "domain") else { return Err("its XML has no <domain>".into()) };
    domain::parse_element(domain, &Error::refused).map_err(|error| error.message().to_owned())
}
