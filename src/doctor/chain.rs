//! The chains below a VM: every layer that is named has to be there, and has to stand on what it stood on.

use super::{Finding, Remedy};
use crate::context::Context;
pub use crate::layer::chain::read;
use crate::layer::pool::{self, Pool};
use crate::model::{Layer, Name, Record, SnapshotKind};
use crate::store::Store;

/// The first thing that is wrong on the way down from a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// There is no such file; `above` has it as its backing file.
    Missing { layer: Layer, above: Option<Layer> },
    /// Its header cannot be trusted.
    Header { layer: Layer, why: String },
    /// It stands on a layer that has nothing to do with it.
    Foreign { layer: Layer, backing: Layer },
    /// Its backing file stands on itself.
    Loop { layer: Layer },
}

impl Fault {
    /// The layer whose file or header is wrong.
    fn is_about(&self) -> &Layer {
        match self {
            Self::Missing { layer, .. } | Self::Header { layer, .. } => layer,
            Self::Foreign { layer, .. } | Self::Loop { layer } => layer,
        }
    }
}

fn fault(store: &Store, layer: &Layer) -> Option<Fault> {
    let (mut seen, mut next) = (Vec::<Layer>::new(), Some(layer.clone()));
    while let Some(layer) = next {
        let above = seen.last().cloned();
        if seen.contains(&layer) {
            return above.map(|layer| Fault::Loop { layer });
        }
        if !store.layout.layer(&layer).exists() {
            return Some(Fault::Missing { layer, above });
        }
        match pool::inspect(store, &layer) {
            Ok(info) => next = info.backing,
            Err(error) => return Some(Fault::Header { layer, why: error.full_message() }),
        }
        seen.push(layer);
    }
    None
}

/// A whole chain, but a wrong one: what the layer stands on is neither above nor below what it should stand on. Below is fine: what lay between
/// them was copied up (`disk stream`, `flatten`).
fn foreign(store: &Store, records: &[(Name, Record)], layer: &Layer) -> Option<Fault> {
    let expected = expected_backing(records, layer)?;
    let backing = pool::inspect(store, layer).ok()?.backing?;
    let related = |one: &Layer, other: &Layer| read(store, one).map_or(true, |chain| chain.contains(&other.id));
    let wrong = !related(&expected, &backing) && !related(&backing, &expected);
    wrong.then(|| Fault::Foreign { layer: layer.clone(), backing })
}

/// Looks at everything `record` names.
pub fn examine(context: &Context, pool: &Pool, name: &Name, record: &Record) -> Vec<Finding> {
    let store = &context.store;
    let names = store.names().unwrap_or_default();
    let records: Vec<(Name, Record)> =
        names.into_iter().filter_map(|name| Some((name.clone(), store.load(&name).ok()?))).collect();
    let mut named: Vec<(String, &Layer)> =
        record.config.volumes().map(|disk| (disk.target.clone(), &disk.layer)).collect();
    for snapshot in &record.snapshots {
        named.extend(
            snapshot
                .config
                .volumes()
                .map(|disk| (format!("{} at snapshot {}", disk.target, snapshot.name), &disk.layer)),
        );
    }
    let mut faults: Vec<(Fault, Vec<String>)> = Vec::new();
    for (place, layer) in named {
        let Some(fault) = fault(store, layer).or_else(|| foreign(store, &records, layer)) else { continue };
        match faults.iter_mut().find(|(other, _)| other.is_about() == fault.is_about()) {
            // What is named itself is missing, whatever stands on it.
            Some((other, places)) => {
                places.push(place);
                if let Fault::Missing { above: None, .. } = fault {
                    *other = fault;
                }
            }
            None => faults.push((fault, vec![place])),
        }
    }
    faults.into_iter().map(|(fault, places)| describe(store, pool, &records, name, fault, &places.join(", "))).collect()
}

