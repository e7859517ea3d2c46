//! Applying and undoing steps. Thin: what to do was decided by the plan.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::reliance;
use super::step::{Sealed, Step};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::instance::{connect, status, terminate};
use crate::layer::{chain, copy, create, info, merge, sealed, stamp, trashed};
use crate::model::{Layer, LayerStamp, Name, Quiesced, Record, Role, Warm};
use crate::qemu::img::Inside;
use crate::qemu::offline::{Offline, Open};
use crate::qemu::qmp::Qmp;
use crate::qemu::ram::Saving;
use crate::store::journal::{self, Journal};
use crate::store::schema::RecordV1;
use crate::store::trash::{Entry, Stamp};
use crate::store::{StoreLock, VmLock, plain};
use crate::sys::fault;
use crate::sys::sparse::Method;
use crate::template::seal::overlay;
use crate::template::seal::run::Sealing;
use crate::vm::warm;

/// What became known while a change was carried out.
#[derive(Debug, Default)]
pub struct Report {
    /// The guest's file systems were frozen at the moment of the switch.
    pub quiesced: bool,
    /// What came of the freeze, if one was tried.
    pub freeze: Option<Quiesced>,
    /// How long they were frozen.
    pub frozen: Option<Duration>,
    /// How long the guest's CPUs stood still.
    pub paused: Option<Duration>,
    /// How the layers that were copied got there.
    pub copied: Vec<Method>,
    /// Why layers that were to be merged were not; they stay as they were.
    pub unmerged: Option<String>,
    /// Bytes on disk of the memory that was saved.
    pub memory: Option<u64>,
    /// Why memory that was to be saved was not; the disks are as they should be.
    pub memory_lost: Option<String>,
    /// What sealing did.
    pub sealed: Option<crate::template::seal::Report>,
    /// What the layers of a template look like, once they are read-only.
    pub stamps: Option<Vec<LayerStamp>>,
    /// What went wrong beside the change, which succeeded.
    pub warnings: Vec<String>,
}

/// Carries out steps on one VM.
pub struct Executor<'a> {
    pub(super) context: &'a Context,
    pub(super) name: Name,
    pub(super) qmp: Option<Qmp>,
    asked: bool,
    pub(super) recovering: bool,
    pub(super) frozen_at: Option<Instant>,
    pub(super) paused_at: Option<Instant>,
    pub(super) saving: Option<Saving>,
    sealing: Option<&'a Sealing>,
    waking: Option<&'a Warm>,
    store_lock: Option<StoreLock>,
    /// What became known so far.
    pub report: Report,
}

impl<'a> Executor<'a> {
    /// An executor for the VM `name`, whose lock the caller holds. It connects to its QEMU when a step needs it.
    pub fn new(context: &'a Context, name: &Name) -> Self {
        Self::with(context, name, None)
    }

    /// The same, with a connection that is already there.
    pub fn with(context: &'a Context, name: &Name, qmp: Option<Qmp>) -> Self {
        let asked = qmp.is_some();
        Self {
            context,
            name: name.clone(),
            qmp,
            asked,
            recovering: false,
            frozen_at: None,
            paused_at: None,
            saving: None,
            sealing: None,
            waking: None,
            store_lock: None,
            report: Report::default(),
        }
    }

    /// An executor for a VM that does not run, and whose lock keeps it so.
    pub fn with_no_qemu(context: &'a Context, name: &Name) -> Self {
        Self { asked: true, ..Self::with(context, name, None) }
    }

    /// The same, and it knows what a [`Step::Seal`] has to do.
    pub fn sealing(self, sealing: Option<&'a Sealing>) -> Self {
        Self { sealing, ..self }
    }

    /// The same, and it knows what a [`Step::Wake`] goes on from.
    pub fn waking(self, warm: &'a Warm) -> Self {
        Self { waking: Some(warm), ..self }
    }

    /// The same, and nobody collects what a [`Step::RestoreLayers`] relies on before that is done.
    pub fn holding(self, store_lock: Option<StoreLock>) -> Self {
        Self { store_lock, ..self }
    }

    /// An executor that puts right what another process left.
    pub fn recovering(context: &'a Context, name: &Name) -> Self {
        Self { recovering: true, ..Self::with(context, name, None) }
    }

    /// The connection to the VM's QEMU; `None` when it does not run.
    pub async fn qmp(&mut self) -> Result<Option<&mut Qmp>> {
        if !self.asked {
            self.qmp = connect::if_running(self.context, &self.name).await?;
            self.asked = true;
        }
        Ok(self.qmp.as_mut())
    }

