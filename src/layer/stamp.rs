//! What a sealed layer's file looks like, to notice that it is not what it was: a template edited behind our back, or a layer that was
//! merged with another meanwhile.

use std::os::unix::fs::MetadataExt;

use super::chain;
use crate::error::{IoContext, Result};
use crate::model::{Layer, LayerStamp};
use crate::store::Store;

/// What it looks like now.
pub fn of(store: &Store, layer: &Layer) -> Result<LayerStamp> {
    let path = store.layout.layer(layer);
    let about = std::fs::metadata(&path).on("read", &path)?;
    let modified_ns = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
    Ok(LayerStamp { layer: layer.clone(), bytes: about.len(), modified_ns })
}

/// The stamps of everything that `layer` stands on.
pub fn below(store: &Store, layer: &Layer) -> Result<Vec<LayerStamp>> {
    chain::read(store, layer)?.links()[1..].iter().map(|link| of(store, &link.layer)).collect()
}

/// The first of these layers that is not what it was, if any.
pub fn changed<'a>(store: &Store, stamps: &'a [LayerStamp]) -> Option<&'a Layer> {
    stamps.iter().find(|old| of(store, &old.layer).ok().as_ref() != Some(old)).map(|old| &old.layer)
}
