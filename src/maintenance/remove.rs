//! Removing a VM or template: its directory and its layers go into the trash. Refused while others
//! stand on them.

use uuid::Uuid;

use crate::change::recover;
use crate::change::{OpenVm, open};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::instance::{sockets, status, terminate};
use crate::layer::garbage::{self, Going, Needs, Unneeded};
use crate::layer::graph::LayerGraph;
use crate::layer::{chain, stamp};
use crate::model::{FileStamp, Layer, LayerId, Name, Record};
use crate::qemu::process;
use crate::store::trash::{self, Entry};
use crate::store::{Store, StoreLock, atomic};
use crate::sys::fault;
use crate::warm::cool;

/// What may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// A VM; a template is refused.
    Vm,
    /// A template; a VM is refused.
    Template,
    /// An image; a VM is refused, and so is a template.
    Image,
}

impl Which {
    /// What `record` is.
    fn of(record: &Record) -> Self {
        match (record.is_template(), record.image()) {
            (false, _) => Self::Vm,
            (true, None) => Self::Template,
            (true, Some(_)) => Self::Image,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Vm => "a VM",
            Self::Template => "a template",
            Self::Image => "an image",
        }
    }

    /// The verb that removes one.
    fn verb(self) -> &'static str {
        match self {
            Self::Vm => "rm",
            Self::Template => "template rm",
            Self::Image => "image rm",
        }
    }
}

/// How far to go.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Remove running VMs, too.
    pub force: bool,
    /// Remove what depends on it, too.
    pub cascade: bool,
}

/// Removes `name` and, with `cascade`, everything that stands on it. Returns the names that are
/// gone, dependents first.
pub async fn remove(
    context: &Context,
    name: &Name,
    which: Which,
    options: Options,
) -> Result<Vec<Name>> {
    if !context.store.layout.vm(name).exists() {
        return Err(context.store.unknown(name));
    }
    let store = &context.store;
    store.give_up_reserve();
    let store_lock = context.lock_store_for(&[name]).await?;
    if !context.store.exists(name) {
        // It is just being made, or its maker has died.
        drop(context.lock_vm(name).await?);
    }
    // What stands on it and never came to be is nothing to keep.
    recover::sweep(context, &store_lock).await?;
    if !context.store.layout.vm(name).exists() {
        return Err(context.store.unknown(name));
    }
    let record = match context.store.load(name) {
        // It is no damage that its version can tell what belongs to it, and this one cannot.
        Err(error) if error.is_newer() => return Err(error),
        Err(error) if error.kind() == Kind::Damaged && options.force => {
            match spare(context, name).await? {
                Some(spare) => spare,
                None => return remove_broken(context, name).await,
            }
        }
        Err(error) if error.kind() == Kind::Damaged => {
            return Err(error.hint(format!("or remove it as it is: cowhand rm --force {name}")));
        }
        other => other?,
    };
    check_kind(name, &record, which)?;
    if store.overruling(name, &record)?.is_some() {
        // Who stands on it is seen only by a record that is right.
        refuse_running(context, name, options).await?;
        settle_overruled(context, name, options).await?;
    }
    // Where nothing stands on it, one look at the pool is enough, once nobody else is at work on
    // it: a clone that is just being made has its lock.
    let lock = store.try_lock_vm(name, &context.operation)?;
    let mut graph = LayerGraph::scan(store)?;
    if let Some(lock) = lock.filter(|_| !store.has_journal(name))
        && graph.dependents_first(name).len() == 1
    {
        refuse_running(context, name, options).await?;
        let vm = OpenVm::with_lock(context, lock).await?;
        take_away(vm, &store_lock, graph).await?;
        return Ok(vec![name.clone()]);
    }
    let (mut gone, mut tried) = (Vec::new(), Vec::new());
    loop {
        let to_remove = graph.dependents_first(name);
        if to_remove.len() > 1 && !options.cascade {
            return Err(
                refuse(context, &graph, name, &record, &to_remove[..to_remove.len() - 1]).await
            );
        }
        if to_remove == tried {
            return Err(Error::damaged(format!(
                "{name} and what stands on it depend on each other"
            )));
        }
        let mut all_gone = async || {
            for victim in &to_remove {
                refuse_running(context, victim, options).await?;
                settle_overruled(context, victim, options).await?;
            }
            for victim in &to_remove {
                if !remove_one(context, &store_lock, victim).await? {
                    return Ok(false);
                }
                gone.push(victim.clone());
            }
            Ok(true)
        };
        let result = all_gone().await;
        match result {
            Ok(true) => return Ok(gone),
            Ok(false) => {}
            Err(error) if gone.is_empty() => return Err(error),
            Err(error) => {
                let names: Vec<&str> = gone.iter().map(Name::as_str).collect();
                return Err(error.hint(format!(
                    "removed before that: {}; each comes back with: cowhand undo NAME",
                    names.join(", ")
                )));
            }
        }
        // A clone that was being made is there now.
        tried = to_remove;
        graph = LayerGraph::scan(store)?;
    }
}

