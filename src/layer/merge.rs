//! Merging layers by QEMU's block jobs: `block-commit` and `block-stream`, in the VM's own QEMU where it has the layers open, else
//! in the offline engine. Backing file names in headers stay relative to the pool.
//!
//! An active layer is merged in two phases. While the guest runs, its data is copied until the job is *ready*; then the guest is
//! paused, the job makes its switch, and the guest stays paused until the caller has written down which layer is active now.
//! Dying at any point of that leaves two layers with the same content, either of which may be called the active one. Other merges wait
//! with all data copied (`auto-finalize: false`), too, so that the disks of a VM move together.

use std::time::Instant;

use serde_json::{Value, json};

use super::{census, chain, note};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::{Chain, Format, Layer, Merge, MergeKind, human};
use crate::qemu::nodes;
use crate::qemu::offline::{Offline, Open};
use crate::qemu::qmp::jobs::{Job, Milestone};
use crate::qemu::qmp::{Qmp, QmpError};

/// Why a merge did not come to its end.
pub enum Failure {
    /// Nothing has switched: every layer holds what it held, and is where it was.
    Untouched(Error),
    /// Something has, or nobody knows: it has to be carried on.
    Halfway(Error),
}

/// Carries out `merges`: those that are open in the VM's QEMU there, the others in the offline engine; in either place all switch
/// together, or none. `paused_at` is set when the guest was paused.
pub async fn run(
    context: &Context,
    live: Option<&mut Qmp>,
    merges: &[Merge],
    paused_at: &mut Option<Instant>,
) -> Result<(), Failure> {
    let relinked = || merges.iter().filter_map(Merge::relinked);
    relinked().for_each(|layer| note::forget(&context.store, layer));
    let outcome = carry_out(context, live, merges, paused_at).await;
    if matches!(outcome, Ok(()) | Err(Failure::Untouched(_))) {
        relinked().for_each(|layer| note::write(&context.store, layer));
    }
    outcome
}

async fn carry_out(
    context: &Context,
    mut live: Option<&mut Qmp>,
    merges: &[Merge],
    paused_at: &mut Option<Instant>,
) -> Result<(), Failure> {
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    for merge in merges {
        let place = match &mut live {
            Some(qmp) => place(context, qmp, merge).await.map_err(Failure::Halfway)?,
            None => Place::Elsewhere,
        };
        match (place, &mut live) {
            (Place::Here { root }, _) => here.push((merge, root)),
            (Place::Switched, Some(qmp)) => release(qmp, merge.vanishing()).await,
            _ if !done(context, merge).map_err(Failure::Halfway)? => elsewhere.push(merge),
            _ => flush_header(context, merge).map_err(Failure::Halfway)?,
        }
    }
    // What an earlier attempt has finished must not be forgotten.
    let mut untouched = here.len() + elsewhere.len() == merges.len();
    if !elsewhere.is_empty() {
        offline(context, &elsewhere, untouched).await?;
        untouched = false;
    }
    match live {
        Some(qmp) if !here.is_empty() => {
            let ready = copy(context, qmp, &here, untouched).await?;
            switch(context, qmp, &ready, paused_at).await.map_err(|error| {
                Failure::Halfway(if paused_at.is_some() { error.hint("the guest is paused until then") } else { error })
            })
        }
        _ => Ok(()),
    }
}

/// Calls off merges that another attempt has begun, where none of them has switched. False: they have to be carried on.
pub async fn call_off(context: &Context, live: Option<&mut Qmp>, merges: &[Merge]) -> Result<bool> {
    let mut rooted = Vec::new();
    let Some(qmp) = live else {
        // The offline engine has died with the command, and what it had copied does no harm.
        return merges.iter().try_fold(true, |untouched, merge| Ok(untouched && !done(context, merge)?));
    };
    for merge in merges {
        match place(context, qmp, merge).await? {
            Place::Here { root } => rooted.push((merge, root)),
            Place::Elsewhere if !done(context, merge)? => {}
            Place::Elsewhere | Place::Switched => return Ok(false),
        }
    }
    let jobs = qmp.jobs().await?;
    // A job that was told to switch cannot be called off any more.
    let told = |status: &str| !matches!(status, "created" | "running" | "ready" | "standby" | "pending" | "waiting");
    if jobs.iter().any(|job| merges.iter().any(|merge| merge.job() == job.id) && told(&job.status)) {
        return Ok(false);
    }
    cancel(qmp, &rooted).await?;
    Ok(true)
}

/// Where a merge has to be done, seen from a running VM.
enum Place {
    /// Its QEMU has the layers open.
    Here {
        /// The node the device is on; `None` when the job is at work already.
        root: Option<String>,
    },
    /// An earlier attempt got as far as the switch.
    Switched,
    /// Its QEMU knows nothing of them.
    Elsewhere,
}

