//! Which store this is. Records, journals and entries of the trash say in which store they were
//! written: what comes from another one, by a restore that went wrong, is not taken for this one's.
//!
//! The identity lies in `store.json`, with the time at which the directory of the store was made. A
//! copy of a store has another such time. It gets an identity of its own by the first command that
//! changes something in it, and accepts what was written before under those it had.
//!
//! | in `store.json` | |
//! |---|---|
//! | `id` | a UUID; stores of earlier versions get one |
//! | `was` | the identities that this store, and those it was copied from, had before |
//! | `mark` | the mark of `vms/` and `layers/` (`store/unreachable.rs`), a UUID |
//! | `born` | when the directory of the store was made (`stx_btime`, see `statx(2)`) |
//!
//! `born` is absent where the file system does not tell, and then no copy is noticed.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Store, atomic, journal, plain, schema};
use crate::error::{Error, Kind, Result};
use crate::sys::flock;

/// With so many earlier identities something else is wrong, and no new one is made.
const MOST: usize = 1000;

/// What `store.json` says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    schema: u32,
    /// Which store this is; none: an earlier version has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    was: BTreeSet<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born: Option<Timestamp>,
    /// The mark of the directories; none: they have none yet, or cannot have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<Uuid>,
}

/// What is to become of what `store.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Renewal {
    /// An earlier version has made the store.
    First,
    /// The store was copied.
    Copy,
    /// Only the time is missing.
    Birth,
}

impl Identity {
    /// Was something that says it was written in the store `other` written in this one?
    fn accepts(&self, other: Option<Uuid>) -> bool {
        let Some((own, other)) = self.id.zip(other) else { return true };
        own == other || self.was.contains(&other)
    }

    fn needs(&self, born: Option<Timestamp>) -> Option<Renewal> {
        match (self.id, self.born, born) {
            (None, ..) => Some(Renewal::First),
            (Some(_), Some(before), Some(now)) if before != now && self.was.len() < MOST => {
                Some(Renewal::Copy)
            }
            (Some(_), None, Some(_)) => Some(Renewal::Birth),
            _ => None,
        }
    }
}

fn born(root: &Path) -> Option<Timestamp> {
    let created = std::fs::metadata(root).and_then(|about| about.created()).ok()?;
    // Some file systems say 1970 where they do not know.
    Timestamp::try_from(created).ok().filter(|born| born.as_second() > 0)
}

fn text(identity: &Identity) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(identity)
        .map_err(|error| Error::failed("cannot write which store this is").because(error))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads `store.json` and refuses that of a newer version.
fn read(path: &Path) -> Result<Identity> {
    let mended = |error: Error| error.hint("cowhand doctor --repair    writes it anew");
    let text = plain::read(path)
        .map_err(|error| if error.kind() == Kind::Damaged { mended(error) } else { error })?
        .ok_or_else(|| {
            Error::not_found(format!("cannot read {}: it is not there", path.display()))
        })?;
    let unreadable = |error: Error| {
        mended(Error::damaged(format!("cannot read {}", path.display())).because_of(&error))
    };
    schema::check_version(&text, schema::CURRENT).map_err(|error| match error.is_newer() {
        true => error,
        false => unreadable(error),
    })?;
    schema::parse(&text).map_err(unreadable)
}

impl Store {
    /// Which store this is. Where `store.json` cannot be read everything is accepted: what is wrong
    /// is said by whoever changes something.
    fn identity(&self) -> Identity {
        let known = self.identity.read().ok().and_then(|known| known.clone());
        known.unwrap_or_else(|| self.read_identity())
    }

    fn read_identity(&self) -> Identity {
        let read = read(&self.layout.store_json()).unwrap_or_default();
        self.remember(read.clone());
        read
    }

    /// What is written in this store from now on says that it was written in this one; `None`:
    /// nothing says which one it is.
    pub fn id(&self) -> Option<Uuid> {
        self.identity().id
    }

    /// Was something that says it was written in the store `written_in` written in this one?
    pub fn is_own(&self, written_in: Option<Uuid>) -> bool {
        // Another command may have given the store its identity since that was read.
        self.identity().accepts(written_in) || self.read_identity().accepts(written_in)
    }

    /// The mark that the directories of this store have; `None`: they have none.
    pub(super) fn mark(&self) -> Option<Uuid> {
        self.identity().mark
    }

