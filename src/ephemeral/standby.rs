//! The pool: QEMUs that have been started on a warm template, have read its guest's state, and
//! stand still until somebody claims them. A claim is a lock, a rename and one QMP command. There
//! is no daemon: whoever claims one starts another in its place.
//!
//! A standby clone is a VM like any other in the store, with a layer of its own, so that locks,
//! recovery and `gc` know it; `ls` does not show it.

use std::time::Duration;

use super::{discard, queue};
use crate::change::OpenVm;
use crate::clone::{self, Kind};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::{connect, status};
use crate::model::{Ephemeral, Name, PointRef, Record, human};
use crate::qemu::qmp::{Qmp, REPLY};
use crate::store::VmLock;
use crate::sys::{fault, space};
use crate::warm::resume;

/// What there is for one template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbyStatus {
    /// The template.
    pub template: Name,
    /// How many standby clones there are to be.
    pub wanted: u32,
    /// How many wait.
    pub waiting: u32,
}

/// What QEMU says of a guest that has been read and does not run.
const STANDING: &str = "paused";

/// The beginning of the name of every standby clone.
const KIND: &str = "pool";

/// The standby clones of the template whose record this is.
fn standby_clones(context: &Context, template: &Record) -> Result<Vec<Name>> {
    let store = &context.store;
    let is_ours = |name: &Name| {
        name.as_str().starts_with(KIND)
            && store.load(name).is_ok_and(|record| {
                record.is_standby()
                    && record.origin.is_some_and(|origin| origin.uuid == template.uuid)
            })
    };
    Ok(store.names()?.into_iter().filter(is_ours).collect())
}

/// Keeps `wanted` standby clones waiting for `template` from now on, and starts those that are
/// missing. Returns how many were started.
pub async fn fill(context: &Context, template: &Name, wanted: u32) -> Result<u32> {
    let store = &context.store;
    discard::reap(context).await?;
    let record = store.load(template)?;
    refuse_too_many(clone::warm(context, template, &record)?.config.memory_bytes, wanted)?;
    {
        let mut vm = OpenVm::open(context, template).await?;
        if let Some(warm) = vm.record.warm.as_mut().filter(|warm| warm.pool != wanted) {
            warm.pool = wanted;
            vm.save()?;
        }
    }
    let started = top_up(context, template).await?;
    let now = store.load(template)?.warm.map_or(0, |warm| warm.pool);
    if now != wanted {
        return Err(Error::refused(format!("the pool of {template} was set to {now} meanwhile"))
            .hint("what waits now: cowhand pool ls"));
    }
    Ok(started)
}

/// More standby clones than runs could ever go on at once are of no use.
fn refuse_too_many(memory_bytes: u64, wanted: u32) -> Result<()> {
    let room = queue::room();
    let most = (room / memory_bytes.max(1)).max(1);
    if u64::from(wanted) > most {
        return Err(Error::refused(format!(
            "{wanted} guests of {} would never run at once: \
             the host has {} for guests, enough for {most}",
            human(memory_bytes),
            human(room)
        )));
    }
    Ok(())
}

/// Starts the standby clones that are missing, and ends those that are too many.
pub async fn top_up(context: &Context, template: &Name) -> Result<u32> {
    // One at a time, so that two do not start the same ones.
    let uuid = context.store.load(template)?.uuid;
    let _lock = context.lock_pool(template, uuid).await?;
    let mut started = 0;
    loop {
        // It may have been drained or cooled meanwhile.
        let record = context.store.load(template)?;
        let Some(warm) = &record.warm else { return Ok(started) };
        let standby_clones = standby_clones(context, &record)?;
        let wanted = usize::try_from(warm.pool).unwrap_or(usize::MAX);
        if standby_clones.len() > wanted {
            for standby in standby_clones.iter().skip(wanted) {
                discard::discard(context, standby, &waiting()).await?;
            }
        }
        if standby_clones.len() >= wanted {
            return Ok(started);
        }
        let free = space::available_memory();
        // A standby clone itself takes little; what becomes of it may take all it has.
        if free.is_some_and(|free| free < warm.config.memory_bytes / 4) {
            return Err(Error::refused(format!(
                "the host has {} of memory left, too little for more than {} waiting QEMUs",
                human(free.unwrap_or_default()),
                standby_clones.len()
            )));
        }
        start(context, template, &record).await?;
        started += 1;
    }
}

/// What the record of a standby clone says that waits.
fn waiting() -> Ephemeral {
    Ephemeral { owner: None, expires: None, standby: true }
}