/// A record that was changed by somebody else does not name all that the VM has, which would be
/// nobody's when that is gone.
async fn settle_overruled(context: &Context, name: &Name, options: Options) -> Result<()> {
    let record = context.store.load(name)?;
    let Err(error) = open::refuse_overruled(context, name, &record) else { return Ok(()) };
    if !options.force {
        return Err(error.hint(format!("or remove it as it is: cowhand rm --force {name}")));
    }
    if spare(context, name).await?.is_none() {
        context.ui.warn(&format!(
            "{}: layers of its own may stay in the pool until gc",
            error.full_message()
        ));
        let path = context.store.layout.spare_json(name);
        std::fs::remove_file(&path).on("remove", &path)?;
    }
    Ok(())
}

fn check_kind(name: &Name, record: &Record, which: Which) -> Result<()> {
    let is = Which::of(record);
    if is == which {
        return Ok(());
    }
    Err(Error::refused(format!("{name} is {}, not {}", is.what(), which.what()))
        .hint(format!("if you mean it: cowhand {} {name}", is.verb())))
}

async fn refuse(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
    record: &Record,
    dependents: &[Name],
) -> Error {
    let mut shown = Vec::new();
    for dependent in dependents {
        let running =
            status::observe(context, dependent).await.is_ok_and(|status| status.state.is_live());
        shown.push(if running { format!("{dependent} (running)") } else { dependent.to_string() });
    }
    let (kind, verb) = (record.kind(), Which::of(record).verb());
    let count = match dependents.len() {
        1 => "another VM".to_owned(),
        many => format!("{many} others"),
    };
    let is_standby =
        |name: &&Name| context.store.load(name).is_ok_and(|record| record.is_standby());
    if dependents.iter().all(|name| is_standby(&name)) {
        let wait = if dependents.len() == 1 { "waits" } else { "wait" };
        return Error::refused(format!(
            "{kind} {name} is the base of {count} that {wait} in its pool"
        ))
        .hint(format!("end them first: cowhand pool drain {name}"))
        .dependents(dependents.iter().map(Name::to_string).collect());
    }
    // A shell that is just being started has an owner, too, but it is no run and does not end by
    // itself.
    let is_run = |name: &&Name| {
        context.store.load(name).is_ok_and(|record| {
            !record.is_standby()
                && record.ephemeral.is_some_and(|ephemeral| ephemeral.owner.is_some())
        })
    };
    let names: Vec<String> = dependents.iter().map(Name::to_string).collect();
    let others: Vec<&str> = dependents
        .iter()
        .filter(|name| !is_standby(name) && !is_run(name))
        .map(Name::as_str)
        .collect();
    let runs: Vec<&str> = dependents.iter().filter(|name| is_run(name)).map(Name::as_str).collect();
    let mut error =
        Error::refused(format!("{kind} {name} is the base of {count}: {}", shown.join(", ")));
    // What they hold is not what their disks show now.
    let disputed: Vec<&Name> = dependents.iter().filter(|name| graph.is_disputed(name)).collect();
    if !disputed.is_empty() {
        let hint = |error: Error, name: &&Name| {
            error.hint(format!(
                "a layer of {name} does not stand on what it was made on; put that right first: \
                 cowhand doctor {name} --repair"
            ))
        };
        return disputed.iter().fold(error, hint).dependents(names);
    }
    if !runs.is_empty() {
        error = error.hint(format!("wait until these have ended: {}", runs.join(" ")));
    }
    if others.len() + runs.len() < names.len() {
        error = error.hint(format!("end those that wait in its pool: cowhand pool drain {name}"));
    }
    if others.is_empty() {
        return error
            .hint(format!("or all together: cowhand {verb} {name} --cascade --force"))
            .dependents(names);
    }
    let force = if runs.is_empty() { "" } else { " --force" };
    error
        .hint(format!("cowhand flatten {}    makes them independent of it", others.join(" ")))
        .hint(format!("or remove them first: cowhand rm {}", others.join(" ")))
        .hint(format!("or all together: cowhand {verb} {name} --cascade{force}"))
        .dependents(names)
}

