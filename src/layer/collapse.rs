//! The collapse planner: what becomes of layers that no name points at any more. Pure.
//!
//! A sealed, unnamed layer L
//! - without a child is dropped (into the trash), and the layer below it is looked at next;
//! - with one child C is merged: C is *committed* into L (C's data moves) or L is *streamed* into C
//!   (L's data moves);
//! - with more children stays, hidden, until one is left.
//!
//! Commit changes L, so nothing but C may depend on it, and C vanishes, so all its names must be
//! ours to re-point and at most one layer may depend on it. Stream only writes C. The cheaper one
//! that is allowed is taken.

use crate::model::{Format, Layer, LayerId, Name};

use super::graph::{LayerGraph, Use};
use super::info::LayerInfo;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing depends on it and nobody names it: into the trash.
    Drop(Layer),
    /// Write `top`'s data into `base`; `top` vanishes and `base` takes its place.
    Commit {
        /// The layer that vanishes.
        top: Layer,
        /// The layer that is written.
        base: Layer,
        /// About how many bytes move.
        bytes: u64,
    },
    /// Copy `gone`'s data into `top`, which then depends on what `gone` depended on.
    Stream {
        /// The layer that is written.
        top: Layer,
        /// The layer that vanishes.
        gone: Layer,
        /// About how many bytes move.
        bytes: u64,
    },
    /// It stays for now.
    Keep {
        /// The unnamed layer.
        layer: Layer,
        /// Why.
        why: Why,
    },
}

/// Why an unnamed layer stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Why {
    /// Several layers depend on it.
    Children(Vec<Layer>),
    /// It carries internal snapshots, which a merge would lose.
    InternalSnapshots(u32),
    /// The layer above it carries internal snapshots, which rest on it.
    BelowInternal(u32),
    /// A change that can be undone needs it as it is.
    Undo,
    /// Neither direction is allowed: the layers are in use elsewhere.
    InUse,
    /// Nobody can be sure who uses what, for this reason.
    Uncertain(String),
}

/// Which layers may be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permissions<'a> {
    /// The VM the plan is for: its names can be re-pointed.
    pub owner: &'a Name,
    /// Layers that a VM other than `owner` has open, or might open: they must not be written.
    pub in_use: &'a [LayerId],
    /// Layers that stay as they are, because a change that can be undone needs them.
    pub kept: &'a [LayerId],
    /// Why it is uncertain which VMs use these layers; then nothing is touched.
    pub uncertain: Option<&'a str>,
}

/// What becomes of `layer` now that `graph` shows who still names it. At most one merge; dropping
/// goes on downwards.
pub(crate) fn plan(
    graph: &LayerGraph,
    layer: &LayerId,
    permissions: Permissions<'_>,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut dropped: Vec<LayerId> = Vec::new();
    let mut next = Some(layer.clone());
    while let Some(id) = next.take() {
        let Some(info) = graph.layers.get(&id) else {
            break;
        };
        // A damaged header may name a layer that was met already.
        if !graph.uses(&id).is_empty() || dropped.contains(&id) {
            break;
        }
        if let Some(why) = permissions.uncertain {
            actions.push(Action::Keep {
                layer: info.layer.clone(),
                why: Why::Uncertain(why.to_owned()),
            });
            break;
        }
        if permissions.kept.contains(&id) {
            actions.push(Action::Keep { layer: info.layer.clone(), why: Why::Undo });
            break;
        }
        let children: Vec<&LayerInfo> =
            graph.children(&id).filter(|child| !dropped.contains(&child.layer.id)).collect();
        match children[..] {
            [] => {
                actions.push(Action::Drop(info.layer.clone()));
                dropped.push(id);
                next = info.backing.as_ref().map(|backing| backing.id.clone());
            }
            [child] => actions.push(merge(graph, info, child, permissions)),
            _ => {
                let children = children.iter().map(|child| child.layer.clone()).collect();
                actions
                    .push(Action::Keep { layer: info.layer.clone(), why: Why::Children(children) });
            }
        }
    }
    actions
}

