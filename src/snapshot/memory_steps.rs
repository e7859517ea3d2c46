//! The steps that save a guest's memory and take it up again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::change::run::Run;
use crate::change::step::{Abandoned, Step, Touches};
use crate::error::{Error, IoContext, Result};
use crate::instance::{launch, sockets, terminate};
use crate::model::{Layer, RamImage, Record};
use crate::qemu::cmdline::StartMode;
use crate::qemu::qmp::{Qmp, REPLY};
use crate::qemu::ram::{self, Files, Saving, Way};
use crate::store::schema::{RecordV1, form};
use crate::store::{atomic, make_directory};

/// How often it is looked whether QEMU has got as far as the first page; there is no event for
/// that.
const LOOK: Duration = Duration::from_millis(2);

/// Gets ready to save the guest's memory, which still runs; undone by calling that off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BeginMemory {
    /// The file.
    #[serde(with = "form")]
    pub image: RamImage,
    /// The guest's CPUs run.
    pub running: bool,
}

impl Step for BeginMemory {
    const TAG: &'static str = "begin-memory";

    fn touches(&self) -> Touches {
        Touches {
            images: vec![self.image.id.clone()],
            is_undone_by_removal: true,
            ..Touches::default()
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let context = run.context;
        make_directory(&context.store.layout.rams())?;
        let files = files_of(run, &self.image);
        let saving =
            Saving::begin(run.live().await?, &files, self.image.compressed, self.running).await?;
        if self.running
            && let Way::Stopped(why) = &saving.way
        {
            context.ui.note(&format!("the guest is paused while its memory is saved: {why}"));
        }
        run.saving = Some(saving);
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        // The relay throws away what comes from now on, and QEMU comes to its end by itself.
        run.saving = None;
        if let Some(qmp) = run.qmp().await? {
            end(qmp).await?;
        }
        ram::wait_for_relay(&files_of(run, &self.image)).await?;
        run.store().remove_ram(&self.image)
    }
}

/// Pauses the guest's CPUs; undone by letting them go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pause {
    /// They ran before.
    pub resume: bool,
}

impl Step for Pause {
    const TAG: &'static str = "pause";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        // Before it is sent: without an answer it may have happened all the same.
        if self.resume {
            run.paused_at = Some(Instant::now());
        }
        run.live().await?.run(&qapi::qmp::stop {}).await?;
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        match self.resume && (run.paused_at.is_some() || run.recovering) {
            true => run.resume().await,
            false => Ok(()),
        }
    }
}

/// Saves the guest's memory as it is now, and lets its CPUs go on as soon as possible. A failure
/// here loses the memory, not the snapshot: the disks have switched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveMemory {
    /// The file.
    #[serde(with = "form")]
    pub image: RamImage,
    /// The layers that are the head by now.
    pub heads: Vec<Layer>,
    /// The guest's CPUs ran before.
    pub resume: bool,
}

impl Step for SaveMemory {
    const TAG: &'static str = "save-memory";

    fn touches(&self) -> Touches {
        Touches { images: vec![self.image.id.clone()], ..Touches::default() }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        save_memory(run, &self.image, &self.heads, self.resume).await
    }

    async fn abandon(&self, run: &mut Run<'_>) -> Result<Abandoned> {
        if let Some(qmp) = run.qmp().await?
            && qmp.migration().await?.is_under_way()
        {
            if self.resume && qmp.lets_the_guest_run().await? {
                run.resume().await?;
            }
            return Ok(Abandoned::GoesOn);
        }
        Ok(Abandoned::CalledOff)
    }
}

/// Starts QEMU with the memory of a snapshot, its CPUs paused; undone by ending it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadMemory {
    /// The file.
    #[serde(with = "form")]
    pub image: RamImage,
    /// The VM as it will be.
    pub record: Box<RecordV1>,
}

impl Step for LoadMemory {
    const TAG: &'static str = "load-memory";

    fn touches(&self) -> Touches {
        let (record, vm) = (Some(self.record.clone()), Some(self.record.uuid()));
        Touches { images: vec![self.image.id.clone()], record, vm, ..Touches::default() }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let (context, image) = (run.context, &self.image);
        let record = Record::try_from((*self.record).clone())?;
        let memory = record.snapshots.iter().filter_map(|snapshot| snapshot.memory.as_ref());
        let leased = memory
            .filter(|memory| memory.image.as_ref() == Some(image))
            .flat_map(|memory| memory.leased.clone());
        let leased: Vec<usize> = leased.collect();
        let how = StartMode::Incoming { leased: &leased };
        let mut qmp = launch::launch(context, &run.name, &record, how).await?;
        let task = context.ui.task(&format!("{}: loading memory", run.name), 0);
        let loaded =
            ram::load(&mut qmp, &context.store.layout.ram(image), image.compressed, &*task).await;
        match loaded {
            Ok(()) => {
                run.adopt(qmp);
                Ok(())
            }
            Err(error) => {
                // It has ended by itself, saying why, or it is of no use.
                terminate::quit(context, &run.name, qmp).await?;
                let words = launch::last_words(context, &run.name);
                Err(Error::qemu(format!("the memory of {} cannot be loaded", run.name))
                    .because(words.unwrap_or_else(|| error.full_message())))
            }
        }
    }

