//! Freezing a VM into a template: its files become read-only, its record says so, and what they
//! looked like is noted, to notice an edit behind our back.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::change::{OpenVm, Plan, Run};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::layer::{chain, info, stamp};
use crate::model::{Layer, Name, Record, Role};
use crate::seal::Report;
use crate::seal::run::Sealing;
use crate::seal::vm;
use crate::snapshot::internal;
use crate::snapshot::internal_steps;
use crate::steps::layers::SetMode;
use crate::steps::record::WriteRecord;
use crate::store::Store;

/// The mode of a template's files.
pub(crate) const MODE: u32 = 0o444;

/// What becomes of what clones must not share.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SealMode<'a> {
    /// It stays, and they share it.
    AsItIs,
    /// The guest has taken it out itself.
    SealedItself,
    /// It is taken out; or, if true, it is only said what would be.
    Seal(&'a Sealing, bool),
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Frozen {
    /// What sealing did, or would do.
    pub sealed: Option<Report>,
}

/// Makes a template of the stopped VM `name`, called `new_name` if that is given.
pub(crate) async fn freeze(
    context: &Context,
    name: &Name,
    new_name: Option<&Name>,
    how: SealMode<'_>,
) -> Result<Frozen> {
    let store = &context.store;
    let mut opened = OpenVm::for_change(context, name, "make a template of").await?;
    let mut record = opened.record.clone();
    if let Some(new_name) = new_name {
        refuse_taken(store, new_name)?;
    }
    if opened.is_running()? {
        return Err(Error::refused(format!("{name} is running"))
            .hint(format!("stop it first: cowhand stop {name}")));
    }
    if !record.snapshots.is_empty() {
        let points: Vec<String> =
            record.snapshots.iter().map(|snapshot| format!("{name}@{}", snapshot.name)).collect();
        return Err(Error::refused(format!(
            "{name} has snapshots, and a template has none: {}",
            points.join(", ")
        ))
        .hint(format!("remove them: cowhand snapshot rm {}", points.join(" ")))
        .hint(format!("or make the template of a copy: cowhand clone {name} NEW --full")));
    }
    if record.config.volumes().next().is_none() {
        return Err(Error::refused(format!("{name} has no disk, so there is nothing to clone")));
    }
    for disk in record.config.volumes() {
        chain::of_disk(store, disk)?;
    }
    if let Some(cdrom) = record.config.cdroms.iter().find(|cdrom| cdrom.iso.is_some()) {
        context.ui.warn(&format!(
            "an ISO image is in CD-ROM drive {} of {name}: no clone can start without that file",
            cdrom.target
        ));
    }
    let layers: Vec<Layer> = record.config.volumes().map(|disk| disk.layer.clone()).collect();
    if let SealMode::Seal(sealing, true) = how {
        return Ok(Frozen { sealed: Some(vm::dry_run(context, &record, sealing).await?) });
    }
    for file in layers.iter().filter_map(|layer| std::fs::read_link(store.layout.layer(layer)).ok())
    {
        context.ui.warn(&format!(
            "{} is used in place: the template makes it read-only, \
             and nothing may change it from here on",
            file.components().collect::<PathBuf>().display()
        ));
    }
    remove_undo_snapshots(context, name, &layers).await?;
    let before = layers.iter().map(|layer| mode(store, layer)).collect::<Result<_>>()?;
    let sealed = match how {
        SealMode::Seal(sealing, _) => {
            let (sealed, plan) = vm::plan(context, name, &record, sealing)?;
            record = sealed;
            Some(plan)
        }
        SealMode::AsItIs | SealMode::SealedItself => None,
    };
    // What the layers look like is known when nobody writes to them any more.
    // A template stays until it is removed.
    record.ephemeral = None;
    record.autostart = false;
    record.role = Role::Template {
        frozen: Timestamp::now(),
        sealed: !matches!(how, SealMode::AsItIs),
        stamps: Vec::new(),
        image: None,
    };
    let (set_mode, write) = (SetMode { layers, before, mode: MODE }, WriteRecord::of(&record));
    let plan = match sealed {
        Some(plan) => plan.after([set_mode.into(), write.into()]),
        None => Plan::before([set_mode.into()]).pivot(write),
    };
    let mut report = opened.carry_out_on_files(plan).await?;
    let sealed = report.told::<Report>();
    if let Some(why) = report.unmerged {
        return Err(Error::failed(format!(
            "{name} is sealed, but is no template: its layers could not be merged"
        ))
        .hint(format!(
            "when the cause is mended: cowhand disk commit {name} vda, cowhand template create \
             {name} --no-seal"
        ))
        .because(why));
    }
    drop(opened);
    if let Some(new_name) = new_name {
        rename(context, name, new_name).await.map_err(|error| {
            error.hint(format!(
                "{name} is a template now, under its old name; another one: cowhand \
                 rename {name} NEW"
            ))
        })?;
    }
    Ok(Frozen { sealed })
}

fn refuse_taken(store: &Store, name: &Name) -> Result<()> {
    if store.layout.vm(name).exists() {
        return Err(Error::exists(format!("the name {name} is taken"))
            .hint("choose another, or see what is there: cowhand ls -a"));
    }
    Ok(())
}

async fn rename(context: &Context, name: &Name, new_name: &Name) -> Result<()> {
    let store = &context.store;
    let _store_lock = context.lock_store().await?;
    let vm = OpenVm::open(context, name).await?;
    refuse_taken(store, new_name)?;
    store.rename(name, new_name, &vm.record)
}

/// Heads that reverts have left inside the images, for an `undo` that a template does not know.
async fn remove_undo_snapshots(context: &Context, name: &Name, layers: &[Layer]) -> Result<()> {
    for layer in layers {
        let info = info::inspect(&context.store, layer)?;
        // It would take room in the template, and in each full clone. What stays does no harm.
        if info.guest_memory
            && let Err(error) = internal_steps::give_up_memory_of(context, layer).await
        {
            tracing::debug!(
                "memory stays in layer {layer} of the template: {}",
                error.full_message()
            );
        }
        if info.internal_snapshots == 0 {
            continue;
        }
        for tag in internal::undo_tags(context, layer).await? {
            let mut run = Run::with_no_qemu(context, name);
            internal_steps::delete(&mut run, &tag, std::slice::from_ref(layer)).await?;
        }
    }
    Ok(())
}

fn mode(store: &Store, layer: &Layer) -> Result<u32> {
    let path = store.layout.layer(layer);
    Ok(std::fs::metadata(&path).on("read", &path)?.mode() & 0o7777)
}

/// Refuses a template whose files are not what they were when it was frozen: every clone of it
/// would be wrong.
pub(crate) fn check_untouched(store: &Store, name: &Name, record: &Record) -> Result<()> {
    let Role::Template { stamps, .. } = &record.role else {
        return Ok(());
    };
    match stamp::changed(store, stamps) {
        None => Ok(()),
        Some(layer) => {
            let kind = record.kind();
            Err(Error::damaged(format!(
                "{kind} {name} was changed behind our back: \
                 {} is not what it was when the {kind} was made",
                store.layout.layer(layer).display()
            ))
            .hint(match record.image() {
                None => "make the template anew; clones of it that exist may be damaged",
                Some(_) => {
                    "add the image anew, under another name; \
                     VMs that depend on this one may be damaged"
                }
            }))
        }
    }
}
