//! Looking at snapshots. Takes no lock.

use std::os::unix::fs::MetadataExt;

use super::plan;
use super::plan::Which;
use crate::context::Context;
use crate::error::Result;
use crate::layer::graph::LayerGraph;
use crate::model::{Config, LayerId, Name, Record, Snapshot};

/// A snapshot with what is computed about it.
#[derive(Debug, Clone)]
pub struct Row {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// It is the current snapshot.
    pub current: bool,
    /// Bytes on disk of its layers: what was written since the snapshot before.
    pub bytes: u64,
    /// The snapshots that depend on it.
    pub children: Vec<Name>,
    /// The snapshots that depend on it, directly or not.
    pub descendants: Vec<Name>,
}

/// All snapshots of `vm`, oldest first.
pub fn list(context: &Context, vm: &Name) -> Result<Vec<Row>> {
    let record = context.store.load(vm)?;
    Ok(record.snapshots.iter().map(|snapshot| row(context, &record, snapshot)).collect())
}

/// One snapshot of `vm`.
pub fn show(context: &Context, vm: &Name, snapshot: &Name) -> Result<Row> {
    let record = context.store.load(vm)?;
    let snapshot = record.snapshot(vm, snapshot)?;
    Ok(row(context, &record, snapshot))
}

fn row(context: &Context, record: &Record, snapshot: &Snapshot) -> Row {
    Row {
        current: record.current.as_ref() == Some(&snapshot.name),
        // An internal one has no layer of its own.
        bytes: if snapshot.tag().is_some() { 0 } else { bytes(context, &snapshot.config) },
        descendants: plan::to_remove(record, &snapshot.name, Which::ChildrenOnly)
            .into_iter()
            .rev()
            .collect(),
        children: record.children(&snapshot.name).map(|child| child.name.clone()).collect(),
        snapshot: snapshot.clone(),
    }
}

fn bytes(context: &Context, config: &Config) -> u64 {
    config
        .writable()
        .filter_map(|disk| std::fs::metadata(context.store.layout.layer(&disk.layer)).ok())
        .map(|about| about.blocks() * 512)
        .sum()
}

/// The whole tree of a VM.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The VM.
    pub vm: Name,
    /// Its snapshots, oldest first.
    pub rows: Vec<Row>,
    /// Per snapshot, the VMs and templates cloned from it.
    pub clones: Vec<Vec<Name>>,
    /// The current snapshot: the one the head is based on.
    pub current: Option<Name>,
    /// Bytes on disk of the head's layers.
    pub head_bytes: u64,
}

/// The tree of `vm`.
pub fn tree(context: &Context, vm: &Name) -> Result<Tree> {
    let record = context.store.load(vm)?;
    let graph = LayerGraph::scan(&context.store)?;
    let clones = record.snapshots.iter().map(|snapshot| clones(&graph, vm, snapshot)).collect();
    Ok(Tree {
        vm: vm.clone(),
        rows: record.snapshots.iter().map(|snapshot| row(context, &record, snapshot)).collect(),
        clones,
        head_bytes: bytes(context, &record.config),
        current: record.current,
    })
}

/// Who, other than `vm` itself, stands directly on a snapshot's layers.
fn clones(graph: &LayerGraph, vm: &Name, snapshot: &Snapshot) -> Vec<Name> {
    let ids: Vec<&LayerId> = snapshot.config.writable().map(|disk| &disk.layer.id).collect();
    let mut names: Vec<Name> = ids
        .into_iter()
        .flat_map(|id| graph.children(id))
        .flat_map(|child| graph.uses(&child.layer.id))
        .map(|r#use| r#use.owner().clone())
        .filter(|owner| owner != vm)
        .collect();
    names.sort();
    names.dedup();
    names
}
