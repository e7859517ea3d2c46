//! The name of a VM that is about to exist: it is claimed by an empty directory that is locked, and
//! given up if nothing comes of it.

use std::io;

use uuid::Uuid;

use super::{Store, StoreLock, VmLock, how_to_mend, make_directory, plain};
use crate::error::{Error, IoContext, Result};
use crate::model::Name;

impl Store {
    /// Makes the empty directory of a VM that is about to exist, and locks it.
    pub fn claim(&self, operation: &str, store_lock: &StoreLock, name: &Name) -> Result<VmLock> {
        let _ = store_lock;
        let taken = || {
            Error::exists(format!("the name {name} is taken"))
                .hint("choose another name, or see what is there: cowhand ls -a")
        };
        if self.exists(name) {
            return Err(taken());
        }
        make_directory(&self.layout.vm(name))?;
        if let Some(damage) = plain::damage(&self.layout.lock(name)) {
            return Err(Error::damaged(format!(
                "the name {name} cannot be used: {}",
                damage.message()
            ))
            .hint(how_to_mend(name)));
        }
        // Whoever is making a VM of this name just now holds its lock until it is there.
        let Some(lock) = self.try_lock_vm(name, operation)? else {
            return Err(Error::exists(format!(
                "the name {name} is taken: another command is making it"
            ))
            .hint("choose another name, or run the command again later"));
        };
        if self.has_journal(name) {
            return Err(Error::damaged(format!(
                "the name {name} cannot be used: a command that was making it has left a journal, \
                 which was not cleared up"
            ))
            .hint(format!(
                "run the command again; if that does not help: cowhand doctor {name}; or \
                 choose another name"
            )));
        }
        if self.exists(name) { Err(taken()) } else { Ok(lock) }
    }

    /// Removes the directory of a VM that never came to exist. One with a journal is for recovery
    /// to clear up.
    pub fn unclaim(&self, name: &Name) -> Result<()> {
        let directory = self.layout.vm(name);
        if self.exists(name) || self.has_journal(name) {
            return Ok(());
        }
        // At one stroke: were its lock to go before the directory, another command could begin in
        // there.
        let gone = self.layout.gone(&Uuid::new_v4().simple().to_string());
        match std::fs::rename(&directory, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.on("remove", &directory)?,
        }
        match std::fs::remove_dir_all(&gone) {
            // Whoever collects such things was quicker.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", &gone),
            _ => Ok(()),
        }
    }
}
