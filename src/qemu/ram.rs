//! A guest's memory and devices as a file: QEMU's own migration stream, through a pipe, compressed
//! if asked for.
//!
//! ```text
//!                guest runs          │ paused │          guest runs
//! migrate ─▶ touches all pages ─▶ [gate] ─▶ write-protects ─▶ writes pages ─▶ writes devices
//!                                      stop │ disks switch │ cont
//! ```
//! With `background-snapshot` QEMU keeps the pages of one instant (userfaultfd write-protect) while
//! the guest goes on. Before that instant it touches every page, which takes long. The *gate* takes
//! that out of the pause: the pipe is full, so that QEMU, at the end of the touching, waits for
//! room; then the guest is stopped, its disks switch, and the gate is opened. Newer QEMUs hold
//! their big lock at that place, where waiting would stop all of QEMU: with them the guest is
//! stopped first.
//!
//! What QEMU writes is taken down by a *relay*, a process of its own that outlives us: when nobody
//! reads the pipe any more, QEMU gives up, and may never get as far as taking the write-protection
//! away. For the same reason nothing is ever called off, the relay reads on when the disk is full,
//! and the capability stays set (QEMU looks at it once more when it clears up).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::qmp::migration::Migration;
use super::qmp::{Qmp, QmpError, REPLY};
use crate::error::{Error, IoContext, Result};
use crate::store::plain;
use crate::sys::relay::{self, copy};
use crate::sys::{command, flock, pipe};
use crate::ui::Task;

/// The name of the descriptor in QEMU.
const FD: &str = "cw-ram";
/// QEMU's thread for background snapshots (`-name …,debug-threads=on`).
const THREADS: [&str; 1] = ["bg_snapshot"];
/// How long QEMU may take to touch every page before the gate is given up.
const TOUCH: Duration = Duration::from_secs(120);
/// How often it is looked whether it waits; the kernel tells no event for that.
const LOOK: Duration = Duration::from_millis(1);

/// How the memory is being saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// The guest goes on while its pages are written; `gated` where touching them is kept out of
    /// the pause.
    Background {
        /// The gate is closed until [`Saving::open`].
        gated: bool,
    },
    /// The guest stands still until all of it is written, for this reason.
    Stopped(String),
}

/// The file memory is written to, and what it is called when it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// While it is being written.
    pub partial: PathBuf,
    /// When all of it is there.
    pub whole: PathBuf,
}

/// Memory that is being written to a file.
pub struct Saving {
    /// How.
    pub way: Way,
    relay: Relay,
}

impl Saving {
    /// Prepares to write memory to `files`. With the gate, QEMU is at work already when this
    /// returns, and the guest runs on.
    pub async fn begin(
        qmp: &mut Qmp,
        files: &Files,
        compress: bool,
        running: bool,
    ) -> Result<Self> {
        qmp.prepare_migration().await?;
        let old = is_old(qmp.version());
        let way = match running {
            // An old QEMU would let a paused guest run when it has write-protected its memory. A
            // newer one ends where the guest stands still for another reason than a pause: "invalid
            // runstate transition: 'prelaunch' -> 'paused'" (10.0).
            false if old || qmp.status(REPLY).await?.status != "paused" => {
                qmp.set_capability("background-snapshot", false).await?;
                Way::Stopped("the guest is paused".to_owned())
            }
            _ => match qmp.set_capability("background-snapshot", true).await {
                Ok(()) => Way::Background { gated: running && old && qmp.pid().is_some() },
                Err(QmpError::Refused { message, .. }) => {
                    Way::Stopped(format!("QEMU says \"{message}\""))
                }
                Err(error) => return Err(error.into()),
            },
        };
        let cannot = |source| Error::failed("cannot make a pipe").because(source);
        let (read, write, filled) = match way {
            Way::Background { gated: true } => pipe::full().map_err(cannot)?,
            _ => pipe::wide().map(|(read, write)| (read, write, 0)).map_err(cannot)?,
        };
        let relay = Relay::start(files, read, filled, compress)?;
        let saving = Self { way, relay };
        qmp.give_fd(FD, write.as_fd()).await?;
        drop(write);
        if saving.is_gated() {
            qmp.migrate_to(FD).await?;
            saving.wait_for_gate(qmp).await?;
        }
        Ok(saving)
    }

