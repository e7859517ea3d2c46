//! Copying layers: shared blocks where the file system can, else the data alone; a chain of several
//! layers becomes one.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::inspect::{self, Reference, Role};
use super::{blocking, chain as chains, create, foreign, opened};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{FileId, Layer};
use crate::qemu::img::{Img, Inside};
use crate::qemu::offline::{self, Offline};
use crate::sys::sparse::{self, Method};

/// Copies the layer `from` as `layer`, durably. One that exists already is left alone.
pub(crate) async fn file(context: &Context, from: &Layer, layer: &Layer) -> Result<Option<Method>> {
    if context.store.layout.layer(layer).exists() {
        return Ok(None);
    }
    let path = context.store.layout.layer(from);
    let opened = opened::open(&context.store, from)?;
    let method = begin(context, (&path, opened.file), layer).await?;
    // Its owner may have written to it, or exchanged it, since it was looked at.
    if opened.in_place.is_some() {
        let partial = context.store.layout.partial_layer(layer);
        if let Err(error) =
            refuse_changed(&partial, layer, None, &format!("layer {from}, a file in its place,"))
        {
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
    }
    create::finish(&context.store, layer)?;
    Ok(Some(method))
}

/// Copies the file `from`, which comes from outside, into the pool as `layer`, durably, and backs
/// it by `backing`. Its owner may have put another file in its place since it was inspected, which
/// is not copied, or changed it, so the copy is inspected, too.
pub(crate) async fn foreign(
    context: &Context,
    (from, id): (&Path, Option<FileId>),
    layer: &Layer,
    backing: Option<&Layer>,
) -> Result<Option<Method>> {
    let store = &context.store;
    if store.layout.layer(layer).exists() {
        return Ok(None);
    }
    let shown = from.display().to_string();
    let opened = foreign::open(from)?.file;
    let about = opened.metadata().on("look at", from)?;
    if id.is_some_and(|id| id != FileId { device: about.dev(), inode: about.ino() }) {
        return Err(Error::refused(format!("{shown} was replaced while it was looked at")));
    }
    let method = begin(context, (from, opened), layer).await?;
    let partial = store.layout.partial_layer(layer);
    let result = match backing {
        Some(_) => Img::find(context)?.set_backing(&partial, backing).await,
        None => Ok(()),
    };
    if let Err(error) = result.and_then(|()| refuse_changed(&partial, layer, backing, &shown)) {
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    create::finish(store, layer)?;
    Ok(Some(method))
}

/// A copy has to name what it was told to, and nothing else.
fn refuse_changed(copy: &Path, layer: &Layer, backing: Option<&Layer>, shown: &str) -> Result<()> {
    let file = std::fs::File::open(copy).on("open", copy)?;
    let found = inspect::inspect(&file, layer.format).on("read the headers of", copy)?;
    let wanted: Vec<Reference> = backing
        .iter()
        .map(|backing| Reference { role: Role::Backing, name: Some(backing.file_name()) })
        .collect();
    if found.names != wanted || found.unusable.is_some() {
        return Err(Error::refused(format!("{shown} was changed while it was copied")));
    }
    Ok(())
}

/// Copies the file `from`, which is open, to where `layer` is made.
async fn begin(context: &Context, (from, opened): (&Path, File), layer: &Layer) -> Result<Method> {
    let partial = context.store.layout.partial_layer(layer);
    let _ = std::fs::remove_file(&partial);
    copy(context, (from, opened), partial).await
}

/// Copies the file of a layer to `to`, which must not exist, as it is: it names the layer below as
/// before.
pub(crate) async fn out(context: &Context, layer: &Layer, to: &Path) -> Result<()> {
    let path = context.store.layout.layer(layer);
    let opened = opened::open(&context.store, layer)?;
    copy(context, (&path, opened.file), to.to_owned()).await?;
    match opened.in_place {
        // Its owner may have written to it, or exchanged it, since it was looked at.
        Some(_) => refuse_changed(to, layer, None, &path.display().to_string()),
        None => Ok(()),
    }
}

async fn copy(context: &Context, (from, opened): (&Path, File), to: PathBuf) -> Result<Method> {
    let total = opened.metadata().map(|about| about.blocks() * 512).on("read", from)?;
    let task = context.ui.task(
        &format!("copying {}", from.file_name().unwrap_or_default().to_string_lossy()),
        total,
    );
    let copied = blocking::run(&*task, total, move |counter, stop| {
        sparse::copy(&opened, &to, counter, stop)
    });
    copied.await.on("copy", from)
}

/// Makes `layer` an independent copy of the chain below `source`: a single layer is copied as a
/// file, a longer chain is flattened into a new qcow2 by QEMU (`blockdev-backup`, `sync: full`, in
/// the offline engine).
pub(crate) async fn chain(
    context: &Context,
    source: &Layer,
    layer: &Layer,
) -> Result<Option<Method>> {
    let store = &context.store;
    let chain = chains::whole(store, source)?;
    // A file is copied with all that is in it; internal snapshots belong to the source.
    if chain.links().len() == 1 && chain.active().internal_snapshots == 0 {
        return file(context, source, layer).await;
    }
    if store.layout.layer(layer).exists() {
        return Ok(None);
    }
    let partial = store.layout.partial_layer(layer);
    create::unmake(store, layer)?;
    let total = chain.links().iter().map(|link| link.allocated_bytes).sum();
    let task = context.ui.task(&format!("copying {source}"), total);
    create::empty_at(&partial, None, chain.active().virtual_bytes)?;
    // Opened before it is written: a write-back that fails is reported to nobody who comes later.
    let file = File::open(&partial).on("open", &partial)?;
    let mut engine =
        Offline::start(context, &[offline::Open::read_only(&chain)], Some(&partial)).await?;
    let copied = engine.copy_into(&chain.active().layer.node(), &partial, &*task).await;
    engine.quit().await;
    if let Err(error) = copied {
        let _ = std::fs::remove_file(&partial);
        return Err(Error::new(Kind::Qemu, format!("cannot copy the chain of layer {source}"))
            .because(error));
    }
    file.sync_all().on("flush", &partial)?;
    create::finish(store, layer)?;
    Ok(Some(Method::Copied))
}

/// Makes `layer`, a qcow2, an independent copy of what an internal snapshot of `source` holds
/// (`qemu-img convert -l`).
pub(crate) async fn inner(
    context: &Context,
    source: &Layer,
    inside: &Inside<'_>,
    layer: &Layer,
) -> Result<()> {
    let store = &context.store;
    if store.layout.layer(layer).exists() {
        return Ok(());
    }
    let partial = store.layout.partial_layer(layer);
    create::unmake(store, layer)?;
    create::private(&partial)?;
    let file = File::open(&partial).on("open", &partial)?;
    let from = (store.layout.layer(source), source.format);
    let task = context.ui.task(&format!("copying {}", inside.tag), 0);
    let files = chains::files(store, source);
    Img::find(context)?.reading(files).convert_inner((&from.0, from.1), inside, &partial).await?;
    drop(task);
    file.sync_all().on("flush", &partial)?;
    create::finish(store, layer)
}
