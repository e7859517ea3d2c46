//! Collecting garbage: snapshots that have expired, layers that stayed hidden and need not any more, what dead commands have left, and
//! old trash.

use std::collections::BTreeMap;
use std::fs::DirEntry;
use std::io::ErrorKind;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::status;
use crate::change::{Executor, recover};
use crate::context::Context;
use crate::ephemeral::discard::{self, Dates};
use crate::error::{Error, IoContext, Kind, Result};
use crate::layer::pool::{LayerInfo, Pool, Use};
use crate::layer::{census, chain};
use crate::model::{Layer, LayerId, Name, Origin, Record, Snapshot, human};
use crate::snapshot::delete;
use crate::snapshot::internal;
use crate::store::trash::{Entry, Found};
use crate::store::{Store, VmLock, how_to_mend, journal, plain, schema};
use crate::sys::{fault, image_lock};
use crate::template::seal::pending;

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

/// Trash that is from further in the future than this is not taken for new: either this clock is wrong, or the one by which it was dated.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// Removes snapshots that have expired, merges what stayed hidden, empties the trash of what has been there for longer than the age asked for, and moves
/// into it what nobody uses. Refused by a clock that may be wrong.
pub async fn collect(context: &Context, request: Request) -> Result<Vec<Collected>> {
    let store = &context.store;
    let Request { age, trust_clock, dry_run } = request;
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
                    "what has expired by a wrong clock would be lost; if it is right: cowhand gc --yes    to see what would go: --dry-run",
                ));
            }
        }
    }
    if !dry_run {
        store.give_up_reserve();
    }
    let now = Timestamp::now();
    // What they stood on can go then, too.
    let mut collected = reap(context, dry_run).await?;
    collected.extend(expire(context, now, &collected, dry_run).await?);
    let (mut spared, mut ahead, mut lacking) = (Vec::new(), 0, None);
    // An undo that is under way has it.
    let store_lock = store.lock(context).await?;
    // What came into it meanwhile is not old.
    let now = Timestamp::now();
    let (mut journals, mut unreadable) = (Vec::new(), Vec::new());
    for name in store.directories()? {
        match journal::text(store, &name) {
            Ok(text) => journals.push(text),
            Err(error) => {
                let why = error.full_message();
                let hint = how_to_mend(&name);
                context.ui.warn(&format!("the journal of {name} cannot be read, and may need what is in the trash of {name}: it stays: {why}; {hint}"));
                unreadable.push(name);
            }
        }
    }
    for found in store.list_trash()? {
        let what = found.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let since = now.duration_since(found.when);
        let is_ahead = since < -AHEAD && !age.is_zero();
        ahead += usize::from(is_ahead && !trust_clock);
        // A clock that was set back is no reason to keep things for ever. A change that was cut short may have to put layers back where it took them from.
        let old = (if is_ahead { trust_clock } else { Duration::try_from(since).unwrap_or_default() >= age })
            && !journals.iter().any(|journal| journal.contains(&what))
            && !unreadable.iter().any(|name| may_be_of(store, &found, name));
        if old && found.is_newer() {
            let why = found.fault().unwrap_or_default();
            context.ui.warn(&format!("{what} stays in the trash: {why}"));
        }
        let needed = if old { needed(store, &found, &mut lacking)? } else { None };
        if let Some(why) = &needed {
            context.ui.warn(&format!("{what} stays in the trash: {why}"));
        }
        // Somebody may be filling it, or taking things out of it.
        let lock = if old && needed.is_none() && !found.is_newer() { alone(context, &found, now)? } else { None };
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
            "{ahead} in the trash from the future, by this host's clock: kept. If the clock is right: cowhand gc --yes"
        ));
    }
    for left in pending::sweep(store, age, dry_run)? {
        let what = left.directory.strip_prefix(store.layout.root()).unwrap_or(&left.directory).display().to_string();
        collected.push(Collected { what, why: "sealing", bytes: left.bytes });
    }
    drop(store_lock);
    let torn = store.torn_entry()?.filter(|torn| collected.iter().all(|gone| gone.what != *torn));
    match &torn {
        Some(torn) => context.ui.warn(&format!(
            "layers that nobody names stay as they are: {torn} in the trash cannot be read, and may need them. To empty the trash: cowhand gc --older-than 0"
        )),
        None => merge_hidden(context, &spared, dry_run).await?,
    }
    let store_lock = store.lock(context).await?;
    if !dry_run {
        recover::sweep(context, &store_lock).await?;
        finish_removals(store)?;
        forget_ways_back(context).await?;
    }
    // What is found now goes at the next time: so there is one, should it have been a mistake.
    if torn.is_none() {
        trash_orphans(context, dry_run)?;
    }
    drop(store_lock);
    if !dry_run {
        collected.extend(give_up_memory(context).await?);
    }
    Ok(collected)
}