    /// Ends the QEMU that was started on the layers of the record; one that runs on others is the
    /// one from before.
    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        let record = Record::try_from((*self.record).clone())?;
        let Some(disk) = record.config.writable().next().cloned() else { return Ok(()) };
        let Some(qmp) = run.qmp().await? else { return Ok(()) };
        if qmp.active_layer(&disk.target).await?.is_some_and(|id| id == disk.layer.id)
            && let Some(qmp) = run.take_qmp().await?
        {
            terminate::quit(run.context, &run.name, qmp).await?;
        }
        Ok(())
    }
}

fn files_of(run: &Run<'_>, image: &RamImage) -> Files {
    let layout = &run.store().layout;
    Files { partial: layout.partial_ram(image), whole: layout.whole_ram(image) }
}

/// A failure here loses the memory, not the snapshot: the disks have switched.
async fn save_memory(
    run: &mut Run<'_>,
    image: &RamImage,
    heads: &[Layer],
    resume: bool,
) -> Result<()> {
    let saved = match run.saving.take() {
        Some(saving) => finish(run, saving, heads, resume).await,
        None => pick_up(run, image, heads, resume).await,
    };
    let files = files_of(run, image);
    match saved {
        Ok(()) if files.whole.exists() => {
            let layout = &run.context.store.layout;
            std::fs::rename(&files.whole, layout.ram(image)).on("rename", &files.whole)?;
            atomic::sync_directory(&layout.rams())?;
            let path = layout.ram(image);
            run.report.memory =
                Some(std::fs::metadata(&path).map(|about| about.len()).on("read", &path)?);
        }
        // Done by an earlier attempt.
        Ok(()) if run.context.store.layout.ram(image).exists() => {}
        lost => {
            let why = match lost {
                Ok(()) => "it could not be written down: is there room?".to_owned(),
                Err(error) => error.full_message(),
            };
            run.report.memory_lost = Some(why);
            if let Some(qmp) = run.qmp().await? {
                end(qmp).await?;
            }
            ram::wait_for_relay(&files).await?;
            run.store().remove_ram(image)?;
            if resume {
                run.resume().await?;
            }
        }
    }
    Ok(())
}

async fn finish(
    run: &mut Run<'_>,
    mut saving: Saving,
    heads: &[Layer],
    resume: bool,
) -> Result<()> {
    let task = run.context.ui.task(&format!("{}: saving memory", run.name), 0);
    let qmp = run.live().await?;
    saving.take(qmp, &*task).await?;
    if resume {
        run.resume().await?;
    }
    let stopped = matches!(saving.way, Way::Stopped(_));
    saving.finish(run.live().await?, &*task).await?;
    if stopped && !resume {
        take_disks_back(run, heads).await?;
    } else if !resume && run.live().await?.status(REPLY).await?.running {
        run.live().await?.run(&qapi::qmp::stop {}).await?;
    }
    Ok(())
}

/// Goes on where a command has died: QEMU and the relay have gone on by themselves.
async fn pick_up(run: &mut Run<'_>, image: &RamImage, heads: &[Layer], resume: bool) -> Result<()> {
    let task = run.context.ui.task(&format!("{}: saving memory", run.name), 0);
    let qmp = run.live().await?;
    while qmp.migration().await?.is_under_way() && !qmp.migration().await?.has_begun() {
        tokio::time::sleep(LOOK).await;
    }
    // Otherwise it stands still to the end: memory that went on would not be the disks' any more.
    let early = resume && qmp.lets_the_guest_run().await?;
    if early {
        run.resume().await?;
    }
    let qmp = run.live().await?;
    if qmp.migration().await?.is_under_way() {
        qmp.wait_for_migration(|migration| {
            let (done, total) = migration.progress();
            task.update(done, total);
        })
        .await?;
    }
    end(run.live().await?).await?;
    ram::wait_for_relay(&files_of(run, image)).await?;
    if resume && !early {
        run.resume().await?;
    }
    if run.live().await?.status(REPLY).await?.status == "postmigrate" {
        take_disks_back(run, heads).await?;
    }
    match run.live().await?.migration().await?.is_complete() {
        true => Ok(()),
        false => Err(Error::failed("the command that saved its memory was cut short")),
    }
}

async fn take_disks_back(run: &mut Run<'_>, heads: &[Layer]) -> Result<()> {
    let nodes: Vec<String> = heads.iter().map(Layer::node).collect();
    let sockets = sockets::of(run.context, &run.name);
    let socket = sockets.map(|sockets| sockets.directory().join("nbd.sock"));
    let socket = socket.ok_or_else(|| Error::damaged("where its sockets are is not known"))?;
    let taken = ram::take_disks_back(run.live().await?, &nodes, &socket).await;
    let _ = std::fs::remove_file(&socket);
    Ok(taken?)
}

/// Waits for the end of a migration that is under way. It is never called off: see [`ram`]. One
/// that never began has left QEMU the pipe, and the relay would read from it for as long as QEMU
/// lives.
async fn end(qmp: &mut Qmp) -> Result<()> {
    if qmp.migration().await?.is_under_way() {
        qmp.wait_for_migration(|_| {}).await?;
    }
    Ok(ram::take_pipe_back(qmp).await?)
}