/// The chain in QEMU is the one the headers tell, from the layer its device is on: QEMU changes both together.
async fn place(context: &Context, qmp: &mut Qmp, merge: &Merge) -> Result<Place> {
    if qmp.job(&merge.job()).await?.is_some() {
        return Ok(Place::Here { root: None });
    }
    let active = qmp.active_layer(&merge.target).await?.and_then(|id| context.store.find_layer(&id));
    let Some(active) = active else { return Ok(Place::Elsewhere) };
    if merge.kind == MergeKind::Commit && merge.overlay.is_none() && active == merge.base {
        return Ok(Place::Switched);
    }
    let chain = chain::read(&context.store, &active)?;
    let open = chain.contains(&merge.top.id) && chain.contains(&merge.base.id);
    Ok(if open { Place::Here { root: Some(active.node()) } } else { Place::Elsewhere })
}

/// Has this merge happened already, as the headers tell? The commit of an active layer shows in no header; doing it again is
/// harmless, because nothing was written since.
fn done(context: &Context, merge: &Merge) -> Result<bool> {
    let stands_on =
        |layer, base: Option<&_>| census::inspect(&context.store, layer).map(|info| info.backing.as_ref() == base);
    match (merge.kind, &merge.overlay) {
        (MergeKind::Stream, _) => stands_on(&merge.top, merge.below.as_ref()),
        (MergeKind::Commit, Some(overlay)) => stands_on(overlay, Some(&merge.base)),
        (MergeKind::Commit, None) => Ok(!context.store.layout.layer(&merge.top).exists()),
    }
}

