//! Looking at templates. Takes no lock.

use std::os::unix::fs::MetadataExt;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::graph::LayerGraph;
use crate::model::{LayerId, Name, Record, Role, Warm};

/// A template, and who depends on it.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its name.
    pub name: Name,
    /// Its record.
    pub record: Record,
    /// When it was frozen.
    pub frozen: jiff::Timestamp,
    /// Host-specific state was stripped from it.
    pub sealed: bool,
    /// The VMs and templates that depend on it.
    pub dependents: Vec<Name>,
    /// Bytes on disk.
    pub bytes: u64,
}

/// All templates that were VMs before.
pub fn list(context: &Context) -> Result<Vec<Row>> {
    Ok(all(context)?.into_iter().filter(|row| row.record.image().is_none()).collect())
}

/// All templates and images.
pub fn all(context: &Context) -> Result<Vec<Row>> {
    let graph = LayerGraph::scan(&context.store)?;
    let names = context.store.names()?;
    let records = names
        .into_iter()
        .filter_map(|name| context.store.load(&name).ok().map(|record| (name, record)));
    Ok(records.filter_map(|(name, record)| row(context, &graph, name, record)).collect())
}

/// One template.
pub fn show(context: &Context, name: &Name) -> Result<Row> {
    let record = context.store.load(name)?;
    let graph = LayerGraph::scan(&context.store)?;
    let kind = record.kind();
    row(context, &graph, name.clone(), record)
        .filter(|row| row.record.image().is_none())
        .ok_or_else(|| {
            let article = if kind == "image" { "an" } else { "a" };
            Error::refused(format!("{name} is {article} {kind}, not a template"))
                .hint(format!("cowhand show {name}"))
        })
}

fn row(context: &Context, graph: &LayerGraph, name: Name, record: Record) -> Option<Row> {
    let Role::Template { frozen, sealed, .. } = record.role else {
        return None;
    };
    let ids: Vec<LayerId> = record.layers().map(|layer| layer.id.clone()).collect();
    let file_bytes = |layer| {
        std::fs::metadata(context.store.layout.layer(layer)).map_or(0, |about| about.blocks() * 512)
    };
    Some(Row {
        dependents: graph.dependents(&name, &ids),
        bytes: record.layers().map(file_bytes).sum::<u64>()
            + record.warm.as_ref().map_or(0, Warm::bytes),
        frozen,
        sealed,
        name,
        record,
    })
}
