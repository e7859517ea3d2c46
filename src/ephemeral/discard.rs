//! Removing a VM that was never to stay: the plug is pulled and its files go, not into the trash.
//! What others depend on stays.
//!
//! ```text
//! QEMU killed ─▶ vms/NAME renamed to vms/.gone-… ─▶ layers removed ─▶ vms/.gone-… removed
//!                (it is gone)                    └ killed here: the next `gc` or `run` removes
//!                                                  the rest
//! ```

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use crate::change::recover;
use crate::context::Context;
use crate::error::{IoContext, Kind, Result};
use crate::instance::{sockets, status, terminate};
use crate::layer::garbage::{Going, Needs};
use crate::model::{Ephemeral, Name, Record, Snapshot};
use crate::qemu::process;
use crate::store::{Store, plain, schema};
use crate::sys::{fault, owner};

/// How long a QEMU that was killed at its start may take to end, and how often it is looked.
const ENDING: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Removes the ephemeral VM `name`, whatever it is doing, if `ephemeral` is still what its record
/// says of it: meanwhile somebody may have decided to keep it, or made another one of that name.
pub(crate) async fn discard(context: &Context, name: &Name, ephemeral: &Ephemeral) -> Result<bool> {
    Ok(discard_if(context, name, |record| record.ephemeral.as_ref() == Some(ephemeral))
        .await?
        .is_some())
}

/// The same, for every record that `may_go`. What never came to be goes, too. Returns how many
/// bytes on disk are free now, if it went.
async fn discard_if(
    context: &Context,
    name: &Name,
    may_go: impl Fn(&Record) -> bool,
) -> Result<Option<u64>> {
    let store = &context.store;
    if !store.layout.vm(name).exists() {
        return Ok(None);
    }
    let lock = match context.lock_vm(name).await {
        // Another command was quicker.
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    // What a change was in the middle of goes with it; but layers it has made have to be named.
    if store.has_journal(name) || !store.exists(name) {
        recover::recover(context, &lock).await?;
    }
    if !store.exists(name) {
        return Ok(None);
    }
    let record = store.load(name)?;
    if record.is_template() || !may_go(&record) {
        return Ok(None);
    }
    end(context, name).await?;
    if let Some(sockets) = sockets::of(context, name) {
        process::clear(&sockets);
    }
    let gone = store.layout.gone(&Uuid::new_v4().simple().to_string());
    let directory = store.layout.vm(name);
    fault::point("an ephemeral VM, about to go").on("remove", &directory)?;
    std::fs::rename(&directory, &gone).on("remove", &directory)?;
    fault::point("an ephemeral VM, gone").on("remove", &directory)?;
    drop(lock);
    clear(store, &gone).map(Some)
}

/// Ends the QEMU of `name`, if there is one.
async fn end(context: &Context, name: &Name) -> Result<()> {
    // It may be half-way through its start, or its end, and then its process is not found: whoever
    // started it has killed it when interrupted.
    let deadline = Instant::now() + ENDING;
    while status::is_running(context, name)? {
        match terminate::kill(context, name).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
    Ok(())
}

/// Removes what is left of one that is gone. Returns how many bytes on disk that were.
fn clear(store: &Store, gone: &Path) -> Result<u64> {
    let mut bytes = 0;
    let path = gone.join("vm.json");
    let record = plain::read_if_possible(&path).and_then(|text| schema::parse_record(&text).ok());
    if let Some(record) = record {
        // Where names are unknown, `gc` finds the others later.
        for layer in Needs::look(store)?.freed_by(&record, Going::ThrownAway).layers {
            let path = store.layout.layer(&layer);
            bytes += bytes_of(&path);
            match std::fs::remove_file(&path) {
                // Another command clears up, too.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).on("remove", &path);
                }
                _ => {}
            }
        }
        for image in record.snapshots.iter().filter_map(Snapshot::ram_image) {
            bytes += bytes_of(&store.layout.ram(image));
            let _ = std::fs::remove_file(store.layout.ram(image));
        }
    }
    match std::fs::remove_dir_all(gone) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).on("remove", gone),
        _ => Ok(bytes),
    }
}

fn bytes_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |about| about.blocks() * 512)
}

/// How many bytes on disk the disks of the VM `name` take for itself.
pub(crate) fn own_bytes(store: &Store, name: &Name) -> u64 {
    store.load(name).map_or(0, |record| {
        record.config.writable().map(|disk| bytes_of(&store.layout.layer(&disk.layer))).sum()
    })
}