    /// The same, read once more.
    pub(super) fn mark_now(&self) -> Option<Uuid> {
        self.read_identity().mark
    }

    /// Is this a copy that has no identity of its own yet?
    pub(super) fn is_copy(&self) -> bool {
        self.identity().needs(born(self.layout.root())) == Some(Renewal::Copy)
    }

    /// Refuses a store that a newer version has written, or whose `store.json` cannot be read.
    pub fn check_identity(&self) -> Result<()> {
        read(&self.layout.store_json()).map(drop)
    }

    /// Writes `store.json` where it is missing, for whatever store the files that are there say
    /// they were written in.
    pub(super) fn write_identity(&self) -> Result<()> {
        atomic::write_new(&self.layout.store_json(), &text(&self.new_identity(BTreeSet::new())?)?)
    }

    /// Writes `store.json` anew, in the same way.
    pub fn write_lost_identity(&self) -> Result<()> {
        self.put_identity(self.new_identity(BTreeSet::new())?)
    }

    /// Checks `store.json`, gives the store an identity of its own if it has none or was copied,
    /// and its directories a mark if they have none. `true`: it was copied.
    pub(super) fn settle_identity(&self) -> Result<bool> {
        let (path, born) = (self.layout.store_json(), born(self.layout.root()));
        let mut found = read(&path)?;
        if (found.needs(born).is_some() || !self.has_its_mark(&found))
            // Whoever has the lock may be doing the same; the next command looks again.
            && let Ok(lock) = flock::open(&self.layout.store_lock())
            && flock::try_exclusive(&lock).unwrap_or(false)
        {
            found = read(&path)?;
            let renewal = found.needs(born);
            let renewed = self.renewed(&found, renewal, born)?;
            // A store that cannot be written to stays as it is, and its next command says why.
            if renewed != found && self.put_identity(renewed.clone()).is_ok() {
                if renewed.mark != found.mark {
                    self.keep_mark(renewed.mark);
                }
                return Ok(renewal == Some(Renewal::Copy));
            }
        }
        self.remember(found);
        Ok(false)
    }

    /// Have the directories the mark that `found` names? Looked at until that is certain.
    fn has_its_mark(&self, found: &Identity) -> bool {
        if self.is_mounted.get().is_none() && self.has_mark(found.mark) {
            let _ = self.is_mounted.set(());
        }
        self.is_mounted.get().is_some()
    }

    /// What `store.json` is to say instead of `found`.
    fn renewed(
        &self,
        found: &Identity,
        renewal: Option<Renewal>,
        born: Option<Timestamp>,
    ) -> Result<Identity> {
        let mark = self.renew_mark(found.mark, renewal == Some(Renewal::Copy));
        Ok(match renewal {
            None => Identity { mark, ..found.clone() },
            Some(Renewal::Birth) => Identity { born, mark, ..found.clone() },
            Some(Renewal::First | Renewal::Copy) => {
                let was = found.was.iter().copied().chain(found.id).collect();
                Identity { mark, ..self.new_identity(was)? }
            }
        })
    }

    /// A new identity, which had those in `was` before. What lies in the store at this moment is
    /// its own, too.
    fn new_identity(&self, mut was: BTreeSet<Uuid>) -> Result<Identity> {
        was.extend(self.identities()?);
        Ok(Identity {
            schema: schema::CURRENT,
            id: Some(Uuid::new_v4()),
            was,
            born: born(self.layout.root()),
            mark: self.mark_of_directories(),
        })
    }

    fn put_identity(&self, identity: Identity) -> Result<()> {
        atomic::write(&self.layout.store_json(), &text(&identity)?)?;
        self.remember(identity);
        Ok(())
    }

    fn remember(&self, identity: Identity) {
        if let Ok(mut known) = self.identity.write() {
            *known = Some(identity);
        }
    }

    /// The stores that the files of this one say they were written in.
    fn identities(&self) -> Result<BTreeSet<Uuid>> {
        let mut files = Vec::new();
        for name in self.directories()? {
            files.extend([self.layout.vm_json(&name), self.layout.spare_json(&name)]);
        }
        files.extend(
            self.trash_entries()?.into_iter().map(|directory| directory.join("entry.json")),
        );
        let mut found: BTreeSet<Uuid> = files
            .iter()
            .filter_map(|file| schema::written_in(&plain::read_if_possible(file)?))
            .collect();
        found.extend(self.directories()?.iter().filter_map(|name| journal::written_in(self, name)));
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
