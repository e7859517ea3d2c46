//! The scan: reads the headers of all layers and the records of all VMs into a [`LayerGraph`].

use std::io;
use std::time::SystemTime;

use rustix::io::Errno;

use super::backing_xattr::{self, RecordedBacking};
use super::graph::{LayerGraph, Use};
use super::info;
use super::info::LayerInfo;
use super::opened;
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{Layer, LayerId, Name};
use crate::store::{Store, journal, mark};
use crate::sys::parallel;

/// How often a scan is repeated because others changed what it had seen already. More than
/// that is no coincidence.
const ROUNDS: usize = 50;

impl LayerGraph {
    /// Reads the headers of all layers and the records of all VMs.
    ///
    /// Others may be at work meanwhile. A layer that is seen was pinned by a journal before it was
    /// made, and is named by the record before that journal goes: so layers are read first, then
    /// per VM the journal, then the record. Where that is not enough to have seen one moment, it is
    /// looked again: a VM was renamed meanwhile, or a merge told an overlay what it depends on now
    /// after its header was read, and before that other layer was.
    pub fn scan(store: &Store) -> Result<Self> {
        let mut rounds = 0..ROUNDS;
        loop {
            let before = Directories::look(store)?;
            let mut graph = Self::default();
            graph.read_headers(store)?;
            let unseen = graph.read_records(store, &before.names)?;
            graph.settle_contested(store);
            graph.set_aside = store.set_aside()?;
            let doubt = graph.doubt(store, &unseen);
            let still = doubt != Some(Doubt::Torn) && Directories::look(store)? == before;
            if !still && rounds.next().is_some() {
                continue;
            }
            graph.unsettled = !still;
            if let Some(Doubt::Lost(id)) = doubt {
                graph.lost = Some(id);
            }
            return Ok(graph);
        }
    }

    /// The same, and the layers that something in the trash depends on, which can be taken back:
    /// both as they were at one moment.
    pub fn scan_with_trash(store: &Store) -> Result<(Self, Vec<LayerId>)> {
        let mut rounds = 0..ROUNDS;
        loop {
            let before = store.trash_entries()?;
            let below = store.below_trash()?;
            let mut graph = Self::scan(store)?;
            // Whatever is put into the trash or taken out of it leaves an entry that was not there.
            let still = store.trash_entries()? == before;
            if !still && rounds.next().is_some() {
                continue;
            }
            graph.unsettled |= !still;
            return Ok((graph, below));
        }
    }

    /// Adds what spare copies name and the records do not.
    pub fn add_spares(&mut self, store: &Store) -> Result<()> {
        let records = store.records()?;
        let spares = parallel::map(&records, |(name, record)| store.overruling(name, record));
        for ((name, _), spare) in records.iter().zip(spares) {
            if let Some(spare) = spare? {
                self.add_spare(name, &spare);
            }
        }
        Ok(())
    }

    fn read_headers(&mut self, store: &Store) -> Result<()> {
        for (layer, info, noted) in inspect_all(store)? {
            match info {
                Ok(info) => {
                    // Which of the two it depends on nobody knows, so nothing happens to either.
                    if info.disputed
                        && let Some(backing) = noted.by_note(store)
                    {
                        let noted = LayerInfo { backing, disputed: false, ..info.clone() };
                        self.noted.insert(layer.id.clone(), noted);
                    }
                    self.layers.insert(layer.id.clone(), info);
                }
                // It went while we looked.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) if !is_about_the_layer(&error) => return Err(error),
                // A file that is used in its place has no backing file, whatever has become of it,
                // so it makes nothing uncertain.
                Err(_) if opened::had_no_backing(store, &layer) => {
                    self.layers.insert(layer.id.clone(), LayerInfo::unusable(layer.clone()));
                    self.unusable.push(layer);
                }
                // One layer that is damaged or cannot be read concerns those who depend on it, and
                // nobody else.
                Err(_) => {
                    if let Some(Some(backing)) = noted.by_note(store) {
                        let info = LayerInfo {
                            backing: Some(backing),
                            ..LayerInfo::unusable(layer.clone())
                        };
                        self.noted.insert(layer.id.clone(), info);
                    }
                    self.damaged.push(layer);
                }
            }
        }
        // What went while we looked was not damaged.
        let is_there = |layer: &Layer| store.layout.layer(layer).symlink_metadata().is_ok();
        self.damaged.retain(is_there);
        self.noted.retain(|_, info| is_there(&info.layer));
        Ok(())
    }

