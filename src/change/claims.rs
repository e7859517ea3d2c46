//! What changes that are under way, or were cut short, need beside layers: directories of the trash
//! and files of guests' memory. `gc` leaves those alone. Layers are in a journal's `pins`
//! ([`crate::store::journal::pins`]).

use std::collections::BTreeSet;

use super::planned::Planned;
use super::step::Touches;
use crate::error::{Error, Result};
use crate::model::{LayerId, Name, Record};
use crate::store::Store;
use crate::store::journal::Journal;

/// What all journals of a store need.
#[derive(Debug, Default)]
pub struct Claims {
    /// Directories of the trash, by their names.
    pub trash: BTreeSet<String>,
    /// The ids of files in `ram/`.
    pub images: BTreeSet<LayerId>,
    /// Journals that cannot be read, with why. They may need anything.
    pub unreadable: Vec<(Name, Error)>,
}

impl Claims {
    /// Reads all journals of `store`. A change writes its journal before it makes a file, and its
    /// record before it removes the journal: whoever looks for unneeded files lists those first,
    /// and reads the records after this.
    pub fn look(store: &Store) -> Result<Self> {
        let mut claims = Self::default();
        for name in store.directories()? {
            match Journal::<Planned>::load(store, &name) {
                Ok(journal) => {
                    let steps = journal.iter().flat_map(|journal| &journal.steps);
                    if let Err(error) =
                        steps.map(Planned::touches).try_for_each(|touches| claims.add(touches))
                    {
                        claims.unreadable.push((name, error));
                    }
                }
                Err(error) => claims.unreadable.push((name, error)),
            }
        }
        Ok(claims)
    }

    /// Adds what a step touches. An error: its record cannot be read, and may name any file of
    /// memory.
    pub fn add(&mut self, touches: Touches) -> Result<()> {
        self.trash.extend(touches.trash);
        self.images.extend(touches.images);
        if let Some(record) = touches.record {
            self.images.extend(Record::try_from(*record)?.memory_images().cloned());
        }
        Ok(())
    }
}
