//! Merging layers by QEMU's block jobs: `block-commit` and `block-stream`, in the VM's own QEMU
//! where it has the layers open, else in the offline engine. Backing file names in headers stay
//! relative to the pool.
//!
//! An active layer is merged in two phases. While the guest runs, its data is copied until the job
//! is *ready*; then the guest is paused, the job makes its switch, and the guest stays paused until
//! the caller has written down which layer is active now. Dying at any point of that leaves two
//! layers with the same content, either of which may be called the active one. Other merges wait
//! with all data copied (`auto-finalize: false`), too, so that the disks of a VM move together.

mod jobs;
mod notes;

use std::time::Instant;

pub(crate) use jobs::release;
use jobs::{cancel, copy_all, finalize, has_not_switched};

use super::flush::{self, Written};
use super::{chain, info, sealed};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Chain, Layer, Merge, MergeKind};
use crate::qemu::confinement;
use crate::qemu::offline::{Offline, Open};
use crate::qemu::qmp::jobs::Job;
use crate::qemu::qmp::{Qmp, QmpError};

/// Why a merge did not come to its end.
pub(crate) enum Failure {
    /// Nothing has switched: every layer holds what it held, and is where it was.
    Untouched(Error),
    /// Something has, or nobody knows: it has to be carried on.
    Halfway(Error),
}

/// Carries out `merges`: those that are open in the VM's QEMU there, the others in the offline
/// engine; in either place all switch together, or none. `paused_at` is set when the guest was
/// paused.
pub(crate) async fn run(
    context: &Context,
    live: Option<&mut Qmp>,
    merges: &[Merge],
    paused_at: &mut Option<Instant>,
) -> Result<(), Failure> {
    let store = &context.store;
    notes::begin(store, merges)?;
    let relinked = merges.iter().filter_map(Merge::relinked);
    let written = merges.iter().map(Merge::written).chain(relinked);
    let was_sealed: Vec<&Layer> = written.filter(|layer| sealed::forget(store, layer)).collect();
    let outcome = carry_out(context, live, merges, paused_at).await;
    match outcome {
        Ok(()) => notes::end(store, merges),
        Err(Failure::Untouched(_)) => notes::call_off(store, merges),
        Err(Failure::Halfway(_)) => {}
    }
    // QEMU may still hold something of a merge that was called off. What the guest writes to from
    // now on is sealed no more.
    if outcome.is_ok() {
        let active =
            |layer: &Layer| merges.iter().any(|merge| merge.is_active() && merge.base == *layer);
        was_sealed
            .into_iter()
            .filter(|layer| !active(layer))
            .for_each(|layer| sealed::note(store, layer));
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
    let mut was_told = false;
    for merge in merges {
        let place = match &mut live {
            Some(qmp) => place(context, qmp, merge).await.map_err(Failure::Halfway)?,
            None => Place::Elsewhere,
        };
        match (place, &mut live) {
            (Place::Here { root }, _) => here.push((merge, Some(root))),
            (Place::AtWork { told }, _) => {
                was_told |= told;
                here.push((merge, None));
            }
            (Place::Switched, Some(qmp)) => {
                let written = Written::open(&context.store, [merge]).map_err(Failure::Halfway)?;
                make_sure(qmp, &written, &[merge]).await?;
                release(qmp, merge.vanishing()).await;
            }
            (_, live) if done(context, merge).map_err(Failure::Halfway)? => {
                flush::header(&context.store, merge, live.is_some()).map_err(Failure::Halfway)?;
            }
            _ => elsewhere.push(merge),
        }
    }
    // What an earlier attempt has finished must not be forgotten.
    let mut untouched = here.len() + elsewhere.len() == merges.len() && !was_told;
    if !elsewhere.is_empty() {
        offline(context, &elsewhere, untouched).await?;
        untouched = false;
    }
    match live {
        Some(qmp) if !here.is_empty() => {
            let merges = || here.iter().map(|(merge, _)| *merge);
            let opened = make_writable(context, qmp, merges())
                .and_then(|()| Written::open(&context.store, merges()));
            let written = match opened {
                Ok(written) => written,
                Err(error) => return Err(give_up(qmp, &here, untouched, error).await),
            };
            let ready = copy(context, qmp, &here, untouched).await?;
            match flush_and_pause(qmp, &ready, &written, paused_at).await {
                Ok(running) => switch(qmp, &ready, running, &written, paused_at).await,
                Err(Failure::Untouched(error)) => Err(give_up(qmp, &here, untouched, error).await),
                halfway => halfway.map(drop),
            }
        }
        _ => Ok(()),
    }
}

/// Lets QEMU write to what `merges` write to; it could only read what lies below the active layers.
fn make_writable<'a>(
    context: &Context,
    qmp: &Qmp,
    merges: impl Iterator<Item = &'a Merge>,
) -> Result<()> {
    let layout = &context.store.layout;
    merges
        .flat_map(|merge| {
            let written = merge.written();
            let relinked = merge.relinked().filter(|relinked| *relinked != written);
            std::iter::once(written).chain(relinked)
        })
        .try_for_each(|layer| confinement::show(qmp, &layout.layer(layer)).map(drop))
}

