//! Making layers: empty ones by writing a qcow2 header ourselves, others from the user's files.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{info, opened, qcow2};
use crate::error::{IoContext, Result};
use crate::model::{Format, Layer};
use crate::store::{Store, atomic};
use crate::sys::fault;

/// Writes an empty qcow2 layer, depending on `backing` if there is one, and makes it durable.
///
/// It is written beside its place and renamed, so that a layer that exists is whole. One that
/// exists already is left alone.
pub fn empty(
    store: &Store,
    layer: &Layer,
    backing: Option<&Layer>,
    virtual_bytes: u64,
) -> Result<()> {
    if store.layout.layer(layer).exists() {
        return Ok(());
    }
    let backing_name = backing.map(Layer::file_name);
    let backing = backing_name.as_deref().zip(backing.map(|layer| layer.format));
    empty_at(&store.layout.partial_layer(layer), backing, virtual_bytes)?;
    finish(store, layer)
}

/// Writes an empty qcow2 image to `path` (0600), replacing what is there, and flushes it.
pub fn empty_at(path: &Path, backing: Option<(&str, Format)>, virtual_bytes: u64) -> Result<()> {
    write(path, &qcow2::empty(virtual_bytes, backing)?)
}

/// Writes a small file's content as a qcow2 layer, and makes it durable. One that exists already is
/// left alone.
pub fn whole(store: &Store, from: &Path, layer: &Layer) -> Result<()> {
    if store.layout.layer(layer).exists() {
        return Ok(());
    }
    let data = std::fs::read(from).on("read", from)?;
    write(&store.layout.partial_layer(layer), &qcow2::whole(&data)?)?;
    finish(store, layer)
}

fn write(path: &Path, image: &qcow2::Empty) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .on("create", path)?;
    for (at, bytes) in &image.pieces {
        file.write_all_at(bytes, *at).on("write", path)?;
    }
    file.set_len(image.length).on("write", path)?;
    file.sync_all().on("flush", path)
}

/// Makes an empty file that nobody else may read, for a program that would make it readable.
pub fn private(path: &Path) -> Result<()> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .on("create", path)
}

/// Makes the user's own file a layer by a symbolic link: it stays where it is and is written in
/// place.
pub fn link(store: &Store, layer: &Layer, file: &Path) -> Result<()> {
    let path = store.layout.layer(layer);
    if path.is_symlink() {
        return Ok(());
    }
    std::os::unix::fs::symlink(opened::link_target(file), &path).on("create", &path)?;
    atomic::sync_directory(&store.layout.layers())
}

/// Gives a layer that is whole its name.
pub fn finish(store: &Store, layer: &Layer) -> Result<()> {
    let partial = store.layout.partial_layer(layer);
    fault::point("a layer, written").on("rename", &partial)?;
    std::fs::rename(&partial, store.layout.layer(layer)).on("rename", &partial)?;
    fault::point("a layer, in its place").on("flush", &partial)?;
    atomic::sync_directory(&store.layout.layers())?;
    info::note_backing(store, layer);
    Ok(())
}

/// Removes a layer that was just made and never used, finished or not.
pub fn unmake(store: &Store, layer: &Layer) -> Result<()> {
    for path in [store.layout.partial_layer(layer), store.layout.layer(layer)] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).on("remove", &path);
            }
            _ => {}
        }
    }
    Ok(())
}
