//! The census of the pool: every layer, what its header says it stands on, and who names it. Read, never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::qcow2;
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{Format, Layer, LayerId, Name, Record};
use crate::store::{Store, journal};

/// What is known of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Identity and format.
    pub layer: Layer,
    /// The layer it stands on.
    pub backing: Option<Layer>,
    /// The size the guest sees, in bytes; 0 where only QEMU could tell (vmdk and the like).
    pub virtual_bytes: u64,
    /// Bytes on disk.
    pub allocated_bytes: u64,
    /// How many internal snapshots it carries.
    pub internal_snapshots: u32,
}

/// Who names a layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It is (part of) the head of a VM, which writes to it.
    Head(Name),
    /// It belongs to a snapshot.
    Snapshot(Name, Name),
    /// It belongs to a template.
    Template(Name),
    /// A change under way in this VM relies on it.
    Change(Name),
}

impl Use {
    /// The VM or template behind the use.
    pub fn owner(&self) -> &Name {
        match self {
            Self::Head(vm) | Self::Snapshot(vm, _) | Self::Template(vm) | Self::Change(vm) => vm,
        }
    }
}

/// Why a record does not fit the layers. See [`Pool::misfit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// Another layer stands on what the guest would write to.
    StoodOn {
        /// The disk.
        target: String,
        /// That layer.
        child: Layer,
    },
    /// Somebody else has the same layer.
    Shared {
        /// The disk.
        target: String,
        /// Who.
        owner: Name,
    },
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoodOn { target, child } => write!(f, "layer {child} stands on its {target}"),
            Self::Shared { target, owner } => write!(f, "its {target} belongs to {owner}"),
        }
    }
}

/// All layers and who names them.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// By identity.
    pub layers: BTreeMap<LayerId, LayerInfo>,
    /// Names that point at a layer.
    pub uses: BTreeMap<LayerId, Vec<Use>>,
    /// Layers whose header cannot be read, or that went while we looked.
    pub damaged: Vec<Layer>,
    /// VMs whose record or journal cannot be read: what they use is unknown.
    pub unreadable: Vec<Name>,
    /// A layer that is named or stood on, and not there: what it stood on is unknown.
    pub lost: Option<LayerId>,
}

impl Pool {
    /// Reads the headers of all layers and the records of all VMs.
    ///
    /// Others may be at work meanwhile. A layer that is seen was pinned by a journal before it was made, and is named by the record
    /// before that journal goes: so layers are read first, then per VM the journal, then the record. A VM that is renamed while we
    /// look makes us look again.
    pub fn scan(store: &Store) -> Result<Self> {
        let mut names = store.directories()?;
        names.sort();
        loop {
            let pool = Self::scan_once(store, &names)?;
            let mut now = store.directories()?;
            now.sort();
            if now == names {
                return Ok(pool);
            }
            names = now;
        }
    }

