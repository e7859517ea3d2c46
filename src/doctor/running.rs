//! A running VM: does its QEMU have open what the record says, is it at work on something nobody
//! knows of, does its guest stand still?
//!
//! Asked on the socket for observers, so that nobody is kept from changing the VM.

use std::path::PathBuf;
use std::time::Duration;

use qapi::qga::{GuestFsfreezeStatus, guest_fsfreeze_status};

use super::{Finding, Remedy};
use crate::context::Context;
use crate::error::Error;
use crate::guest::session;
use crate::instance::status::Status;
use crate::instance::{connect, logs, sockets};
use crate::layer::chain;
use crate::model::{Layer, LayerId, Name, Record};
use crate::qemu::qmp::Qmp;

/// How long QEMU may take to greet an observer.
const GREETING: Duration = Duration::from_secs(5);
/// How long the guest agent may take.
const AGENT: Duration = Duration::from_secs(3);

/// Looks at it.
pub(super) async fn examine(
    context: &Context,
    name: &Name,
    record: &Record,
    status: &Status,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match look(context, name, record, status).await {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(
            Finding::fail("process", format!("its QEMU does not answer: {}", error.full_message()))
                .of(name)
                .hint(format!("if it never does again: cowhand stop --force {name}")),
        ),
    }
    if !logs::are_limited(context, name, record) {
        // Without their size, which changes while the guest prints: a finding that differs at the
        // second look is dropped.
        let about = "no process limits its logs (was it killed, or the VM started by hand?), \
                     so they can grow";
        findings.push(
            Finding::warn("logs", about)
                .hint(format!("cowhand doctor {name} --repair    starts it"))
                .remedy(Some(Remedy::LimitLogs(name.clone()))),
        );
    }
    findings.into_iter().map(|finding| finding.of(name)).collect()
}

async fn connect(context: &Context, name: &Name) -> Result<Qmp, Error> {
    let sockets = sockets::of(context, name)
        .ok_or_else(|| Error::damaged("where its sockets are is not known"))?;
    Ok(Qmp::connect(&sockets.status(), GREETING).await?)
}

async fn look(
    context: &Context,
    name: &Name,
    record: &Record,
    status: &Status,
) -> Result<Vec<Finding>, Error> {
    let mut qmp = connect(context, name).await?;
    let mut findings = Vec::new();
    let jobs = qmp.jobs().await?;
    for job in &jobs {
        let ours = job.id.starts_with("cw-");
        let about = format!("QEMU's job {} is {}", job.id, job.status);
        findings.push(match (ours, job.status.as_str()) {
            (true, "concluded") => {
                Finding::warn("jobs", format!("{about}, and no command has collected its result"))
                    .hint("cowhand doctor --repair    forgets it")
                    .remedy(Some(Remedy::Dismiss { vm: name.clone(), job: job.id.clone() }))
            }
            (true, _) => {
                Finding::warn("jobs", format!("{about}, and no command is waiting for it")).hint(
                    "it continues by itself; changes of its disks are refused until it has ended",
                )
            }
            (false, _) => Finding::info("jobs", format!("{about}; it is not ours"))
                .hint("changes of its disks are refused until it has ended"),
        });
    }
    let is_quiet = jobs.iter().all(|job| job.status == "concluded");
    if is_quiet && let Err(why) = connect::differs(context, &mut qmp, record).await? {
        let adopt = heads(context, &mut qmp, record).await?.map(|_| Remedy::Adopt(name.clone()));
        let finding = Finding::fail("process", why);
        findings.push(match adopt {
            Some(_) => finding
                .hint(format!(
                    "was vm.json replaced by an older one? cowhand doctor {name} \
                     --repair    believes QEMU"
                ))
                .remedy(adopt),
            None => finding.hint(
                "something else has changed its disks under it (user-qmp.sock?); \
                 do not stop it before you have copied what it wrote",
            ),
        });
    }
    let mut in_use: Vec<LayerId> = record.layers().map(|layer| layer.id.clone()).collect();
    for disk in record.config.writable() {
        match qmp.active_layer(&disk.target).await {
            // The guest has unplugged it.
            Err(error) if error.is_no_device() => {}
            layer => in_use.extend(layer?),
        }
    }
    if let Some(pid) = status.pid
        && let Some(file) = removed_file(context, pid, &in_use)
    {
        findings.push(
            Finding::fail("process", format!("its QEMU writes to a file that was removed: {file}"))
                .hint(format!(
                    "while it runs the data is in /proc/{pid}/fd; copy it inside the \
                     guest, then stop it"
                )),
        );
    }
    let mut known = Vec::new();
    for disk in record.config.volumes() {
        if let Ok(chain) = chain::read(&context.store, &disk.layer) {
            known.extend(
                chain.links().iter().map(|link| (link.layer.id.clone(), link.path.clone())),
            );
        }
    }
    for (id, file) in qmp.open_layers().await? {
        match known.iter().find(|(known, _)| *known == id) {
            Some((_, path)) if !connect::is_same(&file, path) => findings.push(
                Finding::warn(
                    "process",
                    format!(
                        "its QEMU has layer {id} open as {file}, and it lies at {}",
                        path.display()
                    ),
                )
                .hint("was the store moved while it ran? stop it and start it again"),
            ),
            Some(_) => {}
            None if in_use.contains(&id) => {}
            None if is_quiet => findings.push(Finding::info(
                "process",
                format!("its QEMU still has layer {id} open, which it does not need"),
            )),
            None => {}
        }
    }
    if let Some(detail) = status.detail.as_deref() {
        let finding = Finding::warn("process", format!("QEMU says of the guest: {detail}"));
        findings.push(match detail {
            "io-error" => finding
                .hint(format!("is there room on the disk? make some, then: cowhand resume {name}")),
            _ => finding.hint(format!("what it said: cowhand logs {name}")),
        });
    }
    findings.extend(agent(context, name, &mut qmp, status).await?);
    Ok(findings)
}

