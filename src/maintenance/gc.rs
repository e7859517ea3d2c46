//! Collecting garbage: snapshots that have expired, layers that stayed hidden and need not any
//! more, what dead commands have left, and old trash.

mod images;
mod orphans;
mod trash;

use std::io::ErrorKind;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::change::claims::Claims;
use crate::change::{lost, open, recover};
use crate::context::Context;
use crate::ephemeral::discard::{self, Dates};
use crate::error::{Error, IoContext, Result};
use crate::image::downloads;
use crate::layer::garbage::Needs;
use crate::layer::graph::LayerGraph;
use crate::layer::info::LayerInfo;
use crate::merge::collapse;
use crate::model::{Layer, LayerId, Name, Origin, Record, human};
use crate::seal::pending;
use crate::snapshot::delete;
use crate::store::how_to_mend;
use crate::sys::fault;

pub use orphans::{finish_removals, trash_orphans, unneeded_memory};

/// What `gc` found and removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// The directory of the trash, or `VM@SNAPSHOT`.
    pub what: String,
    /// Why.
    pub why: &'static str,
    /// Bytes on disk that are free now; of a snapshot, that were merged.
    pub bytes: u64,
}

/// What `gc` is to do.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Trash goes that has been there for that long.
    pub age: Duration,
    /// The clock is right, says the user.
    pub trust_clock: bool,
    /// Only say what would go.
    pub dry_run: bool,
}