/// Copies the data of all of them, as far as they can go without changing who stands on whom. When one fails, all are called off.
async fn copy<'a>(
    context: &Context,
    qmp: &mut Qmp,
    merges: &[(&'a Merge, Option<String>)],
    untouched: bool,
) -> Result<Vec<(&'a Merge, Job)>, Failure> {
    match copy_all(context, qmp, merges).await {
        Ok(ready) => Ok(ready),
        Err(error) if untouched && !error.is_unknown() => {
            cancel(qmp, merges).await.map_err(|error| Failure::Halfway(error.into()))?;
            Err(Failure::Untouched(error.into()))
        }
        Err(error) => Err(Failure::Halfway(error.into())),
    }
}

async fn copy_all<'a>(
    context: &Context,
    qmp: &mut Qmp,
    merges: &[(&'a Merge, Option<String>)],
) -> Result<Vec<(&'a Merge, Job)>, QmpError> {
    for (merge, root) in merges {
        if let Some(root) = root {
            start(qmp, merge, root).await?;
        }
    }
    let mut ready = Vec::with_capacity(merges.len());
    for (merge, _) in merges {
        let task = context.ui.task(&label(merge), merge.bytes);
        let milestone = if merge.is_active() { Milestone::Ready } else { Milestone::Pending };
        ready.push((*merge, qmp.wait_for_job(&merge.job(), milestone, &*task).await?));
    }
    Ok(ready)
}

/// Lets all of them make their switch, with the guest paused, and makes everything durable: `stop` flushes all disks, so that a layer can
/// be removed once its data is in another. The guest stays paused when its active layer has changed: the record has to say so first.
async fn switch(
    context: &Context,
    qmp: &mut Qmp,
    merges: &[(&Merge, Job)],
    paused_at: &mut Option<Instant>,
) -> Result<()> {
    let running = qmp.status(crate::qemu::qmp::REPLY).await?.running;
    let began = Instant::now();
    qmp.run(&qapi::qmp::stop {}).await?;
    let switches_head = merges.iter().any(|(merge, _)| merge.is_active());
    if running && switches_head {
        *paused_at = Some(began);
    }
    finalize(qmp, merges).await?;
    for (merge, _) in merges {
        release(qmp, merge.vanishing()).await;
    }
    if running && !switches_head {
        qmp.run(&qapi::qmp::cont {}).await?;
    }
    merges.iter().try_for_each(|(merge, _)| flush_header(context, merge))
}

/// QEMU writes headers and does not flush them; whoever sees the record that comes next takes them for granted, and removes what they do not name.
fn flush_header(context: &Context, merge: &Merge) -> Result<()> {
    let Some(layer) = merge.relinked() else { return Ok(()) };
    let path = context.store.layout.layer(layer);
    std::fs::File::open(&path).and_then(|file| file.sync_all()).on("flush", &path)
}

/// Lets jobs that have copied everything change who stands on whom, and forgets them.
async fn finalize(qmp: &mut Qmp, merges: &[(&Merge, Job)]) -> Result<(), QmpError> {
    for (merge, job) in merges {
        match job.status.as_str() {
            "ready" => qmp.complete_job(&merge.job()).await?,
            "pending" => qmp.finalize_job(&merge.job()).await?,
            _ => {}
        }
    }
    for (merge, _) in merges {
        qmp.wait_for_job(&merge.job(), Milestone::Concluded, &crate::ui::Silent).await?;
        qmp.dismiss_job(&merge.job()).await?;
    }
    Ok(())
}

/// Calls off the jobs of merges none of which has switched.
async fn cancel(qmp: &mut Qmp, merges: &[(&Merge, Option<String>)]) -> Result<(), QmpError> {
    for (merge, _) in merges {
        if qmp.job(&merge.job()).await?.is_none() {
            continue;
        }
        let cancelled = qmp.call::<Value>("block-job-cancel", json!({"device": merge.job(), "force": true})).await;
        tracing::debug!(target: "qmp", "{}: {cancelled:?}", merge.job());
        match qmp.wait_for_job(&merge.job(), Milestone::Concluded, &crate::ui::Silent).await {
            Ok(_) => qmp.dismiss_job(&merge.job()).await?,
            Err(QmpError::Job { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// In the offline engine, one for all of them.
async fn offline(context: &Context, merges: &[&Merge], untouched: bool) -> Result<(), Failure> {
    let failure = |error: Error| if untouched { Failure::Untouched(error) } else { Failure::Halfway(error) };
    let roots: Vec<&Layer> = merges.iter().map(|merge| merge.overlay.as_ref().unwrap_or(&merge.top)).collect();
    let chains: Vec<Chain> =
        roots.iter().map(|root| chain::read(&context.store, root)).collect::<Result<_>>().map_err(failure)?;
    let open: Vec<Open> = chains.iter().map(Open::writable).collect();
    let mut engine = Offline::start(context, &open).await.map_err(failure)?;
    let rooted: Vec<(&Merge, Option<String>)> =
        merges.iter().zip(&roots).map(|(merge, root)| (*merge, Some(root.node()))).collect();
    let ready = match copy(context, &mut engine.qmp, &rooted, untouched).await {
        Err(Failure::Halfway(error)) if untouched => {
            // It has crashed, or is ended here; its jobs have gone with it, and what they had copied does no harm.
            drop(engine);
            let none_is_done = merges.iter().try_fold(true, |none, merge| Ok(none && !done(context, merge)?));
            return Err(if none_is_done.map_err(Failure::Halfway)? {
                Failure::Untouched(error)
            } else {
                Failure::Halfway(error)
            });
        }
        other => other?,
    };
    if let Err(error) = flush(&mut engine.qmp, merges, &chains).await {
        let cancelled = cancel(&mut engine.qmp, &rooted).await;
        cancelled.map_err(|error| Failure::Halfway(error.into()))?;
        return Err(failure(error.into()));
    }
    finalize(&mut engine.qmp, &ready).await.map_err(|error| Failure::Halfway(error.into()))?;
    engine.quit().await;
    Ok(())
}

/// Makes what was copied durable before a header says that it is there. `block-stream` writes the header at once and keeps the tables that lead to
/// the data in memory: killed in between, the engine would leave an image that reads as zeros. In a running VM `stop` does this.
async fn flush(qmp: &mut Qmp, merges: &[&Merge], chains: &[Chain]) -> Result<(), QmpError> {
    for (merge, chain) in merges.iter().zip(chains) {
        let written = match merge.kind {
            MergeKind::Commit if merge.overlay.is_none() => continue, // No header changes; the job itself is flushed at its end.
            MergeKind::Commit => &merge.base,
            MergeKind::Stream => &merge.top,
        };
        let links = chain.links();
        // Only qcow2 keeps its tables back.
        let Some(at) = links.iter().position(|link| link.layer == *written && link.layer.format == Format::Qcow2)
        else {
            continue;
        };
        let backing = links.get(at + 1).map(|below| &below.layer);
        qmp.flush_node(nodes::reopened(&links[at], backing)).await?;
    }
    Ok(())
}

async fn start(qmp: &mut Qmp, merge: &Merge, root: &str) -> Result<(), QmpError> {
    let mut job = json!({"job-id": merge.job(), "auto-dismiss": false, "auto-finalize": merge.is_active()});
    let command = match merge.kind {
        MergeKind::Commit => {
            job["device"] = root.into();
            job["base-node"] = merge.base.node().into();
            if merge.overlay.is_some() {
                job["top-node"] = merge.top.node().into();
                job["backing-file"] = merge.base.file_name().into();
            }
            "block-commit"
        }
        MergeKind::Stream => {
            job["device"] = merge.top.node().into();
            if let Some(below) = &merge.below {
                job["base-node"] = below.node().into();
                job["backing-file"] = below.file_name().into();
            }
            "block-stream"
        }
    };
    qmp.call::<Value>(command, job).await.map(drop)
}

/// Closes layers that have vanished; should QEMU still want one, its file only stays open a little longer.
pub async fn release(qmp: &mut Qmp, layers: impl IntoIterator<Item = &Layer>) {
    for layer in layers {
        for node in [layer.node(), layer.file_node()] {
            if let Err(error) = qmp.remove_node(&node).await {
                tracing::debug!(target: "qmp", "{node} stays open: {error}");
            }
        }
    }
}

fn label(merge: &Merge) -> String {
    format!("{}: merging {}", merge.target, human(merge.bytes))
}
