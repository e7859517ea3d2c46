//! Taking back a revert, an rm or a set: everything they put out of use lies whole in the trash,
//! with the record from before.
//!
//! The bytes are not enough. Layers in the trash depend on layers in the pool, which a later
//! `snapshot rm` may have merged; so the trash notes what those looked like, and what is not so any
//! more cannot be undone. What an undo puts out of use goes into the trash, too, but is not in the
//! list: undoing again takes back the change before.

mod list;

use list::unusable;
pub(crate) use list::{Undoable, list};

use crate::change::{OpenVm, Plan, Planned};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::{launch, limits, logs, status};
use crate::layer::trashed;
use crate::model::printable;
use crate::model::{Config, Layer, Name, Record, Snapshot, SnapshotKind, State};
use crate::qemu::cmdline::StartMode;
use crate::snapshot::internal;
use crate::snapshot::internal_steps::InternalDelete;
use crate::steps::qemu::StopQemu;
use crate::steps::record::WriteRecord;
use crate::steps::restore::{self, RestoreLayers};
use crate::steps::trash::{DropTrash, TrashLayers};
use crate::store::trash::{self, Entry};
use crate::store::{Store, atomic};
use crate::sys::fault;
use crate::vm::edit;

/// Takes back a change of `vm`, or of all VMs: the one at the place `nth` of the list; 1 is the
/// last.
pub(crate) async fn undo(context: &Context, vm: Option<&Name>, nth: usize) -> Result<Undoable> {
    // What lies on a disk that is not mounted is not gone.
    context.store.refuse_unmounted()?;
    let mut all = list(context, vm)?;
    let count = all.len();
    if nth > count && count > 0 {
        return Err(Error::not_found(format!("there are {count} changes in the list, not {nth}"))
            .hint("see them: cowhand undo --list"));
    }
    let skipped = all.iter().take(nth.saturating_sub(1));
    let mut in_the_way = skipped.filter(|later| {
        later.obstacle.is_none() && all.get(nth - 1).is_some_and(|one| one.vm == later.vm)
    });
    if let Some(later) = in_the_way.next() {
        // Each of them brings back all of the record from before it.
        return Err(Error::refused(format!(
            "`{}` of {} came later and has to be taken back first",
            later.entry.command(),
            later.vm
        ))
        .hint("the last one first: cowhand undo --list"));
    }
    let Some(last) = all.drain(..).nth(nth.saturating_sub(1)) else {
        if let Some(vm) = vm.filter(|vm| !context.store.exists(vm)) {
            return Err(context.store.unknown(vm));
        }
        let whose = vm.map_or_else(String::new, |vm| format!(" of {vm}"));
        let error = Error::not_found(format!("there is no revert, rm or set{whose} to take back"));
        return Err(match unusable(context, vm)? {
            Some(why) => error.hint(why),
            None => error.hint("what has been collected by gc cannot be taken back"),
        });
    };
    if let Some(why) = &last.obstacle {
        return Err(Error::refused(format!(
            "`{}` cannot be taken back: {}",
            last.entry.command(),
            // It may name a command, too.
            printable::line(why)
        ))
        .hint(format!(
            "see what else there is: cowhand undo --list; the one before: cowhand undo --nth {}",
            nth + 1
        )));
    }
    match last.entry.what {
        trash::Kind::Rm => undo_rm(context, &last).await?,
        trash::Kind::Set => undo_set(context, &last).await?,
        _ => undo_revert(context, &last).await?,
    }
    Ok(last)
}