/// Trash that is from further in the future than this is not taken for new: either this clock is
/// wrong, or the one by which it was dated.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// Removes snapshots that have expired, merges what stayed hidden, empties the trash of what has
/// been there for longer than the age asked for, and moves into it what nobody uses. Refused by a
/// clock that may be wrong.
pub async fn collect(context: &Context, request: Request) -> Result<Vec<Collected>> {
    let store = &context.store;
    let Request { age, trust_clock, dry_run } = request;
    store.refuse_unmounted()?;
    match (dry_run, trust_clock) {
        (true, true) => {}
        (true, false) => {
            if let Some(ahead) = store.look_at_clock() {
                context.ui.warn(&format!("{ahead}. Without --yes, nothing would go"));
            }
        }
        (false, true) => store.trust_clock(),
        (false, false) => {
            if let Some(ahead) = store.check_clock() {
                return Err(Error::refused(ahead.to_string()).hint(
                    "what has expired by a wrong clock would be lost; if it is right: cowhand gc \
                     --yes    to see what would go: --dry-run",
                ));
            }
        }
    }
    if !dry_run {
        store.give_up_reserve();
    }
    let now = Timestamp::now();
    // What they depended on can go then, too.
    let mut collected = reap(context, dry_run).await?;
    collected.extend(expire(context, now, &collected, dry_run).await?);
    let (mut spared, mut ahead, mut lacking) = (Vec::new(), 0, None);
    // An undo that is under way has it.
    let store_lock = context.lock_store().await?;
    // What came into it meanwhile is not old.
    let now = Timestamp::now();
    let claims = Claims::look(store)?;
    for (name, error) in &claims.unreadable {
        let (why, hint) = (error.full_message(), how_to_read(name, error));
        context.ui.warn(&format!(
            "the journal of {name} cannot be read, and may need what is in the trash of {name}: it \
             stays: {why}; {hint}"
        ));
    }
    for found in store.list_trash()? {
        let what = found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let since = now.duration_since(found.when);
        let is_ahead = since < -AHEAD && !age.is_zero();
        ahead += usize::from(is_ahead && !trust_clock);
        // A clock that was set back is no reason to keep things for ever.
        let aged = if is_ahead {
            trust_clock
        } else {
            Duration::try_from(since).unwrap_or_default() >= age
        };
        // A change that was cut short may have to put layers back where it took them from.
        let old = aged
            && !claims.trash.contains(&what)
            && !claims.unreadable.iter().any(|(name, _)| trash::may_be_of(store, &found, name))
            // Its layers would be nobody's: they are put there first, and go at the next time.
            && !trash::is_unfinished(store, &found);
        if old && found.is_newer() {
            let why = found.fault().unwrap_or_default();
            context.ui.warn(&format!("{what} stays in the trash: {why}"));
        }
        let needed = if old { trash::needed(store, &found, &mut lacking)? } else { None };
        if let Some(why) = &needed {
            context.ui.warn(&format!("{what} stays in the trash: {why}"));
        }
        // Another command may be filling it, or taking things out of it.
        let lock = if old && needed.is_none() && !found.is_newer() {
            trash::alone(context, &found, now)?
        } else {
            None
        };
        let Some(_lock) = lock else {
            spared.extend(found.below());
            continue;
        };
        if !dry_run {
            fault::point("trash, about to go").on("remove", &found.path)?;
            match std::fs::remove_dir_all(&found.path) {
                // Meanwhile it was taken back.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.on("remove", &found.path)?,
            }
            fault::point("trash, gone").on("remove", &found.path)?;
        }
        collected.push(Collected { what, why: "trash", bytes: found.bytes });
    }
    if ahead > 0 {
        context.ui.warn(&format!(
            "{ahead} in the trash from the future, by this host's clock: kept. If the clock is \
             right: cowhand gc --yes"
        ));
    }
    for left in pending::sweep(store, age, dry_run)? {
        let what = left
            .directory
            .strip_prefix(store.layout.root())
            .unwrap_or(&left.directory)
            .display()
            .to_string();
        collected.push(Collected { what, why: "sealing", bytes: left.bytes });
    }
    for left in downloads::left(store)?.into_iter().filter(|left| left.age >= age) {
        collected.push(Collected { what: left.what(), why: "unfinished", bytes: left.bytes });
        if !dry_run {
            left.remove()?;
        }
    }
    drop(store_lock);
    let torn = store.torn_entry()?.filter(|torn| collected.iter().all(|gone| gone.what != *torn));
    match &torn {
        Some(torn) => {
            let hint = match age.is_zero() {
                true => "what is wrong with it: cowhand doctor",
                false => "to empty the trash: cowhand gc --older-than 0",
            };
            context.ui.warn(&format!(
                "layers that no record names stay as they are: {torn} in the trash cannot be read, \
                 and may need them; {hint}"
            ));
        }
        None => merge_hidden(context, &spared, dry_run).await?,
    }
    let store_lock = context.lock_store().await?;
    if !dry_run {
        recover::sweep(context, &store_lock).await?;
        finish_removals(context)?;
    }
    // One look, at what is left now.
    let needs = match torn {
        None => Needs::look_for_orphans(store)?,
        Some(_) => Needs::of(LayerGraph::scan(store)?),
    };
    // What is found now goes at the next time: so there is one, should it have been a mistake.
    if torn.is_none() {
        trash_orphans(context, &needs, dry_run)?;
    }
    if !dry_run {
        images::remove_undo_snapshots(context, &needs.graph).await?;
    }
    drop(store_lock);
    if !dry_run && needs.graph.layers.values().any(|info| info.guest_memory) {
        collected.extend(images::give_up_memory(context).await?);
    }
    Ok(collected)
}

/// Removes what `--expires` has set a date for; what cannot be removed stays, with a warning. What
/// was taken for a VM to depend on stays as long as that; those in `over` do not count.
async fn expire(
    context: &Context,
    now: Timestamp,
    over: &[Collected],
    dry_run: bool,
) -> Result<Vec<Collected>> {
    let mut collected = Vec::new();
    for (vm, record) in context.store.records()? {
        // From the leaves down, so that as little as possible is merged twice.
        let expired = record
            .snapshots
            .iter()
            .rev()
            .filter(|snapshot| snapshot.expires.is_some_and(|at| at <= now));
        for snapshot in expired {
            let what = format!("{vm}@{}", snapshot.name);
            // Nobody is being made meanwhile.
            let taken_on_the_way = snapshot.expires.is_some_and(|at| at <= snapshot.created);
            let _store_lock =
                if taken_on_the_way { Some(context.lock_store_for(&[&vm]).await?) } else { None };
            if taken_on_the_way && has_dependents(context, &record, &snapshot.name, over)? {
                continue;
            }
            match delete::expire(context, &vm, &record, snapshot, dry_run).await {
                // It has gone already, or is not what it was.
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => {
                    let bytes = removed
                        .iter()
                        .flat_map(|one| &one.outcomes)
                        .map(|outcome| outcome.bytes)
                        .sum();
                    collected.push(Collected { what, why: "expired", bytes });
                }
                Err(error) => context
                    .ui
                    .warn(&format!("{what} has expired and stays: {}", error.full_message())),
            }
        }
    }
    Ok(collected)
}

