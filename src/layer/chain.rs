//! Reading the chain of a disk from the headers of its layers.

use std::path::PathBuf;

use super::backing_xattr;
use super::info::LayerInfo;
use super::{info, sealed};
use crate::error::{Error, Result};
use crate::model::{Chain, Config, Disk, Layer, Link};
use crate::store::Store;

/// The longest chain that is followed; beyond it something is wrong.
const MAX_DEPTH: usize = 1000;

/// Follows the headers from `layer` down to the base. A missing layer or a loop is damage.
pub fn read(store: &Store, layer: &Layer) -> Result<Chain> {
    follow(store, layer).map(|(chain, _)| chain)
}

/// The same, of layers of which each depends on what it was made on.
pub fn undisputed(store: &Store, layer: &Layer) -> Result<Chain> {
    let (chain, disputed) = follow(store, layer)?;
    disputed.map_or(Ok(chain), |info| Err(disputed_header(store, &info)))
}

/// The same as [`read`], and the first layer whose header says something else than its note.
fn follow(store: &Store, layer: &Layer) -> Result<(Chain, Option<LayerInfo>)> {
    let mut links: Vec<Link> = Vec::new();
    let (mut next, mut disputed) = (Some(layer.clone()), None);
    while let Some(layer) = next.take() {
        if links.iter().any(|link| link.layer.id == layer.id) || links.len() == MAX_DEPTH {
            return Err(Error::damaged(format!(
                "the chain of layer {} never ends",
                links[0].layer
            )));
        }
        let info = info::inspect(store, &layer)?;
        links.push(Link {
            path: store.layout.layer(&layer),
            layer,
            virtual_bytes: info.virtual_bytes,
            allocated_bytes: info.allocated_bytes,
            internal_snapshots: info.internal_snapshots,
        });
        next.clone_from(&info.backing);
        disputed = disputed.or_else(|| info.disputed.then_some(info));
    }
    let chain = Chain::from_links(links)
        .ok_or_else(|| Error::damaged(format!("layer {layer} has no chain")))?;
    Ok((chain, disputed))
}

/// The files of the chain below `layer`, as far as it can be read. One may be a link to a file that
/// is used in its place.
pub fn files(store: &Store, layer: &Layer) -> Vec<PathBuf> {
    let own = || vec![store.layout.layer(layer)];
    read(store, layer).map_or_else(
        |_| own(),
        |chain| chain.links().iter().map(|link| link.path.clone()).collect(),
    )
}

/// The chain of a disk's active layer. What it depends on has to be what it was when it was sealed.
pub fn of_disk(store: &Store, disk: &Disk) -> Result<Chain> {
    whole(store, &disk.layer)
}

/// The same as [`read`], of layers of which none has lost anything since it was sealed, and each
/// depends on what it was made on.
pub fn whole(store: &Store, layer: &Layer) -> Result<Chain> {
    let chain = undisputed(store, layer)?;
    chain.links().iter().try_for_each(|link| sealed::refuse_lost(store, &link.layer))?;
    Ok(chain)
}

/// Refuses a layer that has lost something since it was sealed, or does not depend on what it was
/// made on.
pub fn refuse_unsound(store: &Store, layer: &Layer) -> Result<()> {
    let info = info::inspect(store, layer)?;
    if info.disputed {
        return Err(disputed_header(store, &info));
    }
    sealed::refuse_lost(store, layer)
}

fn disputed_header(store: &Store, info: &LayerInfo) -> Error {
    let words = |backing: Option<&Layer>| {
        backing.map_or_else(|| "no other layer".to_owned(), Layer::to_string)
    };
    let now = words(info.backing.as_ref());
    let made = match backing_xattr::read(store, &info.layer).by_note(store) {
        Some(backing) => format!(", and it was made on {}", words(backing.as_ref())),
        None => String::new(),
    };
    Error::damaged(format!(
        "layer {} is damaged: its header names {now} as its backing file{made}",
        info.layer
    ))
    .hint("cowhand doctor --repair    writes what it was made on into its header")
    .hint(format!(
        "if it was rebased on purpose: setfattr --remove user.cowhand.backing {}",
        store.layout.layer(&info.layer).display()
    ))
}

/// Reads the chains of all volumes, which shows that they are whole, and takes over the sizes that
/// the images have now: a disk may have grown behind our back, and an overlay as small as the
/// record says would hide its end.
pub fn refresh(store: &Store, config: &mut Config) -> Result<()> {
    for disk in config.disks.iter_mut().chain(&mut config.nvram) {
        let chain = of_disk(store, disk)?;
        if chain.active().virtual_bytes != 0 {
            disk.virtual_bytes = chain.active().virtual_bytes;
        }
    }
    Ok(())
}