    /// The same, and when it does not run, it is looked for again by the step that needs it: another may start it.
    pub async fn qmp_now(&mut self) -> Result<Option<&mut Qmp>> {
        let asked = self.asked;
        self.qmp().await?;
        self.asked = asked || self.qmp.is_some();
        Ok(self.qmp.as_mut())
    }

    /// Takes over the connection to a QEMU that a step has started.
    pub(super) fn adopt(&mut self, qmp: Qmp) {
        self.qmp = Some(qmp);
        self.asked = true;
    }

    /// Gives the connection back.
    pub fn into_qmp(self) -> Option<Qmp> {
        self.qmp
    }

    /// [`Self::apply`], with a fault point on either side.
    pub async fn apply_here(&mut self, step: &Step) -> Result<()> {
        let failed = |source: std::io::Error| Error::failed("cannot go on").because(source);
        fault::point(&format!("{}, about to happen", step.name())).map_err(failed)?;
        self.apply(step).await?;
        fault::point(&format!("{}, done", step.name())).map_err(failed)
    }

    /// [`Self::undo`], with a fault point behind it.
    pub async fn undo_here(&mut self, step: &Step) -> Result<()> {
        self.undo(step).await?;
        fault::point(&format!("{}, undone", step.name()))
            .map_err(|source| Error::failed("cannot go on undoing").because(source))
    }

    /// Applies one step; one that has been applied already changes nothing.
    pub async fn apply(&mut self, step: &Step) -> Result<()> {
        let (context, store) = (self.context, &self.context.store);
        match step {
            // These belong to a merge that did not happen.
            Step::RemoveMerged { .. } | Step::RemoveMemory { .. } | Step::SetMode { .. }
                if self.report.unmerged.is_some() =>
            {
                Ok(())
            }
            Step::MakeLayer { layer, backing, virtual_bytes } => {
                create::empty(store, layer, backing.as_ref(), *virtual_bytes)
            }
            Step::CopyFile { from, id, layer, backing } => {
                self.report
                    .copied
                    .extend(copy::foreign(context, (from.as_path(), *id), layer, backing.as_ref()).await?);
                Ok(())
            }
            Step::WrapFile { from, layer } => create::whole(store, from, layer),
            Step::CopyChain { source, layer } => {
                self.report.copied.extend(copy::chain(context, source, layer).await?);
                Ok(())
            }
            Step::LinkFile { file, layer } => create::link(store, layer, file),
            Step::AddNodes { layers } => self.add_nodes(layers).await,
            Step::Freeze { required, limit_ms } => self.freeze(*required, limit_ms.map(Duration::from_millis)).await,
            Step::BeginMemory { image, running } => self.begin_memory(image, *running).await,
            Step::Pause { resume } => self.pause(*resume).await,
            Step::SaveMemory { image, heads, resume } => self.save_memory(image, heads, *resume).await,
            Step::LoadMemory { image, record } => self.load_memory(image, record).await,
            Step::InternalSave { tag, layers, live } => self.internal_save(tag, layers, *live).await,
            Step::InternalRevert { tag, layers, memory, .. } => {
                self.internal_revert(tag, layers, memory.as_deref()).await
            }
            Step::InternalDelete { tag, layers } => self.internal_delete(tag, layers).await,
            Step::CopyInternal { source, tag, virtual_bytes, layer } => {
                copy::inner(context, source, &Inside { tag, virtual_bytes: *virtual_bytes }, layer).await
            }
            Step::RemoveMemory { images } => images.iter().try_for_each(|image| store.remove_ram(image)),
            Step::Switch { disks } => self.switch(disks).await,
            Step::Thaw => {
                if self.frozen_at.is_some() || self.recovering {
                    self.thaw().await;
                }
                Ok(())
            }
            Step::Wake => {
                let warm = self.waking.ok_or_else(|| Error::failed("what it goes on from is not known any more"))?;
                let record = store.load(&self.name)?;
                let qmp = warm::wake(context, &self.name, &record, warm, false).await?;
                warm::go_on(context, &self.name, qmp).await?;
                warm::settle(context, &self.name, &record, warm).await.map(drop)
            }
            Step::StopQemu => {
                self.qmp().await?;
                if let Some(qmp) = self.qmp.take() {
                    terminate::quit(context, &self.name, qmp).await?;
                }
                Ok(())
            }
            Step::SetMode { layers, mode, .. } => {
                if mode & 0o222 == 0 {
                    // Afterwards its owner may not write a note.
                    layers.iter().for_each(|layer| sealed::note(store, layer));
                }
                layers.iter().try_for_each(|layer| self.set_mode(layer, *mode))?;
                self.report.stamps = Some(layers.iter().map(|layer| stamp::of(store, layer)).collect::<Result<_>>()?);
                Ok(())
            }
            Step::Seal { disks } => self.seal(disks).await,
            Step::Save { .. } | Step::Merge { .. } if self.report.unmerged.is_some() => Ok(()),
            Step::Save { record, .. } => {
                let record = Record::try_from((**record).clone())?;
                store.save(&self.name, &record)
            }
            Step::Merge { merges } => {
                self.qmp().await?;
                match merge::run(context, self.qmp.as_mut(), merges, &mut self.paused_at).await {
                    Err(merge::Failure::Untouched(error)) => {
                        self.report.unmerged = Some(error.full_message());
                        Ok(())
                    }
                    // A QEMU that has failed to flush a file once may fail at it for ever.
                    Err(merge::Failure::Halfway(error)) if self.paused_at.is_some() => Err(error.hint(format!(
                        "the guest is paused until the merge is done; if that never succeeds: cowhand stop --force {}",
                        self.name
                    ))),
                    Err(merge::Failure::Halfway(error)) => Err(error),
                    Ok(()) => Ok(()),
                }
            }
            Step::Resize { layer, after, .. } => self.resize(layer, *after).await,
            Step::Resume => self.resume().await,
            Step::Trash { directory, what, layers, before, way_back } => {
                self.trash(directory, what, layers, before, way_back.as_ref())
            }
            Step::RestoreLayers { directory, layers, below } => {
                let trash = store.layout.trash().join(directory);
                reliance::restore(store, &self.name, &trash, layers, below)?;
                // From here on their headers tell what they stand on.
                drop(self.store_lock.take());
                Ok(())
            }
            Step::DropTrash { directory } => trashed::drop(&store.layout.trash().join(directory)),
            Step::RemoveMerged { layers } => {
                if self.recovering
                    && let Some(qmp) = self.qmp().await?
                {
                    merge::release(qmp, layers).await;
                }
                layers.iter().try_for_each(|layer| create::unmake(store, layer))
            }
        }
    }

