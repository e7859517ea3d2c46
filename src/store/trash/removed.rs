//! Removed VMs in the trash, and what of theirs may still be in the pool: their removal was cut
//! short, or nobody could be sure who else needs it.

use std::path::PathBuf;

use super::read;
use crate::error::{Kind, Result};
use crate::model::{LayerId, Record};
use crate::store::{Store, plain, schema};

impl Store {
    /// A removed VM whose directory in the trash does not say what it took along: its entry is of a
    /// newer version, or that of another directory, the VM's own cannot be reached, or its record
    /// is no file or cannot be read just now.
    pub fn unclear_removal(&self) -> Result<Option<String>> {
        let is_unclear = |path: &PathBuf| {
            let removed = path.join("vm");
            plain::is_there(&removed)
                && (!removed.exists()
                    || plain::read(&removed.join("vm.json")).is_err()
                    || read(path, self).is_err_and(|error| error.kind() != Kind::NotFound))
        };
        let unclear = self.trash_directories()?.into_iter().find(is_unclear);
        Ok(unclear.map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned()))
    }

    /// The records of removed VMs that are in the trash; `None` for one that cannot be read.
    pub fn removed_records(&self) -> Result<Vec<Option<Record>>> {
        let mut records = Vec::new();
        for path in self.trash_directories()? {
            records.extend(match plain::read(&path.join("vm/vm.json")) {
                Ok(text) => text.map(|text| schema::parse_record(&text).ok()),
                Err(_) => Some(None),
            });
        }
        Ok(records)
    }

    /// The layers of changes that can be undone, and of VMs that can be had back. They may be in
    /// the pool still: they were missing when they should have been moved, or nobody could be sure
    /// then who else needs them.
    pub fn restorable_layers(&self) -> Result<Vec<LayerId>> {
        let mut layers = Vec::new();
        for path in self.trash_directories()? {
            let Ok(entry) = read(&path, self) else { continue };
            if !entry.can_be_undone() {
                continue;
            }
            layers.extend(entry.layers.into_iter().map(|layer| layer.id));
            let record = plain::read_if_possible(&path.join("vm/vm.json"));
            if let Some(Ok(record)) = record.map(|text| schema::parse_record(&text)) {
                layers.extend(record.layers().map(|layer| layer.id.clone()));
            }
        }
        Ok(layers)
    }
}
