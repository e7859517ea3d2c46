//! Back to where a VM was made from, in one step: its guest is ended, its head becomes new overlays
//! on the template's or the snapshot's layers, and it starts again, from memory where the template
//! is warm.

use uuid::Uuid;

use crate::change::{OpenVm, Plan, Planned};
use crate::clone::{self, Kind};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{boot_files, launch};
use crate::layer::chain;
use crate::model::{Config, Disk, Format, Layer, Name, Origin, Record, Warm};
use crate::qemu::cmdline::StartMode;
use crate::steps::layers::CreateOverlay;
use crate::steps::merge::RemoveLayers;
use crate::steps::qemu::StopQemu;
use crate::steps::record::WriteRecord;
use crate::steps::trash::TrashLayers;
use crate::store::{Store, trash};
use crate::warm::steps::ResumeWarm;

/// What a reset came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// Where the VM is now: `deb12`, `web@before`.
    pub origin: String,
    /// How it was started, if it was.
    pub kind: Option<Kind>,
}

/// Resets `name`. With `stopped` it is not started again.
pub async fn reset(context: &Context, name: &Name, stopped: bool) -> Result<Reset> {
    // What it goes back to must not be cooled or removed meanwhile.
    let from = is_based_on_snapshot_of(context, name);
    let names: Vec<&Name> = [name].into_iter().chain(&from).collect();
    let store_lock = context.lock_store_for(&names).await?;
    let mut opened = OpenVm::for_change(context, name, "reset").await?;
    let record = opened.record.clone();
    let origin = record.origin.clone().ok_or_else(|| {
        Error::refused(format!("{name} was not made from a template or a snapshot"))
            .hint(format!("revert it to one of its snapshots: cowhand snapshot revert {name}@NAME"))
    })?;
    let (source_name, mut source) = source(context, name, &origin)?;
    if origin.snapshot.is_none() && !source.is_template() {
        return Err(Error::refused(format!(
            "{name} is a copy of the VM {source_name}, which may have changed since: there is \
             nothing to go back to"
        ))
        .hint(format!(
            "for a new copy: cowhand rm {name} && cowhand clone {source_name} {name} --full"
        ))
        .hint(format!(
            "or revert it to one of its snapshots: cowhand snapshot revert {name}@NAME"
        )));
    }
    // Nobody may merge the layers of the snapshot meanwhile.
    let mut source_lock = None;
    if origin.snapshot.is_some() && source_name != *name {
        let opened = OpenVm::open(context, &source_name).await?;
        source = opened.record.clone();
        source_lock = Some(opened);
    }
    let at = match &origin.snapshot {
        Some(snapshot) => format!("{source_name}@{snapshot}"),
        None => source_name.to_string(),
    };
    let base = match &origin.snapshot {
        Some(snapshot) => &source.snapshot(&source_name, snapshot)?.config,
        None => &source.config,
    };
    let warm = (!stopped && origin.snapshot.is_none())
        .then(|| usable(context, &source_name, &source, &record))
        .flatten();
    let base = warm.map_or(base, |warm| &warm.config);
    let (mut after, mut before) = (record.clone(), Vec::new());
    after.config.generation = Uuid::new_v4();
    after.current = None;
    let mut base = base.clone();
    chain::refresh(&context.store, &mut base)?;
    refuse_independent(context, name, &record.config, &at, &base)?;
    // What depends on an image was given a size of its own when it was made.
    let keeps_size = source.image().is_some();
    renew(name, &mut after.config, &base, keeps_size, &mut before)?;
    if !stopped {
        // Before its QEMU is ended.
        boot_files::check_isos(&after.config)
            .map_err(|error| error.hint(format!("or eject it: cowhand cdrom eject {name}")))?;
    }
    opened.refuse_job().await?;
    if opened.state().await?.is_live() {
        before.push(StopQemu {}.into());
    }
    let kept: Vec<&Layer> = after.layers().collect();
    let gone: Vec<Layer> = record
        .config
        .writable()
        .map(|disk| disk.layer.clone())
        .filter(|layer| !kept.contains(&layer))
        .collect();
    let away: Planned = match record.ephemeral {
        // Nothing of it was ever to stay.
        Some(_) => RemoveLayers { layers: gone }.into(),
        None => {
            let trash = Store::trash_name(&trash::Kind::Reset, name);
            TrashLayers::of(&record, trash, trash::Kind::Reset, gone, None).into()
        }
    };
    let plan = Plan::before(before).pivot(WriteRecord::of(&after)).after([away]);
    opened.carry_out(plan).await?;
    drop((source_lock, store_lock));
    if stopped {
        return Ok(Reset { origin: at, kind: None });
    }
    let started = async {
        match warm {
            Some(warm) => {
                let plan = Plan::pivot(ResumeWarm::from(warm));
                opened.carry_out_on_files(plan).await.map(drop)
            }
            None => launch::launch(context, name, &after, StartMode::Running).await.map(drop),
        }
    };
    if let Err(error) = started.await {
        return Err(Error::new(error.kind(), format!("{name} is back at {at}, but did not start"))
            .hint(format!("try again: cowhand start {name}"))
            .because(error.full_message()));
    }
    Ok(Reset { origin: at, kind: Some(if warm.is_some() { Kind::Warm } else { Kind::Thin }) })
}

