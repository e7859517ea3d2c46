//! What images hold inside and nobody needs: internal snapshots, and memory in the active part.

use super::Collected;
use crate::change::Run;
use crate::context::Context;
use crate::error::{Kind, Result};
use crate::instance::status;
use crate::layer::graph::{LayerGraph, Use};
use crate::layer::info;
use crate::layer::info::LayerInfo;
use crate::model::{Layer, Name};
use crate::snapshot::internal;
use crate::snapshot::internal_steps;
use crate::store::plain;

/// Takes internal snapshots out of images that were kept for an `undo` which is not possible any
/// more. Not while somebody has them open.
pub(super) async fn remove_undo_snapshots(context: &Context, graph: &LayerGraph) -> Result<()> {
    let store = &context.store;
    let nobody: Name = "nobody".parse()?;
    for info in graph.layers.values().filter(|info| info.internal_snapshots > 0) {
        // It may be in the trash by now.
        if !plain::is_there(&store.layout.layer(&info.layer)) {
            continue;
        }
        let is_head = |user: &Name| graph.uses(&info.layer.id).contains(&Use::Head(user.clone()));
        // What a template's files look like is noted; they never change.
        if graph.uses(&info.layer.id).iter().any(|r#use| matches!(r#use, Use::Template(_))) {
            continue;
        }
        let (mut locks, mut owner) = (Vec::new(), None);
        for user in graph.users(&info.layer.id) {
            let lock = store.try_lock_vm(&user, &context.operation)?;
            // The QEMU that writes to it can do it; one that only reads it must not be surprised.
            let fine = lock.is_some()
                && !store.has_journal(&user)
                && (is_head(&user) || !status::is_running(context, &user)?);
            owner = owner.or(is_head(&user).then_some(user));
            locks.push(lock.filter(|_| fine));
        }
        if locks.iter().any(Option::is_none) {
            continue;
        }
        // What cannot be read may need one of them.
        let Some(wanted) = store.undo_snapshots()? else { return Ok(()) };
        let mut run = match &owner {
            Some(owner) => Run::new(context, owner),
            None => Run::with_no_qemu(context, &nobody),
        };
        match remove_undo_snapshots_in(context, &info.layer, &wanted, &mut run).await {
            // One image that is damaged is not the others' business.
            Err(error) if matches!(error.kind(), Kind::Qemu | Kind::Damaged) => {
                context.ui.warn(&format!(
                    "internal snapshots in layer {} that no undo needs any more stay: {}",
                    info.layer,
                    error.full_message()
                ))
            }
            other => other?,
        }
    }
    Ok(())
}

/// Gives up memory in the active part of images, which a revert has loaded and nothing needs. It
/// takes as long as checking the image, so nobody but the users of the layer is kept waiting.
pub(super) async fn give_up_memory(context: &Context) -> Result<Vec<Collected>> {
    let store = &context.store;
    let graph = LayerGraph::scan(store)?;
    let mut collected = Vec::new();
    let is_template = |info: &LayerInfo| {
        graph.uses(&info.layer.id).iter().any(|r#use| matches!(r#use, Use::Template(_)))
    };
    for info in graph.layers.values().filter(|info| info.guest_memory && !is_template(info)) {
        let users = graph.users(&info.layer.id);
        // A VM may use it whose record cannot be read.
        let (Some(first), None) = (users.first(), graph.uncertainty(None)) else { continue };
        let mut locks = Vec::new();
        for user in &users {
            locks.extend(
                store.try_lock_vm(user, &context.operation)?.filter(|_| !store.has_journal(user)),
            );
        }
        if locks.len() < users.len() {
            continue;
        }
        let running =
            users.iter().map(|user| Ok(status::is_running(context, user)?.then_some(user)));
        if let Some(running) = running.collect::<Result<Vec<_>>>()?.into_iter().flatten().next() {
            context.ui.note(&format!(
                "{running} is running: memory that a revert has loaded stays in layer {}; to free \
                 it: cowhand stop {running}, then cowhand gc",
                info.layer
            ));
            continue;
        }
        match internal_steps::give_up_memory_of(context, &info.layer).await {
            Ok(()) => {
                let now = info::inspect(store, &info.layer)
                    .map_or(info.allocated_bytes, |now| now.allocated_bytes);
                let bytes = info.allocated_bytes.saturating_sub(now);
                collected.push(Collected { what: first.to_string(), why: "memory", bytes });
            }
            Err(error) => context.ui.warn(&format!(
                "memory that a revert has loaded stays in layer {} of {first}: {}",
                info.layer,
                error.full_message()
            )),
        }
    }
    Ok(collected)
}

async fn remove_undo_snapshots_in(
    context: &Context,
    layer: &Layer,
    wanted: &[String],
    run: &mut Run<'_>,
) -> Result<()> {
    for tag in internal::undo_tags(context, layer).await? {
        if !wanted.contains(&tag) {
            internal_steps::delete(run, &tag, std::slice::from_ref(layer)).await?;
        }
    }
    Ok(())
}
