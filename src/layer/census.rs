//! The census: reads the headers of all layers and the records of all VMs into a [`Pool`].

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::pool::{LayerInfo, Pool, Use};
use super::qcow2;
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{Format, Layer, LayerId, Name};
use crate::store::{Store, journal};

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
