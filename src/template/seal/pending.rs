//! What is between "all of it worked" and "all of it is in the disks": overlays that have to be committed into bare image files, all or none.
//!
//! ```text
//! overlays written ─▶ orders beside the other disks ─▶ ORDER BESIDE THE FIRST DISK ─▶ "started" ─▶ commits ─▶ overlays, orders removed
//! cut short: forgotten                                 cut short: carried on by the next `seal` of any of the disks
//! ```
//! An order notes what the disks looked like. Until the commits have started they must not have changed; afterwards they must at least be the
//! same files.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::file::{base_nodes, overlay_nodes};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::Format;
use crate::qemu::offline::Offline;
use crate::qemu::qmp::jobs::Milestone;
use crate::store::atomic;
use crate::sys::flock;

/// Overlays and their disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    id: Uuid,
    started: bool,
    disks: Vec<Stamped>,
}

/// A disk, and what it looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamped {
    path: PathBuf,
    format: Format,
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamped {
    fn of(path: &Path, format: Format) -> Result<Self> {
        let about = path.metadata().on("read", path)?;
        Ok(Self {
            path: path.to_owned(),
            format,
            device: about.dev(),
            inode: about.ino(),
            bytes: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
        })
    }

    /// Is it what it was? Once it is being written to, only the same file.
    fn is_unchanged(&self, started: bool) -> bool {
        Self::of(&self.path, self.format)
            .is_ok_and(|now| (now.device, now.inode) == (self.device, self.inode) && (started || now == *self))
    }
}

fn beside(disk: &Path, ending: &str) -> PathBuf {
    let name = disk.file_name().unwrap_or_default().to_string_lossy();
    disk.with_file_name(format!(".{name}.cowhand-{ending}"))
}

/// The overlay on a disk.
pub fn overlay(disk: &Path) -> PathBuf {
    beside(disk, "sealing")
}

fn place(disk: &Path) -> PathBuf {
    beside(disk, "seal.json")
}

fn read(disk: &Path) -> Option<Order> {
    serde_json::from_slice(&std::fs::read(place(disk)).ok()?).ok()
}

impl Order {
    /// Notes that the overlays of these disks are done: from here on they are carried on.
    pub fn give(disks: &[(&Path, Format)]) -> Result<Self> {
        let disks = disks.iter().map(|(path, format)| Stamped::of(path, *format)).collect::<Result<Vec<_>>>()?;
        let order = Self { id: Uuid::new_v4(), started: false, disks };
        // The first one is what counts, so it comes last.
        order.disks.iter().rev().try_for_each(|disk| order.write(disk))?;
        Ok(order)
    }

    fn write(&self, disk: &Stamped) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::failed("cannot write an order").because(error))?;
        atomic::write(&place(&disk.path), &text)
    }

    /// What an earlier command has left for `disk`; what counts for nothing is removed.
    pub fn pending(disk: &Path) -> Option<Self> {
        let own = read(disk);
        let first = own.as_ref().and_then(|own| own.disks.first()).and_then(|first| read(&first.path));
        match (own, first) {
            (Some(own), Some(first)) if own.id == first.id => Some(first),
            _ => None,
        }
    }

    /// Removes what counts for nothing.
    pub fn forget(disk: &Path) {
        for path in [overlay(disk), place(disk)] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Carries on what an earlier command has left.
    pub async fn carry_on(self, context: &Context, locked: &[PathBuf]) -> Result<()> {
        let mut locks = Vec::new();
        for disk in self.disks.iter().filter(|disk| !locked.contains(&disk.path)) {
            let lock = File::open(&disk.path).on("open", &disk.path)?;
            if !flock::try_exclusive(&lock).on("lock", &disk.path)? {
                return Err(Error::locked(format!("another command is sealing {}", disk.path.display())));
            }
            locks.push(lock);
        }
        if let Some(changed) = self.disks.iter().find(|disk| !disk.is_unchanged(self.started)) {
            return Err(Error::refused(format!(
                "an earlier `seal` of {} was cut short, and it is not the disk any more that it was then",
                changed.path.display()
            ))
            .hint(format!(
                "to forget that one: rm {} {}",
                place(&changed.path).display(),
                overlay(&changed.path).display()
            )));
        }
        let name = self.disks[0].path.display().to_string();
        self.carry_out(context).await?;
        context.ui.note(&format!("{name}: an earlier `seal` was cut short and has been completed"));
        Ok(())
    }

    /// Commits all overlays. Doing it again after it was cut short does no harm: they have all of it.
    pub async fn carry_out(mut self, context: &Context) -> Result<()> {
        let Some(first) = self.disks.first().cloned() else { return Ok(()) };
        self.started = true;
        self.write(&first)?;
        for disk in &self.disks {
            if overlay(&disk.path).exists() {
                commit(context, disk).await?;
            }
        }
        for disk in &self.disks {
            let overlay = overlay(&disk.path);
            let _ = std::fs::remove_file(&overlay);
        }
        // As long as the first order is there, the others mean something.
        for disk in &self.disks {
            std::fs::remove_file(place(&disk.path)).or_else(fine_if_gone).on("remove", &place(&disk.path))?;
            atomic::sync_directory(disk.path.parent().unwrap_or(Path::new("/")))?;
        }
        Ok(())
    }
}

fn fine_if_gone(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

async fn commit(context: &Context, disk: &Stamped) -> Result<()> {
    const JOB: &str = "cw-seal";
    let mut engine = Offline::start(context, &[]).await?;
    let nodes = base_nodes("base", &disk.path, disk.format).into_iter();
    for node in nodes.chain(overlay_nodes("top", &overlay(&disk.path), "base")) {
        engine.qmp.add_node(node).await?;
    }
    let task = context.ui.task(&format!("writing {}", disk.path.display()), 0);
    engine.qmp.call::<Value>("block-commit", json!({"job-id": JOB, "device": "top", "auto-dismiss": false})).await?;
    let job = engine.qmp.wait_for_job(JOB, Milestone::Ready, &*task).await?;
    if job.status == "ready" {
        engine.qmp.complete_job(JOB).await?;
    }
    engine.qmp.wait_for_job(JOB, Milestone::Concluded, &*task).await?;
    engine.qmp.dismiss_job(JOB).await?;
    engine.quit().await;
    File::open(&disk.path).and_then(|file| file.sync_all()).on("flush", &disk.path)
}
