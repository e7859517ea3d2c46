//! Taking a snapshot: external, of all writable disks at one instant or of none.

use std::time::{Duration, Instant};

use super::internal;
use super::memory;
use super::plan::{self, Quiesce, Taking};
use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::guest::freeze;
use crate::instance::fingerprint;
use crate::layer::chain;
use crate::model::{Disk, Memory, Name, PointRef, Quiesced, RamImage, Record, Snapshot, bus};
use crate::sys::image_lock;
use crate::vm::cdrom;

/// A snapshot as asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Its name; made up from the time when there is none.
    pub name: Option<Name>,
    /// The user's words.
    pub description: String,
    /// Freeze the guest's file systems first?
    pub quiesce: Quiesce,
    /// How long that may take.
    pub quiesce_limit: Option<Duration>,
    /// Keep it inside the images.
    pub internal: bool,
    /// Save the guest's memory, too.
    pub memory: bool,
    /// Compress it (zstd).
    pub compress: bool,
    /// How long it is kept from `gc`.
    pub expires: Option<jiff::Timestamp>,
}

/// What was taken, and what it cost.
#[derive(Debug)]
pub struct Taken {
    /// The snapshot's name.
    pub name: Name,
    /// How long the guest's CPUs stood still.
    pub paused: Duration,
    /// How long the guest's file systems were frozen.
    pub frozen: Duration,
    /// What came of freezing them.
    pub quiesce: Quiesced,
    /// All of it.
    pub total: Duration,
    /// Why the memory that was asked for is not in it.
    pub memory_lost: Option<String>,
}

/// Takes a snapshot of `vm`.
pub async fn create(context: &Context, vm: &Name, request: &Request) -> Result<Taken> {
    let mut opened = OpenVm::for_change(context, vm, "take a snapshot of").await?;
    take(&mut opened, request).await
}

/// What another QEMU writes to is no snapshot, and is not this VM's, whatever its record says.
fn refuse_written(context: &Context, vm: &Name, record: &Record) -> Result<()> {
    let path = |disk: &Disk| context.store.layout.layer(&disk.layer);
    let written = record
        .config
        .writable()
        .find(|disk| image_lock::is_written_to(&path(disk)).unwrap_or(false));
    written.map_or(Ok(()), |disk| {
        Err(Error::refused(format!(
            "{} of {vm} is being written to by a QEMU that is not that of {vm}",
            disk.target
        ))
        .hint(format!("its file is {}; see cowhand doctor {vm}", path(disk).display())))
    })
}