async fn start(context: &Context, template: &Name, record: &Record) -> Result<()> {
    let name = super::name(KIND, template)?;
    // Until it waits it is ours alone.
    let ours = Ephemeral { standby: true, ..super::ours(Duration::from_secs(600)) };
    let request = clone::Request {
        source: PointRef { vm: template.clone(), snapshot: None },
        names: vec![name.clone()],
        kind: Kind::Warm,
        ports: Vec::new(),
        network: None,
        limits: None,
        ephemeral: Some(ours.clone()),
    };
    let path = context.store.layout.vm(&name);
    fault::point("a shell, about to be cloned").on("make", &path)?;
    clone::clone(context, &request).await?;
    let started = async {
        let warm = clone::warm(context, template, record)?;
        let mut standby = OpenVm::open(context, &name).await?;
        drop(resume::wake(context, &name, &standby.record, warm, false).await?);
        standby.record.ephemeral = Some(waiting());
        standby.save()
    };
    if let Err(error) = started.await {
        discard::discard(context, &name, &ours).await?;
        return Err(error);
    }
    Ok(())
}

/// Makes a waiting standby clone of `template` the VM `name`. `None` when none waits.
pub async fn claim(
    context: &Context,
    template: &Record,
    name: &Name,
    ephemeral: &Ephemeral,
) -> Result<Option<(VmLock, Record, Qmp)>> {
    let store = &context.store;
    if template.warm.as_ref().is_none_or(|warm| warm.pool == 0) {
        return Ok(None);
    }
    // The store first, then VMs.
    let _store_lock = context.lock_store().await?;
    if store.layout.vm(name).exists() {
        return Err(Error::exists(format!("the name {name} is taken"))
            .hint("choose another name, or see what is there: cowhand ls -a"));
    }
    for standby in standby_clones(context, template)? {
        // Another command may be claiming it just now.
        let Some(lock) = store.try_lock_vm(&standby, &context.operation)? else { continue };
        let Ok(mut record) = store.load(&standby) else { continue };
        let waits = record
            .ephemeral
            .as_ref()
            .is_some_and(|ephemeral| ephemeral.standby && ephemeral.owner.is_none());
        if !waits || !status::is_running(context, &standby)? {
            continue;
        }
        let qmp = match connect::if_running(context, &standby).await {
            Ok(Some(mut qmp)) => match qmp.status(REPLY).await {
                Ok(state) if state.status == STANDING => qmp,
                // Another program has resumed it: its state is no longer the one that was saved.
                _ => continue,
            },
            Ok(None) => continue,
            Err(error) => {
                context
                    .ui
                    .warn(&format!("{standby} of the pool is of no use: {}", error.full_message()));
                continue;
            }
        };
        record.ephemeral = Some(ephemeral.clone());
        record.created = jiff::Timestamp::now();
        store.save_passing(&standby, &record)?;
        let from = store.layout.vm(&standby);
        fault::point("a shell, claimed").on("rename", &from)?;
        // Nothing is flushed: what a power cut leaves, of whatever name, is a standby clone without
        // a QEMU.
        std::fs::rename(&from, store.layout.vm(name)).on("rename", &from)?;
        return Ok(Some((lock.moved(name), record, qmp)));
    }
    Ok(None)
}

/// What there is, for every template that has, or is to have, standby clones.
pub fn list(context: &Context) -> Result<Vec<StandbyStatus>> {
    let store = &context.store;
    let mut statuses = Vec::new();
    for template in store.names()? {
        let Ok(record) = store.load(&template) else { continue };
        let Some(warm) = &record.warm else { continue };
        let running = standby_clones(context, &record)?
            .iter()
            .filter_map(|name| status::is_running(context, name).ok())
            .filter(|running| *running)
            .count();
        let waiting = u32::try_from(running).unwrap_or(u32::MAX);
        if warm.pool > 0 || waiting > 0 {
            statuses.push(StandbyStatus { wanted: warm.pool, waiting, template });
        }
    }
    Ok(statuses)
}

/// Ends the standby clones of `template`, or of all; nobody starts new ones. Returns how many there
/// were.
pub async fn drain(context: &Context, template: Option<&Name>) -> Result<usize> {
    let store = &context.store;
    let mut drained = 0;
    for name in store.names()? {
        if template.is_some_and(|template| *template != name)
            || !store.load(&name).is_ok_and(|record| record.is_template())
        {
            continue;
        }
        let record = {
            let mut vm = OpenVm::open(context, &name).await?;
            if let Some(warm) = vm.record.warm.as_mut().filter(|warm| warm.pool > 0) {
                warm.pool = 0;
                vm.save()?;
            }
            vm.record
        };
        // Who is starting one just now does not see that none is wanted any more before it waits.
        let _lock = match record.warm {
            Some(_) => Some(context.lock_pool(&name, record.uuid).await?),
            None => None,
        };
        for standby in standby_clones(context, &record)? {
            drained += usize::from(discard::discard(context, &standby, &waiting()).await?);
        }
    }
    match template.filter(|template| !store.exists(template)) {
        Some(template) => Err(store.unknown(template)),
        None => Ok(drained),
    }
}
