//! The chain of one disk, as QEMU has to be told about it: every layer by name and format, nothing left to be probed.

use std::path::PathBuf;

use super::pool;
use crate::error::{Error, Result};
use crate::model::{Config, Disk, Layer, LayerId};
use crate::store::Store;

/// The longest chain that is followed; beyond it something is wrong.
const MAX_DEPTH: usize = 1000;

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

/// Layers that stand on each other: the active layer first, the base last. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(Vec<Link>);

impl Chain {
    /// Follows the headers from `layer` down to the base.
    pub fn read(store: &Store, layer: &Layer) -> Result<Self> {
        let mut links: Vec<Link> = Vec::new();
        let mut next = Some(layer.clone());
        while let Some(layer) = next {
            if links.iter().any(|link| link.layer.id == layer.id) || links.len() == MAX_DEPTH {
                return Err(Error::damaged(format!("the chain of layer {} never ends", links[0].layer)));
            }
            let info = pool::inspect(store, &layer)?;
            next = info.backing;
            links.push(Link {
                path: store.layout.layer(&layer),
                layer,
                virtual_bytes: info.virtual_bytes,
                allocated_bytes: info.allocated_bytes,
                internal_snapshots: info.internal_snapshots,
            });
        }
        Ok(Self(links))
    }

    /// A chain from its links, active layer first; `None` when there are none.
    pub fn from_links(links: Vec<Link>) -> Option<Self> {
        (!links.is_empty()).then_some(Self(links))
    }

    /// The chain of a disk's active layer.
    pub fn of_disk(store: &Store, disk: &Disk) -> Result<Self> {
        Self::read(store, &disk.layer)
    }

    /// The layer that is written to.
    pub fn active(&self) -> &Link {
        &self.0[0]
    }

    /// All of it, active layer first.
    pub fn links(&self) -> &[Link] {
        &self.0
    }

    /// Is this layer part of it?
    pub fn contains(&self, id: &LayerId) -> bool {
        self.0.iter().any(|link| link.layer.id == *id)
    }
}

/// Reads the chains of all volumes, which shows that they are whole, and takes over the sizes that the images have now: a disk
/// may have grown behind our back, and an overlay as small as the record says would hide its end.
pub fn refresh(store: &Store, config: &mut Config) -> Result<()> {
    for disk in config.disks.iter_mut().chain(&mut config.nvram) {
        let chain = Chain::of_disk(store, disk)?;
        if chain.active().virtual_bytes != 0 {
            disk.virtual_bytes = chain.active().virtual_bytes;
        }
    }
    Ok(())
}