/// A removed VM: layers and memory first, then its directory, with which it is there again.
async fn undo_rm(context: &Context, last: &Undoable) -> Result<()> {
    let store = &context.store;
    let _store_lock = context.lock_store().await?;
    still_there(&context.store, last)?;
    let directory = store.layout.vm(&last.vm);
    if directory.exists() {
        return Err(Error::exists(format!("the name {} is taken", last.vm))
            .hint("rename that VM first: cowhand rename"));
    }
    let (layers, below) = (&last.entry.layers, &last.entry.below);
    restore::restore_or_put_back(store, &last.vm, &last.path, layers, below)?;
    for image in last.before.snapshots.iter().filter_map(Snapshot::ram_image) {
        store.move_memory(&last.path, image, true)?;
    }
    atomic::sync_directory(&store.layout.layers())?;
    atomic::sync_directory(&last.path.join("layers"))?;
    let from = last.path.join("vm");
    if last.before.warm.is_some() {
        // Its memory was not kept: it can be made again.
        let _ = std::fs::remove_file(from.join("vm.json.spare"));
        store.save_record(
            &from.join("vm.json"),
            &last.vm,
            &Record { warm: None, ..last.before.clone() },
        )?;
    }
    fault::point("a VM, on its way out of the trash").on("move out of the trash", &from)?;
    std::fs::rename(&from, &directory).on("move out of the trash", &from)?;
    fault::point("a VM, out of the trash").on("flush", &directory)?;
    atomic::sync_rename(&from, &directory)?;
    if let Err(error) = trashed::drop(&last.path) {
        let why = error.full_message();
        context
            .ui
            .warn(&format!("{} is back; its place in the trash stays until gc: {why}", last.vm));
    }
    Ok(())
}

async fn undo_set(context: &Context, last: &Undoable) -> Result<()> {
    let mut opened = OpenVm::for_change(context, &last.vm, "change").await?;
    let record = opened.record.clone();
    still_there(&context.store, last)?;
    same_vm(last, &record)?;
    // Disks have a life of their own: snapshots may have been taken since then.
    let mut now = record.config.clone();
    for disk in &mut now.disks {
        if let Some(before) =
            last.before.config.disks.iter().find(|before| before.target == disk.target)
        {
            (disk.bus, disk.serial) = (before.bus, before.serial.clone());
        }
    }
    let config = Config {
        disks: now.disks,
        nvram: now.nvram,
        generation: now.generation,
        ..last.before.config.clone()
    };
    config.check_devices()?;
    if edit::machine(&config) != edit::machine(&record.config) {
        opened.refuse_running("change")?;
    }
    let limit = (config.log_limit != record.config.log_limit).then_some(config.log_limit);
    let before = record.config.limits;
    let after = Record { config, autostart: last.before.autostart, ..record };
    let plan = Plan::pivot(WriteRecord::of(&after)).after([drop_trash(last)]);
    // First: what failed can be undone once more.
    if after.config.limits != before
        && let Some(qmp) = opened.qmp().await?
    {
        limits::apply(qmp, &last.vm, &after.config).await?;
    }
    opened.carry_out_on_files(plan).await?;
    match limit {
        Some(limit) => logs::limit_anew(context, &last.vm, limit).await,
        None => Ok(()),
    }
}

/// Under the lock: is it there still? Another undo, or `gc`, may have been quicker.
fn still_there(store: &Store, last: &Undoable) -> Result<()> {
    let is_there = |layer: &Layer| {
        last.path.join("layers").join(layer.file_name()).exists()
            || store.layout.layer(layer).exists()
    };
    let whole = last.entry.layers.iter().all(is_there);
    if last.path.join("entry.json").exists() && (whole || last.entry.what == trash::Kind::Rm) {
        return Ok(());
    }
    Err(Error::refused(format!("`{}` was taken back or collected meanwhile", last.entry.command()))
        .hint("see what there is now: cowhand undo --list"))
}

/// Under the lock: the name may be another VM's by now.
fn same_vm(last: &Undoable, record: &Record) -> Result<()> {
    if record.uuid == last.before.uuid {
        return Ok(());
    }
    Err(Error::refused(format!(
        "`{}` is of a VM that was renamed or removed meanwhile",
        last.entry.command()
    ))
    .hint("see what there is now: cowhand undo --list"))
}

