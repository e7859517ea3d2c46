//! The chains below a VM: every layer that is named has to be there, and has to depend on what it
//! depended on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Finding, Remedy};
use crate::context::Context;
use crate::layer::backing_xattr;
pub(super) use crate::layer::chain::read;
use crate::layer::sealed::{self, Change};
use crate::layer::stamp::{self, Obstacle};
use crate::layer::{info, trashed};
use crate::model::{Layer, Name, Record, Snapshot};
use crate::store::Store;

/// The first thing that is wrong on the way down from a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// There is no such file; `above` has it as its backing file.
    Missing { layer: Layer, above: Option<Layer> },
    /// Its header cannot be trusted.
    Header { layer: Layer, why: String },
    /// It has lost data since it was sealed.
    Lost { layer: Layer, why: String },
    /// Another program has changed the backing file in its header.
    Foreign { layer: Layer, backing: Option<Layer> },
    /// Its backing file depends on itself.
    Loop { layer: Layer },
}

impl Fault {
    /// The layer whose file or header is wrong.
    fn is_about(&self) -> &Layer {
        match self {
            Self::Missing { layer, .. } | Self::Header { layer, .. } | Self::Lost { layer, .. } => {
                layer
            }
            Self::Foreign { layer, .. } | Self::Loop { layer } => layer,
        }
    }
}

/// How sealed layers have changed, each looked at once.
#[derive(Default)]
struct Changes(BTreeMap<Layer, Result<Option<Change>, String>>);

impl Changes {
    fn of(&mut self, store: &Store, layer: &Layer) -> Result<Option<&Change>, &str> {
        let look = || sealed::change(store, layer).map_err(|error| error.full_message());
        self.0
            .entry(layer.clone())
            .or_insert_with(look)
            .as_ref()
            .map(Option::as_ref)
            .map_err(String::as_str)
    }
}

fn fault_below(store: &Store, changes: &mut Changes, layer: &Layer) -> Option<Fault> {
    let (mut seen, mut next) = (Vec::<Layer>::new(), Some(layer.clone()));
    while let Some(layer) = next {
        let above = seen.last().cloned();
        if seen.contains(&layer) {
            return above.map(|layer| Fault::Loop { layer });
        }
        if !store.layout.layer(&layer).exists() {
            return Some(Fault::Missing { layer, above });
        }
        match info::inspect(store, &layer) {
            Ok(info) => {
                if info.disputed {
                    return Some(Fault::Foreign { layer, backing: info.backing });
                }
                match changes.of(store, &layer) {
                    Ok(Some(Change::Lost(why))) => {
                        return Some(Fault::Lost { why: why.clone(), layer });
                    }
                    Ok(_) => {}
                    Err(why) => return Some(Fault::Header { why: why.to_owned(), layer }),
                }
                next = info.backing;
            }
            Err(error) => return Some(Fault::Header { layer, why: error.full_message() }),
        }
        seen.push(layer);
    }
    None
}

/// Looks at everything `record` names.
pub(super) fn examine(context: &Context, name: &Name, record: &Record) -> Vec<Finding> {
    let store = &context.store;
    let mut named: Vec<(String, &Layer)> =
        record.config.volumes().map(|disk| (disk.target.clone(), &disk.layer)).collect();
    for snapshot in &record.snapshots {
        named.extend(
            snapshot.config.volumes().map(|disk| {
                (format!("{} at snapshot {}", disk.target, snapshot.name), &disk.layer)
            }),
        );
    }
    let mut changes = Changes::default();
    let mut faults: Vec<(Fault, Vec<String>)> = Vec::new();
    for (place, layer) in named {
        let Some(fault) = fault_below(store, &mut changes, layer) else { continue };
        match faults.iter_mut().find(|(other, _)| other.is_about() == fault.is_about()) {
            // What is named itself is missing, whatever depends on it.
            Some((other, places)) => {
                places.push(place);
                if let Fault::Missing { above: None, .. } = fault {
                    *other = fault;
                }
            }
            None => faults.push((fault, vec![place])),
        }
    }
    let describe = |(fault, places): (Fault, Vec<String>)| {
        describe(store, record, name, fault, &places.join(", "))
    };
    faults.into_iter().map(describe).chain(written(name, &changes)).collect()
}

/// Layers that were written to since they were sealed, and are as long as they were.
fn written(name: &Name, changes: &Changes) -> Vec<Finding> {
    let written = changes.0.iter().filter(|(_, change)| **change == Ok(Some(Change::Written)));
    let describe = |(layer, _): (&Layer, _)| {
        Finding::info(
            "chain",
            format!("layer {layer} was written to after it was sealed, and not by cowhand"),
        )
        .of(name)
        .hint(format!(
            "was it restored or repaired? Its tables are looked at by: cowhand disk check {name}"
        ))
    };
    written.map(describe).collect()
}

