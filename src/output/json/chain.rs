//! `disk chain`: the layers under a disk.

use std::path::Path;

use serde::Serialize;

use crate::model::{Format, LayerId, Link, Name};
use crate::vm::list::ChainRow;

/// A disk of `disk chain`: the active layer first.
#[derive(Debug, Serialize)]
pub struct Chain<'a> {
    target: &'a str,
    layers: Vec<Layer<'a>>,
}

#[derive(Debug, Serialize)]
struct Layer<'a> {
    id: &'a LayerId,
    file: &'a Path,
    format: Format,
    virtual_bytes: u64,
    allocated_bytes: u64,
    /// The snapshots of this VM that it belongs to.
    snapshots: &'a [Name],
    /// The other VMs and templates that depend on it.
    shared_by: &'a [Name],
}

impl<'a> From<&'a ChainRow> for Chain<'a> {
    fn from(row: &'a ChainRow) -> Self {
        let users = row.snapshots.iter().zip(&row.shared_by);
        let layers = row.chain.links().iter().zip(users);
        Self {
            target: &row.target,
            layers: layers.map(|(link, users)| Layer::new(link, users)).collect(),
        }
    }
}

impl<'a> Layer<'a> {
    fn new(link: &'a Link, (snapshots, shared_by): (&'a Vec<Name>, &'a Vec<Name>)) -> Self {
        Self {
            id: &link.layer.id,
            file: &link.path,
            format: link.layer.format,
            virtual_bytes: link.virtual_bytes,
            allocated_bytes: link.allocated_bytes,
            snapshots,
            shared_by,
        }
    }
}
