//! Removing a VM or template: its directory and its layers go into the trash. Refused while others
//! depend on them.

mod damaged;
mod refusal;

use damaged::{remove_broken, settle_overruled, spare};
use refusal::refuse;

use crate::change::OpenVm;
use crate::change::recover;
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
pub(crate) enum Which {
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
pub(crate) struct Options {
    /// Remove running VMs, too.
    pub force: bool,
    /// Remove what depends on it, too.
    pub cascade: bool,
}

/// Removes `name` and, with `cascade`, everything that depends on it. Returns the names that are
/// gone, dependents first.
pub(crate) async fn remove(
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
    // What depends on it and never came to be is nothing to keep.
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
        // Who depends on it is seen only by a record that is right.
        refuse_running(context, name, options).await?;
        settle_overruled(context, name, options).await?;
    }
    // Where nothing depends on it, one look at the pool is enough, once nobody else is at work on
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
            return Err(Error::damaged(format!("{name} and its dependents depend on each other")));
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

fn check_kind(name: &Name, record: &Record, which: Which) -> Result<()> {
    let is = Which::of(record);
    if is == which {
        return Ok(());
    }
    Err(Error::refused(format!("{name} is {}, not {}", is.what(), which.what()))
        .hint(format!("if you mean it: cowhand {} {name}", is.verb())))
}

async fn refuse_running(context: &Context, name: &Name, options: Options) -> Result<()> {
    if !options.force && status::is_running(context, name)? {
        return Err(Error::refused(format!("{name} is running"))
            .hint(format!("stop it first: cowhand stop {name}"))
            .hint(format!("or remove it as it is: cowhand rm --force {name}")));
    }
    Ok(())
}

/// Whether it is gone; not, when somebody depends on it.
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

/// Moves a VM or template that nothing depends on into the trash.
async fn take_away(mut vm: OpenVm<'_>, _: &StoreLock, graph: LayerGraph) -> Result<()> {
    let (context, name, record) = (vm.context(), &vm.name().clone(), &vm.record.clone());
    let store = &context.store;
    let ids: Vec<LayerId> = record.layers().map(|layer| layer.id.clone()).collect();
    if let Some(unfinished) = graph.dependents(name, &ids).first() {
        return Err(Error::refused(format!(
            "what a command has left of {unfinished} depends on {name}"
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
    entry.below = dependencies(store, record, &layers);
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
    // Where its layers stay, so does its memory: another VM may need both.
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
fn dependencies(store: &Store, record: &Record, trashed: &[Layer]) -> Vec<FileStamp> {
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
