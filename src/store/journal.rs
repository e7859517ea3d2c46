//! The journal of one VM: the steps of the change that is under way. Written before the first of them, removed after the last.
//!
//! What the steps are is the business of [`crate::change`]; here they only have to be written and read.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Store, atomic};
use crate::error::{Error, IoContext, Result};
use crate::model::{Layer, Name};
use crate::sys::{fault, flock};

/// A change that is under way, or was when its process died.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal<S> {
    /// The version of this form.
    pub schema: u32,
    /// In the words of the user (`snapshot create web@before`).
    pub operation: String,
    /// What it does, in order.
    pub steps: Vec<S>,
    /// The index of the step after which there is no way back.
    pub pivot: usize,
    /// Layers the change relies on or brings into being; nobody else may take them for unused.
    pub pins: Vec<Layer>,
}

#[derive(Deserialize)]
struct Pins {
    pins: Vec<Layer>,
}

#[derive(Deserialize)]
struct Operation {
    operation: String,
}

impl<S: Serialize + DeserializeOwned> Journal<S> {
    /// The version written today.
    pub const SCHEMA: u32 = 1;

    /// Reads the journal of `name`, if a change was cut short.
    pub fn load(store: &Store, name: &Name) -> Result<Option<Self>> {
        let path = store.layout.journal(name);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).on("read", &path),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Error::damaged(format!("the journal of {name} cannot be read: {}", path.display()))
                .hint(super::how_to_mend(name))
                .because(error)
        })
    }

    /// Writes the journal of `name`, durably.
    pub fn save(&self, store: &Store, name: &Name) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::failed("cannot write a journal").because(error))?;
        atomic::write(&store.layout.journal(name), &text)
    }
}

/// Removes the journal of `name`: its change is complete, or undone. Should a power cut bring it back, its steps find
/// themselves done.
pub fn remove(store: &Store, name: &Name) -> Result<()> {
    let path = store.layout.journal(name);
    fault::point("journal.json, about to go").on("remove", &path)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", &path),
        _ => Ok(()),
    }
}

/// The journal of `name` as it is written; empty when there is none.
pub fn text(store: &Store, name: &Name) -> Result<String> {
    let path = store.layout.journal(name);
    match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        // Of a damaged one, what can be read.
        other => Ok(String::from_utf8_lossy(&other.on("read", &path)?).into_owned()),
    }
}

/// The change of `name` that was cut short, in the words of its user: there is a journal, and nobody at work on it. A journal that cannot be read is for
/// others to tell of.
pub fn cut_short(store: &Store, name: &Name) -> Option<String> {
    let path = store.layout.journal(name);
    let text = std::fs::read(&path).ok()?;
    // Who held the lock a moment ago may have come to the end, and another begun.
    let at_work = flock::is_held(&store.layout.lock(name)).unwrap_or(true)
        || std::fs::read(&path).ok().as_deref() != Some(&text[..]);
    let journal = serde_json::from_slice::<Operation>(&text).ok()?;
    (!at_work).then_some(journal.operation)
}

/// The layers that the changes under way in `name` rely on; an unreadable journal is an error, because then nobody knows.
pub fn pins(store: &Store, name: &Name) -> Result<Vec<Layer>> {
    let path = store.layout.journal(name);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice::<Pins>(&text).map(|journal| journal.pins).map_err(|error| {
            Error::damaged(format!("the journal of {name} cannot be read: {}", path.display()))
                .hint(super::how_to_mend(name))
                .because(error)
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).on("read", &path),
    }
}