    /// Returns what records name, and nobody has seen.
    fn read_records(&mut self, store: &Store, names: &[Name]) -> Result<Vec<(Name, Layer)>> {
        // The journal first: what a change has pinned is in the record when the journal goes.
        let read = |name: &Name| (journal::pins(store, name), store.load_if_there(name));
        let mut unseen = Vec::new();
        for (name, (pins, record)) in names.iter().zip(parallel::map(names, read)) {
            if record.is_err() || pins.is_err() {
                self.unreadable.push(name.clone());
            }
            if let Ok(Some(record)) = record {
                self.add_record(name, &record);
                let missed = record.layers().filter(|layer| !self.has_seen(layer));
                unseen.extend(missed.map(|layer| (name.clone(), layer.clone())));
            }
            for layer in pins.into_iter().flatten() {
                self.add_use(&layer.id, Use::Change(name.clone()));
            }
        }
        Ok(unseen)
    }

    /// Of the VMs whose records name a layer that one of them writes to, all but one are mistaken
    /// where that one's spare copy names it, too, and those of all others do not.
    fn settle_contested(&mut self, store: &Store) {
        for (id, owners) in self.contested() {
            let spare_names = |name: &Name| {
                // What is not to stay keeps an older record for its spare copy.
                let lasts = store.load(name).is_ok_and(|record| record.ephemeral.is_none());
                let spare = store.load_spare(name).and_then(Result::ok).filter(|_| lasts)?;
                Some(spare.layers().any(|layer| layer.id == id))
            };
            let by_spare: Vec<Option<bool>> = owners.iter().map(spare_names).collect();
            let count =
                |wanted: bool| by_spare.iter().filter(|named| **named == Some(wanted)).count();
            if count(true) == 1 && count(false) == owners.len() - 1 {
                let wrong =
                    owners.iter().zip(&by_spare).filter(|(_, named)| **named == Some(false));
                self.mistaken.extend(wrong.map(|(name, _)| (name.clone(), id.clone())));
            }
        }
    }

    fn has_seen(&self, layer: &Layer) -> bool {
        self.layers.contains_key(&layer.id) || self.damaged.iter().any(|other| other.id == layer.id)
    }

    /// A layer that is named or depended on was not seen. Either it came, or went, while we looked;
    /// or it is lost.
    fn doubt(&self, store: &Store, unseen: &[(Name, Layer)]) -> Option<Doubt> {
        let is_there = |layer: &Layer| store.layout.layer(layer).symlink_metadata().is_ok();
        let mut used = None;
        let by_header = self.layers.values().filter_map(|info| {
            let backing = info.backing.as_ref().filter(|backing| !self.has_seen(backing))?;
            let still_on_it = || {
                info::inspect(store, &info.layer)
                    .is_ok_and(|now| now.backing.as_ref() == Some(backing))
            };
            if is_there(backing) || !still_on_it() {
                return Some(Doubt::Torn);
            }
            // What nobody needs can lack what it likes.
            used.get_or_insert_with(|| self.used())
                .contains(&info.layer.id)
                .then(|| Doubt::Lost(backing.id.clone()))
        });
        let by_record = unseen.iter().map(|(name, layer)| {
            let still_named =
                || store.load(name).is_ok_and(|record| record.layers().any(|named| named == layer));
            if is_there(layer) || !still_named() {
                Doubt::Torn
            } else {
                Doubt::Lost(layer.id.clone())
            }
        });
        let mut lost = None;
        for doubt in by_header.chain(by_record) {
            match doubt {
                Doubt::Torn => return Some(doubt),
                Doubt::Lost(_) => lost = lost.or(Some(doubt)),
            }
        }
        lost
    }
}

/// Why a scan may not show one moment.
#[derive(Debug, PartialEq, Eq)]
enum Doubt {
    /// Layers came or went between two looks.
    Torn,
    /// This layer is not there.
    Lost(LayerId),
}

/// Which VMs there are. The time tells of one that was renamed and got its name back.
#[derive(Debug, PartialEq, Eq)]
struct Directories {
    names: Vec<Name>,
    changed: Option<SystemTime>,
}

impl Directories {
    fn look(store: &Store) -> Result<Self> {
        let changed = std::fs::metadata(store.layout.vms()).and_then(|about| about.modified()).ok();
        let mut names = store.directories()?;
        names.sort();
        Ok(Self { names, changed })
    }
}

/// Is something wrong with the layer, or with its file, for good? And not with the state that we or
/// the host are in (`EMFILE`, `ESTALE`).
fn is_about_the_layer(error: &Error) -> bool {
    let of_the_file = [Errno::IO, Errno::ACCESS, Errno::PERM, Errno::NODATA, Errno::UCLEAN]
        .map(Errno::raw_os_error);
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let errno = source.and_then(io::Error::raw_os_error);
    error.kind() == Kind::Damaged || errno.is_some_and(|errno| of_the_file.contains(&errno))
}