/// Why what was found in the trash may not go: it has a layer that somebody lacks. Which those are is in `lacking`, once it was looked.
fn needed(store: &Store, found: &Found, lacking: &mut Option<Lacking>) -> Result<Option<String>> {
    let files: Vec<_> = std::fs::read_dir(found.path.join("layers")).into_iter().flatten().flatten().collect();
    if files.is_empty() {
        return Ok(None);
    }
    let lacking = match lacking {
        Some(lacking) => lacking,
        None => lacking.insert(Lacking::look(store)?),
    };
    let layers = files.iter().filter_map(|file| Layer::from_file_name(file.file_name().to_str()?));
    Ok(layers.into_iter().find_map(|layer| lacking.why(&layer)))
}

/// Layers that are named or stood on, and not in the pool, with who names them.
struct Lacking(BTreeMap<LayerId, Option<Name>>);

impl Lacking {
    fn look(store: &Store) -> Result<Self> {
        let pool = Pool::scan(store)?;
        let by_whom = |id: &LayerId| (id.clone(), pool.uses(id).first().map(|r#use| r#use.owner().clone()));
        let mut lacking: BTreeMap<_, _> = pool.lacking().into_iter().map(by_whom).collect();
        // What a record names that cannot be read, its spare copy mostly names, too.
        for name in &pool.unreadable {
            let Some(Ok(spare)) = store.load_spare(name) else { continue };
            let layers = spare.layers().filter(|layer| !pool.layers.contains_key(&layer.id));
            lacking.extend(layers.map(|layer| (layer.id.clone(), Some(name.clone()))));
        }
        Ok(Self(lacking))
    }

    fn why(&self, layer: &Layer) -> Option<String> {
        Some(match self.0.get(&layer.id)? {
            Some(name) => format!("{name} lacks layer {layer}, which is in it; {}", how_to_mend(name)),
            None => format!("others stand on layer {layer}, which is in it: cowhand doctor"),
        })
    }
}

/// May what was found in the trash belong to `name`, whatever that was called then?
fn may_be_of(store: &Store, found: &Found, name: &Name) -> bool {
    let Ok(entry) = &found.entry else { return true };
    entry.vm == *name || entry.uuid().is_none_or(|uuid| store.has_uuid(name, |its| its == uuid) != Some(false))
}

/// A directory of the trash that does not say what it is, and is older than this, is not just being made.
const MADE: Duration = Duration::from_secs(60);

/// Keeps everybody away from what was found in the trash; `None` when somebody is at work on it. Who puts something there has the lock of its VM, or, when the
/// whole VM goes, the store's.
fn alone(context: &Context, found: &Found, now: Timestamp) -> Result<Option<Option<VmLock>>> {
    let store = &context.store;
    let Ok(entry) = &found.entry else {
        return Ok((now.duration_since(found.when).unsigned_abs() >= MADE).then_some(None));
    };
    if !plain::is_there(&store.layout.lock(&entry.vm)) {
        return Ok(Some(None));
    }
    Ok(store.try_lock_vm(&entry.vm, &context.operation)?.map(Some))
}

/// Removes what `--expires` has set a date for; what cannot be removed stays, with a warning. What was taken for a VM to stand on stays as long as that; those in
/// `over` do not count.
async fn expire(context: &Context, now: Timestamp, over: &[Collected], dry_run: bool) -> Result<Vec<Collected>> {
    let mut collected = Vec::new();
    for vm in context.store.names()? {
        let Ok(record) = context.store.load(&vm) else { continue };
        // From the leaves down, so that as little as possible is merged twice.
        let expired = record.snapshots.iter().rev().filter(|snapshot| snapshot.expires.is_some_and(|at| at <= now));
        for snapshot in expired {
            let what = format!("{vm}@{}", snapshot.name);
            // Nobody is being made meanwhile.
            let taken_on_the_way = snapshot.expires.is_some_and(|at| at <= snapshot.created);
            let _store_lock =
                if taken_on_the_way { Some(context.store.lock_for(context, &[&vm]).await?) } else { None };
            if taken_on_the_way && is_stood_on(context, &record, &snapshot.name, over)? {
                continue;
            }
            match delete::expire(context, &vm, &record, snapshot, dry_run).await {
                // It has gone already, or is not what it was.
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => {
                    let bytes = removed.iter().flat_map(|one| &one.outcomes).map(|outcome| outcome.bytes).sum();
                    collected.push(Collected { what, why: "expired", bytes });
                }
                Err(error) => context.ui.warn(&format!("{what} has expired and stays: {}", error.full_message())),
            }
        }
    }
    Ok(collected)
}

/// Is there a VM that was made from the snapshot `name` of `source`?
fn is_stood_on(context: &Context, source: &Record, name: &Name, over: &[Collected]) -> Result<bool> {
    let made_from = |origin: &Origin| origin.uuid == source.uuid && origin.snapshot.as_ref() == Some(name);
    let stays = |vm: &Name| !over.iter().any(|over| over.what == vm.as_str());
    let mut others = context.store.names()?.into_iter().filter(stays);
    Ok(others.any(|vm| context.store.load(&vm).is_ok_and(|record| record.origin.as_ref().is_some_and(made_from))))
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
    Ok(over.into_iter().map(|(name, bytes)| Collected { what: name.to_string(), why: "ephemeral", bytes }).collect())
}

/// Merges layers that nobody names, and that stayed because others stood on them which have gone meanwhile. Not those in `spared`: something
/// in the trash stands on them, and can be taken back still.
async fn merge_hidden(context: &Context, spared: &[LayerId], dry_run: bool) -> Result<()> {
    if let Some(torn) = context.store.torn_entry()? {
        context
            .ui
            .warn(&format!("hidden layers are not merged: {torn} in the trash cannot be read, and may need them"));
        return Ok(());
    }
    let pool = Pool::scan(&context.store)?;
    for vm in context.store.names()? {
        if has_no_hidden(context, &pool, &vm) {
            continue;
        }
        match delete::merge_hidden(context, &vm, spared, dry_run).await {
            Ok(outcomes) => {
                for outcome in outcomes {
                    let (target, bytes) = (outcome.target, human(outcome.bytes));
                    let verb = if dry_run { "would be" } else { "was" };
                    context.ui.note(&format!("{vm}: a hidden layer of {target} {verb} merged ({bytes})"));
                }
            }
            Err(error) => context.ui.warn(&format!("{vm}: hidden layers stay: {}", error.full_message())),
        }
    }
    Ok(())
}

/// Is each layer below `vm` named by somebody, and no change of it cut short? Then nothing is to be done for it, and the pool need not be scanned again.
fn has_no_hidden(context: &Context, pool: &Pool, vm: &Name) -> bool {
    let Ok(record) = context.store.load(vm) else { return false };
    let is_named = |info: &&LayerInfo| !pool.uses(&info.layer.id).is_empty();
    let is_fine = |layer: &Layer| pool.chain(&layer.id).is_ok_and(|chain| chain.iter().all(is_named));
    !context.store.has_journal(vm) && record.layers().all(is_fine)
}

/// Moves what a removed VM had into its directory of the trash, where whoever removed it died in the middle: `undo` looks for it there. Returns how many
/// layers that were.
pub fn finish_removals(store: &Store) -> Result<usize> {
    let mut moved = 0;
    for found in store.list_trash()? {
        let Some(entry) = found.entry.ok().filter(|entry| entry.what == "rm" && found.path.join("vm").exists()) else {
            continue;
        };
        if entry.layers.iter().any(|layer| store.layout.layer(layer).exists()) {
            let mut pool = Pool::scan(store)?;
            if pool.damaged.iter().any(|layer| !pool.noted.contains_key(&layer.id)) {
                // A damaged layer might stand on one of them.
                continue;
            }
            for layer in &entry.layers {
                if pool.uses(&layer.id).is_empty() && pool.children(&layer.id).next().is_none() {
                    store.trash_layer(&found.path, layer)?;
                    moved += 1;
                    pool.layers.remove(&layer.id);
                }
            }
            store.flush_trashed(&found.path)?;
        }
        let record = plain::read_if_possible(&found.path.join("vm/vm.json"));
        if let Some(record) = record.and_then(|text| schema::parse_record(&text).ok()) {
            for image in record.snapshots.iter().filter_map(Snapshot::ram_image) {
                store.move_memory(&found.path, image, false)?;
            }
        }
    }
    Ok(moved)
}

/// Takes internal snapshots out of images that were kept for an `undo` which is not possible any more. Not while somebody has them open.
async fn forget_ways_back(context: &Context) -> Result<()> {
    let store = &context.store;
    let pool = Pool::scan(store)?;
    let nobody: Name = "nobody".parse()?;
    for info in pool.layers.values().filter(|info| info.internal_snapshots > 0) {
        let is_head = |user: &Name| pool.uses(&info.layer.id).contains(&Use::Head(user.clone()));
        // What a template's files look like is noted; they never change.
        if pool.uses(&info.layer.id).iter().any(|r#use| matches!(r#use, Use::Template(_))) {
            continue;
        }
        let (mut locks, mut owner) = (Vec::new(), None);
        for user in pool.users(&info.layer.id) {
            let lock = store.try_lock_vm(&user, &context.operation)?;
            // The QEMU that writes to it can do it; one that only reads it must not be surprised.
            let fine =
                lock.is_some() && !store.has_journal(&user) && (is_head(&user) || !status::is_running(context, &user)?);
            owner = owner.or(is_head(&user).then_some(user));
            locks.push(lock.filter(|_| fine));
        }
        if locks.iter().any(Option::is_none) {
            continue;
        }
        // What cannot be read may need one of them.
        let Some(wanted) = store.ways_back()? else { return Ok(()) };
        let mut executor = match &owner {
            Some(owner) => Executor::new(context, owner),
            None => Executor::with_no_qemu(context, &nobody),
        };
        match forget_ways_back_in(context, &info.layer, &wanted, &mut executor).await {
            // One image that is damaged is not the others' business.
            Err(error) if matches!(error.kind(), Kind::Qemu | Kind::Damaged) => context.ui.warn(&format!(
                "internal snapshots in layer {} that no undo needs any more stay: {}",
                info.layer,
                error.full_message()
            )),
            other => other?,
        }
    }
    Ok(())
}

/// Gives up memory in the active part of images, which a revert has loaded and nothing needs. It takes as long as checking the image, so nobody but the users of the layer is
/// kept waiting.
async fn give_up_memory(context: &Context) -> Result<Vec<Collected>> {
    let store = &context.store;
    let pool = Pool::scan(store)?;
    let mut collected = Vec::new();
    let is_template =
        |info: &LayerInfo| pool.uses(&info.layer.id).iter().any(|r#use| matches!(r#use, Use::Template(_)));
    for info in pool.layers.values().filter(|info| info.guest_memory && !is_template(info)) {
        let users = pool.users(&info.layer.id);
        // Somebody may use it whose record cannot be read.
        let (Some(first), None) = (users.first(), pool.uncertainty(None)) else { continue };
        let mut locks = Vec::new();
        for user in &users {
            locks.extend(store.try_lock_vm(user, &context.operation)?.filter(|_| !store.has_journal(user)));
        }
        if locks.len() < users.len() {
            continue;
        }
        let running = users.iter().map(|user| Ok(status::is_running(context, user)?.then_some(user)));
        if let Some(running) = running.collect::<Result<Vec<_>>>()?.into_iter().flatten().next() {
            context.ui.note(&format!(
                "{running} is running: memory that a revert has loaded stays in layer {}; to free it: cowhand stop {running}, then cowhand gc",
                info.layer
            ));
            continue;
        }
        match Executor::with_no_qemu(context, first).give_up_memory_of(&info.layer).await {
            Ok(()) => {
                let now = census::inspect(store, &info.layer).map_or(info.allocated_bytes, |now| now.allocated_bytes);
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

async fn forget_ways_back_in(
    context: &Context,
    layer: &Layer,
    wanted: &[String],
    executor: &mut Executor<'_>,
) -> Result<()> {
    for tag in internal::ways_back(context, layer).await? {
        if !wanted.contains(&tag) {
            executor.internal_delete(&tag, std::slice::from_ref(layer)).await?;
        }
    }
    Ok(())
}

/// Layers that nobody names and nobody stands on, left by commands that died. Not while a record cannot be read: it might
/// name them. Returns how many went into the trash.
pub fn trash_orphans(context: &Context, dry_run: bool) -> Result<usize> {
    let store = &context.store;
    // What something in the trash stands on can be had back with it.
    let (mut pool, mut kept) = Pool::scan_with_trash(store)?;
    let name: Name = "orphans".parse()?;
    if let Some(why) = pool.uncertainty(None) {
        context.ui.warn(&format!("layers that seem unused are kept: {why}"));
        return Ok(0);
    }
    if let Some(broken) = chain::first_broken(store)? {
        context.ui.warn(&format!(
            "layers that seem unused are kept: a chain of {broken} is broken, and one of them may be what it lacks"
        ));
        return Ok(0);
    }
    let (mut trash, mut moved) = (None, 0);
    loop {
        let unused = |id: &LayerId| pool.uses(id).is_empty() && pool.children(id).next().is_none();
        let Some(id) = pool.layers.keys().find(|id| unused(id) && !kept.contains(*id)).cloned() else {
            break;
        };
        if let Some(name) = pool.stands_on_head(&id) {
            context.ui.warn(&format!("layer {id} is named by nobody, and may hold what the guest of {name} wrote: it stays; see cowhand doctor {name}"));
            kept.push(id);
            continue;
        }
        // Whatever the records say: somebody writes to it, or reads from it.
        let path = pool.layers.get(&id).map(|info| store.layout.layer(&info.layer)).unwrap_or_default();
        if image_lock::is_open(&path).unwrap_or(true) {
            context.ui.warn(&format!("layer {id} is named by nobody and open in a QEMU: it stays"));
            kept.push(id);
            continue;
        }
        let Some(info) = pool.layers.remove(&id) else {
            break;
        };
        let (layer, bytes) = (&info.layer, human(info.allocated_bytes));
        if dry_run {
            context.ui.note(&format!("layer {layer} ({bytes}) is used by nobody and would go into the trash"));
            continue;
        }
        let directory = match &trash {
            Some(directory) => directory,
            None => trash.insert(
                store.open_trash(&Store::trash_name("gc", &name), &Entry::new("gc", &name, &context.operation))?,
            ),
        };
        store.trash_layer(directory, layer)?;
        moved += 1;
        context.ui.note(&format!("layer {layer} ({bytes}) was used by nobody and is in the trash"));
    }
    if let Some(directory) = &trash {
        store.flush_trashed(directory)?;
    }
    remove_memory(context, dry_run)?;
    Ok(moved)
}

/// Memory that no snapshot has, and no change under way is about to give to one.
pub fn unnamed_memory(store: &Store) -> Result<Vec<DirEntry>> {
    let Ok(entries) = std::fs::read_dir(store.layout.rams()) else { return Ok(Vec::new()) };
    // Files first: what is there now is in a journal or in a record already, if it belongs to anybody.
    let entries: Vec<_> = entries.flatten().collect();
    let names = store.directories()?;
    let mut named = Vec::new();
    for name in &names {
        // Whoever saves memory just now has a journal that says so.
        let (journal, record) = (journal::text(store, name), store.load(name));
        let record = match (journal, record) {
            (Ok(journal), Ok(record)) => {
                named.push(journal);
                record
            }
            // It never came to be, or has gone.
            (Ok(journal), Err(error)) if error.kind() == Kind::NotFound => {
                named.push(journal);
                continue;
            }
            // It may name any of them.
            _ => return Ok(Vec::new()),
        };
        named.extend(record.snapshots.iter().filter_map(|snapshot| Some(snapshot.ram_image()?.id.to_string())));
        named.extend(record.warm.map(|warm| warm.image.id.to_string()));
    }
    let unnamed = |entry: &DirEntry| {
        let file = entry.file_name().to_string_lossy().into_owned();
        let id = file.split('.').next().unwrap_or_default();
        !named.iter().any(|text| text.contains(id))
    };
    Ok(entries.into_iter().filter(unnamed).collect())
}

fn remove_memory(context: &Context, dry_run: bool) -> Result<()> {
    for entry in unnamed_memory(&context.store)? {
        let bytes = entry.metadata().map_or(0, |about| about.len());
        if !dry_run {
            std::fs::remove_file(entry.path()).on("remove", &entry.path())?;
        }
        let verb = if dry_run { "belongs to no snapshot and would be" } else { "belonged to no snapshot and was" };
        let file = entry.file_name().to_string_lossy().into_owned();
        context.ui.note(&format!("memory {file} ({}) {verb} removed", human(bytes)));
    }
    Ok(())
}
