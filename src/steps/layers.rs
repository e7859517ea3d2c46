//! Steps that make layers, and that change what a layer is to others: its size, its permissions.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::change::run::Run;
use crate::change::step::{Pivot, Step, Touches};
use crate::error::{Error, IoContext, Result};
use crate::layer::{chain, copy, create, info, sealed, stamp};
use crate::model::{FileId, Layer};
use crate::qemu::img::Inside;
use crate::qemu::offline::{Offline, Open};
use crate::store::schema::form;
use crate::store::{Store, plain};

/// Makes an empty qcow2 layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateOverlay {
    /// The new layer.
    pub layer: Layer,
    /// Its backing file, if it has one.
    pub backing: Option<Layer>,
    /// The size the guest sees, in bytes.
    pub virtual_bytes: u64,
}

impl Step for CreateOverlay {
    const TAG: &'static str = "make-layer";

    fn touches(&self) -> Touches {
        let backing: Vec<&Layer> = self.backing.iter().collect();
        Touches {
            made_on: Some(self.backing.clone()),
            seals: self.backing.clone(),
            ..Touches::made(&self.layer, &backing)
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        create::empty(run.store(), &self.layer, self.backing.as_ref(), self.virtual_bytes)
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        create::unmake(run.store(), &self.layer)
    }
}

/// Copies a file of the user's into a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CopyFile {
    /// The file.
    pub from: PathBuf,
    /// Which file it was when it was examined; another one in its place is not copied.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "form")]
    pub id: Option<FileId>,
    /// The new layer.
    pub layer: Layer,
    /// Its backing file, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<Layer>,
}

impl Step for CopyFile {
    const TAG: &'static str = "copy-file";

    fn touches(&self) -> Touches {
        Touches::made(&self.layer, &self.backing.iter().collect::<Vec<_>>())
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let from = (self.from.as_path(), self.id);
        let copied = copy::foreign(run.context, from, &self.layer, self.backing.as_ref()).await?;
        run.report.copied.extend(copied);
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        create::unmake(run.store(), &self.layer)
    }
}

/// Makes a qcow2 layer with the content of a small raw file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrapFile {
    /// The file.
    pub from: PathBuf,
    /// The new layer.
    pub layer: Layer,
}

impl Step for WrapFile {
    const TAG: &'static str = "wrap-file";

    fn touches(&self) -> Touches {
        Touches::made(&self.layer, &[])
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        create::whole(run.store(), &self.from, &self.layer)
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        create::unmake(run.store(), &self.layer)
    }
}

/// Makes a layer that is an independent copy of another one and its backing files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CopyChain {
    /// What is copied.
    pub source: Layer,
    /// The new layer.
    pub layer: Layer,
}

impl Step for CopyChain {
    const TAG: &'static str = "copy-chain";

    fn touches(&self) -> Touches {
        Touches::made(&self.layer, &[&self.source])
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let copied = copy::chain(run.context, &self.source, &self.layer).await?;
        run.report.copied.extend(copied);
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        create::unmake(run.store(), &self.layer)
    }
}

/// Makes a layer that is an independent copy of what an internal snapshot holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CopyInternal {
    /// The layer that carries the internal snapshot.
    pub source: Layer,
    /// The name of the snapshot in there.
    pub tag: String,
    /// The size that the disk had then, in bytes.
    pub virtual_bytes: u64,
    /// The new layer.
    pub layer: Layer,
}

impl Step for CopyInternal {
    const TAG: &'static str = "copy-internal";

    fn touches(&self) -> Touches {
        Touches::made(&self.layer, &[&self.source])
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let inside = Inside { tag: &self.tag, virtual_bytes: self.virtual_bytes };
        copy::inner(run.context, &self.source, &inside, &self.layer).await
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        create::unmake(run.store(), &self.layer)
    }
}

/// Makes a layer that is a file of the user's, in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkFile {
    /// The file.
    pub file: PathBuf,
    /// The new layer.
    pub layer: Layer,
}

impl Step for LinkFile {
    const TAG: &'static str = "link-file";

    fn touches(&self) -> Touches {
        Touches::made(&self.layer, &[])
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        create::link(run.store(), &self.layer, &self.file)
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        create::unmake(run.store(), &self.layer)
    }
}

/// Sets the permission bits of layers' files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetMode {
    /// Which.
    pub layers: Vec<Layer>,
    /// Their bits before, in the same order.
    pub before: Vec<u32>,
    /// The bits.
    pub mode: u32,
}

impl Step for SetMode {
    const TAG: &'static str = "set-mode";

    fn touches(&self) -> Touches {
        Touches { only_modes: true, ..Touches::changed(&self.layers) }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        if run.report.unmerged.is_some() {
            return Ok(());
        }
        let store = run.store();
        if self.mode & 0o222 == 0 {
            // Afterwards its owner may not write a note.
            self.layers.iter().for_each(|layer| sealed::note(store, layer));
        }
        self.layers.iter().try_for_each(|layer| set_mode(store, layer, self.mode))?;
        let stamps =
            self.layers.iter().map(|layer| stamp::of(store, layer)).collect::<Result<_>>()?;
        run.report.stamps = Some(stamps);
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        let store = run.store();
        self.layers.iter().zip(&self.before).try_for_each(|(layer, mode)| {
            // An image that was not copied yet.
            if !plain::is_there(&store.layout.layer(layer)) {
                return Ok(());
            }
            set_mode(store, layer, *mode)?;
            // A template that was not made has an active layer.
            if mode & 0o222 != 0 {
                sealed::forget(store, layer);
            }
            Ok(())
        })
    }
}

fn set_mode(store: &Store, layer: &Layer, mode: u32) -> Result<()> {
    let path = store.layout.layer(layer);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        .on("set the permissions of", &path)
}

/// Gives a disk another size: by QMP `block_resize`, of a VM that does not run in the offline
/// engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resize {
    /// The guest's name for the disk.
    pub target: String,
    /// Its active layer.
    pub layer: Layer,
    /// The size before, in bytes.
    pub before: u64,
    /// The size afterwards, in bytes.
    pub after: u64,
}

impl Pivot for Resize {}

impl Step for Resize {
    const TAG: &'static str = "resize";

    fn touches(&self) -> Touches {
        Touches::pinned(std::slice::from_ref(&self.layer))
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let (context, layer) = (run.context, &self.layer);
        if self.is_done(&context.store)? {
            return Ok(());
        }
        sealed::forget(&context.store, layer);
        let size = json!({"node-name": layer.node(), "size": self.after});
        if let Some(qmp) = run.qmp().await? {
            return Ok(qmp.call::<Value>("block_resize", size).await.map(drop)?);
        }
        let chain = chain::undisputed(&context.store, layer)?;
        let mut engine = Offline::start(context, &[Open::active(&chain)], None).await?;
        let resized = engine.qmp.call::<Value>("block_resize", size).await;
        engine.quit().await;
        resized.map(drop).map_err(Error::from)
    }

    async fn happened(&self, run: &mut Run<'_>) -> Result<Option<bool>> {
        self.is_done(run.store()).map(Some)
    }
}

impl Resize {
    fn is_done(&self, store: &Store) -> Result<bool> {
        Ok(info::inspect(store, &self.layer)?.virtual_bytes == self.after)
    }
}
