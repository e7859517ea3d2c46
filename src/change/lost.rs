//! Is a directory without a record and a spare copy that of a VM which never came to be, or of one
//! that has lost them? What such a VM had is named by nobody.

use super::planned::Planned;
use super::step::Touches;
use crate::error::Result;
use crate::layer::graph::LayerGraph;
use crate::model::{Layer, Name, Record};
use crate::store::journal::Journal;
use crate::store::{Store, plain, schema};
use crate::sys::flock;

/// Whether a VM may have lost its record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// None has: each layer is named.
    Nothing,
    /// These layers are named by nobody, and no removal has left them.
    Layers(Vec<Layer>),
    /// Who uses what is uncertain.
    Unknown,
}

/// The directories without a record, a spare copy, a journal and anybody at work on them, where a
/// VM may have lost its record.
pub(crate) fn directories(store: &Store) -> Result<Vec<Name>> {
    let mut lost = store.directories()?;
    lost.retain(|name| {
        let is_busy = || flock::is_held(&store.layout.lock(name)).unwrap_or(true);
        !store.exists(name) && !is_busy() && !store.exists(name) && !store.has_journal(name)
    });
    Ok(if lost.is_empty() || look(store)? == Lost::Nothing { Vec::new() } else { lost })
}

/// Looks for layers that a VM may have lost with its record.
pub(crate) fn look(store: &Store) -> Result<Lost> {
    let first = match look_once(store)? {
        Lost::Layers(first) => first,
        other => return Ok(other),
    };
    // What is just being taken out of the trash, or removed, is named, or gone, at the second look.
    Ok(match look_once(store)? {
        Lost::Layers(mut second) => {
            second.retain(|layer| first.contains(layer));
            if second.is_empty() { Lost::Nothing } else { Lost::Layers(second) }
        }
        other => other,
    })
}

fn look_once(store: &Store) -> Result<Lost> {
    let (mut graph, below_trash) = LayerGraph::scan_with_trash(store)?;
    graph.add_spares(store)?;
    let mut claimed: Vec<Layer> = Vec::new();
    let mut records = Vec::new();
    for found in store.list_trash()? {
        // The layers of a VM that was removed while nobody could say who else needs them stay in
        // the pool.
        records.extend(["vm/vm.json", "vm/vm.json.spare"].map(|file| found.path.join(file)));
        claimed.extend(found.entry.into_iter().flat_map(|entry| entry.layers));
    }
    records.extend(store.gone()?.into_iter().map(|path| path.join("vm.json")));
    let records = records
        .into_iter()
        .filter_map(|path| schema::parse_record(&plain::read_if_possible(&path)?).ok());
    claimed.extend(records.flat_map(|record| record.layers().cloned().collect::<Vec<_>>()));
    // Hidden layers back others, and no record names them; but those of templates are never hidden,
    // and read-only.
    let is_of_a_template = |layer: &Layer| {
        let about = store.layout.layer(layer).symlink_metadata();
        graph.uses(&layer.id).is_empty()
            && about.is_ok_and(|about| about.is_file() && about.permissions().readonly())
    };
    let used = graph.used();
    let is_lost = |layer: &&Layer| {
        let is_free = !used.contains(&layer.id) || is_of_a_template(layer);
        let is_kept = below_trash.contains(&layer.id) || claimed.contains(layer);
        is_free && !is_kept && plain::is_there(&store.layout.layer(layer))
    };
    let lost: Vec<Layer> = graph
        .layers
        .values()
        .map(|info| &info.layer)
        .chain(&graph.damaged)
        .filter(is_lost)
        .cloned()
        .collect();
    Ok(match (lost.is_empty(), graph.uncertainty(None)) {
        (true, _) => Lost::Nothing,
        (false, None) => Lost::Layers(lost),
        (false, Some(_)) => Lost::Unknown,
    })
}

/// What is said of a VM that may have had these layers.
pub(crate) fn missing(name: &Name, layers: &[Layer]) -> String {
    let layers: Vec<String> = layers.iter().map(Layer::to_string).collect();
    format!(
        "the record of {name} is missing, and so is its spare copy; layers that no record names \
         may belong to it: {}",
        layers.join(", ")
    )
}

/// Does this journal make a VM, with all that it writes to? Otherwise the VM was there before, and
/// has lost its record.
pub(crate) fn makes_its_vm(journal: &Journal<Planned>) -> bool {
    let touches: Vec<Touches> = journal.steps.iter().map(Planned::touches).collect();
    let makes = |layer: &Layer| touches.iter().any(|touches| touches.makes.as_ref() == Some(layer));
    let mut is_made = false;
    for touches in &touches {
        if let Some(record) = touches.record.as_ref().filter(|_| touches.writes_record) {
            let Ok(record) = Record::try_from((**record).clone()) else { return false };
            let snapshots = record.snapshots.iter().flat_map(|snapshot| snapshot.config.writable());
            // One that comes from elsewhere has its snapshots from the beginning.
            is_made = record.config.writable().chain(snapshots).all(|disk| makes(&disk.layer));
            continue;
        }
        // An image of the store is made read-only before it has a record.
        let is_prepared = touches.only_modes && touches.changes.iter().all(makes);
        if touches.makes.is_none() && !is_prepared {
            return false;
        }
    }
    is_made
}
