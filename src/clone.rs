//! Clones: new VMs on somebody's sealed layers (*thin*), or on copies of them (*full*).
//!
//! A clone shares no identity with its source: UUID, network addresses, generation id and NVRAM are
//! its own. Ports of the host cannot be shared, so they are not taken over.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use uuid::Uuid;

use crate::change::OpenVm;
use crate::change::{self, Plan, Planned, Run, recover};
use crate::context::Context;
use crate::ephemeral::discard;
use crate::error::{Error, Result};
use crate::instance::sockets;
use crate::layer::chain;
use crate::model::{
    Config, Disk, Ephemeral, Format, Layer, Limits, Name, Network, Nic, Origin, PointRef,
    PortForward, Record, Role, Warm,
};
use crate::snapshot;
use crate::steps::layers::{CopyChain, CopyInternal, CreateOverlay};
use crate::steps::record::WriteRecord;
use crate::store::VmLock;
use crate::sys::sparse::Method;
use crate::template;
use crate::vm::start;
use crate::warm::resume;

/// How a clone gets its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// New overlays on the source's layers.
    #[default]
    Thin,
    /// Independent copies.
    Full,
    /// New overlays, and a copy-on-write mapping of the memory of a guest that has booted already.
    Warm,
}

impl Kind {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Full => "full",
            Self::Warm => "warm",
        }
    }
}

/// Clones as asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// A template, a snapshot or a stopped VM.
    pub source: PointRef,
    /// What they are to be called.
    pub names: Vec<Name>,
    /// Thin, full or warm.
    pub kind: Kind,
    /// Ports of the host that lead into the (single) clone.
    pub ports: Vec<PortForward>,
    /// What they reach instead of what the source says.
    pub network: Option<Network>,
    /// Their limits instead of those of the source.
    pub limits: Option<Limits>,
    /// They are not to stay.
    pub ephemeral: Option<Ephemeral>,
}

/// A clone that was made.
#[derive(Debug)]
pub struct Cloned {
    /// Its name.
    pub name: Name,
    /// Thin or full.
    pub kind: Kind,
    /// How long it took.
    pub took: Duration,
    /// How its data got there.
    pub reason: String,
}

/// Where a clone's configuration and layers come from.
struct Source {
    origin: Origin,
    config: Config,
    /// The layers carry it as an internal snapshot of this name.
    tag: Option<String>,
}

/// Makes the clones, one after another; each is whole or not there.
pub async fn clone(context: &Context, request: &Request) -> Result<Vec<Cloned>> {
    let store = &context.store;
    let source_name = &request.source.vm;
    let store_lock = context.lock_store_for(&[source_name]).await?;
    recover::sweep(context, &store_lock).await?;
    refuse_taken(context, &request.names)?;
    let mut opened = OpenVm::open(context, source_name).await?;
    let config = match &request.source.snapshot {
        Some(snapshot) => &opened.record.snapshot(source_name, snapshot)?.config,
        None => &opened.record.config,
    };
    // Before anything is made of it.
    cards(config, request)?;
    let source = source(&mut opened, request).await?;
    if request.ports.is_empty() && source.config.nics.iter().any(|nic| !nic.ports.is_empty()) {
        context.ui.note(&format!(
            "the forwarded ports of {source_name} are not taken over: give the \
             clone its own with -p"
        ));
    }
    let mut claims = Vec::with_capacity(request.names.len());
    for name in &request.names {
        claims.push(store.claim(&context.operation, &store_lock, name)?);
    }
    // A copy takes long, and the source's lock is enough to keep it as it is. An overlay is made in
    // no time, under both.
    let store_lock = (request.kind != Kind::Full).then_some(store_lock);
    let mut clones = Vec::with_capacity(request.names.len());
    for claim in &claims {
        let began = Instant::now();
        match one(context, claim, &source, request).await {
            Ok(reason) => {
                let kind = if source.tag.is_some() { Kind::Full } else { request.kind };
                clones.push(Cloned {
                    name: claim.name().clone(),
                    kind,
                    took: began.elapsed(),
                    reason,
                })
            }
            Err(error) => {
                claims.iter().try_for_each(|claim| store.unclaim(claim.name()))?;
                return Err(match clones.len() {
                    0 => error,
                    made => error.hint(format!(
                        "{made} of {} clones were made and stay",
                        request.names.len()
                    )),
                });
            }
        }
    }
    drop(store_lock);
    Ok(clones)
}