fn describe(
    store: &Store,
    pool: &Pool,
    records: &[(Name, Record)],
    name: &Name,
    fault: Fault,
    places: &str,
) -> Finding {
    let lost = |finding: Finding| {
        finding.hint(format!("bring the file back from a backup; what else {name} has can still be read: cowhand image export {name}@SNAPSHOT FILE"))
    };
    let (message, layer) = match fault {
        Fault::Missing { layer, above } => {
            let path = store.layout.layer(&layer);
            let message = format!("the file {} is missing ({places})", path.display());
            if let Some(trash) = in_trash(store, &layer) {
                return Finding::fail("chain", format!("{message}; it is in the trash"))
                    .of(name)
                    .hint(format!("cowhand doctor {name} --repair    takes it out again"))
                    .remedy(Some(Remedy::RestoreLayer { layer, trash }));
            }
            let Some(above) = above else { return lost(Finding::fail("chain", message).of(name)) };
            (format!("{message}; layer {above} has it as its backing file"), above)
        }
        Fault::Header { layer, why } => (format!("{why} ({places})"), layer),
        Fault::Foreign { layer, backing } => {
            (format!("layer {layer} stands on {backing}, where it does not belong ({places})"), layer)
        }
        Fault::Loop { layer } => (format!("layer {layer} stands on itself ({places})"), layer),
    };
    let finding = Finding::fail("chain", message).of(name);
    match expected_backing(records, &layer) {
        Some(backing) if usable(store, pool, &layer, &backing) => finding
            .hint(format!("by the records it stands on {backing}: cowhand doctor {name} --repair    writes that into its header"))
            .remedy(Some(Remedy::SetBacking { layer, backing })),
        Some(backing) => finding.hint(format!(
            "by the records it stands on {backing}, but that cannot be made sure of: another layer that nobody names may lie between them"
        )),
        None => lost(finding),
    }
}

/// May `backing` be written into the header of `layer`? Not when a layer that nobody names any more stands on it: that one may be the real
/// backing file.
fn usable(store: &Store, pool: &Pool, layer: &Layer, backing: &Layer) -> bool {
    let Ok(chain) = read(store, backing) else { return false };
    let is_qcow2 = pool::read_start(&store.layout.layer(layer)).is_ok_and(|bytes| bytes.starts_with(b"QFI\xfb"));
    let between = pool.layers.values().any(|info| {
        let unnamed = pool.uses(&info.layer.id).is_empty() && pool.children(&info.layer.id).next().is_none();
        unnamed && info.layer != *layer && read(store, &info.layer).is_ok_and(|chain| chain.contains(&backing.id))
    });
    is_qcow2 && !chain.contains(&layer.id) && !between
}

fn in_trash(store: &Store, layer: &Layer) -> Option<std::path::PathBuf> {
    let trash = store.list_trash().ok()?;
    trash.into_iter().map(|found| found.path).find(|path| path.join("layers").join(layer.file_name()).exists())
}

/// What `layer` stands on, as far as the records tell: the same disk at the snapshot before, or at the point the VM was cloned from. Pure.
fn expected_backing(records: &[(Name, Record)], layer: &Layer) -> Option<Layer> {
    let mut found: Vec<Layer> = Vec::new();
    for (_, record) in records {
        let at = |snapshot: &Name, target: &str| {
            let snapshot = record
                .snapshots
                .iter()
                .find(|other| other.name == *snapshot && other.kind == SnapshotKind::External)?;
            snapshot.config.volumes().find(|disk| disk.target == target).map(|disk| disk.layer.clone())
        };
        let points = std::iter::once((&record.config, &record.head))
            .chain(record.snapshots.iter().map(|snapshot| (&snapshot.config, &snapshot.parent)));
        for (config, parent) in points {
            for disk in config.volumes().filter(|disk| disk.layer == *layer) {
                let below = match parent {
                    Some(parent) => at(parent, &disk.target),
                    None => origin(records, record, &disk.target),
                };
                found.extend(below.filter(|below| below != layer));
            }
        }
    }
    found.sort();
    found.dedup();
    match &found[..] {
        [only] => Some(only.clone()),
        _ => None,
    }
}

fn origin(records: &[(Name, Record)], record: &Record, target: &str) -> Option<Layer> {
    let origin = record.origin.as_ref()?;
    let (_, source) = records.iter().find(|(_, source)| source.uuid == origin.uuid)?;
    let config = match &origin.snapshot {
        Some(name) => &source.snapshots.iter().find(|snapshot| snapshot.name == *name)?.config,
        None if source.is_template() => &source.config,
        None => return None,
    };
    config.volumes().find(|disk| disk.target == target).map(|disk| disk.layer.clone())
}