/// The layers that have a file in the pool.
fn files(store: &Store) -> Result<Vec<Layer>> {
    let directory = store.layout.layers();
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            store.refuse_unreachable(&directory)?;
            return Ok(Vec::new());
        }
        Err(error) => return Err(error).on("list", &directory),
    };
    let (mut layers, mut is_empty) = (Vec::new(), true);
    for entry in entries {
        let name = entry.on("list", &directory)?.file_name();
        is_empty &= mark::is_of_file_system(&name);
        layers.extend(name.to_str().and_then(Layer::from_file_name));
    }
    if is_empty {
        store.refuse_unmarked(&directory)?;
    }
    Ok(layers)
}

/// Every layer that has a file in the pool, with what it says of itself. Where that is damaged, or
/// not what was noted beside it, also what was noted, as it was just then.
fn inspect_all(store: &Store) -> Result<Vec<(Layer, Result<LayerInfo>, RecordedBacking)>> {
    let layers = files(store)?;
    let looks = parallel::map(&layers, |layer| {
        let info = info::inspect(store, layer);
        let is_told = info.as_ref().is_ok_and(|info| !info.disputed);
        let noted =
            if is_told { RecordedBacking::Nothing } else { backing_xattr::read(store, layer) };
        (info, noted)
    });
    Ok(layers.into_iter().zip(looks).map(|(layer, (info, noted))| (layer, info, noted)).collect())
}

/// The layers whose header says that they depend on one of `bases`, or whose header is damaged and
/// whose note says so.
pub(crate) fn backed_by(store: &Store, bases: &[&Layer]) -> Result<Vec<Layer>> {
    let mut standing = Vec::new();
    for (layer, info, noted) in inspect_all(store)? {
        match info {
            Ok(info) if info.backing.as_ref().is_some_and(|backing| bases.contains(&backing)) => {
                standing.push(layer)
            }
            Ok(info) if !info.disputed => {}
            // It has gone.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) if !is_about_the_layer(&error) => return Err(error),
            // By its note.
            Ok(_) | Err(_) => {
                standing.extend(bases.iter().any(|base| noted.names(base)).then_some(layer));
            }
        }
    }
    Ok(standing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::create;
    use crate::model::Format;

    struct Bench {
        _directory: tempfile::TempDir,
        store: Store,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::at(directory.path()).expect("a store");
            store.prepare().expect("a store");
            Self { _directory: directory, store }
        }

        fn layer(&self, backing: Option<&Layer>) -> Layer {
            let layer = Layer::new(Format::Qcow2);
            create::empty(&self.store, &layer, backing, 1 << 20).expect("a layer");
            layer
        }

        fn remove(&self, layer: &Layer) {
            std::fs::remove_file(self.store.layout.layer(layer)).expect("it was there");
        }

        fn headers(&self) -> LayerGraph {
            let mut graph = LayerGraph::default();
            graph.read_headers(&self.store).expect("headers");
            graph
        }
    }

    #[test]
    fn an_overlay_seen_before_a_merge_on_a_layer_seen_after_it_is_looked_at_again() {
        let bench = Bench::new();
        let base = bench.layer(None);
        let merged = bench.layer(Some(&base));
        let top = bench.layer(Some(&merged));
        let mut torn = bench.headers();
        assert_eq!(torn.doubt(&bench.store, &[]), None);
        // The merge: `top` depends on `base` now, and what was between is gone, before the listing
        // comes to it.
        for layer in [&merged, &top] {
            bench.remove(layer);
        }
        create::empty(&bench.store, &top, Some(&base), 1 << 20).expect("a layer");
        torn.layers.remove(&merged.id);
        assert_eq!(torn.children(&base.id).count(), 0, "it would be taken for unused");
        assert_eq!(torn.doubt(&bench.store, &[]), Some(Doubt::Torn));
        let graph = LayerGraph::scan(&bench.store).expect("a pool");
        assert!(graph.uncertainty(None).is_none());
        assert_eq!(graph.children(&base.id).count(), 1);
    }

    #[test]
    fn a_layer_that_is_gone_is_lost_and_one_that_came_is_looked_at() {
        let bench = Bench::new();
        let vm: Name = "vm".parse().expect("a name");
        let base = bench.layer(None);
        let top = bench.layer(Some(&base));
        bench.remove(&base);
        let mut graph = bench.headers();
        assert_eq!(graph.doubt(&bench.store, &[]), None, "nobody needs what stands on it");
        graph.add_use(&top.id, Use::Head(vm.clone()));
        assert_eq!(graph.doubt(&bench.store, &[]), Some(Doubt::Lost(base.id)));
        // Named by a record, and made after the layers were listed.
        bench.remove(&top);
        let before = bench.headers();
        let new = bench.layer(None);
        assert_eq!(before.doubt(&bench.store, &[(vm, new)]), Some(Doubt::Torn));
    }
}