    fn scan_once(store: &Store, names: &[Name]) -> Result<Self> {
        let mut pool = Self::default();
        let directory = store.layout.layers();
        match std::fs::read_dir(&directory) {
            Ok(entries) => {
                for entry in entries {
                    let name = entry.on("list", &directory)?.file_name();
                    if let Some(layer) = name.to_str().and_then(Layer::from_file_name) {
                        match inspect(store, &layer) {
                            Ok(info) => drop(pool.layers.insert(layer.id.clone(), info)),
                            // One damaged layer concerns those who stand on it, and nobody else.
                            Err(error) if error.kind() == Kind::Damaged => pool.damaged.push(layer),
                            // It went while we looked.
                            Err(error) if error.kind() == Kind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).on("list", &directory),
        }
        for name in names {
            let pins = journal::pins(store, name);
            let record = if store.exists(name) { store.load(name).map(Some) } else { Ok(None) };
            if record.is_err() || pins.is_err() {
                pool.unreadable.push(name.clone());
            }
            if let Ok(Some(record)) = record {
                pool.add_record(name, &record);
            }
            for layer in pins.into_iter().flatten() {
                pool.add_use(&layer.id, Use::Change(name.clone()));
            }
        }
        // What went while we looked was not damaged.
        pool.damaged.retain(|layer| store.layout.layer(layer).symlink_metadata().is_ok());
        pool.lost = pool.look_for_lost(store, names);
        Ok(pool)
    }

    fn look_for_lost(&self, store: &Store, names: &[Name]) -> Option<LayerId> {
        let is_lost = |layer: &Layer| {
            !self.layers.contains_key(&layer.id) && store.layout.layer(layer).symlink_metadata().is_err()
        };
        // What was merged while we looked is not lost: whoever was stood or named by it says something else now.
        let stands_on = |info: &&LayerInfo| {
            info.backing.as_ref().is_some_and(is_lost)
                && inspect(store, &info.layer).is_ok_and(|now| now.backing == info.backing)
        };
        if let Some(info) = self.layers.values().find(stands_on) {
            return info.backing.as_ref().map(|backing| backing.id.clone());
        }
        let is_unknown =
            |id: &LayerId| !self.layers.contains_key(id) && !self.damaged.iter().any(|layer| layer.id == *id);
        let by_record = |uses: &Vec<Use>| uses.iter().any(|r#use| !matches!(r#use, Use::Change(_)));
        if !self.uses.iter().any(|(id, uses)| is_unknown(id) && by_record(uses)) {
            return None;
        }
        names
            .iter()
            .filter_map(|name| store.load(name).ok())
            .find_map(|record| record.layers().find(|layer| is_lost(layer)).map(|layer| layer.id.clone()))
    }

    /// Why nobody can be sure who uses what: somebody's record or a layer's header cannot be read.
    pub fn uncertainty(&self, except: Option<&Name>) -> Option<String> {
        let unreadable = self.unreadable.iter().find(|name| Some(*name) != except);
        let record = unreadable
            .map(|name| format!("the record or the journal of {name} cannot be read, so what it uses is unknown"));
        let header = || self.damaged.first().map(|layer| format!("the header of layer {layer} cannot be read"));
        let lost = || self.lost.as_ref().map(|id| format!("layer {id} is missing, and what it stands on is unknown"));
        record.or_else(header).or_else(lost)
    }

    /// Why `record` cannot be the truth about what `name` writes to, if it cannot: a head is written, so nothing stands on it and nobody else has it.
    pub fn misfit(&self, name: &Name, record: &Record) -> Option<Misfit> {
        if record.is_template() {
            return None;
        }
        record.config.writable().find_map(|disk| {
            let (id, target) = (&disk.layer.id, disk.target.clone());
            let ours = |child: &&LayerInfo| self.uses(&child.layer.id).contains(&Use::Change(name.clone()));
            let other = self.uses(id).iter().find(|r#use| r#use.owner() != name && !matches!(r#use, Use::Change(_)));
            if let Some(child) = self.children(id).find(|child| !ours(child)) {
                return Some(Misfit::StoodOn { target, child: child.layer.clone() });
            }
            other.map(|other| Misfit::Shared { target, owner: other.owner().clone() })
        })
    }

    /// The VM that writes to what an unnamed layer stands on, with nothing named in between. That must not be, and means that the VM's record is not the
    /// last one; the layer may hold what its guest wrote.
    pub fn stands_on_head(&self, id: &LayerId) -> Option<&Name> {
        let mut below = self.layers.get(id)?.backing.as_ref()?;
        // A loop is somebody else's finding.
        for _ in 0..self.layers.len() {
            match self.uses(&below.id) {
                [] => below = self.layers.get(&below.id)?.backing.as_ref()?,
                uses => {
                    return uses.iter().find_map(|r#use| if let Use::Head(name) = r#use { Some(name) } else { None });
                }
            }
        }
        None
    }

    /// The one layer that nobody names, nothing stands on, and that stands on this one with nothing named in between: what its VM wrote to before
    /// its record was replaced by an older one. `None` when there is no such layer, or more than one.
    pub fn later_head(&self, head: &LayerId) -> Option<Layer> {
        let (mut leaves, mut next) = (Vec::new(), vec![head]);
        while let Some(id) = next.pop() {
            for child in self.children(id) {
                if !self.uses(&child.layer.id).is_empty() {
                    return None;
                }
                if self.children(&child.layer.id).next().is_none() {
                    leaves.push(child.layer.clone());
                }
                next.push(&child.layer.id);
            }
        }
        match &leaves[..] {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// Notes everything a record names.
    pub fn add_record(&mut self, name: &Name, record: &Record) {
        for disk in record.config.volumes() {
            let r#use = if record.is_template() { Use::Template(name.clone()) } else { Use::Head(name.clone()) };
            self.add_use(&disk.layer.id, r#use);
        }
        for disk in record.warm.iter().flat_map(|warm| warm.config.volumes()) {
            self.add_use(&disk.layer.id, Use::Template(name.clone()));
        }
        for snapshot in &record.snapshots {
            for disk in snapshot.config.volumes() {
                self.add_use(&disk.layer.id, Use::Snapshot(name.clone(), snapshot.name.clone()));
            }
        }
    }

    /// Forgets what `name`'s record and journal point at (they are about to change).
    pub fn forget(&mut self, name: &Name) {
        for uses in self.uses.values_mut() {
            uses.retain(|r#use| r#use.owner() != name);
        }
    }

    fn add_use(&mut self, id: &LayerId, r#use: Use) {
        self.uses.entry(id.clone()).or_default().push(r#use);
    }

    /// Who names this layer.
    pub fn uses(&self, id: &LayerId) -> &[Use] {
        self.uses.get(id).map_or(&[], Vec::as_slice)
    }

    /// The layers that stand on this one.
    pub fn children<'a>(&'a self, id: &'a LayerId) -> impl Iterator<Item = &'a LayerInfo> {
        self.layers.values().filter(move |info| info.backing.as_ref().is_some_and(|backing| backing.id == *id))
    }

    /// The chain below (and with) a layer, active layer first. A loop or a missing layer is damage.
    pub fn chain(&self, id: &LayerId) -> Result<Vec<&LayerInfo>> {
        let mut chain: Vec<&LayerInfo> = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let info =
                self.layers.get(id).ok_or_else(|| Error::damaged(format!("layer {id} is missing from the store")))?;
            if chain.iter().any(|seen| seen.layer.id == *id) {
                return Err(Error::damaged(format!("layer {id} stands on itself")));
            }
            chain.push(info);
            next = info.backing.as_ref().map(|backing| &backing.id);
        }
        Ok(chain)
    }

    /// The other VMs and templates that stand on these layers, and would lose data if they went.
    pub fn dependents(&self, owner: &Name, layers: &[LayerId]) -> Vec<Name> {
        self.owners(Some(owner), self.above(layers).into_iter())
    }

    /// Everybody who names this layer or stands on it.
    pub fn users(&self, layer: &LayerId) -> Vec<Name> {
        self.owners(None, self.above(std::slice::from_ref(layer)).into_iter().chain([layer]))
    }

    /// The layers that stand on these.
    fn above<'a>(&'a self, layers: &'a [LayerId]) -> Vec<&'a LayerId> {
        let mut above: Vec<&LayerId> = Vec::new();
        let mut next: Vec<&LayerId> = layers.iter().collect();
        while let Some(id) = next.pop() {
            for child in self.children(id).map(|info| &info.layer.id) {
                if !above.contains(&child) {
                    above.push(child);
                    next.push(child);
                }
            }
        }
        above
    }

    /// The other VMs and templates that name this layer or stand on it.
    pub fn sharers(&self, owner: &Name, layer: &LayerId) -> Vec<Name> {
        let mut names = self.users(layer);
        names.retain(|name| name != owner);
        names
    }

    /// Everybody who would lose data if `root` went, and `root`: whoever is stood on comes after those who stand on it. A clone that is
    /// still being made is not among them.
    pub fn tower(&self, root: &Name) -> Vec<Name> {
        let mut tower = Vec::new();
        self.climb(root, &mut BTreeSet::new(), &mut tower);
        tower
    }

    fn climb(&self, name: &Name, seen: &mut BTreeSet<Name>, tower: &mut Vec<Name>) {
        if !seen.insert(name.clone()) {
            return;
        }
        for dependent in self.dependents(name, &self.named_by(name)) {
            if !self.named_by(&dependent).is_empty() {
                self.climb(&dependent, seen, tower);
            }
        }
        tower.push(name.clone());
    }

    /// The layers in the record of `name`.
    fn named_by(&self, name: &Name) -> Vec<LayerId> {
        let of_record = |r#use: &Use| r#use.owner() == name && !matches!(r#use, Use::Change(_));
        self.uses.iter().filter(|(_, uses)| uses.iter().any(of_record)).map(|(id, _)| id.clone()).collect()
    }

    fn owners<'a>(&self, except: Option<&Name>, layers: impl Iterator<Item = &'a LayerId>) -> Vec<Name> {
        let uses = layers.flat_map(|id| self.uses(id));
        let mut names: Vec<Name> =
            uses.map(|r#use| r#use.owner().clone()).filter(|name| Some(name) != except).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Reads what one layer says of itself.
pub fn inspect(store: &Store, layer: &Layer) -> Result<LayerInfo> {
    let path = store.layout.layer(layer);
    let about = match std::fs::metadata(&path) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::damaged(format!("layer {layer} is missing from the store"))
                .hint(format!("its file should be {}", path.display())));
        }
        Err(error) => return Err(error).on("read", &path),
    };
    let mut info = LayerInfo {
        layer: layer.clone(),
        backing: None,
        virtual_bytes: if layer.format == Format::Raw { about.len() } else { 0 },
        allocated_bytes: about.blocks() * 512,
        internal_snapshots: 0,
    };
    if layer.format == Format::Qcow2 {
        let damaged = |why: &str| Error::damaged(format!("layer {layer} is damaged: {why}"));
        let header = qcow2::parse(&read_start(&path)?)?.ok_or_else(|| damaged("it has no qcow2 header"))?;
        info.virtual_bytes = header.virtual_bytes;
        info.internal_snapshots = header.snapshots;
        if let Some(name) = header.backing_file {
            let backing = Layer::from_file_name(&name)
                .ok_or_else(|| damaged(&format!("its backing file {name:?} is not a layer of the store")))?;
            if header.backing_format.as_deref().is_some_and(|format| format != backing.format.as_str()) {
                return Err(damaged(&format!(
                    "it takes its backing file {name:?} for {}",
                    header.backing_format.as_deref().unwrap_or_default()
                )));
            }
            info.backing = Some(backing);
        }
    }
    Ok(info)
}

/// The first bytes of a file, enough for a header.
pub fn read_start(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(qcow2::HEADER_BYTES);
    File::open(path).and_then(|file| file.take(qcow2::HEADER_BYTES as u64).read_to_end(&mut bytes)).on("read", path)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    /// A pool of layers, each with the one it stands on and who names it.
    fn pool(layers: &[(&str, Option<&str>, Use)]) -> Pool {
        let layer = |text: &str| Layer { id: format!("{text:0>10}").parse().expect("an id"), format: Format::Qcow2 };
        let mut pool = Pool::default();
        for (id, backing, r#use) in layers {
            let info = LayerInfo {
                layer: layer(id),
                backing: backing.map(layer),
                virtual_bytes: 0,
                allocated_bytes: 0,
                internal_snapshots: 0,
            };
            pool.add_use(&info.layer.id, r#use.clone());
            pool.layers.insert(info.layer.id.clone(), info);
        }
        pool
    }

    fn head(vm: &str) -> Use {
        Use::Head(name(vm))
    }

    #[test]
    fn who_stands_on_another_disk_of_a_dependent_is_in_the_tower() {
        // b's first disk stands on a; c stands on b's second disk, d on neither.
        let snapshot = |vm| Use::Snapshot(name(vm), name("s"));
        let layers = [
            ("1", None, Use::Template(name("a"))),
            ("2", Some("1"), head("b")),
            ("3", None, snapshot("b")),
            ("4", Some("3"), head("b")),
            ("5", Some("3"), head("c")),
            ("6", None, head("d")),
        ];
        assert_eq!(pool(&layers).tower(&name("a")), [name("c"), name("b"), name("a")]);
        assert_eq!(pool(&layers).tower(&name("d")), [name("d")]);
    }

    #[test]
    fn a_clone_that_is_being_made_is_not_in_the_tower_yet() {
        let layers = [("1", None, Use::Template(name("a"))), ("2", Some("1"), Use::Change(name("b")))];
        assert_eq!(pool(&layers).tower(&name("a")), [name("a")]);
    }

    #[test]
    fn who_stand_on_each_other_are_all_in_the_tower() {
        let layers =
            [("1", None, head("a")), ("2", Some("1"), head("b")), ("3", None, head("b")), ("4", Some("3"), head("a"))];
        assert_eq!(pool(&layers).tower(&name("a")), [name("b"), name("a")]);
    }
}
