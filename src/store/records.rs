//! Reading and writing the records of VMs and templates (`vm.json`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::schema::{self, Written};
use super::{Store, atomic, plain};
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{Name, Record};
use crate::sys::{fault, parallel};

/// How often a record that is not where its VM is is looked for.
const LOOKS: u32 = 10;
/// How long is waited before it is looked for again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

impl Store {
    /// Reads the record of `name`, if there is such a VM or template.
    pub fn load_if_there(&self, name: &Name) -> Result<Option<Record>> {
        match self.load(name) {
            Ok(record) => Ok(Some(record)),
            Err(_) if !self.exists(name) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the record of `name`.
    pub fn load(&self, name: &Name) -> Result<Record> {
        let path = self.layout.vm_json(name);
        let mut text = plain::read(&path);
        for _ in 0..LOOKS {
            if !matches!(text, Ok(None)) || !self.exists(name) {
                break;
            }
            // Others give the name to a VM, and take it away again, between two looks; a record
            // that is lost stays so.
            std::thread::sleep(BETWEEN_LOOKS);
            text = plain::read(&path);
        }
        match text {
            Ok(Some(text)) => match schema::parse_written(&text) {
                Ok(written) => match self.foreign(name, &written) {
                    None => Ok(written.record),
                    // It was renamed between the two looks.
                    Some(_) if !path.exists() => return Err(self.unknown(name)),
                    Some(whose) => Err(Error::damaged(format!(
                        "the record of {name} is that of {whose}: {}",
                        path.display()
                    ))),
                },
                Err(error) => Err(Error::damaged(format!(
                    "the record of {name} cannot be read: {}",
                    path.display()
                ))
                .of_file(&path)
                .because_of(&error)),
            },
            Ok(None) if self.exists(name) => {
                Err(Error::damaged(format!("the record of {name} is missing: {}", path.display())))
            }
            Ok(None) => return Err(self.unknown(name)),
            Err(error) if error.kind() == Kind::Damaged => Err(Error::damaged(format!(
                "the record of {name} cannot be read: {}",
                error.message()
            ))),
            Err(error) => Err(error),
        }
        .map_err(|error| match error.kind() {
            // Of a newer version's there is nothing to mend.
            Kind::Damaged if !error.is_newer() => error.hint(how_to_mend(name)),
            _ => error,
        })
    }

    /// The VM that a record in the place of `name` was taken from: it was written for that name,
    /// and the VM of that name has the same identity. Where there is no such VM, the directory was
    /// renamed.
    pub(super) fn twin(&self, name: &Name, uuid: Uuid, written_for: Option<Name>) -> Option<Name> {
        let other = written_for.filter(|other| other != name)?;
        let whose = |path: PathBuf| schema::whose(&plain::read_if_possible(&path)?);
        let twin =
            whose(self.layout.vm_json(&other)).or_else(|| whose(self.layout.spare_json(&other)));
        // One of which neither can be read may be it.
        twin.map_or_else(|| self.exists(&other), |twin| twin.uuid == uuid).then_some(other)
    }

    /// Whose record this one in the place of `name` is, if it is not its own.
    pub(super) fn foreign(&self, name: &Name, written: &Written) -> Option<String> {
        let twin = self.twin(name, written.record.uuid, written.name.clone());
        twin.map(|twin| twin.to_string())
            .or_else(|| (!self.is_own(written.store)).then(|| "another store".to_owned()))
    }

    /// Reads a record in the place of `name` that was written in another store.
    pub fn load_of_another_store(&self, name: &Name) -> Option<Record> {
        let written =
            schema::parse_written(&plain::read_if_possible(&self.layout.vm_json(name))?).ok()?;
        let is_only_that = self.twin(name, written.record.uuid, written.name).is_none();
        (is_only_that && !self.is_own(written.store)).then_some(written.record)
    }

    /// All records that can be read.
    pub fn records(&self) -> Result<Vec<(Name, Record)>> {
        let all = self.load_all()?.into_iter();
        Ok(all.filter_map(|(name, record)| Some((name, record.ok()?))).collect())
    }

    /// The record of each VM and template, or why it cannot be read.
    pub fn load_all(&self) -> Result<Vec<(Name, Result<Record>)>> {
        let names = self.names()?;
        let records = parallel::map(&names, |name| self.load(name));
        Ok(names.into_iter().zip(records).collect())
    }

    /// Replaces the record of `name`, atomically and durably.
    pub fn save(&self, name: &Name, record: &Record) -> Result<()> {
        self.save_for(name, name, record)
    }

    /// Writes the record in the directory of `name` for the VM `owner`.
    fn save_for(&self, name: &Name, owner: &Name, record: &Record) -> Result<()> {
        let text = schema::render_record(record, Some(owner), self.id())?;
        // An old spare is worse than none.
        let _ = std::fs::remove_file(self.layout.spare_json(name));
        atomic::write(&self.layout.vm_json(name), &text)?;
        self.write_spare(name, &text);
        Ok(())
    }

    /// Gives the VM or template `old` the name `new`, which nobody has.
    pub fn rename(&self, old: &Name, new: &Name, record: &Record) -> Result<()> {
        let from = self.layout.vm(old);
        fault::point("a VM, about to be renamed").on("rename", &from)?;
        // Should this be cut short in between, the name in the record is one that no VM has, and
        // means nothing.
        self.save_for(old, new, record)?;
        std::fs::rename(&from, self.layout.vm(new)).on("rename", &from)?;
        fault::point("a VM, renamed").on("flush", &from)?;
        atomic::sync_directory(&self.layout.vms())
    }

    /// Replaces the record of a VM that is not to stay, atomically and without a flush. The old
    /// record, which was flushed, becomes the spare copy: after a power cut one of them can be
    /// read.
    pub fn save_passing(&self, name: &Name, record: &Record) -> Result<()> {
        let (path, spare) = (self.layout.vm_json(name), self.layout.spare_json(name));
        let text = schema::render_record(record, Some(name), self.id())?;
        let _ = std::fs::remove_file(&spare);
        if std::fs::hard_link(&path, &spare).is_err() {
            // This file system has no links.
            return self.save(name, record);
        }
        fault::point("vm.json, kept as the spare copy").on("replace", &path)?;
        atomic::write_unflushed(&path, &text)
    }

    /// Writes a record of `name` somewhere else, where it is kept for `undo`.
    pub fn save_record(&self, path: &Path, name: &Name, record: &Record) -> Result<()> {
        atomic::write(path, &schema::render_record(record, Some(name), self.id())?)
    }

    /// Has `name` this identity, by its record, whatever else can be read of that, or by the spare
    /// copy? `None` when neither says. A record that is another VM's says no.
    pub fn has_uuid(&self, name: &Name, is_it: impl FnOnce(Uuid) -> bool) -> Option<bool> {
        let whose = |path: PathBuf| schema::whose(&plain::read_if_possible(&path)?);
        let whose =
            whose(self.layout.vm_json(name)).or_else(|| whose(self.layout.spare_json(name)))?;
        Some(is_it(whose.uuid) && self.twin(name, whose.uuid, whose.name).is_none())
    }
}

/// What helps when something of a VM cannot be read.
pub fn how_to_mend(name: &Name) -> String {
    format!(
        "what can be done about it: cowhand doctor {name}; to do it: cowhand doctor {name} --repair"
    )
}
