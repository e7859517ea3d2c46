//! Changing the size of a disk: of a running VM by QMP `block_resize`, else in the offline engine.

use crate::change::{OpenVm, Plan};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::layer::{chain, info};
use crate::model::{Bus, Disk, Format, Name, Record, human};
use crate::qemu::img::Img;
use crate::snapshot::internal_steps;
use crate::steps::layers::Resize;
use crate::steps::record::WriteRecord;
use crate::vm::list;

/// What was done, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// The size before.
    pub before: u64,
    /// The size now.
    pub after: u64,
}

/// Gives the disk `target` of `vm` the size `bytes`. Making it smaller has to be asked for, and is
/// refused where data would be cut off.
pub async fn resize(
    context: &Context,
    vm: &Name,
    target: &str,
    bytes: u64,
    shrink: bool,
) -> Result<Resized> {
    let mut opened = OpenVm::for_change(context, vm, "resize a disk of").await?;
    let mut record = opened.record.clone();
    chain::refresh(&context.store, &mut record.config)?;
    let disk = list::disk(vm, &record, target)?.clone();
    if target == "nvram" || disk.read_only {
        return Err(Error::refused(format!(
            "{target} of {vm} cannot be resized: its size is the machine's business"
        )));
    }
    if bytes == 0 || !bytes.is_multiple_of(512) {
        return Err(Error::usage(format!(
            "{bytes} bytes are not a whole number of 512-byte sectors"
        )));
    }
    if !matches!(disk.layer.format, Format::Raw | Format::Qcow2) {
        return Err(Error::refused(format!(
            "{target} of {vm} is {}, which cannot be resized",
            disk.layer.format
        ))
        .hint(format!(
            "take a snapshot first, after which the disk is qcow2: cowhand snapshot create {vm}"
        )));
    }
    let resized = Resized { before: disk.virtual_bytes, after: bytes };
    opened.refuse_job().await?;
    let running = opened.state().await?.is_live();
    if running && disk.bus == Bus::Nvme {
        return Err(Error::refused(format!(
            "{target} of {vm} is on NVMe, which QEMU cannot resize while {vm} runs"
        ))
        .hint(format!("stop it first: cowhand stop {vm}")));
    }
    if bytes < disk.virtual_bytes {
        refuse_shrinking(context, vm, &record, target, bytes, shrink, running).await?;
    }
    if bytes > disk.virtual_bytes {
        refuse_memory(context, vm, &disk, bytes, running).await?;
    }
    let mut after = record.clone();
    for disk in after.config.disks.iter_mut().filter(|disk| disk.target == target) {
        disk.virtual_bytes = bytes;
    }
    let (target, before) = (target.to_owned(), disk.virtual_bytes);
    let plan = Plan::pivot(Resize { target, layer: disk.layer, before, after: bytes })
        .after([WriteRecord::of(&after).into()]);
    if bytes != disk.virtual_bytes {
        opened.carry_out(plan).await?;
    }
    Ok(resized)
}

/// Memory that a revert has loaded lies where the disk would go on. It is given up first.
async fn refuse_memory(
    context: &Context,
    vm: &Name,
    disk: &Disk,
    bytes: u64,
    running: bool,
) -> Result<()> {
    let shows =
        || Ok::<_, Error>(info::inspect(&context.store, &disk.layer)?.would_show_memory(bytes));
    if !shows()? {
        return Ok(());
    }
    let target = &disk.target;
    if running {
        return Err(Error::refused(format!(
            "{target} of {vm} cannot be made larger while it runs: memory that a revert has loaded \
             lies where the disk would go on"
        ))
        .hint(format!(
            "it goes when the VM is stopped: cowhand stop {vm}, cowhand disk resize …, \
             cowhand start {vm}"
        )));
    }
    internal_steps::give_up_memory_of(context, &disk.layer).await.map_err(|error| {
        Error::refused(format!(
            "{target} of {vm} cannot be made larger: memory that a revert has loaded lies where \
             the disk would go on, and cannot be given up"
        ))
        .hint(format!("see what is wrong with its image: cowhand disk check {vm}"))
        .because(error.full_message())
    })
}

async fn refuse_shrinking(
    context: &Context,
    vm: &Name,
    record: &Record,
    target: &str,
    bytes: u64,
    shrink: bool,
    running: bool,
) -> Result<()> {
    let disk = list::disk(vm, record, target)?;
    let path = context.store.layout.layer(&disk.layer);
    let files = chain::files(&context.store, &disk.layer);
    let used = Img::find(context)?.reading(files).end_of_data(&path, disk.layer.format).await?;
    let what = format!(
        "{target} of {vm} has {} and would have {}",
        human(disk.virtual_bytes),
        human(bytes)
    );
    if used > bytes {
        return Err(Error::refused(format!(
            "{what}: its data reaches up to {} ({used} bytes)",
            human(used)
        ))
        .hint(
            "shrink the file systems and partitions in the guest first; their unused blocks \
             have to be discarded (fstrim), too",
        ));
    }
    if !shrink {
        return Err(Error::refused(format!("{what}: shrinking may destroy guest data"))
            .hint("if you mean it, and the partition table ends before that: --shrink"));
    }
    if running {
        return Err(Error::refused(format!("{what}: that cannot be done while it runs"))
            .hint(format!("stop it first: cowhand stop {vm}")));
    }
    if info::inspect(&context.store, &disk.layer)?.internal_snapshots > 0 {
        return Err(Error::refused(format!(
            "{what}: its layer carries internal snapshots of the larger size"
        )));
    }
    Ok(())
}