async fn refuse_running(context: &Context, name: &Name, options: Options) -> Result<()> {
    if !options.force && status::is_running(context, name)? {
        return Err(Error::refused(format!("{name} is running"))
            .hint(format!("stop it first: cowhand stop {name}"))
            .hint(format!("or remove it as it is: cowhand rm --force {name}")));
    }
    Ok(())
}

/// Puts the spare copy of a record that cannot be read in its place, where it fits: then what it
/// names goes with it, and can be had back.
async fn spare(context: &Context, name: &Name) -> Result<Option<Record>> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    let Some(Ok(spare)) = store.load_spare(name) else { return Ok(None) };
    let graph = LayerGraph::scan(store)?;
    if graph.head_conflict(name, &spare).is_some()
        || spare.layers().any(|layer| !graph.layers.contains_key(&layer.id))
    {
        return Ok(None);
    }
    let record = store.layout.vm_json(name);
    if record.is_dir() {
        let aside = record.with_extension(Uuid::new_v4().simple().to_string());
        fault::point("a directory, about to be set aside").on("move", &record)?;
        std::fs::rename(&record, aside).on("move", &record)?;
    }
    store.save(name, &spare)?;
    Ok(Some(spare))
}

/// Moves what is left of a VM whose record cannot be read into the trash. Its layers stay: nobody
/// knows which they are, and `gc` finds those that nobody else uses.
async fn remove_broken(context: &Context, name: &Name) -> Result<Vec<Name>> {
    let store = &context.store;
    let _lock = context.lock_vm(name).await?;
    if status::is_running(context, name)? {
        return Err(Error::refused(format!("{name} is running"))
            .hint(format!("stop it first: cowhand stop --force {name}")));
    }
    refuse_relative_link(store, name)?;
    let trash = store.open_trash(
        &Store::trash_name(&trash::Kind::Rm, name),
        &Entry::new(trash::Kind::Rm, name, &context.operation),
    )?;
    let directory = store.layout.vm(name);
    let aside = trash.join("vm");
    fault::point("a damaged VM, on its way to the trash").on("move to the trash", &directory)?;
    std::fs::rename(&directory, &aside).on("move to the trash", &directory)?;
    atomic::sync_rename(&directory, &aside)?;
    Ok(vec![name.clone()])
}

/// Whether it is gone; not, when somebody stands on it.
async fn remove_one(context: &Context, store_lock: &StoreLock, name: &Name) -> Result<bool> {
    // Who is making a full clone of it has its lock.
    let vm = OpenVm::open(context, name).await?;
    let graph = LayerGraph::scan(&context.store)?;
    if graph.dependents_first(name).len() > 1 {
        return Ok(false);
    }
    take_away(vm, store_lock, graph).await?;
    Ok(true)
}