/// Refuses a VM that has none of the layers that it would get: a full clone, or one that was
/// flattened. Afterwards it would need what it was made from. What cannot be read is no proof of
/// that.
fn refuse_independent(
    context: &Context,
    name: &Name,
    now: &Config,
    at: &str,
    base: &Config,
) -> Result<()> {
    let layers = |config: &Config| -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        for disk in config.writable() {
            layers.extend(
                chain::read(&context.store, &disk.layer)?
                    .links()
                    .iter()
                    .map(|link| link.layer.clone()),
            );
        }
        Ok(layers)
    };
    let Ok(ours) = layers(now) else { return Ok(()) };
    let theirs = layers(base)?;
    if ours.is_empty() || ours.iter().any(|layer| theirs.contains(layer)) {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{name} has no layer of {at}: it is a full clone of it, or was flattened"
    ))
    .hint(format!(
        "a reset would make it depend on {at}; for a new one: cowhand rm {name} && cowhand \
         clone {at} {name}"
    ))
    .hint(format!("or revert it to one of its snapshots: cowhand snapshot revert {name}@NAME")))
}

/// The VM whose snapshot `name` goes back to, and whose layers nobody may merge meanwhile.
fn is_based_on_snapshot_of(context: &Context, name: &Name) -> Option<Name> {
    let origin = context.store.load(name).ok()?.origin?;
    origin.snapshot.as_ref()?;
    source(context, name, &origin).ok().map(|(source, _)| source)
}

/// The template or VM it was made from, by its present name.
fn source(context: &Context, name: &Name, origin: &Origin) -> Result<(Name, Record)> {
    for other in context.store.names()? {
        if let Ok(record) = context.store.load(&other)
            && record.uuid == origin.uuid
        {
            return Ok((other, record));
        }
    }
    Err(Error::not_found(format!(
        "{name} was made from {}, which is not there any more",
        origin.name
    )))
}

/// The warm guest of the template, if this VM can go on from it: it has to be the same machine
/// still.
fn usable<'a>(
    context: &Context,
    name: &Name,
    template: &'a Record,
    vm: &Record,
) -> Option<&'a Warm> {
    template.warm.as_ref()?;
    let same = |a: &Config, b: &Config| {
        (&a.machine, &a.cpu, a.memory_bytes, a.cpus, a.firmware, &a.kernel)
            == (&b.machine, &b.cpu, b.memory_bytes, b.cpus, b.firmware, &b.kernel)
            && a.has_devices_of(b)
            && a.seed.is_some() == b.seed.is_some()
            && a.credentials == b.credentials
    };
    match clone::warm(context, name, template) {
        Ok(warm) if same(&warm.config, &vm.config) => Some(warm),
        Ok(_) => {
            context.ui.warn("it is another machine than its template by now: the guest boots");
            None
        }
        Err(error) => {
            context.ui.warn(&format!("{}; the guest boots instead", error.full_message()));
            None
        }
    }
}

/// New overlays on the layers of `base`, disk by disk. Disks that the source does not have stay as
/// they are.
fn renew(
    name: &Name,
    config: &mut Config,
    base: &Config,
    keeps_size: bool,
    steps: &mut Vec<Planned>,
) -> Result<()> {
    let below = |target: &str| base.volumes().find(|disk| disk.target == target && !disk.read_only);
    let mut renewed = 0;
    for disk in config.disks.iter_mut().chain(&mut config.nvram).filter(|disk| !disk.read_only) {
        let Some(Disk { layer: backing, virtual_bytes, .. }) = below(&disk.target).cloned() else {
            continue;
        };
        let layer = Layer::new(Format::Qcow2);
        let virtual_bytes =
            if keeps_size { virtual_bytes.max(disk.virtual_bytes) } else { virtual_bytes };
        disk.layer = layer.clone();
        disk.virtual_bytes = virtual_bytes;
        steps.push(CreateOverlay { layer, backing: Some(backing), virtual_bytes }.into());
        renewed += 1;
    }
    if renewed == 0 {
        return Err(Error::refused(format!(
            "{name} has no disk in common with what it was made from"
        )));
    }
    Ok(())
}