/// Takes a snapshot of a VM that is open.
pub async fn take(opened: &mut OpenVm<'_>, request: &Request) -> Result<Taken> {
    let began = Instant::now();
    let (context, vm, mut record) =
        (opened.context(), &opened.name().clone(), opened.record.clone());
    let name = choose_name(vm, &record, request.name.as_ref())?;
    if record.config.writable().next().is_none() {
        return Err(Error::refused(format!(
            "{vm} has no disk it can write to: there is nothing to take a snapshot of"
        )));
    }
    chain::refresh(&context.store, &mut record.config)?;
    let state = opened.state().await?;
    if !state.is_live() {
        refuse_written(context, vm, &record)?;
    }
    let pid = opened.qmp().await?.and_then(|qmp| qmp.pid());
    memory::check_space(context, &record.config, pid.filter(|_| request.memory))?;
    let mut taking = Taking {
        name: name.clone(),
        description: request.description.clone(),
        state,
        freeze: None,
        freeze_limit: request.quiesce_limit,
        memory: None,
        expires: request.expires,
    };
    let with_memory = (request.memory || request.internal) && state.is_live();
    if with_memory && request.quiesce == Quiesce::Require {
        return Err(Error::usage(
            "--quiesce require conflicts with --memory and --internal: a reverted guest would \
             resume frozen",
        )
        .hint("omit --quiesce, or --memory and --internal"));
    }
    if with_memory {
        bus::refuse_memory(vm.as_str(), &record.config)?;
    }
    if let Some(qmp) = opened.qmp().await?.filter(|_| with_memory) {
        cdrom::refuse_difference(qmp, vm, &record.config).await?;
    }
    if request.memory && !state.is_live() {
        context.ui.warn(&format!(
            "{vm} does not run: it has no memory to save, so the snapshot holds the disks alone"
        ));
    }
    let mut quiesced = Quiesced::Still;
    opened.refuse_job().await?;
    if let Some((qmp, status)) = opened.live().await? {
        let running = status.running;
        if request.memory && !request.internal && status.status == "postmigrate" {
            return Err(Error::refused(format!(
                "the memory of {vm} has been saved since it was paused, and this QEMU saves it \
                 again only after the guest has run"
            ))
            .hint(format!(
                "nothing in it has changed; for the disks alone: cowhand snapshot create {vm}"
            ))
            .hint(format!("or let it run first: cowhand resume {vm}")));
        }
        if running {
            quiesced = Quiesced::NotAsked;
        }
        if with_memory
            && running
            && request.quiesce != Quiesce::Never
            && qmp.agent_is_listening().await?
        {
            let limit = request.quiesce_limit.unwrap_or(freeze::FREEZE);
            if freeze::is_frozen(context, vm, limit).await {
                context.ui.warn(&format!(
                    "the file systems of {vm} were frozen by another program: they are frozen in \
                     {vm}@{name}, too, and stay so after a revert; {}",
                    freeze::how_to_thaw(vm)
                ));
            }
        }
        if request.memory && !request.internal {
            let leased = fingerprint::leased(qmp, &record.config);
            let writer = fingerprint::fingerprint(qmp, &record.config).await?;
            taking.memory = Some(Memory {
                image: Some(RamImage::new(request.compress)),
                bytes: 0,
                writer,
                leased,
            });
        } else if running {
            (quiesced, taking.freeze) =
                freeze(qmp.agent_is_listening().await?, vm, request.quiesce)?;
        }
    }
    let plan = if request.internal {
        internal::refuse_formats(vm, &record)?;
        if taking.freeze.take().is_some() {
            quiesced = Quiesced::NotAsked;
        }
        internal::take(opened.qmp().await?, &record, &taking, &internal::free_tag()).await?
    } else {
        plan::take(&record, &taking).1
    };
    let report = opened.carry_out(plan).await?;
    for warning in &report.warnings {
        context.ui.warn(warning);
    }
    let sealed_memory = |snapshot: &&Snapshot| {
        snapshot.tag().is_some()
            && snapshot.memory.is_some()
            && internal::is_in_head(&record, snapshot)
    };
    if !request.internal
        && let Some(inner) = record.snapshots.iter().find(sealed_memory)
    {
        context.ui.note(&format!(
            "{vm}@{} is inside a layer that is sealed now: its disks can still be gone back to, \
             its memory can not",
            inner.name
        ));
    }
    if quiesced == Quiesced::Absent {
        context.ui.note(&format!(
            "the guest agent of {vm} is not there: nothing was frozen, and the snapshot is what a \
             power cut would leave"
        ));
    }
    Ok(Taken {
        name,
        paused: report.paused.unwrap_or_default(),
        frozen: report.frozen.unwrap_or_default(),
        quiesce: report.freeze.unwrap_or(quiesced),
        total: began.elapsed(),
        memory_lost: report.memory_lost,
    })
}

/// Whether to freeze, and whether the snapshot fails when that fails.
fn freeze(listening: bool, vm: &Name, quiesce: Quiesce) -> Result<(Quiesced, Option<bool>)> {
    match (quiesce, listening) {
        (Quiesce::Never, _) => Ok((Quiesced::NotAsked, None)),
        (Quiesce::Auto, false) => Ok((Quiesced::Absent, None)),
        (Quiesce::Auto, true) => Ok((Quiesced::Frozen, Some(false))),
        (Quiesce::Require, true) => Ok((Quiesced::Frozen, Some(true))),
        (Quiesce::Require, false) => Err(Error::qemu(format!(
            "the guest agent of {vm} is not there, so nothing can be frozen"
        ))
        .hint(
            "install and start qemu-guest-agent in the guest, or take the snapshot with \
             --quiesce never",
        )),
    }
}

fn choose_name(vm: &Name, record: &Record, wanted: Option<&Name>) -> Result<Name> {
    let taken = |name: &Name| record.snapshots.iter().any(|snapshot| snapshot.name == *name);
    match wanted {
        Some(name) if name.as_str() == PointRef::CURRENT => Err(Error::usage(
            "a snapshot cannot be called \"current\": \
             that is how the one under the head is addressed",
        )),
        Some(name) if taken(name) => Err(Error::exists(format!(
            "{vm} has a snapshot {name} already"
        ))
        .hint(format!("choose another name, or remove it: cowhand snapshot rm {vm}@{name}"))),
        Some(name) => Ok(name.clone()),
        None => {
            let stem = format!("snap-{}", jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"));
            let numbered = (2u32..).map(|n| format!("{stem}-{n}"));
            std::iter::once(stem.clone())
                .chain(numbered)
                .filter_map(|name| name.parse().ok())
                .find(|name| !taken(name))
                .ok_or_else(|| Error::failed("no name is free"))
        }
    }
}
