//! The steps of internal snapshots: inside qcow2 images, by the running QEMU (`snapshot-save`, `-load`, `-delete`) or by `qemu-img`.

use std::time::Instant;

use serde_json::{Value, json};

use super::apply::Executor;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{launch, terminate};
use crate::layer::{chain, guest_memory, sealed, stamp};
use crate::model::{Layer, LayerStamp, Record};
use crate::qemu::cmdline::How;
use crate::qemu::img::{Img, Source};
use crate::qemu::qmp::jobs::Milestone;
use crate::qemu::qmp::{Qmp, QmpError, REPLY};
use crate::store::Store;
use crate::store::schema::RecordV1;
use crate::ui::Task;

impl Executor<'_> {
    pub(super) async fn internal_save(&mut self, tag: &str, layers: &[Layer], live: bool) -> Result<()> {
        self.unseal(layers);
        if !live {
            let missing = self.without(layers, tag).await?;
            for layer in &missing {
                self.give_up_memory(layer).await;
                img(self.context, layer)?.snapshot(&self.context.store.layout.layer(layer), tag).await?;
            }
            return Ok(());
        }
        let task = self.context.ui.task(&format!("{}: saving memory and disks", self.name), 0);
        let began = Instant::now();
        let qmp = self.live().await?;
        let running = qmp.status(REPLY).await?.running;
        job(qmp, "snapshot-save", tag, layers, &*task).await?;
        // The guest stands still while it is saved; QEMU lets it go on by itself.
        if running {
            self.report.paused = Some(began.elapsed());
        }
        Ok(())
    }

    pub(super) async fn internal_revert(
        &mut self,
        tag: &str,
        layers: &[Layer],
        memory: Option<&RecordV1>,
    ) -> Result<()> {
        self.unseal(layers);
        let Some(record) = memory else {
            for layer in layers {
                img(self.context, layer)?.apply(&self.context.store.layout.layer(layer), tag).await?;
            }
            return Ok(());
        };
        let record = Record::try_from(record.clone())?;
        let point = record.snapshots.iter().find(|snapshot| snapshot.tag() == Some(tag));
        let leased = point.and_then(|snapshot| snapshot.memory.as_ref()).map(|memory| memory.leased.clone());
        let how = How::Loading { leased: &leased.unwrap_or_default() };
        let mut qmp = launch::launch(self.context, &self.name, &record, how).await?;
        let task = self.context.ui.task(&format!("{}: loading memory and disks", self.name), 0);
        if let Err(error) = job(&mut qmp, "snapshot-load", tag, layers, &*task).await {
            terminate::quit(self.context, &self.name, qmp).await?;
            return Err(error);
        }
        self.adopt(qmp);
        Ok(())
    }

    /// The way back from [`Self::internal_revert`]; where that never began, the QEMU from before still runs, or the way back is not there.
    /// `ours`: the step starts one itself.
    pub(super) async fn internal_back(
        &mut self,
        back: &str,
        layers: &[Layer],
        old_pid: Option<i32>,
        ours: bool,
    ) -> Result<()> {
        let name = self.name.clone();
        if let Some(qmp) = self.qmp().await? {
            if old_pid.is_some() && qmp.pid() == old_pid {
                return Ok(());
            }
            // Ours stands still until the change is past its point of no return. Whatever another one has written is not ours to overwrite.
            if !ours || qmp.status(REPLY).await?.running {
                return Err(Error::refused(format!(
                    "{name} was started by somebody else while a revert of it was half done, and may have written to its disks"
                ))
                .hint(format!("save what it wrote; when it has ended, the next command on {name} puts the disks back as they were before the revert")));
            }
            if let Some(qmp) = self.qmp.take() {
                terminate::quit(self.context, &self.name, qmp).await?;
            }
        }
        if !self.without(layers, back).await?.is_empty() {
            return Ok(());
        }
        self.unseal(layers);
        for layer in layers {
            img(self.context, layer)?.apply(&self.context.store.layout.layer(layer), back).await?;
        }
        Ok(())
    }

    /// Takes back what was saved; what QEMU is in the middle of saving, when it has done so.
    pub(super) async fn internal_unsave(&mut self, tag: &str, layers: &[Layer]) -> Result<()> {
        if let Some(qmp) = self.qmp().await? {
            settle(qmp, &job_id("snapshot-save")).await?;
        }
        self.internal_delete(tag, layers).await
    }

    /// Removes an internal snapshot from `layers`, those that carry it: in the running QEMU where the guest writes to them, else by `qemu-img`.
    pub async fn internal_delete(&mut self, tag: &str, layers: &[Layer]) -> Result<()> {
        let (context, name) = (self.context, self.name.clone());
        let missing = self.without(layers, tag).await?;
        let there: Vec<Layer> = layers.iter().filter(|layer| !missing.contains(layer)).cloned().collect();
        let head: Vec<Layer> = match context.store.load(&name) {
            Ok(record) => record.config.writable().map(|disk| disk.layer.clone()).collect(),
            Err(_) => Vec::new(),
        };
        let (open, closed): (Vec<Layer>, Vec<Layer>) = match self.qmp().await? {
            Some(_) => there.into_iter().partition(|layer| head.contains(layer)),
            None => (Vec::new(), there),
        };
        if let Some(qmp) = self.qmp().await?
            && !open.is_empty()
        {
            job(qmp, "snapshot-delete", tag, &open, &crate::ui::Silent).await?;
        }
        for layer in &closed {
            let rewriting = Rewriting::begin(&context.store, layer)?;
            if let Err(error) = img(context, layer)?.delete(&context.store.layout.layer(layer), tag).await {
                if !self.recovering {
                    return Err(error);
                }
                // Its name is gone already; what it holds takes room, and does no harm.
                self.report.warnings.push(format!(
                    "an internal snapshot stays in layer {layer}, unnamed ({tag}): {}",
                    error.full_message()
                ));
                continue;
            }
            if !self.recovering {
                self.give_up_memory(layer).await;
            }
            rewriting.end(&context.store)?;
        }
        Ok(())
    }

    /// Gives up the memory that going back to an internal snapshot has left in the active part of `layer`, which nobody has open. It takes room, and does no harm:
    /// what cannot be given up stays.
    async fn give_up_memory(&mut self, layer: &Layer) {
        if let Err(error) = guest_memory::give_up(self.context, layer).await {
            tracing::debug!("memory stays in the active part of layer {layer}: {}", error.full_message());
        }
    }

    /// The same of a layer that may be sealed; that it cannot be given up is an error.
    pub async fn give_up_memory_of(&mut self, layer: &Layer) -> Result<()> {
        let rewriting = Rewriting::begin(&self.context.store, layer)?;
        let given_up = guest_memory::give_up(self.context, layer).await;
        rewriting.end(&self.context.store)?;
        given_up
    }

    /// Forgets what was noted of active layers that are going to be written.
    fn unseal(&self, layers: &[Layer]) {
        for layer in layers {
            sealed::forget(&self.context.store, layer);
        }
    }

    /// Those of `layers` that do not carry an internal snapshot called `tag`.
    async fn without(&self, layers: &[Layer], tag: &str) -> Result<Vec<Layer>> {
        let mut missing = Vec::new();
        for layer in layers {
            let path = self.context.store.layout.layer(layer);
            let info = img(self.context, layer)?.info(&path, Source::File(&path, layer.format)).await?;
            if info.snapshots.iter().all(|inner| inner.name != tag) {
                missing.push(layer.clone());
            }
        }
        Ok(missing)
    }
}

