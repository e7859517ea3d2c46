//! The steps that save a guest's memory and take it up again.

use std::time::{Duration, Instant};

use super::apply::Executor;
use crate::error::{Error, IoContext, Result};
use crate::instance::{launch, sockets, terminate};
use crate::model::{Layer, RamImage, Record};
use crate::qemu::cmdline::How;
use crate::qemu::qmp::{Qmp, REPLY};
use crate::qemu::ram::{self, Files, Saving, Way};
use crate::store::schema::RecordV1;
use crate::store::{atomic, make_directory};

/// How often it is looked whether QEMU has got as far as the first page; there is no event for that.
const LOOK: Duration = Duration::from_millis(2);

impl Executor<'_> {
    fn ram_files(&self, image: &RamImage) -> Files {
        let layout = &self.context.store.layout;
        Files { partial: layout.partial_ram(image), whole: layout.whole_ram(image) }
    }

    pub(super) async fn begin_memory(&mut self, image: &RamImage, running: bool) -> Result<()> {
        let context = self.context;
        make_directory(&context.store.layout.rams())?;
        let files = self.ram_files(image);
        let qmp = self.live().await?;
        let saving = Saving::begin(qmp, &files, image.compressed, running).await?;
        if running && let Way::Stopped(why) = &saving.way {
            context.ui.note(&format!("the guest stands still while its memory is saved: {why}"));
        }
        self.saving = Some(saving);
        Ok(())
    }

    pub(super) async fn call_off_memory(&mut self, image: &RamImage) -> Result<()> {
        // The relay throws away what comes from now on, and QEMU comes to its end by itself.
        self.saving = None;
        if let Some(qmp) = self.qmp().await? {
            end(qmp).await?;
        }
        ram::wait_for_relay(&self.ram_files(image)).await?;
        self.context.store.remove_ram(image)
    }

    pub(super) async fn pause(&mut self, resume: bool) -> Result<()> {
        // Before it is sent: without an answer it may have happened all the same.
        if resume {
            self.paused_at = Some(Instant::now());
        }
        self.live().await?.run(&qapi::qmp::stop {}).await?;
        Ok(())
    }

    /// A failure here loses the memory, not the snapshot: the disks have switched.
    pub(super) async fn save_memory(&mut self, image: &RamImage, heads: &[Layer], resume: bool) -> Result<()> {
        let saved = match self.saving.take() {
            Some(saving) => self.save(saving, heads, resume).await,
            None => self.pick_up(image, heads, resume).await,
        };
        let files = self.ram_files(image);
        match saved {
            Ok(()) if files.whole.exists() => {
                let layout = &self.context.store.layout;
                std::fs::rename(&files.whole, layout.ram(image)).on("rename", &files.whole)?;
                atomic::sync_directory(&layout.rams())?;
                let path = layout.ram(image);
                self.report.memory = Some(std::fs::metadata(&path).map(|about| about.len()).on("read", &path)?);
            }
            // Done by an earlier attempt.
            Ok(()) if self.context.store.layout.ram(image).exists() => {}
            lost => {
                let why = match lost {
                    Ok(()) => "it could not be written down: is there room?".to_owned(),
                    Err(error) => error.full_message(),
                };
                self.report.memory_lost = Some(why);
                if let Some(qmp) = self.qmp().await? {
                    end(qmp).await?;
                }
                ram::wait_for_relay(&files).await?;
                self.context.store.remove_ram(image)?;
                if resume {
                    self.resume().await?;
                }
            }
        }
        Ok(())
    }

    async fn save(&mut self, mut saving: Saving, heads: &[Layer], resume: bool) -> Result<()> {
        let task = self.context.ui.task(&format!("{}: saving memory", self.name), 0);
        let qmp = self.live().await?;
        saving.take(qmp, &*task).await?;
        if resume {
            self.resume().await?;
        }
        let stopped = matches!(saving.way, Way::Stopped(_));
        saving.finish(self.live().await?, &*task).await?;
        if stopped && !resume {
            self.take_disks_back(heads).await?;
        } else if !resume && self.live().await?.status(REPLY).await?.running {
            self.live().await?.run(&qapi::qmp::stop {}).await?;
        }
        Ok(())
    }

    /// Goes on where a command has died: QEMU and the relay have gone on by themselves.
    async fn pick_up(&mut self, image: &RamImage, heads: &[Layer], resume: bool) -> Result<()> {
        let task = self.context.ui.task(&format!("{}: saving memory", self.name), 0);
        let qmp = self.live().await?;
        while qmp.migration().await?.is_under_way() && !qmp.migration().await?.has_begun() {
            tokio::time::sleep(LOOK).await;
        }
        // Otherwise it stands still to the end: memory that went on would not be the disks' any more.
        let early = resume && qmp.lets_the_guest_run().await?;
        if early {
            self.resume().await?;
        }
        let qmp = self.live().await?;
        if qmp.migration().await?.is_under_way() {
            qmp.wait_for_migration(|migration| {
                let (done, total) = migration.progress();
                task.update(done, total);
            })
            .await?;
        }
        end(self.live().await?).await?;
        ram::wait_for_relay(&self.ram_files(image)).await?;
        if resume && !early {
            self.resume().await?;
        }
        if self.live().await?.status(REPLY).await?.status == "postmigrate" {
            self.take_disks_back(heads).await?;
        }
        match self.live().await?.migration().await?.is_complete() {
            true => Ok(()),
            false => Err(Error::failed("the command that saved its memory was cut short")),
        }
    }

    async fn take_disks_back(&mut self, heads: &[Layer]) -> Result<()> {
        let nodes: Vec<String> = heads.iter().map(Layer::node).collect();
        let sockets = sockets::of(self.context, &self.name);
        let socket = sockets.map(|sockets| sockets.directory().join("nbd.sock"));
        let socket = socket.ok_or_else(|| Error::damaged("where its sockets are is not known"))?;
        let taken = ram::take_disks_back(self.live().await?, &nodes, &socket).await;
        let _ = std::fs::remove_file(&socket);
        Ok(taken?)
    }

    pub(super) async fn load_memory(&mut self, image: &RamImage, record: &RecordV1) -> Result<()> {
        let context = self.context;
        let record = Record::try_from(record.clone())?;
        let memory = record.snapshots.iter().filter_map(|snapshot| snapshot.memory.as_ref());
        let leased =
            memory.filter(|memory| memory.image.as_ref() == Some(image)).flat_map(|memory| memory.leased.clone());
        let leased: Vec<usize> = leased.collect();
        let how = How::Incoming { leased: &leased };
        let mut qmp = launch::launch(context, &self.name, &record, how).await?;
        let task = context.ui.task(&format!("{}: loading memory", self.name), 0);
        let loaded = ram::load(&mut qmp, &context.store.layout.ram(image), image.compressed, &*task).await;
        match loaded {
            Ok(()) => {
                self.adopt(qmp);
                Ok(())
            }
            Err(error) => {
                // It has ended by itself, saying why, or it is of no use.
                terminate::quit(context, &self.name, qmp).await?;
                let words = launch::last_words(context, &self.name);
                Err(Error::qemu(format!("the memory of {} cannot be loaded", self.name))
                    .because(words.unwrap_or_else(|| error.full_message())))
            }
        }
    }

    /// Ends the QEMU that was started on the layers of `record`; one that runs on others is the one from before.
    pub(super) async fn end_if_on(&mut self, record: &RecordV1) -> Result<()> {
        let record = Record::try_from(record.clone())?;
        let Some(disk) = record.config.writable().next().cloned() else { return Ok(()) };
        let Some(qmp) = self.qmp().await? else { return Ok(()) };
        if qmp.active_layer(&disk.target).await?.is_some_and(|id| id == disk.layer.id)
            && let Some(qmp) = self.qmp.take()
        {
            terminate::quit(self.context, &self.name, qmp).await?;
        }
        Ok(())
    }
}

/// Waits for the end of a migration that is under way. It is never called off: see [`ram`]. One that never began has left QEMU the pipe, and the
/// relay would read from it for as long as QEMU lives.
async fn end(qmp: &mut Qmp) -> Result<()> {
    if qmp.migration().await?.is_under_way() {
        qmp.wait_for_migration(|_| {}).await?;
    }
    Ok(ram::take_pipe_back(qmp).await?)
}