fn describe(store: &Store, record: &Record, name: &Name, fault: Fault, places: &str) -> Finding {
    let lost = |finding: Finding| {
        let readable = |snapshot: &&Snapshot| {
            snapshot
                .config
                .volumes()
                .all(|disk| fault_below(store, &mut Changes::default(), &disk.layer).is_none())
        };
        match record.snapshots.iter().rev().find(readable) {
            Some(snapshot) => finding.hint(format!(
                "bring the file back from a backup; or go back to what is whole: cowhand snapshot \
                 revert {name}@{}",
                snapshot.name
            )),
            None => finding.hint("bring the file back from a backup; nothing else can"),
        }
    };
    let copy = |message: String, layer: &Layer| match trashed::copies(store, layer).first() {
        Some(path) => {
            format!("{message}; a copy of it is in the trash, and stays there: {}", path.display())
        }
        None => message,
    };
    let (message, layer) = match fault {
        Fault::Missing { layer, above } => {
            let path = store.layout.layer(&layer);
            let mut message = format!("the file {} is missing ({places})", path.display());
            match in_trash(store, &layer) {
                Some(Ok(trash)) => {
                    return Finding::fail("chain", format!("{message}; it is in the trash"))
                        .of(name)
                        .hint(format!("cowhand doctor {name} --repair    takes it out again"))
                        .remedy(Some(Remedy::RestoreLayer { vm: name.clone(), layer, trash }));
                }
                Some(Err(why)) => message.push_str(&format!("; {why}")),
                None => {}
            }
            let Some(above) = above else { return lost(Finding::fail("chain", message).of(name)) };
            (format!("{message}; layer {above} has it as its backing file"), above)
        }
        Fault::Header { layer, why } => (format!("{why} ({places})"), layer),
        Fault::Lost { layer, why } => {
            let path = store.layout.layer(&layer);
            let message = format!("layer {layer} is damaged: {why} ({places}): {}", path.display());
            return lost(Finding::fail("chain", copy(message, &layer)).of(name));
        }
        Fault::Foreign { layer, backing } => {
            let what = backing.map_or_else(
                || "no backing file, but should have one".to_owned(),
                |backing| format!("the unexpected backing file {backing}"),
            );
            (format!("layer {layer} has {what} ({places})"), layer)
        }
        Fault::Loop { layer } => {
            (format!("the backing files of layer {layer} form a loop ({places})"), layer)
        }
    };
    let finding = Finding::fail("chain", copy(message, &layer)).of(name);
    match backing_xattr::read(store, &layer).by_note(store) {
        Some(Some(backing))
            if read(store, &backing).is_ok_and(|chain| !chain.contains(&layer.id)) =>
        {
            finding
                .hint(format!(
                    "it was made on {backing}: \
                     cowhand doctor {name} --repair    writes that into its header"
                ))
                .remedy(Some(Remedy::SetBacking { layer, backing: Some(backing) }))
        }
        Some(None) => finding
            .hint(format!(
                "it was made on no other layer: \
                 cowhand doctor {name} --repair    writes that into its header"
            ))
            .remedy(Some(Remedy::SetBacking { layer, backing: None })),
        _ => lost(finding),
    }
}

/// The directory of the trash that has the file of this layer. `Err`: what has its name and may not
/// be it, or depended on what has changed since then.
fn in_trash(store: &Store, layer: &Layer) -> Option<Result<PathBuf, String>> {
    let mut other = None;
    for found in store.list_trash().ok()? {
        let path = found.path.join("layers").join(layer.file_name());
        match trashed::of(&found, layer) {
            Some(Ok(())) => {
                let below = trashed::dependencies(store, &found, layer);
                let Some(changed) = stamp::changed(store, &below) else {
                    return Some(Ok(found.path));
                };
                let why = Obstacle::Changed(changed.clone());
                other = Some(Err(format!(
                    "{} in the trash cannot be taken back: {why}",
                    path.display()
                )));
            }
            Some(Err(why)) => {
                other = Some(Err(format!(
                    "{} in the trash has its name, but may not be it: {why}",
                    path.display()
                )));
            }
            None => {}
        }
    }
    let elsewhere = || trashed::copies(store, layer).into_iter().next();
    other.or_else(|| {
        elsewhere().map(|path| Err(format!("{} in the trash has its name", path.display())))
    })
}

/// Does anything that `record` names lack this layer's file?
pub(super) fn lacks(store: &Store, record: &Record, layer: &Layer) -> bool {
    record.layers().any(|named| {
        let fault = fault_below(store, &mut Changes::default(), named);
        matches!(fault, Some(Fault::Missing { layer: missing, .. }) if missing == *layer)
    })
}