/// The layers that are not what they were after `actions`, or not there any more.
pub(crate) fn touched(actions: &[Action]) -> impl Iterator<Item = &Layer> {
    actions
        .iter()
        .flat_map(|action| match action {
            Action::Drop(layer) => [Some(layer), None],
            Action::Commit { top: one, base: other, .. }
            | Action::Stream { top: one, gone: other, .. } => [Some(one), Some(other)],
            Action::Keep { .. } => [None, None],
        })
        .flatten()
}

/// Makes `graph` what it is after `actions`. About sizes it is as vague as they are.
pub(crate) fn apply(graph: &mut LayerGraph, actions: &[Action]) {
    for action in actions {
        match action {
            Action::Drop(layer) => drop(graph.layers.remove(&layer.id)),
            Action::Commit { top, base, bytes } => {
                let gone = graph.layers.remove(&top.id);
                for info in
                    graph.layers.values_mut().filter(|info| info.backing.as_ref() == Some(top))
                {
                    info.backing = Some(base.clone());
                }
                if let (Some(gone), Some(base)) = (gone, graph.layers.get_mut(&base.id)) {
                    base.virtual_bytes = base.virtual_bytes.max(gone.virtual_bytes);
                    base.allocated_bytes += bytes;
                }
                let uses = graph.uses.remove(&top.id).unwrap_or_default();
                graph.uses.entry(base.id.clone()).or_default().extend(uses);
            }
            Action::Stream { top, gone, bytes } => {
                let gone = graph.layers.remove(&gone.id);
                if let (Some(gone), Some(top)) = (gone, graph.layers.get_mut(&top.id)) {
                    top.backing = gone.backing;
                    top.allocated_bytes += bytes;
                }
            }
            Action::Keep { .. } => {}
        }
    }
}

fn merge(
    graph: &LayerGraph,
    layer: &LayerInfo,
    child: &LayerInfo,
    permissions: Permissions<'_>,
) -> Action {
    if layer.internal_snapshots > 0 {
        return Action::Keep {
            layer: layer.layer.clone(),
            why: Why::InternalSnapshots(layer.internal_snapshots),
        };
    }
    // What an internal snapshot has not written it reads from below, now and for ever.
    if child.internal_snapshots > 0 {
        return Action::Keep {
            layer: layer.layer.clone(),
            why: Why::BelowInternal(child.internal_snapshots),
        };
    }
    if permissions.kept.contains(&child.layer.id) {
        return Action::Keep { layer: layer.layer.clone(), why: Why::Undo };
    }
    // Nobody's yet, or any more: whoever takes it away, or back, relies on what it depends on.
    if graph.users(&child.layer.id).is_empty() {
        return Action::Keep { layer: layer.layer.clone(), why: Why::InUse };
    }
    let in_use = |info: &LayerInfo| permissions.in_use.contains(&info.layer.id);
    let ours = |r#use: &Use| r#use.owner() == permissions.owner;
    let named_by_us = |uses: &[Use]| !uses.is_empty() && uses.iter().all(ours);
    let grandchildren = graph.children(&child.layer.id).count();
    let can_commit = matches!(layer.layer.format, Format::Qcow2 | Format::Raw)
        && !in_use(layer)
        && !in_use(child)
        && named_by_us(graph.uses(&child.layer.id))
        && grandchildren <= 1
        && graph
            .children(&child.layer.id)
            .all(|grandchild| !in_use(grandchild) && !template(graph, grandchild))
        && child.virtual_bytes >= layer.virtual_bytes
        && !layer.would_show_memory(child.virtual_bytes);
    let can_stream =
        child.layer.format == Format::Qcow2 && !in_use(child) && !template(graph, child);
    let commit = Action::Commit {
        top: child.layer.clone(),
        base: layer.layer.clone(),
        bytes: child.allocated_bytes,
    };
    let stream = Action::Stream {
        top: child.layer.clone(),
        gone: layer.layer.clone(),
        bytes: layer.allocated_bytes,
    };
    match (can_commit, can_stream) {
        (true, true) if child.allocated_bytes <= layer.allocated_bytes => commit,
        (_, true) => stream,
        (true, false) => commit,
        (false, false) => Action::Keep { layer: layer.layer.clone(), why: Why::InUse },
    }
}

fn template(graph: &LayerGraph, info: &LayerInfo) -> bool {
    graph.uses(&info.layer.id).iter().any(|r#use| matches!(r#use, Use::Template(_)))
}

#[cfg(test)]
mod tests;