/// Starts warm clones that were just made, as guests of their own. Until they are, they belong to
/// this process (`ephemeral` of the request), so that nobody meets one that is not; then `finally`
/// says how long they stay. When one cannot be started, it and those after it are removed again.
pub async fn start_warm(
    context: &Context,
    source: &Name,
    clones: &mut [Cloned],
    finally: Option<&Ephemeral>,
) -> Result<()> {
    for at in 0..clones.len() {
        let (name, began) = (clones[at].name.clone(), Instant::now());
        let started = async {
            let origin = context.store.load(source)?;
            let warm = self::warm(context, source, &origin)?;
            let mut vm = OpenVm::open(context, &name).await?;
            let qmp = resume::wake(context, &name, &vm.record, warm, false).await?;
            resume::go_on(context, &name, qmp).await?;
            drop(resume::adopt_identity(context, &name, &vm.record, warm).await?);
            vm.record.ephemeral = finally.cloned();
            vm.save()
        };
        if let Err(error) = started.await {
            discard::reap_own(context).await?;
            let made = at;
            return Err(match made {
                0 => error,
                made => error.hint(format!("{made} of {} clones were made and stay", clones.len())),
            });
        }
        clones[at].took += began.elapsed();
    }
    Ok(())
}

/// Starts clones that were just made.
pub async fn start_all(context: &Context, clones: &[Cloned]) -> Result<()> {
    for clone in clones {
        start::start(context, &clone.name, false).await?;
    }
    Ok(())
}

fn refuse_taken(context: &Context, names: &[Name]) -> Result<()> {
    match names.iter().find(|name| context.store.exists(name)) {
        Some(name) => Err(Error::exists(format!("the name {name} is taken"))
            .hint("choose another name, or see what is there: cowhand ls -a")),
        None => Ok(()),
    }
}

async fn source(opened: &mut OpenVm<'_>, request: &Request) -> Result<Source> {
    let (context, record) = (opened.context(), opened.record.clone());
    let name = &request.source.vm;
    let origin = |snapshot: Option<Name>| Origin {
        uuid: record.uuid,
        name: name.clone(),
        snapshot,
        template: record.is_template(),
    };
    let mut source = match &request.source.snapshot {
        Some(snapshot) => {
            let snapshot = record.snapshot(name, snapshot)?;
            Source {
                origin: origin(Some(snapshot.name.clone())),
                config: snapshot.config.clone(),
                tag: snapshot.tag().map(str::to_owned),
            }
        }
        None if request.kind == Kind::Warm => {
            template::freeze::check_untouched(&context.store, name, &record)?;
            Source {
                origin: origin(None),
                config: warm(context, name, &record)?.config.clone(),
                tag: None,
            }
        }
        None if record.is_template() => {
            template::freeze::check_untouched(&context.store, name, &record)?;
            Source { origin: origin(None), config: record.config.clone(), tag: None }
        }
        None => {
            if opened.is_running()? {
                return Err(Error::refused(format!(
                    "{name} is running: its disks change while they \
                     would be cloned"
                ))
                .hint(format!(
                    "clone a snapshot: cowhand snapshot create {name} NOW && \
                     cowhand clone {name}@NOW NEW"
                ))
                .hint(format!("or stop it first: cowhand stop {name}")));
            }
            match request.kind {
                Kind::Full => {
                    Source { origin: origin(None), config: record.config.clone(), tag: None }
                }
                Kind::Thin | Kind::Warm => {
                    let first = request.names.first().map(Name::as_str).unwrap_or_default();
                    let wanted = snapshot::create::Request {
                        name: free_name(&record, &format!("clone-{first}")),
                        description: format!("the base of {first}"),
                        // It goes with the clone.
                        expires: request.ephemeral.is_some().then(Timestamp::now),
                        ..Default::default()
                    };
                    let taken = snapshot::create::take(opened, &wanted).await?;
                    if request.ephemeral.is_none() {
                        context.ui.note(&format!(
                            "took the snapshot {name}@{} as the base of the clone",
                            taken.name
                        ));
                    }
                    Source {
                        origin: origin(Some(taken.name)),
                        config: record.config.clone(),
                        tag: None,
                    }
                }
            }
        }
    };
    if source.tag.is_none() {
        chain::refresh(&context.store, &mut source.config)?;
    } else if request.kind != Kind::Full {
        context.ui.note("an internal snapshot cannot back an overlay: making a full copy");
    }
    Ok(source)
}

/// The warm guest of the template `name`, if it can be gone on from here and now.
pub fn warm<'a>(context: &Context, name: &Name, record: &'a Record) -> Result<&'a Warm> {
    if !record.is_template() {
        return Err(Error::refused(format!(
            "{name} is no template, and only a template can be warm"
        ))
        .hint("leave out --warm"));
    }
    let warm = record.warm.as_ref().ok_or_else(|| {
        Error::refused(format!("template {name} is not warm"))
            .hint(format!("warm it: cowhand template warm {name}"))
            .hint("or leave out --warm")
    })?;
    match resume::incompatibility(context, name, record, warm)? {
        None => Ok(warm),
        Some(difference) => Err(Error::refused(format!(
            "the warm guest of {name} cannot be gone on from: {difference}"
        ))
        .hint(format!("warm it anew: cowhand template cool {name} && cowhand template warm {name}"))
        .hint("or leave out --warm")),
    }
}