/// Calls off merges that another attempt has begun, where none of them has switched. False: they
/// have to be carried on.
pub(crate) async fn call_off(
    context: &Context,
    live: Option<&mut Qmp>,
    merges: &[Merge],
) -> Result<bool> {
    let is_untouched = is_called_off(context, live, merges).await?;
    if is_untouched {
        notes::call_off(&context.store, merges);
    }
    Ok(is_untouched)
}

async fn is_called_off(
    context: &Context,
    live: Option<&mut Qmp>,
    merges: &[Merge],
) -> Result<bool> {
    let mut rooted = Vec::new();
    let Some(qmp) = live else {
        // The offline engine has died with the command, and what it had copied does no harm.
        return merges
            .iter()
            .try_fold(true, |untouched, merge| Ok(untouched && !done(context, merge)?));
    };
    for merge in merges {
        match place(context, qmp, merge).await? {
            Place::Here { root } => rooted.push((merge, Some(root))),
            Place::AtWork { told: false } => rooted.push((merge, None)),
            Place::Elsewhere if !done(context, merge)? => {}
            // A job that was told to switch cannot be called off any more.
            Place::AtWork { told: true } | Place::Elsewhere | Place::Switched => return Ok(false),
        }
    }
    cancel(qmp, &rooted).await?;
    Ok(true)
}

/// Where a merge has to be done, seen from a running VM.
enum Place {
    /// Its QEMU has the layers open.
    Here {
        /// The node the device is on.
        root: String,
    },
    /// Its QEMU is at it, because an earlier attempt has begun.
    AtWork {
        /// The job was told to switch.
        told: bool,
    },
    /// An earlier attempt got as far as the switch.
    Switched,
    /// Its QEMU knows nothing of them.
    Elsewhere,
}

/// The chain in QEMU is the one the headers tell, from the layer its device is on: QEMU changes
/// both together.
async fn place(context: &Context, qmp: &mut Qmp, merge: &Merge) -> Result<Place> {
    if let Some(job) = qmp.job(&merge.job()).await? {
        return Ok(Place::AtWork { told: !has_not_switched(&job) });
    }
    let active =
        qmp.active_layer(&merge.target).await?.and_then(|id| context.store.find_layer(&id));
    let Some(active) = active else { return Ok(Place::Elsewhere) };
    if merge.kind == MergeKind::Commit && merge.overlay.is_none() && active == merge.base {
        return Ok(Place::Switched);
    }
    let chain = chain::read(&context.store, &active)?;
    let open = chain.contains(&merge.top.id) && chain.contains(&merge.base.id);
    Ok(if open { Place::Here { root: active.node() } } else { Place::Elsewhere })
}

/// Has this merge happened already, as the headers tell? The commit of an active layer shows in no
/// header; doing it again is harmless, because nothing was written since.
fn done(context: &Context, merge: &Merge) -> Result<bool> {
    let is_backed_by = |layer, base: Option<&_>| {
        info::inspect(&context.store, layer).map(|info| info.backing.as_ref() == base)
    };
    match (merge.kind, &merge.overlay) {
        (MergeKind::Stream, _) => is_backed_by(&merge.top, merge.below.as_ref()),
        (MergeKind::Commit, Some(overlay)) => is_backed_by(overlay, Some(&merge.base)),
        (MergeKind::Commit, None) => Ok(!context.store.layout.layer(&merge.top).exists()),
    }
}

