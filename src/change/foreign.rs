//! A journal is executed only on what is its VM's: undoing one removes the layers that it makes,
//! and completing one writes to layers and removes others. One that names what another VM has, or
//! makes what was there before, is damaged: it is neither undone nor completed.

use std::path::{Component, Path};

use uuid::Uuid;

use super::planned::Planned;
use super::step::Touches;
use crate::error::{Error, Result};
use crate::layer::{info, scan};
use crate::model::{Layer, LayerId, Merge, Name, Record};
use crate::store::journal::Journal;
use crate::store::{Store, how_to_mend, plain};

/// Refuses such a journal of `name`. `saved`: the record is one that the change has written.
pub(super) fn refuse(
    store: &Store,
    name: &Name,
    journal: &Journal<Planned>,
    saved: bool,
) -> Result<()> {
    let own = match store.load(name) {
        Err(error) if error.is_passing() => return Err(error),
        other => other.ok(),
    };
    let why = match wrong_by_records(store, name, own.as_ref(), journal, saved)? {
        None => wrong_by_trash(store, own.as_ref().map(|own| own.uuid), journal)?,
        why => why,
    };
    let why = if why.is_none() { wrong_by_headers(store, journal, saved)? } else { why };
    why.map_or(Ok(()), |why| {
        let path = store.layout.journal(name);
        let operation = journal.command();
        Err(Error::damaged(format!(
            "the journal of {name} is wrong: `{operation}` would change or remove {why}: {}",
            path.display()
        ))
        .hint(how_to_mend(name)))
    })
}

/// What steps write to, make or take away, in words, that another VM has; or that the VM itself had
/// before the change, or has after it.
fn wrong_by_records(
    store: &Store,
    name: &Name,
    own: Option<&Record>,
    journal: &Journal<Planned>,
    saved: bool,
) -> Result<Option<String>> {
    let mut others = Vec::new();
    for other in store.names()?.into_iter().filter(|other| other != name) {
        for read in [Some(store.load(&other)), store.load_spare(&other)].into_iter().flatten() {
            match read {
                Ok(record) => others.push((other.clone(), record)),
                // What it names is not known now, and can be soon.
                Err(error) if error.is_passing() => return Err(error),
                // Of what is damaged or gone, the headers tell.
                Err(_) => {}
            }
        }
    }
    // Where both name a layer, the other record may be the wrong one.
    let of_another = |layer: &Layer| {
        let other = others.iter().find(|(_, record)| names(record, layer)).map(|(other, _)| other);
        other.filter(|_| !own.is_some_and(|own| names(own, layer)))
    };
    let before = own.filter(|_| !saved);
    let touches: Vec<Touches> = journal.steps.iter().map(Planned::touches).collect();
    let after = touches.iter().rev().filter(|touches| touches.writes_record).find_map(record);
    for touches in &touches {
        let heads = record(touches)
            .into_iter()
            .flat_map(|record| record.config.writable().cloned().collect::<Vec<_>>());
        let heads: Vec<Layer> = heads.map(|disk| disk.layer).collect();
        let found = touches
            .changes
            .iter()
            .chain(&heads)
            .find_map(|layer| Some((layer, of_another(layer)?)));
        if let Some((layer, other)) = found {
            return Ok(Some(format!("layer {layer}, which belongs to {other}")));
        }
        for (other, record) in &others {
            if let Some(image) = touches.images.iter().find(|image| has(record, image)) {
                return Ok(Some(format!("memory {image}, which belongs to {other}")));
            }
        }
        let is_made = touches.is_undone_by_removal;
        let (kept, when) = if is_made { (before, "before") } else { (after.as_ref(), "after") };
        let Some(kept) = kept.filter(|_| is_made || touches.removes) else { continue };
        if let Some(layer) = touches.changes.iter().find(|layer| names(kept, layer)) {
            return Ok(Some(format!("layer {layer}, which {name} has {when} it")));
        }
        if let Some(image) = touches.images.iter().find(|image| has(kept, image)) {
            return Ok(Some(format!("memory {image}, which {name} has {when} it")));
        }
    }
    if !touches.iter().any(|touches| !touches.merges.is_empty() || touches.removes) {
        return Ok(None);
    }
    let overruling = own.map(|own| store.overruling(name, own)).transpose()?.flatten();
    Ok(overruling
        .map(|_| "its own layers, while its record names others than the spare copy".to_owned()))
}

