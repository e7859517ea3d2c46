//! `disk commit`, `disk stream` and `flatten`: merging layers because a user says so, running or
//! stopped.

use super::plan::{self, Subject};
use crate::change::{OpenVm, Report};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::collapse::Permissions;
use crate::layer::info::LayerInfo;
use crate::merge::collapse::merge_hidden;
use crate::merge::dependents::{self, DependentLocks};
use crate::merge::plan::{LayerChanges, collapse};
use crate::merge::undoable::{self, Kept};
use crate::model::{LayerId, Merge, Name, Record, State, human};
use crate::snapshot::plan::without;
use crate::store::{Store, trash};
use crate::vm::list;

/// What was, or would be, done.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    /// The merges.
    pub merges: Vec<Merge>,
    /// Snapshots that were given up.
    pub given_up: Vec<Name>,
}

/// Commits `top` (the active layer) of a disk into `base` (the layer below).
pub async fn commit(
    context: &Context,
    vm: &Name,
    target: &str,
    top: Option<&str>,
    base: Option<&str>,
    dry_run: bool,
) -> Result<Merged> {
    let opened = OpenVm::for_change(context, vm, "merge layers of").await?;
    let record = opened.record.clone();
    let disk = list::disk(vm, &record, target)?.clone();
    // Whoever depends on any layer of the chain could be hurt.
    let graph = dependents::graph_after(context, vm, &record)?;
    let ids: Vec<LayerId> =
        graph.chain(&disk.layer.id)?.iter().map(|info| info.layer.id.clone()).collect();
    let nameless = Record { snapshots: Vec::new(), current: None, ..record.clone() };
    let (locks, mut graph) = DependentLocks::lock(context, vm, &nameless, &ids)?;
    graph.forget(vm);
    graph.add_record(vm, &record);
    let in_use = locks.in_use(&graph)?;
    let uncertain = graph.uncertainty(Some(vm));
    let permissions =
        Permissions { owner: vm, in_use: &in_use, kept: &[], uncertain: uncertain.as_deref() };
    let chain: Vec<&LayerInfo> = graph.chain(&disk.layer.id)?;
    let subject = Subject { vm, record: &record, target, chain: &chain };
    let top = top.map(|top| subject.place(top)).transpose()?.unwrap_or(0);
    let base = base.map(|base| subject.place(base)).transpose()?;
    let wanted = plan::commit(&graph, subject, top, base, permissions)?;
    let dropped =
        wanted.given_up.iter().fold(record.clone(), |record, name| without(&record, name));
    let merged = Merged { merges: vec![wanted.merge.clone()], given_up: wanted.given_up };
    for change in undoable::relying_on(context, wanted.merge.layers())? {
        let what = undoable::words(&change);
        context
            .ui
            .warn(&format!("{what} cannot be undone after this: it needs a layer that is merged"));
    }
    if !dry_run {
        let changes = LayerChanges { merges: vec![wanted.merge], trashed: Vec::new() };
        carry_out(opened, &dropped, changes, trash::Kind::DiskCommit).await?;
        drop(locks);
        // The snapshots that were given up leave layers of other disks without a name.
        if !merged.given_up.is_empty() && context.store.torn_entry()?.is_none() {
            merge_hidden(context, vm, &context.store.below_trash()?, false).await?;
        }
    }
    Ok(merged)
}

/// Copies what lies between the active layer of a disk and `base` into the active layer; without a
/// base, everything.
pub async fn stream(
    context: &Context,
    vm: &Name,
    target: &str,
    base: Option<&str>,
    dry_run: bool,
) -> Result<Merged> {
    let opened = OpenVm::for_change(context, vm, "merge layers of").await?;
    let record = opened.record.clone();
    let graph = dependents::graph_after(context, vm, &record)?;
    let disk = list::disk(vm, &record, target)?;
    let chain: Vec<&LayerInfo> = graph.chain(&disk.layer.id)?;
    let subject = Subject { vm, record: &record, target, chain: &chain };
    let base = base.map(|base| subject.place(base)).transpose()?;
    let merge = plan::stream(&graph, subject, base, &Kept::look(context, true)?)?;
    finish_streams(opened, merge.into_iter().collect(), dry_run).await
}

/// Makes the disks of `vm` (or the one called `target`) depend on nothing, all at once.
pub async fn flatten(
    context: &Context,
    vm: &Name,
    target: Option<&str>,
    dry_run: bool,
) -> Result<Merged> {
    let opened = OpenVm::for_change(context, vm, "flatten").await?;
    let record = opened.record.clone();
    if let Some(target) = target {
        list::disk(vm, &record, target)?;
    }
    let graph = dependents::graph_after(context, vm, &record)?;
    let kept = Kept::look(context, true)?;
    let mut merges = Vec::new();
    for disk in
        record.config.writable().filter(|disk| target.is_none_or(|target| disk.target == target))
    {
        let chain: Vec<&LayerInfo> = graph.chain(&disk.layer.id)?;
        let subject = Subject { vm, record: &record, target: &disk.target, chain: &chain };
        merges.extend(plan::stream(&graph, subject, None, &kept)?);
    }
    finish_streams(opened, merges, dry_run).await
}

async fn finish_streams(opened: OpenVm<'_>, merges: Vec<Merge>, dry_run: bool) -> Result<Merged> {
    let merged = Merged { merges: merges.clone(), given_up: Vec::new() };
    if !dry_run && !merges.is_empty() {
        let changes = LayerChanges { merges, trashed: Vec::new() };
        let record = opened.record.clone();
        carry_out(opened, &record, changes, trash::Kind::DiskStream).await?;
    }
    Ok(merged)
}

async fn carry_out(
    mut opened: OpenVm<'_>,
    dropped: &Record,
    changes: LayerChanges,
    what: trash::Kind,
) -> Result<Report> {
    opened.refuse_job().await?;
    let running = opened.state().await? == State::Running;
    let (vm, record) = (opened.name(), &opened.record);
    let bytes: u64 = changes.merges.iter().map(|merge| merge.bytes).sum();
    let trash = Store::trash_name(&what, vm);
    let plan = collapse(record, dropped, changes, running, what, trash);
    let report = opened.carry_out(plan).await?;
    let (vm, record) = (opened.name(), &opened.record);
    match &report.unmerged {
        None => Ok(report),
        Some(why) => {
            let error =
                Error::qemu(format!("the layers of {vm} could not be merged ({})", human(bytes)));
            let error = match record == dropped {
                true => error
                    .hint("nothing has changed; when the cause is mended, run the command again"),
                // A layer that was being committed into is not any more what those snapshots were.
                false => error.hint(format!(
                    "{vm} has all it had, in more layers; the snapshots that were to be given up \
                     are. When the cause is mended: cowhand gc"
                )),
            };
            Err(error.because(why.clone()))
        }
    }
}
