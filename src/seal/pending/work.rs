//! The directory that a command works in, from its beginning to the commit.

use std::fs::File;
use std::path::PathBuf;

use uuid::Uuid;

use super::commit::refuse_full;
use super::left::{found, overlay, remove};
use super::order::{GivenDisk, Order, SCHEMA};
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::store::{atomic, make_directory};
use crate::sys::{files, flock};

/// A directory in the store for the overlays of one command. It goes with this, unless an order was
/// given in it.
#[derive(Debug)]
pub(crate) struct Work {
    directory: PathBuf,
    /// Says that a command is at work in it.
    _lock: File,
    keep: bool,
}

impl Work {
    /// A new one. What commands have left that died before they gave an order is removed.
    pub(crate) fn begin(context: &Context) -> Result<Self> {
        let store = &context.store;
        store.prepare()?;
        let all = store.layout.sealing();
        make_directory(&all)?;
        // So that no directory is seen that is made, and not yet locked.
        let guard = files::open_directory(&all).on("open", &all)?;
        flock::exclusive(&guard).on("lock", &all)?;
        for found in found(store)? {
            if found.order.is_none() && !found.is_damaged {
                remove(&found.directory)?;
            }
        }
        let directory = all.join(Uuid::new_v4().simple().to_string());
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&directory)
            .on("create", &directory)?;
        let lock = files::open_directory(&directory).on("open", &directory)?;
        // Who looks around may have it for a moment.
        flock::exclusive(&lock).on("lock", &directory)?;
        Ok(Self { directory, _lock: lock, keep: false })
    }

    /// The overlay of the disk with this number.
    pub(crate) fn overlay(&self, number: usize) -> PathBuf {
        overlay(&self.directory, number)
    }

    /// Notes that the overlays of these disks are done, and commits them: from here on they are
    /// carried on. Refused while nothing has happened when a disk's file system may have no room
    /// for what its overlay holds.
    pub(crate) async fn commit(mut self, context: &Context, disks: &[GivenDisk<'_>]) -> Result<()> {
        let overlays: Vec<PathBuf> = (0..disks.len()).map(|number| self.overlay(number)).collect();
        for overlay in &overlays {
            File::open(overlay).and_then(|file| file.sync_all()).on("flush", overlay)?;
        }
        refuse_full(disks, &overlays)?;
        let order = Order {
            schema: SCHEMA,
            started: false,
            disks: disks.iter().map(GivenDisk::stamp).collect::<Result<_>>()?,
        };
        atomic::sync_directory(&context.store.layout.sealing())?;
        order.write(&self.directory)?;
        self.keep = true;
        order.carry_out(context, &self.directory, disks).await
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.keep {
            let _ = remove(&self.directory);
        }
    }
}
