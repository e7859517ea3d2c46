//! The steps of internal snapshots: inside qcow2 images, by the running QEMU (`snapshot-save`,
//! `-load`, `-delete`) or by `qemu-img`.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::change::run::Run;
use crate::change::step::{Step, Touches};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{launch, terminate};
use crate::layer::{chain, guest_memory, sealed, stamp};
use crate::model::{FileStamp, Layer, Record};
use crate::qemu::cmdline::StartMode;
use crate::qemu::img::{Img, Source};
use crate::qemu::qmp::jobs::Milestone;
use crate::qemu::qmp::{Qmp, QmpError, REPLY};
use crate::store::Store;
use crate::store::schema::RecordV1;
use crate::ui::Task;

/// Takes an internal snapshot: of a running VM with its memory, by its QEMU; else by `qemu-img`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InternalSave {
    /// Its name in the images.
    pub tag: String,
    /// The layers, which are the head.
    pub layers: Vec<Layer>,
    /// The VM runs.
    pub live: bool,
}

impl Step for InternalSave {
    const TAG: &'static str = "internal-save";

    fn touches(&self) -> Touches {
        Touches::pinned(&self.layers)
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        save(run, &self.tag, &self.layers, self.live).await
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        unsave(run, &self.tag, &self.layers).await
    }
}

/// Makes the layers of the head what they were at an internal snapshot. Undone by going to another
/// one, which was taken just before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InternalRevert {
    /// Where to.
    pub tag: String,
    /// The snapshot that was taken just before.
    pub back: String,
    /// The layers.
    pub layers: Vec<Layer>,
    /// Take up its memory, in a new QEMU.
    pub memory: Option<Box<RecordV1>>,
    /// The QEMU that ran before.
    pub old_pid: Option<i32>,
}

impl Step for InternalRevert {
    const TAG: &'static str = "internal-revert";

    fn touches(&self) -> Touches {
        Touches {
            vm: self.memory.as_ref().map(|record| record.uuid()),
            ..Touches::pinned(&self.layers)
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        revert(run, &self.tag, &self.layers, self.memory.as_deref()).await
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        go_back(run, &self.back, &self.layers, self.old_pid, self.memory.is_some()).await
    }
}

/// Removes an internal snapshot from layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InternalDelete {
    /// Its name in the images.
    pub tag: String,
    /// The layers.
    pub layers: Vec<Layer>,
}

impl Step for InternalDelete {
    const TAG: &'static str = "internal-delete";

    fn touches(&self) -> Touches {
        Touches::changed(&self.layers)
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        delete(run, &self.tag, &self.layers).await
    }
}

async fn save(run: &mut Run<'_>, tag: &str, layers: &[Layer], live: bool) -> Result<()> {
    unseal(run.store(), layers);
    if !live {
        let missing = without(run.context, layers, tag).await?;
        for layer in &missing {
            give_up_memory(run.context, layer).await;
            img(run.context, layer)?.snapshot(&run.context.store.layout.layer(layer), tag).await?;
        }
        return Ok(());
    }
    let task = run.context.ui.task(&format!("{}: saving memory and disks", run.name), 0);
    let began = Instant::now();
    let qmp = run.live().await?;
    let running = qmp.status(REPLY).await?.running;
    job(qmp, "snapshot-save", tag, layers, &*task).await?;
    // The guest stands still while it is saved; QEMU lets it go on by itself.
    if running {
        run.report.paused = Some(began.elapsed());
    }
    Ok(())
}

async fn revert(
    run: &mut Run<'_>,
    tag: &str,
    layers: &[Layer],
    memory: Option<&RecordV1>,
) -> Result<()> {
    unseal(run.store(), layers);
    let Some(record) = memory else {
        for layer in layers {
            img(run.context, layer)?.apply(&run.context.store.layout.layer(layer), tag).await?;
        }
        return Ok(());
    };
    let record = Record::try_from(record.clone())?;
    let point = record.snapshots.iter().find(|snapshot| snapshot.tag() == Some(tag));
    let leased =
        point.and_then(|snapshot| snapshot.memory.as_ref()).map(|memory| memory.leased.clone());
    let how = StartMode::Loading { leased: &leased.unwrap_or_default() };
    let mut qmp = launch::launch(run.context, &run.name, &record, how).await?;
    let task = run.context.ui.task(&format!("{}: loading memory and disks", run.name), 0);
    if let Err(error) = job(&mut qmp, "snapshot-load", tag, layers, &*task).await {
        terminate::quit(run.context, &run.name, qmp).await?;
        return Err(error);
    }
    run.adopt(qmp);
    Ok(())
}

/// The way back from [`revert`]; where that never began, the QEMU from before still runs, or the
/// way back is not there. `ours`: the step starts one itself.
async fn go_back(
    run: &mut Run<'_>,
    back: &str,
    layers: &[Layer],
    old_pid: Option<i32>,
    ours: bool,
) -> Result<()> {
    let name = run.name.clone();
    if let Some(qmp) = run.qmp().await? {
        if old_pid.is_some() && qmp.pid() == old_pid {
            return Ok(());
        }
        // Ours stands still until the change is past its point of no return. Whatever another one
        // has written is not ours to overwrite.
        if !ours || qmp.status(REPLY).await?.running {
            return Err(Error::refused(format!(
                "{name} was started by another program during a revert, and may \
                 have written to its disks"
            ))
            .hint(format!(
                "save what it wrote; when it has ended, the next command on {name} puts \
                 the disks back as they were before the revert"
            )));
        }
        if let Some(qmp) = run.take_qmp().await? {
            terminate::quit(run.context, &run.name, qmp).await?;
        }
    }
    if !without(run.context, layers, back).await?.is_empty() {
        return Ok(());
    }
    unseal(run.store(), layers);
    for layer in layers {
        img(run.context, layer)?.apply(&run.context.store.layout.layer(layer), back).await?;
    }
    Ok(())
}

