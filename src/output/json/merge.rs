//! Merges of layers.

use serde::Serialize;

use crate::disk::merge;
use crate::model::{self, LayerId, Name};

/// `disk commit`, `disk stream` and `flatten`.
#[derive(Debug, Serialize)]
pub struct Merged<'a> {
    name: &'a Name,
    merges: Vec<Merge<'a>>,
    /// The snapshots that were given up for it.
    given_up: &'a [Name],
    dry_run: bool,
}

impl<'a> Merged<'a> {
    /// What was merged of the VM `name`; with `dry_run`, what would be.
    pub fn new(name: &'a Name, merged: &'a merge::Merged, dry_run: bool) -> Self {
        let merges = merged.merges.iter().map(Merge::from).collect();
        Self { name, merges, given_up: &merged.given_up, dry_run }
    }
}

/// A merge of `disk commit`, `disk stream` and `flatten`.
#[derive(Debug, Serialize)]
pub struct Merge<'a> {
    target: &'a str,
    kind: &'static str,
    top: &'a LayerId,
    base: &'a LayerId,
    /// How many are merged into another one.
    layers: usize,
    /// About how many move.
    bytes: u64,
}

impl<'a> From<&'a model::Merge> for Merge<'a> {
    fn from(merge: &'a model::Merge) -> Self {
        Self {
            target: &merge.target,
            kind: merge.kind.as_str(),
            top: &merge.top.id,
            base: &merge.base.id,
            layers: merge.between.len() + 1,
            bytes: merge.bytes,
        }
    }
}
