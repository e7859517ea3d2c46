//! The beginning of every change: take the lock, finish or undo what an earlier change left
//! unfinished, read the record; and observe the VM's QEMU once, when that is first asked for.

use super::engine::{self, Plan};
use super::recover;
use super::run::{Report, Run};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{connect, logs, status};
use crate::model::{Name, Record, State};
use crate::qemu::qmp::{Qmp, REPLY, RunState};
use crate::store::{StoreLock, VmLock, how_to_mend};
use crate::sys::owner;

/// A VM or template that is open for a change. Its lock is held until this is dropped.
pub struct OpenVm<'a> {
    /// The record, as it was read under the lock.
    pub record: Record,
    context: &'a Context,
    lock: VmLock,
    observed: Option<Observed>,
}

/// What was observed of a VM's QEMU.
struct Observed {
    /// The connection; `None` when there is no QEMU.
    qmp: Option<Qmp>,
    /// QEMU's own word for the state, once it was asked.
    run: Option<RunState>,
}

impl<'a> OpenVm<'a> {
    /// Opens the VM or template `name`.
    pub async fn open(context: &'a Context, name: &Name) -> Result<Self> {
        Self::with_lock(context, context.lock_vm(name).await?).await
    }

    /// Opens the VM or template whose lock is held already.
    pub async fn with_lock(context: &'a Context, lock: VmLock) -> Result<Self> {
        let name = lock.name();
        recover::recover(context, &lock).await?;
        let record = context.store.load(name)?;
        refuse_overruled(context, name, &record)?;
        logs::keep_limited(context, name, &record).await;
        Ok(Self { record, context, lock, observed: None })
    }

    /// Opens the VM whose lock is held as it is, for a command that changes nothing.
    pub fn as_it_is(context: &'a Context, lock: VmLock) -> Result<Self> {
        Ok(Self { record: context.store.load(lock.name())?, context, lock, observed: None })
    }

    /// Opens `name` for what a template does not allow: `doing` is the verb for the message.
    pub async fn for_change(context: &'a Context, name: &Name, doing: &str) -> Result<Self> {
        let vm = Self::open(context, name).await?;
        refuse_template(name, &vm.record, doing)?;
        refuse_unclaimed(name, &vm.record)?;
        Ok(vm)
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        self.lock.name()
    }

    /// Settings, store and user interface.
    pub fn context(&self) -> &'a Context {
        self.context
    }

    /// Its lock.
    pub fn lock(&self) -> &VmLock {
        &self.lock
    }

    /// Writes the record as it is now, and nothing else. No journal is needed: one file is
    /// replaced.
    pub fn save(&self) -> Result<()> {
        self.context.store.save(self.name(), &self.record)
    }

    /// Does a QEMU hold the VM? Only the kernel is asked.
    pub fn is_running(&self) -> Result<bool> {
        match &self.observed {
            Some(observed) => Ok(observed.qmp.is_some()),
            None => status::is_running(self.context, self.name()),
        }
    }

    /// Refuses `doing` something to a VM that runs.
    pub fn refuse_running(&self, doing: &str) -> Result<()> {
        match self.is_running()? {
            true => Err(Error::refused(format!("cannot {doing} {} while it runs", self.name()))
                .hint(format!("stop it first: cowhand stop {}", self.name()))),
            false => Ok(()),
        }
    }

    /// What the VM is doing.
    pub async fn state(&mut self) -> Result<State> {
        let running = self.live().await?.map(|(_, run)| run.running);
        Ok(match running {
            Some(true) => State::Running,
            Some(false) => State::Paused,
            None => status::at_rest(self.context, self.name()),
        })
    }

    /// The connection to its QEMU; `None` when it does not run.
    pub async fn qmp(&mut self) -> Result<Option<&mut Qmp>> {
        Ok(self.observe().await?.qmp.as_mut())
    }

    /// The connection to its QEMU, and QEMU's own word for its state; `None` when it does not run.
    pub async fn live(&mut self) -> Result<Option<(&mut Qmp, &RunState)>> {
        let Observed { qmp, run } = self.observe().await?;
        let Some(qmp) = qmp else { return Ok(None) };
        let run = match run.take() {
            Some(known) => run.insert(known),
            None => run.insert(qmp.status(REPLY).await?),
        };
        Ok(Some((qmp, run)))
    }

    /// The connection to its QEMU, which has to run.
    pub async fn running_qmp(&mut self) -> Result<&mut Qmp> {
        let name = self.name().clone();
        self.qmp().await?.ok_or_else(|| connect::not_running(&name))
    }

    /// Refuses while a block job is at work in its QEMU, naming it.
    pub async fn refuse_job(&mut self) -> Result<()> {
        let name = self.name().clone();
        match self.qmp().await? {
            Some(qmp) => connect::refuse_job(&name, qmp).await,
            None => Ok(()),
        }
    }

    /// Hands the connection to a caller who ends QEMU with it.
    pub async fn take_qmp(&mut self) -> Result<Option<Qmp>> {
        self.observe().await?;
        Ok(self.observed.take().and_then(|observed| observed.qmp))
    }

    /// Carries out `plan`. An error before its pivot leaves everything as it was. What was observed
    /// of QEMU is forgotten, and so is the connection: the plan may have ended it. `record` stays
    /// what it was before.
    pub async fn carry_out(&mut self, plan: Plan) -> Result<Report> {
        self.carry_out_holding(plan, None).await
    }

    /// The same, and the lock of the store is held until a step has no need of it any more.
    pub async fn carry_out_holding(
        &mut self,
        plan: Plan,
        store_lock: Option<StoreLock>,
    ) -> Result<Report> {
        let qmp = self.observed.take().and_then(|observed| observed.qmp);
        let mut run = Run::with(self.context, self.lock.name(), qmp).holding(store_lock);
        engine::run(&self.lock, plan, &mut run).await
    }

    /// Carries out a plan that concerns files alone: QEMU is not asked whether it runs.
    pub async fn carry_out_on_files(&mut self, plan: Plan) -> Result<Report> {
        self.observed = None;
        engine::run(&self.lock, plan, &mut Run::with_no_qemu(self.context, self.lock.name())).await
    }

    async fn observe(&mut self) -> Result<&mut Observed> {
        let observed = match self.observed.take() {
            Some(observed) => observed,
            None => Observed {
                qmp: connect::if_running(self.context, self.lock.name()).await?,
                run: None,
            },
        };
        Ok(self.observed.insert(observed))
    }
}

