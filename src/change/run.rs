//! What the steps of one change share: the connection to the VM's QEMU, and what one step learns
//! and another needs.

use std::any::Any;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::connect;
use crate::model::{FileStamp, Layer, Name, Quiesced, Record};
use crate::qemu::confinement;
use crate::qemu::qmp::Qmp;
use crate::qemu::ram::Saving;
use crate::store::{Store, StoreLock};
use crate::sys::sparse::Method;

/// What became known while a change was carried out.
#[derive(Debug, Default)]
pub struct Report {
    /// The guest's file systems were frozen at the moment of the switch.
    pub quiesced: bool,
    /// What came of the freeze, if one was tried.
    pub freeze: Option<Quiesced>,
    /// How long they were frozen.
    pub frozen: Option<Duration>,
    /// How long the guest's CPUs were paused.
    pub paused: Option<Duration>,
    /// How the layers that were copied got there.
    pub copied: Vec<Method>,
    /// Why layers that were to be merged were not; they stay as they were.
    pub unmerged: Option<String>,
    /// Bytes on disk of the memory that was saved.
    pub memory: Option<u64>,
    /// Why memory that was to be saved was not; the disks are as they should be.
    pub memory_lost: Option<String>,
    /// What the layers of a template look like, once they are read-only.
    pub stamps: Option<Vec<FileStamp>>,
    /// What went wrong beside the change, which succeeded.
    pub warnings: Vec<String>,
    /// What a step tells its caller alone.
    outputs: Vec<Box<dyn Any + Send + Sync>>,
}

impl Report {
    /// Tells the caller of the change `output`.
    pub fn tell<T: Any + Send + Sync>(&mut self, output: T) {
        self.outputs.push(Box::new(output));
    }

    /// What a step has told, of this type.
    pub fn told<T: Any>(&mut self) -> Option<T> {
        let at = self.outputs.iter().position(|output| output.is::<T>())?;
        self.outputs.swap_remove(at).downcast().ok().map(|output| *output)
    }
}

/// A change of one VM that is being carried out, undone or recovered.
pub struct Run<'a> {
    /// The settings, the store, and whom to tell.
    pub context: &'a Context,
    /// The VM.
    pub name: Name,
    /// Another process has begun the change, and died.
    pub recovering: bool,
    /// Since when the guest's file systems have been frozen by this change.
    pub frozen_at: Option<Instant>,
    /// Since when the guest's CPUs have been paused by this change.
    pub paused_at: Option<Instant>,
    /// Memory that is being saved.
    pub saving: Option<Saving>,
    /// What became known so far.
    pub report: Report,
    qmp: Option<Qmp>,
    asked: bool,
    store_lock: Option<StoreLock>,
}

impl<'a> Run<'a> {
    /// For the VM `name`, whose lock the caller holds. It connects to its QEMU when a step needs
    /// it.
    pub fn new(context: &'a Context, name: &Name) -> Self {
        Self::with(context, name, None)
    }

    /// The same, with a connection that is already there.
    pub fn with(context: &'a Context, name: &Name, qmp: Option<Qmp>) -> Self {
        let asked = qmp.is_some();
        Self {
            context,
            name: name.clone(),
            recovering: false,
            frozen_at: None,
            paused_at: None,
            saving: None,
            report: Report::default(),
            qmp,
            asked,
            store_lock: None,
        }
    }

    /// For a VM that does not run, and whose lock keeps it so.
    pub fn with_no_qemu(context: &'a Context, name: &Name) -> Self {
        Self { asked: true, ..Self::with(context, name, None) }
    }

    /// For a change that another process has left.
    pub fn recovering(context: &'a Context, name: &Name) -> Self {
        Self { recovering: true, ..Self::with(context, name, None) }
    }

    /// The same, and the store is locked until a step has no need of that any more.
    pub fn holding(self, store_lock: Option<StoreLock>) -> Self {
        Self { store_lock, ..self }
    }

    /// Gives the store's lock back, if it is held.
    pub fn release_store(&mut self) {
        drop(self.store_lock.take());
    }

    /// The store.
    pub fn store(&self) -> &'a Store {
        &self.context.store
    }

    /// The connection to the VM's QEMU; `None` when it does not run.
    pub async fn qmp(&mut self) -> Result<Option<&mut Qmp>> {
        if !self.asked {
            self.qmp = connect::if_running(self.context, &self.name).await?;
            self.asked = true;
        }
        Ok(self.qmp.as_mut())
    }

    /// The same, and when it does not run, it is looked for again by the step that needs it:
    /// another may start it.
    pub async fn qmp_now(&mut self) -> Result<Option<&mut Qmp>> {
        let asked = self.asked;
        self.qmp().await?;
        self.asked = asked || self.qmp.is_some();
        Ok(self.qmp.as_mut())
    }

    /// The connection to a QEMU that has to run.
    pub async fn live(&mut self) -> Result<&mut Qmp> {
        let name = self.name.clone();
        self.qmp().await?.ok_or_else(|| Error::qemu(format!("{name} has ended meanwhile")))
    }

    /// The connection, for a step that ends QEMU.
    pub async fn take_qmp(&mut self) -> Result<Option<Qmp>> {
        self.qmp().await?;
        Ok(self.qmp.take())
    }

    /// Takes layers that are no longer in use out of the reach of the VM's QEMU, where we are
    /// connected to it.
    pub fn hide(&mut self, layers: &[Layer]) {
        let layout = &self.context.store.layout;
        let Some(qmp) = &self.qmp else { return };
        for layer in layers {
            // Where that fails, their room becomes free when QEMU ends.
            if let Err(error) = confinement::hide(qmp, &layout.layer(layer)) {
                tracing::debug!("{}", error.full_message());
            }
        }
    }

    /// Takes over the connection to a QEMU that a step has started.
    pub fn adopt(&mut self, qmp: Qmp) {
        self.qmp = Some(qmp);
        self.asked = true;
    }

    /// Forgets the connection, so that the next step makes a new one: this one may be out of step,
    /// or dead.
    pub fn reconnect(&mut self) {
        if self.qmp.take().is_some() {
            self.asked = false;
        }
    }

    /// Lets the guest's CPUs go on.
    pub async fn resume(&mut self) -> Result<()> {
        if let Some(qmp) = self.qmp().await? {
            qmp.cont().await?;
        }
        if let Some(began) = self.paused_at.take() {
            self.report.paused = Some(began.elapsed());
        }
        Ok(())
    }

    /// Forgets jobs of ours that have ended, and whose command died before it did.
    pub async fn forget_jobs(&mut self) -> Result<()> {
        let Some(qmp) = self.qmp().await? else { return Ok(()) };
        for job in qmp.jobs().await? {
            if job.id.starts_with("cw-") && job.status == "concluded" {
                qmp.dismiss_job(&job.id).await?;
            }
        }
        Ok(())
    }

    /// What the record says now; `None` when there is none.
    pub(super) fn record(&self) -> Result<Option<Record>> {
        self.store().load_if_there(&self.name)
    }
}
