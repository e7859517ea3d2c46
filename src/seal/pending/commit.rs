//! The commit: what the overlays hold is written into the disks of an order.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::left::{overlay, remove};
use super::order::{GivenDisk, ORDER, Order};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::human;
use crate::qemu::offline::Offline;
use crate::qemu::qmp::jobs::Milestone;
use crate::seal::overlay::{base_nodes, overlay_nodes};
use crate::store::atomic;
use crate::sys::{fault, space};

pub(super) fn refuse_full(disks: &[GivenDisk<'_>], overlays: &[PathBuf]) -> Result<()> {
    let mut needed: BTreeMap<u64, (u64, &Path)> = BTreeMap::new();
    for (disk, overlay) in disks.iter().zip(overlays) {
        let device = disk.file.file.metadata().on("look at", &disk.file.path)?.dev();
        let bytes = std::fs::metadata(overlay).on("look at", overlay)?.blocks() * 512;
        needed.entry(device).or_insert((0, &disk.file.path)).0 += bytes;
    }
    for (bytes, path) in needed.into_values() {
        let free =
            space::free(path.parent().unwrap_or(path)).on("look at the file system of", path)?;
        if free < bytes {
            return Err(Error::refused(format!(
                "the file system of {} may have no room for what is to be written ({} are free, {} \
                 were changed); nothing was changed",
                path.display(),
                human(free),
                human(bytes)
            ))
            .hint(crate::error::MAKE_ROOM));
        }
    }
    Ok(())
}

impl Order {
    /// Commits all overlays into `disks`, which are the order's. Doing it again after it was cut
    /// short does no harm: they have all of it.
    pub(super) async fn carry_out(
        mut self,
        context: &Context,
        directory: &Path,
        disks: &[GivenDisk<'_>],
    ) -> Result<()> {
        let lost = |number| {
            Error::damaged(format!(
                "{} is missing: what was sealed is lost",
                overlay(directory, number).display()
            ))
            .hint(format!("to forget it: rm -r {}", directory.display()))
        };
        if let Some(number) = (0..disks.len()).find(|number| !overlay(directory, *number).is_file())
        {
            return Err(lost(number));
        }
        self.started = true;
        self.write(directory)?;
        for (number, disk) in disks.iter().enumerate() {
            fault::point("a sealed disk, about to be written").on("write", &disk.file.path)?;
            // The format is the order's: what the header says by now counts no more than before.
            commit(
                context,
                &GivenDisk { format: self.disks[number].format, ..*disk },
                &overlay(directory, number),
            )
            .await?;
        }
        let order = directory.join(ORDER);
        fault::point("order.json, about to go").on("remove", &order)?;
        std::fs::remove_file(&order).on("remove", &order)?;
        atomic::sync_directory(directory)?;
        fault::point("order.json, gone").on("remove", directory)?;
        remove(directory)
    }
}

async fn commit(context: &Context, disk: &GivenDisk<'_>, overlay: &Path) -> Result<()> {
    const JOB: &str = "cw-seal";
    let below = disk.file.held()?;
    let mut engine = Offline::start_on(context, &below, overlay).await?;
    let nodes = base_nodes("base", &below.path(), disk.format).into_iter();
    for node in nodes.chain(overlay_nodes("top", overlay, "base")) {
        engine.qmp.add_node(node).await?;
    }
    let task = context.ui.task(&format!("writing {}", disk.file.path.display()), 0);
    engine
        .qmp
        .call::<Value>(
            "block-commit",
            json!({"job-id": JOB, "device": "top", "auto-dismiss": false}),
        )
        .await?;
    let job = engine.qmp.wait_for_job(JOB, Milestone::Ready, &*task).await?;
    if job.status == "ready" {
        engine.qmp.complete_job(JOB).await?;
    }
    engine.qmp.wait_for_job(JOB, Milestone::Concluded, &*task).await?;
    engine.qmp.dismiss_job(JOB).await?;
    engine.quit().await;
    disk.file.file.sync_all().on("flush", &disk.file.path)
}