/// The layers of the store that its devices are on, where they are others than the record says and
/// depend on those. `None`: some are not, or all are as recorded.
pub(super) async fn heads(
    context: &Context,
    qmp: &mut Qmp,
    record: &Record,
) -> Result<Option<Vec<(String, Layer)>>, Error> {
    let mut heads = Vec::new();
    for disk in record.config.writable() {
        let active = match qmp.active_layer(&disk.target).await {
            Err(error) if error.is_no_device() => continue,
            active => active?.and_then(|id| context.store.find_layer(&id)),
        };
        let Some(active) = active else { return Ok(None) };
        if active == disk.layer {
            continue;
        }
        if !chain::read(&context.store, &active).is_ok_and(|chain| chain.contains(&disk.layer.id)) {
            return Ok(None);
        }
        heads.push((disk.target.clone(), active));
    }
    Ok((!heads.is_empty()).then_some(heads))
}

/// The same as [`connect::differs`], for somebody who wants to rely on it.
pub(super) async fn agrees(context: &Context, name: &Name, record: &Record) -> Result<(), String> {
    let words = |error: Error| error.full_message();
    let mut qmp = connect(context, name).await.map_err(words)?;
    let jobs = qmp.jobs().await.map_err(|error| error.to_string())?;
    if let Some(job) = jobs.iter().find(|job| job.status != "concluded") {
        return Err(format!("QEMU's job {} is at work", job.id));
    }
    connect::differs(context, &mut qmp, record).await.map_err(words)?
}

async fn agent(
    context: &Context,
    name: &Name,
    qmp: &mut Qmp,
    status: &Status,
) -> Result<Vec<Finding>, Error> {
    if status.state != crate::model::State::Running {
        return Ok(Vec::new());
    }
    let none = |why: &str| {
        vec![Finding::info("agent", why).hint(
            "without qemu-guest-agent in the guest there is no exec, no cp, and snapshots are \
             taken without a freeze",
        )]
    };
    if !qmp.agent_is_listening().await? {
        return Ok(none("nothing in the guest listens on the guest agent's port"));
    }
    let Ok(mut session) = session::open(context, name, AGENT).await else {
        return Ok(none("the guest agent does not answer"));
    };
    Ok(match session.agent.run(&guest_fsfreeze_status {}, AGENT).await {
        Ok(GuestFsfreezeStatus::frozen) => vec![
            Finding::warn(
                "frozen",
                "the guest's file systems are frozen, and no command of ours is at work on it",
            )
            .hint(format!(
                "cowhand doctor {name} --repair    thaws them; whoever froze them may rely on it"
            ))
            .remedy(Some(Remedy::Thaw(name.clone()))),
        ],
        _ => Vec::new(),
    })
}

/// A file of these layers that QEMU has open and that is not there any more (`/proc/PID/fd`). By
/// its name: the kernel tells the path without links.
fn removed_file(context: &Context, pid: i32, layers: &[LayerId]) -> Option<String> {
    let linked: Vec<PathBuf> = layers
        .iter()
        .filter_map(|id| {
            std::fs::read_link(context.store.layout.layer(&context.store.find_link(id)?)).ok()
        })
        .collect();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let open = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let removed = open.filter_map(|target| {
        target.to_string_lossy().strip_suffix(" (deleted)").map(PathBuf::from)
    });
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Layer::from_file_name(&name).is_some_and(|layer| layers.contains(&layer.id))
            || linked.contains(path)
    };
    removed.into_iter().find(ours).map(|path| path.display().to_string())
}
