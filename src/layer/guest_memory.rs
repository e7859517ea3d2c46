//! The memory of a guest in the active part of a qcow2 image.
//!
//! QMP `snapshot-load` makes the tables of the internal snapshot the active ones, with those that
//! lead to the memory it has loaded. Nothing reads that any more, and no command of QEMU's gives it
//! up: it stays, when the internal snapshot is removed, and every later one carries it along. So
//! its entries are taken out of the active L1 table here, and `qemu-img check -r leaks` frees what
//! nothing leads to any more (`qcow2_snapshot_goto` in QEMU's `block/qcow2-snapshot.c`;
//! `docs/interop/qcow2.txt`, "Snapshots").

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rustix::fs::OFlags;

use super::{chain, info, inspect, qcow2};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::Layer;
use crate::qemu::img::{Img, Repair, Source};
use crate::sys::image_lock;

/// Gives up the memory in the active part of `layer`, if there is any. Nobody has it open. An image
/// with any damage stays as it is, which is an error. Cut short, it leaves at most clusters that
/// nothing uses, which `disk check --repair` frees.
pub(crate) async fn give_up(context: &Context, layer: &Layer) -> Result<()> {
    let store = &context.store;
    let is_there = || Ok::<_, Error>(info::inspect(store, layer)?.guest_memory);
    if !is_there()? {
        return Ok(());
    }
    let path = store.layout.layer(layer);
    let refused = |why: &str| Err(Error::refused(format!("{why}: {}", path.display())));
    if path.is_symlink() {
        return refused(
            "it is a file that is used in its place, which is left as its owner made it",
        );
    }
    let img = Img::find(context)?.reading(chain::files(store, layer));
    let source = || Source::File(&path, layer.format);
    // In a damaged image, a cluster of the memory may be one of the disk as well.
    let found = img.check(&path, source(), false, Repair::Nothing).await?;
    if found.corruptions > 0 || found.errors > 0 {
        return refused("the image is damaged");
    }
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let file =
        File::options().read(true).write(true).custom_flags(flags).open(&path).on("open", &path)?;
    let mut start = vec![0; qcow2::HEADER_BYTES];
    let length = inspect::Source::read_at(&file, 0, &mut start).on("read", &path)?;
    start.truncate(length);
    if qcow2::is_dirty_or_corrupt(&start) {
        return refused("the image was not closed in order by the last program that wrote to it");
    }
    let (at, bytes) = qcow2::l1_table(&start);
    let mut l1 = vec![0; bytes];
    inspect::Source::read_at(&file, at, &mut l1).on("read", &path)?;
    let entries = qcow2::memory_entries(&start, &l1);
    if image_lock::is_open(&path).on("look at the locks of", &path)? {
        return refused("another program has the image open");
    }
    file.write_all_at(&vec![0; entries.len()], at + entries.start as u64).on("write", &path)?;
    // Before their reference counts change: a table in use must not lead to free clusters.
    file.sync_data().on("flush", &path)?;
    img.check(&path, source(), false, Repair::Leaks).await?;
    Ok(())
}
