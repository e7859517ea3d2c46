//! Removing a snapshot, and changes from before that can be undone: which layers these need, and
//! which of them cannot be undone afterwards.

use crate::context::Context;
use crate::error::Result;
use crate::layer::graph::LayerGraph;
use crate::layer::stamp;
use crate::model::{Layer, LayerId, Name};
use crate::store::trash::Entry;

/// The layers that stay as they are, so that what can be undone still can be.
#[derive(Default)]
pub(crate) struct Kept {
    /// Those.
    pub layers: Vec<LayerId>,
    /// Why it is not known which.
    pub unknown: Option<String>,
}

impl Kept {
    /// What the trash needs; nothing unless `keep`. Whoever is removed after the pool was read is
    /// still in it, so the trash is read after it.
    pub(crate) fn look(context: &Context, keep: bool) -> Result<Self> {
        if !keep {
            return Ok(Self::default());
        }
        let torn = context.store.torn_entry()?;
        let unknown = torn
            .map(|entry| format!("the entry {entry} of the trash cannot be read, and may need it"));
        Ok(Self { layers: context.store.below_trash()?, unknown })
    }

    /// Why nothing of `vm` may be merged or removed, if so.
    pub(crate) fn uncertainty(&self, graph: &LayerGraph, vm: &Name) -> Option<String> {
        graph.uncertainty(Some(vm)).or_else(|| self.unknown.clone())
    }
}

/// The changes that can be undone as long as `touched` are what they are.
pub(crate) fn relying_on<'a>(
    context: &Context,
    touched: impl Iterator<Item = &'a Layer>,
) -> Result<Vec<Entry>> {
    let touched: Vec<&LayerId> = touched.map(|layer| &layer.id).collect();
    let on = context.store.undoable_on(&touched)?;
    only(context, on, true)
}

/// Those of `entries` that cannot be undone any more.
pub(crate) fn lost(context: &Context, entries: Vec<Entry>) -> Result<Vec<Entry>> {
    only(context, entries, false)
}

fn only(context: &Context, mut entries: Vec<Entry>, possible: bool) -> Result<Vec<Entry>> {
    if entries.is_empty() {
        return Ok(entries);
    }
    let records = context.store.records()?;
    entries.retain(|entry| {
        stamp::obstacle(&context.store, &records, &entry.below).is_none() == possible
    });
    Ok(entries)
}

/// What the command was, in words, for a person to read.
pub(crate) fn words(entry: &Entry) -> String {
    format!("`{}` of {}", entry.command(), entry.vm)
}

/// The same as the entry says it, for JSON.
pub(crate) fn words_as_noted(entry: &Entry) -> String {
    format!("`{}` of {}", entry.operation, entry.vm)
}