/// `stem`, if a snapshot can be called so and none is yet; else a name is made up from the time.
fn free_name(record: &Record, stem: &str) -> Option<Name> {
    let name: Name = stem.parse().ok()?;
    (!record.snapshots.iter().any(|snapshot| snapshot.name == name)).then_some(name)
}

/// The network cards of a clone.
fn cards(config: &Config, request: &Request) -> Result<Vec<Nic>> {
    if let (Some(network), true) = (&request.network, config.nics.is_empty()) {
        return Err(Error::refused(format!(
            "{} has no network card, so its clones reach nothing, and --net {network} changes \
             nothing of that",
            request.source
        )));
    }
    let card = |nic: &Nic| {
        let (model, place) = (nic.model, nic.place);
        let network = request.network.clone().unwrap_or_else(|| nic.network.clone());
        Nic { model, place, network, ..Nic::new() }
    };
    let mut cards: Vec<Nic> = config.nics.iter().map(card).collect();
    if !request.ports.is_empty() {
        if cards.is_empty() {
            cards.push(Nic::new());
        }
        cards[0].forward(&request.ports)?;
        cards[0].check_ports()?;
    }
    Ok(cards)
}

async fn one(
    context: &Context,
    claim: &VmLock,
    source: &Source,
    request: &Request,
) -> Result<String> {
    let uuid = Uuid::new_v4();
    sockets::directory(context, uuid)?;
    let mut config = source.config.clone();
    config.generation = Uuid::new_v4();
    config.nics = cards(&config, request)?;
    config.limits = request.limits.unwrap_or(config.limits);
    let mut steps = Vec::new();
    match (request.kind, &source.tag) {
        (_, Some(tag)) => config.disks.iter_mut().chain(&mut config.nvram).for_each(|disk| {
            steps.push(if disk.read_only { copy(context, disk) } else { copy_internal(disk, tag) });
        }),
        (Kind::Thin | Kind::Warm, None) => {
            config.writable_mut().for_each(|disk| steps.push(overlay(disk)))
        }
        (Kind::Full, None) => config
            .disks
            .iter_mut()
            .chain(&mut config.nvram)
            .for_each(|disk| steps.push(copy(context, disk))),
    }
    let record = Record {
        role: Role::Vm,
        uuid,
        created: Timestamp::now(),
        origin: Some(source.origin.clone()),
        config,
        current: None,
        snapshots: Vec::new(),
        warm: None,
        ephemeral: request.ephemeral.clone(),
        autostart: false,
    };
    let plan = Plan::before(steps).pivot(WriteRecord::of(&record));
    let report = change::run(claim, plan, &mut Run::with_no_qemu(context, claim.name())).await?;
    Ok(match request.kind {
        _ if source.tag.is_some() => "copied out of the internal snapshot".to_owned(),
        Kind::Thin => "copy-on-write overlay".to_owned(),
        Kind::Warm => "copy-on-write overlay and memory".to_owned(),
        Kind::Full if report.copied.iter().all(|method| *method == Method::Reflink) => {
            "reflink: blocks are shared".to_owned()
        }
        Kind::Full => "copied".to_owned(),
    })
}

fn overlay(disk: &mut Disk) -> Planned {
    let layer = Layer::new(Format::Qcow2);
    let backing = std::mem::replace(&mut disk.layer, layer.clone());
    CreateOverlay { layer, backing: Some(backing), virtual_bytes: disk.virtual_bytes }.into()
}

fn copy_internal(disk: &mut Disk, tag: &str) -> Planned {
    let layer = Layer::new(Format::Qcow2);
    let source = std::mem::replace(&mut disk.layer, layer.clone());
    CopyInternal { source, tag: tag.to_owned(), virtual_bytes: disk.virtual_bytes, layer }.into()
}

/// A chain of several layers becomes one qcow2; a single layer keeps its format.
fn copy(context: &Context, disk: &mut Disk) -> Planned {
    let depth = chain::read(&context.store, &disk.layer).map_or(1, |chain| chain.links().len());
    let format = if depth == 1 { disk.layer.format } else { Format::Qcow2 };
    let layer = Layer::new(format);
    let source = std::mem::replace(&mut disk.layer, layer.clone());
    CopyChain { source, layer }.into()
}
