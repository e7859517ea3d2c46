//! The others: VMs that depend on layers which are about to be merged. Stopped ones are kept from
//! starting by their locks; running or busy ones keep their layers from being written.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::error::Result;
use crate::instance::status;
use crate::layer::graph::LayerGraph;
use crate::model::{LayerId, Name, Record};
use crate::store::VmLock;

/// The pool as it is when the record of `vm` says `after`.
pub(crate) fn graph_after(context: &Context, vm: &Name, after: &Record) -> Result<LayerGraph> {
    let mut graph = LayerGraph::scan(&context.store)?;
    graph.forget(vm);
    graph.add_record(vm, after);
    Ok(graph)
}

/// Those who depend on some layers: locked, or busy.
pub(crate) struct DependentLocks {
    _locks: Vec<VmLock>,
    busy: Vec<Name>,
}

impl DependentLocks {
    /// Locks those who depend on `layers`, which lose their name when the record of `vm` says
    /// `after`, and on the nameless ones below. Returns the pool as it is then, too. Who stands
    /// there later than that is seen when the change begins ([`crate::change::dependents`]).
    pub(crate) fn lock(
        context: &Context,
        vm: &Name,
        after: &Record,
        layers: &[LayerId],
    ) -> Result<(Self, LayerGraph)> {
        let graph = graph_after(context, vm, after)?;
        let mut ids: Vec<LayerId> = Vec::new();
        for layer in layers {
            let mut next = Some(layer.clone());
            // A damaged header may name a layer that was met already.
            while let Some(info) = next.and_then(|id| graph.layers.get(&id)).filter(|info| {
                graph.uses(&info.layer.id).is_empty() && !ids.contains(&info.layer.id)
            }) {
                ids.push(info.layer.id.clone());
                next = info.backing.as_ref().map(|backing| backing.id.clone());
            }
        }
        let mut held = Self { _locks: Vec::new(), busy: Vec::new() };
        let dependents = graph.dependents(vm, &ids);
        for other in &dependents {
            let lock = context.store.try_lock_vm(other, &context.operation)?;
            let idle = lock.is_some()
                && !context.store.has_journal(other)
                && !status::is_running(context, other)?;
            held._locks.extend(lock);
            if !idle {
                held.busy.push(other.clone());
            }
        }
        // What they did until we had their locks shows in a second look.
        let graph = if dependents.is_empty() { graph } else { graph_after(context, vm, after)? };
        Ok((held, graph))
    }

    /// The layers of those who are busy, which must not be written.
    pub(crate) fn in_use(&self, graph: &LayerGraph) -> Result<Vec<LayerId>> {
        let mut layers = Vec::new();
        for name in &self.busy {
            layers.extend(open_layers(graph, name)?);
        }
        Ok(layers)
    }
}

/// Every layer that `vm`, running, has open or a change of it relies on.
fn open_layers(graph: &LayerGraph, vm: &Name) -> Result<BTreeSet<LayerId>> {
    let mut open = BTreeSet::new();
    for (id, _) in
        graph.uses.iter().filter(|(_, uses)| uses.iter().any(|r#use| r#use.owner() == vm))
    {
        if graph.layers.contains_key(id) {
            open.extend(graph.chain(id)?.into_iter().map(|info| info.layer.id.clone()));
        }
    }
    Ok(open)
}
