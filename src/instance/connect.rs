//! The connection to a running VM's QEMU. The caller holds the VM's lock: one client per QMP
//! socket.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{sockets, status};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Name, Record};
use crate::qemu::qmp::Qmp;
use crate::sys::holder;

/// How long QEMU may take to greet; under emulation on a busy host it can be slow.
const GREETING: Duration = Duration::from_secs(30);
/// How long the process of a QEMU may live on without its socket: it gives back the memory of the
/// guest then.
const ENDING: Duration = Duration::from_secs(10);
/// How often it is looked at meanwhile.
const BETWEEN: Duration = Duration::from_millis(10);

/// Connects, if the VM runs.
pub(crate) async fn if_running(context: &Context, name: &Name) -> Result<Option<Qmp>> {
    within(context, name, GREETING).await
}

/// The same, and waits no longer than `limit` for QEMU to greet.
pub(crate) async fn within(context: &Context, name: &Name, limit: Duration) -> Result<Option<Qmp>> {
    if !status::is_running(context, name)? {
        return Ok(None);
    }
    let sockets = sockets::of(context, name).ok_or_else(|| {
        Error::damaged(format!("{name} runs, but where its sockets are is not known"))
    })?;
    let limit = limit.min(GREETING);
    let deadline = Instant::now() + limit.min(ENDING);
    loop {
        match Qmp::connect(&sockets.qmp(), limit).await {
            Ok(qmp) => return Ok(Some(qmp)),
            // It may have ended between the look and the call.
            Err(_) if !status::is_running(context, name)? => return Ok(None),
            // It is about to end, or has only just been started.
            Err(error) if error.is_absence() && Instant::now() < deadline => {
                tokio::time::sleep(BETWEEN).await
            }
            Err(error) => {
                return Err(Error::qemu(format!("{name} runs, but its QEMU does not answer"))
                    .hint(format!("if it never does again: cowhand stop --force {name}"))
                    .because(error));
            }
        }
    }
}

/// Connects to a VM that has to be running.
pub(crate) async fn required(context: &Context, name: &Name) -> Result<Qmp> {
    if_running(context, name).await?.ok_or_else(|| not_running(name))
}

/// It has to run for what was asked.
pub(crate) fn not_running(name: &Name) -> Error {
    Error::refused(format!("{name} is not running")).hint(format!("start it: cowhand start {name}"))
}

/// Is each device on the layer that the record says, in the file of this store? Otherwise, in
/// words, with both files.
pub(crate) async fn differs(
    context: &Context,
    qmp: &mut Qmp,
    record: &Record,
) -> Result<Result<(), String>> {
    for disk in record.config.writable() {
        let (target, ours) = (&disk.target, context.store.layout.layer(&disk.layer));
        let id = match qmp.active_layer(target).await {
            Ok(Some(id)) => id,
            // The guest has unplugged it.
            Err(error) if error.is_no_device() => continue,
            Err(error) => return Err(error.into()),
            Ok(None) => {
                return Ok(Err(format!(
                    "its QEMU has a node on {target} that cowhand did not make (through \
                     user-qmp.sock?), and the record says {}",
                    ours.display()
                )));
            }
        };
        // QEMU takes seconds to describe hundreds of layers, and its guest stands still meanwhile.
        let has = qmp.pid().and_then(|pid| holder::has(pid, &ours));
        if id == disk.layer.id && has == Some(true) {
            continue;
        }
        let files = qmp.open_layers().await?;
        let open = files.iter().find(|(open, _)| *open == id).map(|(_, file)| file.as_str());
        if id != disk.layer.id {
            let file = open.map_or_else(String::new, |file| format!(" ({file})"));
            return Ok(Err(format!(
                "its QEMU writes {target} to layer {id}{file}, and the record says {}",
                ours.display()
            )));
        }
        if has == Some(false) && open.is_some_and(|file| is_same(file, &ours)) {
            return Ok(Err(format!(
                "its QEMU writes {target} to a file that was at {} before; \
                 another one is there now",
                ours.display()
            )));
        }
        // Where a store was moved while it ran, nothing is left in the old place.
        let other = open.filter(|file| !is_same(file, &ours) && Path::new(file).exists());
        if let Some(theirs) = other {
            return Ok(Err(format!(
                "its QEMU writes {target} to {theirs}, and this store has {}",
                ours.display()
            )));
        }
    }
    Ok(Ok(()))
}

/// Do both lead to the same file? A store may be reached by more than one path.
pub(crate) fn is_same(one: &str, other: &Path) -> bool {
    Path::new(one) == other
        || std::fs::canonicalize(one)
            .ok()
            .is_some_and(|one| std::fs::canonicalize(other).ok() == Some(one))
}

/// Refuses to change a VM whose QEMU has other files open than its record names: it may be
/// another's, or another program has put a node on top of its disks.
pub(crate) async fn refuse_stranger(
    context: &Context,
    name: &Name,
    qmp: &mut Qmp,
    record: &Record,
) -> Result<()> {
    match differs(context, qmp, record).await? {
        Ok(()) => Ok(()),
        Err(why) => {
            // A job puts a node of its own on top.
            refuse_job(name, qmp).await?;
            Err(Error::damaged(format!("{name} is not changed: {why}"))
                .hint(format!("what can be done about it: cowhand doctor {name}")))
        }
    }
}

/// Refuses while a block job is at work, naming it.
pub(crate) async fn refuse_job(name: &Name, qmp: &mut Qmp) -> Result<()> {
    match qmp.jobs().await?.into_iter().find(|job| job.status != "concluded") {
        Some(job) => Err(Error::refused(format!(
            "a block job is at work on {name}: {} ({})",
            job.id, job.status
        ))
        .hint("wait for its end, then run the command again")),
        None => Ok(()),
    }
}