/// Copies the data of all of them, as far as they can go without changing who depends on whom. When
/// one fails, all are called off.
async fn copy<'a>(
    context: &Context,
    qmp: &mut Qmp,
    merges: &[(&'a Merge, Option<String>)],
    untouched: bool,
) -> Result<Vec<(&'a Merge, Job)>, Failure> {
    match copy_all(context, qmp, merges).await {
        Ok(ready) => Ok(ready),
        Err(error) if !error.is_unknown() => {
            Err(give_up(qmp, merges, untouched, error.into()).await)
        }
        Err(error) => Err(Failure::Halfway(error.into())),
    }
}

/// Ends an attempt because of `error`: calls off the jobs, if none of them can have switched.
async fn give_up(
    qmp: &mut Qmp,
    merges: &[(&Merge, Option<String>)],
    untouched: bool,
    error: Error,
) -> Failure {
    if !untouched {
        return Failure::Halfway(error);
    }
    match cancel(qmp, merges).await {
        Ok(()) => Failure::Untouched(error),
        Err(error) => Failure::Halfway(error.into()),
    }
}

/// Makes what was copied durable while the guest runs, so that little is left to do while it does
/// not; then pauses it, and does that once more: `stop` flushes everything, and does not say
/// whether that went well. Did the guest run? After a flush that failed it runs again.
async fn flush_and_pause(
    qmp: &mut Qmp,
    merges: &[(&Merge, Job)],
    written: &Written,
    paused_at: &mut Option<Instant>,
) -> Result<bool, Failure> {
    written.sync().map_err(Failure::Untouched)?;
    let running = qmp.status(crate::qemu::qmp::REPLY).await.map_err(halfway)?.running;
    let began = Instant::now();
    qmp.run(&qapi::qmp::stop {}).await.map_err(halfway)?;
    if running {
        *paused_at = Some(began);
    }
    match flush_nodes(qmp, merges, written).await {
        Err(Failure::Untouched(error)) if running => {
            qmp.cont().await.map_err(halfway)?;
            *paused_at = None;
            Err(Failure::Untouched(error))
        }
        flushed => flushed.map(|()| running),
    }
}

/// Lets QEMU write out what it holds of what the jobs have copied that have not switched.
async fn flush_nodes(
    qmp: &mut Qmp,
    merges: &[(&Merge, Job)],
    written: &Written,
) -> Result<(), Failure> {
    let copied = merges.iter().filter(|(_, job)| has_not_switched(job));
    let jobs: Vec<String> = copied.map(|(merge, _)| merge.job()).collect();
    written.flush_nodes(qmp, &jobs).await.map_err(|error| match error.is_unknown() {
        true => Failure::Halfway(error.into()),
        false => Failure::Untouched(error.into()),
    })
}

/// Lets all of them make their switch, with the guest paused, and makes everything durable, so that
/// a layer can be removed once its data is in another. The guest stays paused when its active layer
/// has changed: the record has to say so first.
async fn switch(
    qmp: &mut Qmp,
    merges: &[(&Merge, Job)],
    running: bool,
    written: &Written,
    paused_at: &mut Option<Instant>,
) -> Result<(), Failure> {
    let active: Vec<&Merge> =
        merges.iter().map(|(merge, _)| *merge).filter(|merge| merge.is_active()).collect();
    finalize(qmp, merges).await.map_err(halfway)?;
    if running && active.is_empty() {
        qmp.cont().await.map_err(halfway)?;
        *paused_at = None;
    }
    // What the guest wrote after its job was ready was copied at the end.
    make_sure(qmp, written, &active).await?;
    for (merge, _) in merges {
        release(qmp, merge.vanishing()).await;
    }
    Ok(())
}

/// Makes merges durable that have switched; the active ones among them are flushed in QEMU, too.
async fn make_sure(qmp: &mut Qmp, written: &Written, active: &[&Merge]) -> Result<(), Failure> {
    let jobs: Vec<String> = active.iter().map(|merge| merge.job()).collect();
    written.flush_nodes(qmp, &jobs).await.map_err(|error| Failure::Halfway(error.into()))?;
    written.sync().map_err(Failure::Halfway)
}

fn halfway(error: QmpError) -> Failure {
    Failure::Halfway(error.into())
}

/// In the offline engine, one for all of them.
async fn offline(context: &Context, merges: &[&Merge], untouched: bool) -> Result<(), Failure> {
    let failure =
        |error: Error| if untouched { Failure::Untouched(error) } else { Failure::Halfway(error) };
    let roots: Vec<&Layer> =
        merges.iter().map(|merge| merge.overlay.as_ref().unwrap_or(&merge.top)).collect();
    let chains: Vec<Chain> = roots
        .iter()
        .map(|root| chain::undisputed(&context.store, root))
        .collect::<Result<_>>()
        .map_err(failure)?;
    let open: Vec<Open> = chains.iter().map(Open::writable).collect();
    let written = Written::open(&context.store, merges.iter().copied()).map_err(failure)?;
    let mut engine = Offline::start(context, &open, None).await.map_err(failure)?;
    let rooted: Vec<(&Merge, Option<String>)> =
        merges.iter().zip(&roots).map(|(merge, root)| (*merge, Some(root.node()))).collect();
    match in_engine(context, &mut engine.qmp, &rooted, &written, untouched).await {
        Err(Failure::Halfway(error)) if untouched => {
            // It has crashed, or is ended here; its jobs have gone with it, and what they had
            // copied does no harm.
            drop(engine);
            let none_is_done =
                merges.iter().try_fold(true, |none, merge| Ok(none && !done(context, merge)?));
            return Err(if none_is_done.map_err(Failure::Halfway)? {
                Failure::Untouched(error)
            } else {
                Failure::Halfway(error)
            });
        }
        other => other?,
    }
    engine.quit().await;
    written.sync().map_err(Failure::Halfway)
}

async fn in_engine(
    context: &Context,
    qmp: &mut Qmp,
    merges: &[(&Merge, Option<String>)],
    written: &Written,
    untouched: bool,
) -> Result<(), Failure> {
    let ready = copy(context, qmp, merges, untouched).await?;
    // `block-stream` writes the header at once and keeps the tables that lead to the data in
    // memory: killed in between, the engine would leave an image that reads as zeros.
    let flushed = flush_nodes(qmp, &ready, written).await;
    match flushed.and_then(|()| written.sync().map_err(Failure::Untouched)) {
        Err(Failure::Untouched(error)) => return Err(give_up(qmp, merges, untouched, error).await),
        other => other?,
    }
    finalize(qmp, &ready).await.map_err(halfway)
}