/// Takes back what was saved; what QEMU is in the middle of saving, when it has done so.
async fn unsave(run: &mut Run<'_>, tag: &str, layers: &[Layer]) -> Result<()> {
    if let Some(qmp) = run.qmp().await? {
        await_leftover_job(qmp, &job_id("snapshot-save")).await?;
    }
    delete(run, tag, layers).await
}

/// Removes an internal snapshot from `layers`, those that carry it: in the running QEMU where the
/// guest writes to them, else by `qemu-img`.
pub(crate) async fn delete(run: &mut Run<'_>, tag: &str, layers: &[Layer]) -> Result<()> {
    let (context, name) = (run.context, run.name.clone());
    let missing = without(run.context, layers, tag).await?;
    let there: Vec<Layer> =
        layers.iter().filter(|layer| !missing.contains(layer)).cloned().collect();
    let head: Vec<Layer> = match context.store.load(&name) {
        Ok(record) => record.config.writable().map(|disk| disk.layer.clone()).collect(),
        Err(_) => Vec::new(),
    };
    let (open, closed): (Vec<Layer>, Vec<Layer>) = match run.qmp().await? {
        Some(_) => there.into_iter().partition(|layer| head.contains(layer)),
        None => (Vec::new(), there),
    };
    if let Some(qmp) = run.qmp().await?
        && !open.is_empty()
    {
        job(qmp, "snapshot-delete", tag, &open, &crate::ui::Silent).await?;
    }
    for layer in &closed {
        let rewriting = Rewriting::begin(&context.store, layer)?;
        if let Err(error) =
            img(context, layer)?.delete(&context.store.layout.layer(layer), tag).await
        {
            if !run.recovering {
                return Err(error);
            }
            // Its name is gone already; what it holds takes room, and does no harm.
            run.report.warnings.push(format!(
                "an internal snapshot stays in layer {layer}, unnamed ({tag}): {}",
                error.full_message()
            ));
            continue;
        }
        if !run.recovering {
            give_up_memory(run.context, layer).await;
        }
        rewriting.end(&context.store)?;
    }
    Ok(())
}

/// Gives up the memory that going back to an internal snapshot has left in the active part of
/// `layer`, which nobody has open. It takes room, and does no harm: what cannot be given up stays.
async fn give_up_memory(context: &Context, layer: &Layer) {
    if let Err(error) = guest_memory::give_up(context, layer).await {
        tracing::debug!(
            "memory stays in the active part of layer {layer}: {}",
            error.full_message()
        );
    }
}

/// The same of a layer that may be sealed; that it cannot be given up is an error.
pub(crate) async fn give_up_memory_of(context: &Context, layer: &Layer) -> Result<()> {
    let rewriting = Rewriting::begin(&context.store, layer)?;
    let given_up = guest_memory::give_up(context, layer).await;
    rewriting.end(&context.store)?;
    given_up
}

/// Forgets what was noted of active layers that are going to be written.
fn unseal(store: &Store, layers: &[Layer]) {
    for layer in layers {
        sealed::forget(store, layer);
    }
}

/// Those of `layers` that do not carry an internal snapshot called `tag`.
async fn without(context: &Context, layers: &[Layer], tag: &str) -> Result<Vec<Layer>> {
    let mut missing = Vec::new();
    for layer in layers {
        let path = context.store.layout.layer(layer);
        let info = img(context, layer)?.info(&path, Source::File(&path, layer.format)).await?;
        if info.snapshots.iter().all(|inner| inner.name != tag) {
            missing.push(layer.clone());
        }
    }
    Ok(missing)
}

/// A layer whose file is written while what a guest sees in it stays the same.
struct Rewriting<'a> {
    layer: &'a Layer,
    before: FileStamp,
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
        store.stamp_anew(&self.before, &stamp::of(store, self.layer)?)
    }
}

fn job_id(command: &str) -> String {
    format!("cw-{command}")
}

/// Waits for what an earlier attempt has left of its job, and forgets it. These jobs cannot be
/// called off.
async fn await_leftover_job(qmp: &mut Qmp, id: &str) -> Result<()> {
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
async fn job(
    qmp: &mut Qmp,
    command: &str,
    tag: &str,
    layers: &[Layer],
    task: &dyn Task,
) -> Result<()> {
    let id = job_id(command);
    let devices: Vec<String> = layers.iter().map(Layer::node).collect();
    let mut arguments = json!({"job-id": id, "tag": tag, "devices": devices});
    if command != "snapshot-delete" {
        arguments["vmstate"] = devices.first().cloned().unwrap_or_default().into();
    }
    await_leftover_job(qmp, &id).await?;
    qmp.call::<Value>(command, arguments).await?;
    qmp.wait_for_job(&id, Milestone::Concluded, task).await.map_err(Error::from)?;
    Ok(qmp.dismiss_job(&id).await?)
}

/// `qemu-img`, which may read what `layer` is backed by.
fn img(context: &Context, layer: &Layer) -> Result<Img> {
    Ok(Img::find(context)?.reading(chain::files(&context.store, layer)))
}