/// Moves a VM or template that nothing stands on into the trash.
async fn take_away(mut vm: OpenVm<'_>, _: &StoreLock, graph: LayerGraph) -> Result<()> {
    let (context, name, record) = (vm.context(), &vm.name().clone(), &vm.record.clone());
    let store = &context.store;
    let ids: Vec<LayerId> = record.layers().map(|layer| layer.id.clone()).collect();
    if let Some(unfinished) = graph.dependents(name, &ids).first() {
        return Err(Error::refused(format!(
            "what a command has left of {unfinished} stands on {name}"
        ))
        .hint("put it right first: cowhand doctor --repair"));
    }
    if let Some(qmp) = vm.take_qmp().await? {
        terminate::quit(context, name, qmp).await?;
    }
    if let Some(sockets) = sockets::of(context, name) {
        process::clear(&sockets);
    }
    let _alone = match &record.warm {
        Some(warm) => cool::refuse_used(context, name, record, warm)?,
        None => None,
    };
    refuse_relative_link(store, name)?;
    let Unneeded { layers, uncertain } =
        Needs::of(graph).without(name).freed_by(record, Going::IntoTrash);
    if let Some(why) = &uncertain {
        context.ui.warn(&format!("the layers of {name} stay in the pool: {why}"));
    }
    let mut entry = Entry::new(trash::Kind::Rm, name, &context.operation).of(record);
    entry.layers.clone_from(&layers);
    entry.below = stands_on(store, record, &layers);
    let trash = store.open_trash(&Store::trash_name(&trash::Kind::Rm, name), &entry)?;
    let directory = store.layout.vm(name);
    fault::point("a VM, on its way to the trash").on("move to the trash", &directory)?;
    let aside = trash.join("vm");
    std::fs::rename(&directory, &aside).on("move to the trash", &directory)?;
    fault::point("a VM, in the trash").on("flush", &directory)?;
    atomic::sync_rename(&directory, &aside)?;
    // From here on it is gone; a layer that stays in the pool now is unnamed, and `gc` finds it.
    for layer in &layers {
        store.trash_layer(&trash, layer)?;
    }
    if let Some(warm) = &record.warm {
        // It can be made again.
        cool::remove_files(store, warm)?;
    }
    // Where its layers stay, so does its memory: somebody else may need both.
    if uncertain.is_none() {
        garbage::trash_memory(store, record, &trash)?;
    }
    store.flush_trashed(&trash)
}

/// A link that is relative would lead elsewhere from the trash.
fn refuse_relative_link(store: &Store, name: &Name) -> Result<()> {
    let directory = store.layout.vm(name);
    match std::fs::read_link(&directory) {
        Ok(target) if target.is_relative() => Err(Error::refused(format!(
            "{} is a link to {}, which leads elsewhere from the trash",
            directory.display(),
            target.display()
        ))
        .hint("make the link an absolute one, or move the directory back")),
        _ => Ok(()),
    }
}

/// What the VM cannot do without if it is to be had back, and is not among the layers in its trash:
/// also layers of its own that stay in the pool. One that is damaged has to change before that.
fn stands_on(store: &Store, record: &Record, trashed: &[Layer]) -> Vec<FileStamp> {
    let mut stamps: Vec<FileStamp> = Vec::new();
    // Of a chain that cannot be read, what the record names.
    let chain = |layer: &Layer| match chain::read(store, layer) {
        Ok(chain) => chain.links().iter().map(|link| link.layer.clone()).collect(),
        Err(_) => vec![layer.clone()],
    };
    for layer in record.layers().flat_map(chain) {
        if trashed.contains(&layer) || stamps.iter().any(|stamp| stamp.layer == layer) {
            continue;
        }
        stamps.extend(stamp::of(store, &layer));
    }
    stamps
}