/// Is there a VM that was made from the snapshot `name` of `source`?
fn has_dependents(
    context: &Context,
    source: &Record,
    name: &Name,
    over: &[Collected],
) -> Result<bool> {
    let made_from =
        |origin: &Origin| origin.uuid == source.uuid && origin.snapshot.as_ref() == Some(name);
    let stays = |vm: &Name| !over.iter().any(|over| over.what == vm.as_str());
    let mut others = context.store.names()?.into_iter().filter(stays);
    Ok(others.any(|vm| {
        context.store.load(&vm).is_ok_and(|record| record.origin.as_ref().is_some_and(made_from))
    }))
}

/// Removes VMs that were not to stay.
async fn reap(context: &Context, dry_run: bool) -> Result<Vec<Collected>> {
    let over: Vec<(Name, u64)> = match dry_run {
        true => {
            let is_over = |name: &Name| discard::is_over(context, name, Dates::Counted);
            let over = context.store.names()?.into_iter().filter(is_over);
            over.map(|name| (name.clone(), discard::own_bytes(&context.store, &name))).collect()
        }
        false => discard::reap(context).await?,
    };
    Ok(over
        .into_iter()
        .map(|(name, bytes)| Collected { what: name.to_string(), why: "ephemeral", bytes })
        .collect())
}

/// Merges layers that nobody names, and that stayed because others depended on them which have gone
/// meanwhile. Not those in `spared`: something in the trash depends on them, and can be taken back
/// still.
async fn merge_hidden(context: &Context, spared: &[LayerId], dry_run: bool) -> Result<()> {
    if let Some(torn) = context.store.torn_entry()? {
        context.ui.warn(&format!(
            "hidden layers are not merged: {torn} in the trash cannot be read, and may need them"
        ));
        return Ok(());
    }
    if let Some(name) = lost::directories(&context.store)?.first() {
        context.ui.warn(&format!(
            "hidden layers are not merged: the record of {name} is missing, and one of them may \
             belong to it; {}",
            how_to_mend(name)
        ));
        return Ok(());
    }
    let mut graph = LayerGraph::scan(&context.store)?;
    graph.add_spares(&context.store)?;
    for (vm, record) in context.store.load_all()? {
        if record.is_ok_and(|record| has_no_hidden(context, &graph, &vm, &record)) {
            continue;
        }
        // What is hidden for one of the two is a point of the other.
        if let Ok(record) = context.store.load(&vm)
            && let Err(error) = open::refuse_overruled(context, &vm, &record)
        {
            context.ui.warn(&format!(
                "{vm}: hidden layers stay: {}; {}",
                error.full_message(),
                how_to_mend(&vm)
            ));
            continue;
        }
        match collapse::merge_hidden(context, &vm, spared, dry_run).await {
            Ok(outcomes) => {
                for outcome in outcomes {
                    let (target, bytes) = (outcome.target, human(outcome.bytes));
                    let verb = if dry_run { "would be" } else { "was" };
                    context
                        .ui
                        .note(&format!("{vm}: a hidden layer of {target} {verb} merged ({bytes})"));
                }
            }
            Err(error) => {
                context.ui.warn(&format!("{vm}: hidden layers stay: {}", error.full_message()))
            }
        }
    }
    Ok(())
}

/// What helps where a journal cannot be read.
fn how_to_read(name: &Name, error: &Error) -> String {
    match error.is_newer() {
        true => "use the version that wrote it".to_owned(),
        false => how_to_mend(name),
    }
}

/// Is each layer below `vm` named by somebody, and no change of it cut short? Then nothing is to be
/// done for it, and the pool need not be scanned again.
fn has_no_hidden(context: &Context, graph: &LayerGraph, vm: &Name, record: &Record) -> bool {
    let is_named = |info: &&LayerInfo| !graph.uses(&info.layer.id).is_empty();
    let is_fine =
        |layer: &Layer| graph.chain(&layer.id).is_ok_and(|chain| chain.iter().all(is_named));
    !context.store.has_journal(vm) && record.layers().all(is_fine)
}