/// A record that names other layers than its spare copy is not the one that was written last. A
/// change would make it that, and what it does not name nobody's.
pub(crate) fn refuse_overruled(context: &Context, name: &Name, record: &Record) -> Result<()> {
    let Some(spare) = context.store.overruling_still(name, record)? else { return Ok(()) };
    let differs = |one: &Record, other: &Record| {
        one.layers().find(|layer| !other.layers().any(|it| it == *layer)).cloned()
    };
    let what = match (differs(record, &spare), differs(&spare, record)) {
        (Some(layer), _) => format!("it names layer {layer}, and its spare copy does not"),
        (None, Some(layer)) => format!("its spare copy names layer {layer}, and it does not"),
        (None, None) => return Ok(()),
    };
    Err(Error::damaged(format!("the record of {name} may be out of date: {what}"))
        .hint(how_to_mend(name))
        .hint(format!(
            "if the record is right: rm {}",
            context.store.layout.spare_json(name).display()
        )))
}

/// What waits in the pool is nobody's VM yet, and what was made for a command that has died is
/// nobody's any more: its guest may be another's double.
pub(crate) fn refuse_unclaimed(name: &Name, record: &Record) -> Result<()> {
    let owner = record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.owner.as_ref());
    if owner.is_some_and(|owner| !owner::is_alive(owner)) {
        return Err(Error::refused(format!(
            "{name} was created by a command that was killed, and will be removed"
        ))
        .hint("remove what is left: cowhand gc"));
    }
    match &record.origin {
        Some(origin) if record.is_standby() => Err(Error::refused(format!(
            "{name} waits in the pool of {}, for a run to claim it",
            origin.name
        ))
        .hint(format!("use it: cowhand run {} -- COMMAND", origin.name))
        .hint(format!("or end all that wait: cowhand pool drain {}", origin.name))),
        _ => Ok(()),
    }
}

/// Refuses `doing` something to a template.
pub(crate) fn refuse_template(name: &Name, record: &Record, doing: &str) -> Result<()> {
    if record.is_template() {
        return Err(match record.image() {
            None => Error::refused(format!(
                "cannot {doing} {name}: it is a template, which never changes"
            ))
            .hint(format!("make a VM of it: cowhand clone {name} NEW")),
            Some(_) => Error::refused(format!(
                "cannot {doing} {name}: it is an image, which never changes"
            ))
            .hint(format!("make a VM of it: cowhand create NEW --image {name}")),
        });
    }
    Ok(())
}
