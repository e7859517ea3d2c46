//! What a merge that a user asks for means, and whether it may be done. Pure.

use crate::error::{Error, Result};
use crate::layer::collapse::Permissions;
use crate::layer::graph::{LayerGraph, Use};
use crate::layer::info::LayerInfo;
use crate::merge::undoable::Kept;
use crate::model::{Format, Layer, Merge, MergeKind, Name, Record};

/// The chain of one disk, from the active layer down, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The VM.
    pub vm: &'a Name,
    /// Its record.
    pub record: &'a Record,
    /// The disk.
    pub target: &'a str,
    /// Its chain, active layer first.
    pub chain: &'a [&'a LayerInfo],
}

impl Subject<'_> {
    /// The place in the chain of what a user calls a layer: its id, its file name, or the name of a
    /// snapshot that it belongs to.
    pub(crate) fn place(&self, text: &str) -> Result<usize> {
        let point = text.strip_prefix(&format!("{}@", self.vm)).unwrap_or(text);
        let of_snapshot =
            self.record.snapshots.iter().find(|snapshot| snapshot.name.as_str() == point).and_then(
                |snapshot| {
                    snapshot
                        .config
                        .volumes()
                        .find(|disk| disk.target == self.target)
                        .map(|disk| &disk.layer)
                },
            );
        let is = |layer: &Layer| {
            layer.id.to_string() == text
                || layer.file_name() == text
                || of_snapshot.is_some_and(|named| named == layer)
        };
        self.chain.iter().position(|info| is(&info.layer)).ok_or_else(|| {
            Error::not_found(format!("{text} is no layer below {} of {}", self.target, self.vm))
                .hint(format!("see what there is: cowhand disk chain {} {}", self.vm, self.target))
        })
    }

    fn name(&self, at: usize) -> &Layer {
        &self.chain[at].layer
    }
}

/// A commit: the snapshots that are given up for it, because their layers are written to, and the
/// merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// The merge.
    pub merge: Merge,
    /// In the order of the record.
    pub given_up: Vec<Name>,
}

/// Commits the layers from `top` down into `base`; without a base into the layer below `top`.
pub(crate) fn commit(
    graph: &LayerGraph,
    subject: Subject<'_>,
    top: usize,
    base: Option<usize>,
    permissions: Permissions<'_>,
) -> Result<Commit> {
    let Subject { vm, record, target, chain } = subject;
    let base = match base {
        Some(base) if base == top => {
            return Err(Error::usage(format!(
                "top and base are the same layer, {}",
                subject.name(top)
            )));
        }
        Some(base) if base < top => {
            return Err(Error::usage(format!(
                "the base {} lies above the top {}: data is committed downwards",
                subject.name(base),
                subject.name(top)
            ))
            .hint(format!("see the order: cowhand disk chain {vm} {target}")));
        }
        Some(base) => base,
        None if top + 1 < chain.len() => top + 1,
        None => {
            return Err(Error::refused(format!(
                "{target} of {vm} has no backing file to commit into"
            )));
        }
    };
    if let Some(why) = permissions.uncertain {
        return Err(Error::refused(format!("cannot determine which VMs use these layers: {why}")));
    }
    let (upper, lower) = (chain[top], chain[base]);
    let refuse = |info: &LayerInfo, why: String| {
        Err(Error::refused(format!(
            "{target} of {vm} cannot be committed: layer {} {why}",
            info.layer
        )))
    };
    for info in &chain[top..=base] {
        if permissions.in_use.contains(&info.layer.id) {
            return refuse(info, "is in use by another VM".to_owned());
        }
        if info.internal_snapshots > 0 {
            let count = info.internal_snapshots;
            let error = refuse(
                info,
                format!("carries {count} internal snapshots, which a merge would lose"),
            );
            return error.map_err(|error| {
                error.hint("those a revert has left for undo go with: cowhand gc --older-than 0")
            });
        }
    }
    // What is below `top` is written to or vanishes: only names that can be given up may point at
    // it, and nothing else may depend on it.
    let mut given_up = Vec::new();
    for (at, info) in chain.iter().enumerate().take(base + 1).skip(top + 1) {
        for r#use in graph.uses(&info.layer.id) {
            match r#use {
                Use::Snapshot(owner, name) if owner == vm => given_up.push(name.clone()),
                other => return refuse(info, format!("belongs to {}", words(other))),
            }
        }
        let above = &chain[at - 1].layer;
        if let Some(other) = graph.children(&info.layer.id).find(|child| child.layer != *above) {
            let users: Vec<String> = graph.uses(&other.layer.id).iter().map(words).collect();
            return refuse(info, format!("has another layer standing on it, of {}", list(&users)));
        }
    }
    if let Some(other) = graph.uses(&upper.layer.id).iter().find(|r#use| r#use.owner() != vm) {
        return refuse(upper, format!("belongs to {}", words(other)));
    }
    let above: Vec<&LayerInfo> = graph.children(&upper.layer.id).collect();
    let expected = top.checked_sub(1).map(|at| &chain[at].layer);
    if let Some(other) = above.iter().find(|info| Some(&info.layer) != expected) {
        let users: Vec<String> = graph.uses(&other.layer.id).iter().map(words).collect();
        return refuse(upper, format!("has another layer standing on it, of {}", list(&users)));
    }
    if !matches!(lower.layer.format, Format::Raw | Format::Qcow2) {
        return refuse(lower, format!("is {}, which is only read", lower.layer.format));
    }
    if upper.virtual_bytes < lower.virtual_bytes {
        return refuse(lower, "is larger than what would be committed into it".to_owned());
    }
    if lower.would_show_memory(upper.virtual_bytes) {
        let why = "would grow, and holds memory that a revert has loaded, \
                   which the guest would see there";
        return refuse(lower, why.to_owned()).map_err(|error| {
            error.hint(format!("it is given up by: cowhand stop {vm}, then cowhand gc"))
        });
    }
    // In the order of the record, each once.
    let given_up = record
        .snapshots
        .iter()
        .map(|snapshot| snapshot.name.clone())
        .filter(|name| given_up.contains(name));
    let bytes = chain[top..base].iter().map(|info| info.allocated_bytes).sum();
    let merge = Merge {
        between: chain[top + 1..base].iter().map(|info| info.layer.clone()).collect(),
        below: lower.backing.clone(),
        overlay: expected.cloned(),
        ..Merge::pair(target, MergeKind::Commit, &upper.layer, &lower.layer, bytes)
    };
    Ok(Commit { merge, given_up: given_up.collect() })
}

