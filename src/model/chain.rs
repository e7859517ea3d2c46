//! The chain of one disk, as QEMU has to be told about it: every layer by name and format, nothing
//! left to be probed.

use std::path::PathBuf;

use super::{Layer, LayerId};

/// A layer and where its file lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Identity and format.
    pub layer: Layer,
    /// Its file.
    pub path: PathBuf,
    /// The size the guest sees, in bytes (0: only QEMU could tell).
    pub virtual_bytes: u64,
    /// Bytes on disk.
    pub allocated_bytes: u64,
    /// How many internal snapshots it carries.
    pub internal_snapshots: u32,
}

/// Layers that depend on each other: the active layer first, the base last. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    links: Vec<Link>,
}

impl Chain {
    /// A chain from its links, active layer first; `None` when there are none.
    pub fn from_links(links: Vec<Link>) -> Option<Self> {
        (!links.is_empty()).then_some(Self { links })
    }

    /// The layer that is written to.
    pub fn active(&self) -> &Link {
        &self.links[0]
    }

    /// All of it, active layer first.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Is this layer part of it?
    pub fn contains(&self, id: &LayerId) -> bool {
        self.links.iter().any(|link| link.layer.id == *id)
    }
}