    fn is_gated(&self) -> bool {
        self.way == Way::Background { gated: true }
    }

    /// Waits until QEMU has touched every page. Being wrong about it costs pause, nothing else: the
    /// gate stays closed.
    async fn wait_for_gate(&self, qmp: &mut Qmp) -> Result<()> {
        let deadline = Instant::now() + TOUCH;
        let Some(pid) = qmp.pid() else { return Ok(()) };
        while Instant::now() < deadline {
            match pipe::is_waiting_for_room(pid, &THREADS) {
                Some(true) => return Ok(()),
                Some(false) => {}
                // The thread has not begun yet, or it has failed.
                None => {
                    let migration = qmp.migration().await?;
                    if !migration.is_under_way() {
                        return Err(failed(&migration));
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// With the guest stopped and its disks switched: lets QEMU take the instant. When this returns
    /// the guest may run, or, where it has to stand still, all is written.
    pub async fn take(&mut self, qmp: &mut Qmp, task: &dyn Task) -> Result<()> {
        self.relay.open()?;
        if !self.is_gated() {
            qmp.migrate_to(FD).await?;
        }
        if let Way::Stopped(_) = self.way {
            return self.written(qmp, task).await;
        }
        loop {
            // The first page is counted after write-protection is in place; the state alone is
            // changed before.
            let migration = qmp.migration().await?;
            if migration.has_begun() {
                return Ok(());
            }
            if migration.is_over() {
                return if migration.is_complete() { Ok(()) } else { Err(failed(&migration)) };
            }
        }
    }

    /// Waits until all is written and on the disk.
    pub async fn finish(mut self, qmp: &mut Qmp, task: &dyn Task) -> Result<()> {
        self.written(qmp, task).await?;
        self.relay.ended().await
    }

    async fn written(&mut self, qmp: &mut Qmp, task: &dyn Task) -> Result<()> {
        let migration = qmp
            .wait_for_migration(|migration| {
                let (done, total) = migration.progress();
                task.update(done, total);
            })
            .await?;
        if migration.is_complete() { Ok(()) } else { Err(failed(&migration)) }
    }
}

/// Has this QEMU its setup phase outside its big lock? So it is with 7.2, and not with 10.0.
fn is_old(version: &str) -> bool {
    version.starts_with("7.")
}

/// Lets QEMU write to the disks of a paused guest again. A migration that is over has given them
/// up, and takes them back when the guest goes on, which this one shall not; a block export takes
/// them back, too (`blk_exp_add` in QEMU's `block/export/export.c`).
pub(crate) async fn take_disks_back(
    qmp: &mut Qmp,
    nodes: &[String],
    socket: &Path,
) -> Result<(), QmpError> {
    const EXPORT: &str = "cw-take-back";
    let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
    qmp.call::<Value>("nbd-server-start", address).await?;
    for node in nodes {
        let export = json!({"type": "nbd", "id": EXPORT, "node-name": node});
        qmp.call::<Value>("block-export-add", export).await?;
        qmp.call::<Value>("block-export-del", json!({"id": EXPORT})).await?;
        qmp.wait_for_event("BLOCK_EXPORT_DELETED").await?;
    }
    qmp.call::<Value>("nbd-server-stop", json!({})).await.map(drop)
}

fn failed(migration: &Migration) -> Error {
    let why = migration
        .error
        .clone()
        .unwrap_or_else(|| format!("{:?}", migration.status.as_deref().unwrap_or("none")));
    Error::qemu("the guest's memory could not be moved").because(format!("QEMU says \"{why}\""))
}

/// The process that takes down what QEMU writes.
struct Relay {
    control: Option<File>,
    partial: File,
}

impl Relay {
    /// Starts it. It waits until the gate is opened; should we die before that, it throws away what
    /// comes.
    fn start(files: &Files, stream: File, skip: usize, compress: bool) -> Result<Self> {
        let path = &files.partial;
        let cannot = |source| Error::failed("cannot start the relay for memory").because(source);
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .on("create", path)?;
        // Held until the relay has ended; a second descriptor of our own tells when that is.
        flock::exclusive(&file).on("lock", path)?;
        let partial = File::open(path).on("open", path)?;
        let (orders, control) = std::io::pipe().map_err(cannot)?;
        let (stream, file) = (OwnedFd::from(stream), OwnedFd::from(file));
        let mut argv = vec![relay::PROGRAM.to_owned(), relay::VERB.to_owned()];
        argv.extend([
            stream.as_raw_fd().to_string(),
            file.as_raw_fd().to_string(),
            skip.to_string(),
        ]);
        argv.push(if compress { "zstd" } else { "plain" }.to_owned());
        argv.extend([&files.partial, &files.whole].map(|path| path.to_string_lossy().into_owned()));
        command::companion(&argv, orders.into(), vec![stream, file]).map_err(cannot)?;
        Ok(Self { control: Some(OwnedFd::from(control).into()), partial })
    }

    fn open(&mut self) -> Result<()> {
        match self.control.take() {
            Some(mut control) => control
                .write_all(&[relay::OPEN])
                .map_err(|source| Error::failed("the relay for memory has ended").because(source)),
            None => Ok(()),
        }
    }

    async fn ended(&self) -> Result<()> {
        let partial = self
            .partial
            .try_clone()
            .map_err(|source| Error::failed("cannot wait for the relay").because(source))?;
        wait_for_lock(partial).await
    }
}

/// Has QEMU close its end of the pipe, should it have it still: a migration that began has taken
/// it.
pub(crate) async fn take_pipe_back(qmp: &mut Qmp) -> Result<(), QmpError> {
    match qmp.call::<Value>("closefd", json!({"fdname": FD})).await {
        Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn wait_for_lock(file: File) -> Result<()> {
    let waited = tokio::task::spawn_blocking(move || flock::exclusive(&file)).await;
    waited
        .unwrap_or_else(|panic| Err(io::Error::other(panic)))
        .map_err(|source| Error::failed("cannot wait for the relay").because(source))
}

/// Waits for the relay of another process, if it still is at work.
pub(crate) async fn wait_for_relay(files: &Files) -> Result<()> {
    for path in [&files.partial, &files.whole] {
        if let Ok(Some(file)) = plain::open(path) {
            return wait_for_lock(file).await;
        }
    }
    Ok(())
}

/// Reads the memory at `path` into a QEMU that was started with `-incoming defer`. When this
/// returns its CPUs stand still.
pub(crate) async fn load(
    qmp: &mut Qmp,
    path: &Path,
    compressed: bool,
    task: &dyn Task,
) -> Result<()> {
    qmp.prepare_migration().await?;
    let file = plain::open_existing(path)?;
    let (fd, feeder) = match compressed {
        false => (OwnedFd::from(file), None),
        true => {
            let (read, write) = pipe::wide()
                .map_err(|source| Error::failed("cannot make a pipe").because(source))?;
            let feeder = tokio::task::spawn_blocking(move || feed(file, write.into()));
            (OwnedFd::from(read), Some(feeder))
        }
    };
    qmp.give_fd(FD, fd.as_fd()).await?;
    drop(fd);
    qmp.migrate_from(FD).await?;
    let migration = qmp
        .wait_for_migration(|migration| {
            let (done, total) = migration.progress();
            task.update(done, total);
        })
        .await?;
    if let Some(feeder) = feeder {
        feeder.await.unwrap_or_else(|panic| Err(io::Error::other(panic))).on("read", path)?;
    }
    if migration.is_complete() { Ok(()) } else { Err(failed(&migration)) }
}

fn feed(file: File, mut pipe: File) -> io::Result<()> {
    let mut decoder = zstd::Decoder::new(file)?;
    copy(&mut decoder, &mut pipe)
}
