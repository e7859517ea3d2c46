//! The spare copy of a record, which is read where the record itself cannot be.

use std::collections::BTreeSet;

use super::{Store, atomic, plain, schema};
use crate::error::{Error, Result};
use crate::model::{Layer, Name, Record};

impl Store {
    /// Only a spare: it is neither flushed nor missed.
    pub(super) fn write_spare(&self, name: &Name, text: &[u8]) {
        let _ = atomic::write_unflushed(&self.layout.spare_json(name), text);
    }

    /// Writes the spare copy of a record where it is missing or cannot be used.
    pub fn renew_spare(&self, name: &Name) {
        let Some(text) = plain::read_if_possible(&self.layout.vm_json(name)) else { return };
        if self.load(name).is_ok_and(|record| matches!(self.overruling(name, &record), Ok(None)))
            && plain::read_if_possible(&self.layout.spare_json(name)).as_deref() != Some(&text[..])
        {
            self.write_spare(name, &text);
        }
    }

    /// The spare copy of `record`, where it names other layers: then the record is not the one that
    /// was written last, since the spare copy is taken away before that and written after. (What is
    /// not to stay keeps an older one.) An error: it cannot be read just now. One that is damaged
    /// says nothing.
    pub fn overruling(&self, name: &Name, record: &Record) -> Result<Option<Record>> {
        if record.ephemeral.is_some() {
            return Ok(None);
        }
        let layers = |record: &Record| record.layers().cloned().collect::<BTreeSet<Layer>>();
        match self.load_spare(name) {
            Some(Ok(spare)) => Ok(Some(spare).filter(|spare| layers(spare) != layers(record))),
            Some(Err(error)) if error.is_passing() => Err(error),
            Some(Err(_)) | None => Ok(None),
        }
    }

    /// The same for a caller without the VM's lock: `None`, too, if another command has written the
    /// record and its spare copy since `record` was read.
    pub fn overruling_still(&self, name: &Name, record: &Record) -> Result<Option<Record>> {
        let Some(spare) = self.overruling(name, record)? else { return Ok(None) };
        let stays = self.load_if_there(name)?.as_ref() == Some(record)
            && self.overruling(name, record)?.as_ref() == Some(&spare);
        Ok(stays.then_some(spare))
    }

    /// Reads the spare copy of the record of `name`; `None` when there is no such file.
    pub fn load_spare(&self, name: &Name) -> Option<Result<Record>> {
        let path = self.layout.spare_json(name);
        Some(plain::read(&path).transpose()?.and_then(|text| {
            let written = schema::parse_written(&text)?;
            match self.foreign(name, &written) {
                Some(whose) => Err(Error::damaged(format!("it is that of {whose}"))),
                None => Ok(written.record),
            }
        }))
    }
}