/// Copies everything between the active layer and `base` (which stays below; `None`: all of it)
/// into the active layer. `None`: there is nothing to copy. Where it is uncertain who uses which
/// layer, the data is copied and no layer vanishes; nor does one in `kept_for_undo`, which a change
/// that can be undone needs.
pub(crate) fn stream(
    graph: &LayerGraph,
    subject: Subject<'_>,
    base: Option<usize>,
    kept_for_undo: &Kept,
) -> Result<Option<Merge>> {
    let Subject { vm, target, chain, .. } = subject;
    if base == Some(0) {
        return Err(Error::usage(format!(
            "{} is the active layer: there is nothing above it to stream into",
            chain[0].layer
        )));
    }
    let end = base.unwrap_or(chain.len());
    if end <= 1 {
        return Ok(None);
    }
    let top = chain[0];
    if top.layer.format != Format::Qcow2 {
        return Err(Error::refused(format!(
            "{target} of {vm} is {}: nothing can be streamed into it",
            top.layer.format
        )));
    }
    if top.internal_snapshots > 0 {
        return Err(Error::refused(format!(
            "{target} of {vm} cannot be streamed: its layer {} carries {} internal snapshots, \
             which rest on what is below",
            top.layer, top.internal_snapshots
        ))
        .hint(format!("see them: cowhand snapshot ls {vm}")));
    }
    // From above: once a layer stays, what is below it stays, too.
    let mut kept = Vec::new();
    let mut stays = kept_for_undo.uncertainty(graph, vm).is_some();
    for (at, info) in chain.iter().enumerate().take(end).skip(1) {
        let others = graph.children(&info.layer.id).any(|child| child.layer != chain[at - 1].layer);
        // A change that can be undone may need an internal snapshot in it.
        stays |= others
            || info.internal_snapshots > 0
            || kept_for_undo.layers.contains(&info.layer.id)
            || !graph.uses(&info.layer.id).is_empty();
        if stays {
            kept.push(info.layer.clone());
        }
    }
    let bytes = chain[1..end].iter().map(|info| info.allocated_bytes).sum();
    Ok(Some(Merge {
        between: chain[1..end - 1].iter().map(|info| info.layer.clone()).collect(),
        below: chain.get(end).map(|info| info.layer.clone()),
        kept,
        ..Merge::pair(target, MergeKind::Stream, &top.layer, &chain[end - 1].layer, bytes)
    }))
}

fn words(r#use: &Use) -> String {
    match r#use {
        Use::Head(vm) => format!("VM {vm}"),
        Use::Snapshot(vm, snapshot) => format!("{vm}@{snapshot}"),
        Use::Template(name) => format!("template {name}"),
        Use::Change(vm) => format!("a change of {vm} that is under way"),
        Use::Spare(vm) => format!("the spare copy of the record of {vm}"),
    }
}

fn list(users: &[String]) -> String {
    if users.is_empty() { "another branch".to_owned() } else { users.join(", ") }
}

#[cfg(test)]
mod tests;