    /// Takes one step back; one that never happened needs nothing.
    pub async fn undo(&mut self, step: &Step) -> Result<()> {
        if let Some(layer) = step.makes() {
            return create::unmake(&self.context.store, layer);
        }
        match step {
            Step::AddNodes { layers } => self.remove_nodes(layers).await,
            Step::RestoreLayers { directory, layers, .. } => {
                let store = &self.context.store;
                reliance::put_back(store, &store.layout.trash().join(directory), layers)
            }
            Step::BeginMemory { image, .. } => self.call_off_memory(image).await,
            Step::Pause { resume: true } if self.paused_at.is_some() || self.recovering => self.resume().await,
            Step::LoadMemory { record, .. } => self.end_if_on(record).await,
            Step::Wake if status::is_running(self.context, &self.name)? => {
                terminate::kill(self.context, &self.name).await
            }
            Step::InternalSave { tag, layers, .. } => self.internal_unsave(tag, layers).await,
            Step::InternalRevert { back, layers, old_pid, memory, .. } => {
                self.internal_back(back, layers, *old_pid, memory.is_some()).await
            }
            // What somebody else has frozen is not ours to thaw. After a crash nobody knows who it was, and a thaw is the lesser evil.
            Step::Freeze { .. } if self.frozen_at.is_some() || self.recovering => {
                self.thaw().await;
                Ok(())
            }
            Step::SetMode { layers, before, .. } => layers.iter().zip(before).try_for_each(|(layer, mode)| {
                // An image that was not copied yet.
                if !plain::is_there(&self.context.store.layout.layer(layer)) {
                    return Ok(());
                }
                self.set_mode(layer, *mode)?;
                // A template that was not made has an active layer.
                if mode & 0o222 != 0 {
                    sealed::forget(&self.context.store, layer);
                }
                Ok(())
            }),
            _ => Ok(()),
        }
    }

    /// Forgets a change that was undone; a directory that never became a VM goes with it.
    pub fn forget(&self, lock: &VmLock) -> Result<()> {
        let store = &self.context.store;
        journal::remove(store, lock.name())?;
        store.unclaim(lock.name())
    }

    /// Did the journal's pivot happen? Asked of the kernel, of QEMU, of the file system, in that order; never of a note.
    pub async fn pivot_happened(&mut self, journal: &Journal<Step>) -> Result<bool> {
        match &journal.steps[journal.pivot] {
            Step::Switch { disks } => self.switched(disks).await,
            Step::Resize { layer, after, .. } => Ok(info::inspect(&self.context.store, layer)?.virtual_bytes == *after),
            _ => self.saved(journal, journal.pivot),
        }
    }

