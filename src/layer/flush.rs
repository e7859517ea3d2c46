//! What a merge writes is on the disk before a header says that it is there, and before anything is
//! removed. A flush that fails counts.
//!
//! - QEMU holds the tables of a qcow2 in memory. QMP `stop` flushes them and answers `{}` whatever
//!   came of it; closing an image does the same. `blockdev-reopen` with the options that a node has
//!   flushes it, and fails when it cannot (`bdrv_reopen_prepare`, QEMU's block.c).
//! - The kernel holds pages. It reports a write-back that failed to the descriptors that were open
//!   then, to each once (`errseq_t` in the kernel's documentation), so every file is opened before
//!   its job begins.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use super::{info, opened, qcow2};
use crate::error::{Error, IoContext, Result};
use crate::model::Merge;
use crate::qemu::nodes;
use crate::qemu::qmp::{Qmp, QmpError};
use crate::store::Store;
use crate::sys::{fault, files};

/// The files that merges write, opened before they do.
pub(crate) struct Written {
    layers: Vec<Target>,
    headers: Vec<(PathBuf, File)>,
}

/// A layer that a merge copies data into.
struct Target {
    job: String,
    path: PathBuf,
    file: File,
    /// The options of its node, as they are.
    node: Value,
}

/// A layer that QEMU could not flush.
pub struct Unflushed {
    path: PathBuf,
    error: QmpError,
}

impl Unflushed {
    /// Is it unknown whether QEMU did what it was told?
    pub fn is_unknown(&self) -> bool {
        self.error.is_unknown()
    }
}

impl From<Unflushed> for Error {
    fn from(Unflushed { path, error }: Unflushed) -> Self {
        Self::qemu(format!("what was merged into {} did not reach the disk", path.display()))
            .hint("is the disk full, or failing? see the host's kernel log (dmesg)")
            .because(error)
    }
}

impl Written {
    /// Opens the files that `merges` write.
    pub(crate) fn open<'a>(
        store: &Store,
        merges: impl IntoIterator<Item = &'a Merge>,
    ) -> Result<Self> {
        let mut written = Self { layers: Vec::new(), headers: Vec::new() };
        for merge in merges {
            let layer = merge.written();
            let backing = info::inspect(store, layer)?.backing;
            written.layers.push(Target {
                job: merge.job(),
                path: store.layout.layer(layer),
                file: opened::open(store, layer)?.file,
                node: nodes::reopened(layer, backing.as_ref()),
            });
            if let Some(overlay) = &merge.overlay {
                written
                    .headers
                    .push((store.layout.layer(overlay), opened::open(store, overlay)?.file));
            }
        }
        Ok(written)
    }

    /// Lets QEMU write out what it holds of the layers that these jobs copy into.
    pub(crate) async fn flush_nodes(
        &self,
        qmp: &mut Qmp,
        jobs: &[String],
    ) -> Result<(), Unflushed> {
        for target in self.layers.iter().filter(|target| jobs.contains(&target.job)) {
            if let Err(error) = qmp.flush_node(target.node.clone()).await {
                self.forget_cached();
                return Err(Unflushed { path: target.path.clone(), error });
            }
        }
        Ok(())
    }

    /// Waits for the disk to have all that was written to the files.
    pub(crate) fn sync(&self) -> Result<()> {
        for (path, file) in self.files() {
            let flushed =
                fault::point("a merged layer, about to be flushed").and_then(|()| file.sync_data());
            flushed.inspect_err(|_| self.forget_cached()).on("flush", path)?;
        }
        Ok(())
    }

    /// After a flush that failed the kernel may take pages for written that the disk does not have.
    /// The next attempt has to read what the disk has, or it would not write them again.
    fn forget_cached(&self) {
        for (path, file) in self.files() {
            if let Err(error) = fadvise(file, 0, None, Advice::DontNeed) {
                tracing::debug!("pages of {} stay in memory: {error}", path.display());
            }
        }
    }

    fn files(&self) -> impl Iterator<Item = (&PathBuf, &File)> {
        let layers = self.layers.iter().map(|target| (&target.path, &target.file));
        layers.chain(self.headers.iter().map(|(path, file)| (path, file)))
    }
}

/// Makes sure of a header that an earlier attempt has let QEMU change: nobody knows whether the
/// disk has it. Where no QEMU has the layer open, it is written once more, because a failed
/// write-back of it may have been reported already, and would not be tried again.
pub(crate) fn header(store: &Store, merge: &Merge, in_qemu: bool) -> Result<()> {
    let Some(layer) = merge.relinked() else { return Ok(()) };
    let path = store.layout.layer(layer);
    let file = opened::open(store, layer)?.file;
    if !in_qemu {
        let mut bytes = vec![0; qcow2::HEADER_BYTES];
        let length = file.read_at(&mut bytes, 0).on("read", &path)?;
        let writable =
            File::options().write(true).open(files::proc_path(&file)).on("open", &path)?;
        writable.write_all_at(&bytes[..length], 0).on("write", &path)?;
        return writable.sync_data().on("flush", &path);
    }
    file.sync_data().on("flush", &path)
}