/// The same of directories of the trash: what lies there belongs to the VM `own`.
fn wrong_by_trash(
    store: &Store,
    own: Option<Uuid>,
    journal: &Journal<Planned>,
) -> Result<Option<String>> {
    let touches: Vec<Touches> = journal.steps.iter().map(Planned::touches).collect();
    for directory in touches.iter().filter_map(|touches| touches.trash.as_ref()) {
        let mut parts = Path::new(directory).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Ok(Some(format!("{directory:?}, which is no directory of the trash")));
        }
        let path = store.layout.trash().join(directory);
        if !plain::is_there(&path.join("entry.json")) {
            continue;
        }
        let found = store.list_trash()?.into_iter().find(|found| found.path == path);
        match found.map(|found| found.entry) {
            Some(Ok(entry)) if entry.uuid().zip(own).is_some_and(|(uuid, own)| uuid != own) => {
                return Ok(Some(format!("{directory} in the trash, which is another VM's")));
            }
            Some(Err(error)) if error.is_passing() => return Err(error),
            Some(Err(_))
                if touches.iter().any(|touches| {
                    touches.drops_trash && touches.trash.as_ref() == Some(directory)
                }) =>
            {
                return Ok(Some(format!("{directory} in the trash, whose entry cannot be read")));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// The same of layers that steps make, or give another backing file, as their headers tell.
fn wrong_by_headers(
    store: &Store,
    journal: &Journal<Planned>,
    saved: bool,
) -> Result<Option<String>> {
    // Of one that cannot be read nothing can be said.
    let backing = |layer: &Layer| info::inspect(store, layer).ok().map(|info| info.backing);
    let touches: Vec<Touches> = journal.steps.iter().map(Planned::touches).collect();
    let merges = || touches.iter().flat_map(|touches| &touches.merges);
    for overlay in merges().filter_map(|merge| merge.overlay.as_ref()) {
        // It depends on what is merged, or on what that was merged into.
        let is_merged =
            |backing: &Layer| merges().flat_map(Merge::layers).any(|layer| layer == backing);
        if backing(overlay).is_some_and(|backing| !backing.as_ref().is_some_and(is_merged)) {
            return Ok(Some(format!("layer {overlay}, which is not backed by what it merges")));
        }
    }
    if saved {
        return Ok(None);
    }
    let is_there = |layer: &&Layer| store.layout.layer(layer).symlink_metadata().is_ok();
    let made: Vec<&Layer> =
        touches.iter().filter_map(|touches| touches.makes.as_ref()).filter(is_there).collect();
    if made.is_empty() {
        return Ok(None);
    }
    if let Some(above) = scan::backed_by(store, &made)?.iter().find(|above| !made.contains(above)) {
        return Ok(Some(format!("the backing file of layer {above}")));
    }
    Ok(touches.iter().find_map(|touches| {
        let (layer, on) = (touches.makes.as_ref()?, touches.made_on.as_ref()?);
        let is_other = made.contains(&layer) && backing(layer)? != *on;
        is_other.then(|| format!("layer {layer}, which was not made by it"))
    }))
}

/// The record that a step writes, or starts QEMU with.
fn record(touches: &Touches) -> Option<Record> {
    Record::try_from((**touches.record.as_ref()?).clone()).ok()
}

fn names(record: &Record, layer: &Layer) -> bool {
    record.layers().any(|named| named == layer)
}

fn has(record: &Record, image: &LayerId) -> bool {
    record.memory_images().any(|id| id == image)
}