    /// Is the record of the step at `at`, or of a later one, what `vm.json` says now? A record that is there and
    /// cannot be read says neither yes nor no.
    pub fn saved(&self, journal: &Journal<Step>, at: usize) -> Result<bool> {
        let now = match self.context.store.load(&self.name) {
            Ok(now) => now,
            Err(error) if error.kind() == Kind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(journal.steps[at..].iter().any(|step| match step {
            Step::Save { record, .. } => Record::try_from((**record).clone()).is_ok_and(|record| same(&record, &now)),
            _ => false,
        }))
    }

    pub(super) async fn live(&mut self) -> Result<&mut Qmp> {
        let name = self.name.clone();
        self.qmp().await?.ok_or_else(|| Error::qemu(format!("{name} has ended meanwhile")))
    }

    async fn seal(&mut self, disks: &[Sealed]) -> Result<()> {
        let sealing = self.sealing.ok_or_else(|| Error::failed("what is to be sealed is not known any more"))?;
        let drives = disks
            .iter()
            .map(|disk| overlay::drive(self.context, &disk.target, &disk.layer))
            .collect::<Result<Vec<_>>>()?;
        self.report.sealed = Some(sealing.carry_out(self.context, &drives, false).await?);
        Ok(())
    }

    async fn resize(&mut self, layer: &Layer, bytes: u64) -> Result<()> {
        let context = self.context;
        if info::inspect(&context.store, layer)?.virtual_bytes == bytes {
            return Ok(());
        }
        sealed::forget(&context.store, layer);
        let size = json!({"node-name": layer.node(), "size": bytes});
        if let Some(qmp) = self.qmp().await? {
            return Ok(qmp.call::<Value>("block_resize", size).await.map(drop)?);
        }
        let chain = chain::read(&context.store, layer)?;
        let mut engine = Offline::start(context, &[Open::writable(&chain)]).await?;
        let resized = engine.qmp.call::<Value>("block_resize", json!({"node-name": layer.node(), "size": bytes})).await;
        engine.quit().await;
        resized.map(drop).map_err(Error::from)
    }

    fn trash(
        &self,
        directory: &str,
        what: &str,
        layers: &[Layer],
        before: &RecordV1,
        way_back: Option<&String>,
    ) -> Result<()> {
        let store = &self.context.store;
        let record = Record::try_from(before.clone())?;
        let mut entry = Entry::new(what, &self.name, &self.context.operation).of(&record);
        entry.layers = layers.to_vec();
        entry.way_back = way_back.cloned();
        // Of layers that have been moved already, the entry of the first attempt tells. What a merge leaves cannot be taken back.
        if entry.can_be_undone() {
            for layer in layers.iter().filter(|layer| store.layout.layer(layer).exists()) {
                // Of a damaged chain nothing can be noted; that is no reason to stop half-way.
                entry.below.extend(stamp::below(store, layer).unwrap_or_default().into_iter().map(Stamp::from));
            }
        }
        let trash = store.open_trash(directory, &entry)?;
        store.save_record(&trash.join("vm.json"), &self.name, &record)?;
        store.trash_layers(&trash, layers)
    }

    fn set_mode(&self, layer: &Layer, mode: u32) -> Result<()> {
        let path = self.context.store.layout.layer(layer);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).on("set the permissions of", &path)
    }

    /// Forgets the connection, so that the next step makes a new one: this one may be out of step, or dead.
    pub fn reconnect(&mut self) {
        if self.qmp.take().is_some() {
            self.asked = false;
        }
    }

    /// After an interruption: calls off the merges among `steps`, so that what is left can be done at once. False: they have gone too far, or
    /// memory is being saved, which goes on by itself.
    pub async fn can_be_ended_now(&mut self, steps: &[Step]) -> Result<bool> {
        let context = self.context;
        for step in steps {
            if let Step::SaveMemory { resume, .. } = step
                && let Some(qmp) = self.qmp().await?
                && qmp.migration().await?.is_under_way()
            {
                if *resume && qmp.lets_the_guest_run().await? {
                    self.resume().await?;
                }
                return Ok(false);
            }
            if let Step::Merge { merges } = step {
                if !merge::call_off(context, self.qmp().await?, merges).await? {
                    return Ok(false);
                }
                self.report.unmerged = Some("it was interrupted".to_owned());
            }
        }
        Ok(true)
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
}

/// The same record, but for what is only known after the plan was written: whether a snapshot is quiesced, its memory, what a template's
/// layers look like.
fn same(planned: &Record, now: &Record) -> bool {
    let mut planned = planned.clone();
    for (snapshot, known) in planned.snapshots.iter_mut().zip(&now.snapshots) {
        snapshot.quiesced = known.quiesced;
        snapshot.memory.clone_from(&known.memory);
    }
    if let (Role::Template { stamps, .. }, Role::Template { stamps: known, .. }) = (&mut planned.role, &now.role) {
        stamps.clone_from(known);
    }
    planned == *now
}