/// A layer whose file is written while what a guest sees in it stays the same.
struct Rewriting<'a> {
    layer: &'a Layer,
    before: LayerStamp,
    /// What it was when it was sealed is noted, and it was that.
    is_sealed: bool,
}

impl<'a> Rewriting<'a> {
    fn begin(store: &Store, layer: &'a Layer) -> Result<Self> {
        let before = stamp::of(store, layer)?;
        let is_whole = matches!(sealed::change(store, layer), Ok(None));
        let is_sealed = sealed::forget(store, layer) && is_whole;
        Ok(Self { layer, before, is_sealed })
    }

    /// An `undo` that relies on it stays possible.
    fn end(self, store: &Store) -> Result<()> {
        if self.is_sealed {
            sealed::note(store, self.layer);
        }
        store.stamp_anew(&self.before.into(), &stamp::of(store, self.layer)?.into())
    }
}

fn job_id(command: &str) -> String {
    format!("cw-{command}")
}

/// Waits for what an earlier attempt has left of its job, and forgets it. These jobs cannot be called off.
async fn settle(qmp: &mut Qmp, id: &str) -> Result<()> {
    if qmp.job(id).await?.is_none() {
        return Ok(());
    }
    match qmp.wait_for_job(id, Milestone::Concluded, &crate::ui::Silent).await {
        Ok(_) => Ok(qmp.dismiss_job(id).await?),
        Err(QmpError::Job { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Runs one of QEMU's snapshot jobs on all `layers`; the first one holds the memory.
async fn job(qmp: &mut Qmp, command: &str, tag: &str, layers: &[Layer], task: &dyn Task) -> Result<()> {
    let id = job_id(command);
    let devices: Vec<String> = layers.iter().map(Layer::node).collect();
    let mut arguments = json!({"job-id": id, "tag": tag, "devices": devices});
    if command != "snapshot-delete" {
        arguments["vmstate"] = devices.first().cloned().unwrap_or_default().into();
    }
    settle(qmp, &id).await?;
    qmp.call::<Value>(command, arguments).await?;
    qmp.wait_for_job(&id, Milestone::Concluded, task).await.map_err(Error::from)?;
    Ok(qmp.dismiss_job(&id).await?)
}

/// `qemu-img`, which may read what `layer` is backed by.
fn img(context: &Context, layer: &Layer) -> Result<Img> {
    Ok(Img::find(context)?.reading(chain::files(&context.store, layer)))
}