fn drop_trash(last: &Undoable) -> Planned {
    DropTrash {
        directory: last.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    }
    .into()
}

/// The head from before a revert; what stands there now goes into the trash.
async fn undo_revert(context: &Context, last: &Undoable) -> Result<()> {
    let vm = &last.vm;
    // Nobody may collect meanwhile what is to be brought back, or what it depends on.
    let store_lock = context.lock_store_for(&[vm]).await?;
    let mut opened = OpenVm::for_change(context, vm, "undo a change of").await?;
    let record = opened.record.clone();
    let store_lock = last.entry.undo_snapshot.is_none().then_some(store_lock);
    still_there(&context.store, last)?;
    same_vm(last, &record)?;
    opened.refuse_job().await?;
    let how = match opened.state().await? {
        State::Running => Some(StartMode::Running),
        State::Paused => Some(StartMode::Paused),
        State::Stopped | State::Crashed => None,
    };
    // Snapshots that were taken since then stay.
    let still_there = |name: &Name| record.snapshots.iter().any(|snapshot| snapshot.name == *name);
    let current = last.before.current.clone().filter(still_there);
    let trash = Store::trash_name(&trash::Kind::Undo, vm);
    let mut in_place = false;
    let (after, plan) = match &last.entry.undo_snapshot {
        Some(tag) => {
            let snapshot = undo_snapshot(&last.before, tag);
            in_place = internal::is_in_head(&record, &snapshot);
            let old_pid = opened.qmp().await?.and_then(|qmp| qmp.pid());
            let (snapshot, what) = (&snapshot, trash::Kind::Undo);
            internal::revert(
                &record,
                &internal::Reverting { snapshot, current, old_pid, memory: None, trash, what },
            )
        }
        None => {
            let mut after =
                Record { config: last.before.config.clone(), current, ..record.clone() };
            after.config.generation = uuid::Uuid::new_v4();
            let directory =
                last.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Entry { layers, below, .. } = last.entry.clone();
            let mut before: Vec<Planned> = vec![RestoreLayers { directory, layers, below }.into()];
            before.extend(how.is_some().then_some(StopQemu {}.into()));
            let kept: Vec<_> = after.layers().collect();
            let gone = record
                .config
                .writable()
                .map(|disk| disk.layer.clone())
                .filter(|layer| !kept.contains(&layer));
            let away = TrashLayers::of(&record, trash, trash::Kind::Undo, gone.collect(), None);
            let plan = Plan::before(before).pivot(WriteRecord::of(&after)).after([away.into()]);
            (after, plan)
        }
    };
    let mut last_steps: Vec<Planned> = Vec::new();
    if let Some(tag) = last.entry.undo_snapshot.clone().filter(|_| in_place) {
        let layers = last.before.config.writable().map(|disk| disk.layer.clone()).collect();
        last_steps.push(InternalDelete { tag, layers }.into());
    }
    last_steps.push(drop_trash(last));
    opened.carry_out_holding(plan.after(last_steps), store_lock).await.map_err(|error| {
        let ended = how.is_some() && status::is_running(context, vm).is_ok_and(|running| !running);
        if ended {
            error.hint(format!(
                "its guest has been ended for it; start it again: cowhand start {vm}"
            ))
        } else {
            error
        }
    })?;
    if let Some(how) = how {
        launch::launch(context, vm, &after, how).await?;
    }
    Ok(())
}

/// The point at which an internal snapshot kept the head that a revert was about to overwrite.
fn undo_snapshot(before: &Record, tag: &str) -> Snapshot {
    let name: Name = "undo".parse().unwrap_or_else(|_| unreachable!("a fixed, good name"));
    Snapshot {
        name,
        parent: None,
        kind: SnapshotKind::Internal { tag: tag.to_owned() },
        created: before.created,
        description: String::new(),
        quiesced: true,
        vm_state: crate::model::VmState::Stopped,
        memory: None,
        expires: None,
        config: before.config.clone(),
    }
}