/// Removes VMs whose owner has died or whose date has passed, standby clones that do not wait any
/// more, and what is left of those that are gone. Returns their names, and how many bytes on disk
/// are free now. By a clock that cannot be believed, no date has passed.
pub(crate) async fn reap(context: &Context) -> Result<Vec<(Name, u64)>> {
    let store = &context.store;
    let ahead = store.check_clock();
    let dates = if ahead.is_some() { Dates::Ignored } else { Dates::Counted };
    for gone in store.gone()? {
        if let Err(error) = clear(store, &gone) {
            context.ui.warn(&error.full_message());
        }
    }
    let (mut reaped, mut kept) = (Vec::new(), Vec::new());
    for (name, record) in store.load_all()? {
        // What is to stay, and can be read, is none of them.
        if record.is_ok_and(|record| record.ephemeral.is_none()) {
            continue;
        }
        if let Err(error) = restore_standby(context, &name) {
            context.ui.warn(&error.full_message());
        }
        if !is_over(context, &name, dates) {
            if dates == Dates::Ignored && is_over(context, &name, Dates::Counted) {
                kept.push(name);
            }
            continue;
        }
        let over = |record: &Record| {
            let running = status::is_running(context, &name).unwrap_or(true);
            record.ephemeral.as_ref().is_some_and(|ephemeral| has_ended(ephemeral, running, dates))
        };
        match discard_if(context, &name, over).await {
            Ok(Some(bytes)) => reaped.push((name, bytes)),
            Ok(None) => {}
            Err(error) => {
                context.ui.warn(&format!("{name} is over and stays: {}", error.full_message()))
            }
        }
    }
    if let Some(ahead) = ahead.filter(|_| !kept.is_empty()) {
        let names: Vec<&str> = kept.iter().map(Name::as_str).collect();
        context.ui.warn(&format!(
            "VMs whose date has passed are kept ({}): {ahead}. If it is right: cowhand gc --yes",
            names.join(", ")
        ));
    }
    Ok(reaped)
}

/// Makes a standby clone of one again that was claimed shortly before a power cut: the record it
/// got then was not flushed, and may be lost.
fn restore_standby(context: &Context, name: &Name) -> Result<()> {
    let store = &context.store;
    let lost =
        || store.load(name).is_err_and(|error| error.kind() == Kind::Damaged && !error.is_newer());
    let spare = || store.load_spare(name).and_then(Result::ok).filter(Record::is_standby);
    if !lost() || spare().is_none() || status::is_running(context, name)? {
        return Ok(());
    }
    let Some(_lock) = store.try_lock_vm(name, &context.operation)? else { return Ok(()) };
    match spare().filter(|_| lost()) {
        Some(spare) => store.save(name, &spare),
        None => Ok(()),
    }
}

/// Removes what this process has made for itself, when it has been interrupted.
pub(crate) async fn reap_own(context: &Context) -> Result<()> {
    let Some(ours) = owner::ours() else { return Ok(()) };
    for name in context.store.names()? {
        let is_ours = |record: &Record| {
            record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.owner.as_ref()) == Some(&ours)
        };
        if context.store.load(&name).is_ok_and(|record| is_ours(&record)) {
            discard_if(context, &name, is_ours).await?;
        }
    }
    Ok(())
}

/// Does the date count on which a VM is to go?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dates {
    /// The clock is believed.
    Counted,
    /// It is not: only what has ended for another reason is over.
    Ignored,
}

/// Is it a VM that may go?
pub(crate) fn is_over(context: &Context, name: &Name, dates: Dates) -> bool {
    let Ok(record) = context.store.load(name) else { return false };
    let Some(ephemeral) = record.ephemeral.as_ref().filter(|_| !record.is_template()) else {
        return false;
    };
    let running = status::is_running(context, name).unwrap_or(true);
    // A standby clone that is just being started is locked.
    let idle =
        || context.store.try_lock_vm(name, &context.operation).is_ok_and(|lock| lock.is_some());
    has_ended(ephemeral, true, dates) || (has_ended(ephemeral, running, dates) && idle())
}

fn has_ended(ephemeral: &Ephemeral, running: bool, dates: Dates) -> bool {
    let abandoned = ephemeral.owner.as_ref().is_some_and(|owner| !owner::is_alive(owner));
    let expired =
        dates == Dates::Counted && ephemeral.expires.is_some_and(|at| at <= Timestamp::now());
    abandoned || expired || (ephemeral.standby && ephemeral.owner.is_none() && !running)
}
