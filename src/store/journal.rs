//! The journal of one VM: the steps of the change that is under way. Written before the first of
//! them, removed after the last.
//!
//! What the steps are is the business of [`crate::change`]; here they only have to be written and
//! read.

use std::borrow::Cow;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Store, atomic, plain, schema};
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::{Layer, Name, printable};
use crate::sys::{fault, flock};

/// A change that is under way, or was when its process died.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal<S> {
    /// The version of this form, steps included.
    pub schema: u32,
    /// Whose change it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Owner>,
    /// In the words of the user (`snapshot create web@before`).
    pub operation: String,
    /// What it does, in order.
    pub steps: Vec<S>,
    /// The index of the step after which there is no way back.
    pub pivot: usize,
    /// Layers the change relies on or brings into being; nobody else may take them for unused.
    pub pins: Vec<Layer>,
}

impl<S> Journal<S> {
    /// The command, for a person to read: on one line, with nothing in it that commands a terminal.
    pub fn command(&self) -> Cow<'_, str> {
        printable::line(&self.operation)
    }
}

/// The VM or template that a journal belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Its name when the journal was written.
    pub name: Name,
    /// Its identity.
    pub uuid: Uuid,
    /// The store that the journal was written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Uuid>,
}

/// What can be said of a journal without knowing its steps.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    vm: Option<Owner>,
    /// Once it was checked, for a person to read.
    operation: String,
    steps: Vec<Saved>,
    pivot: usize,
    pins: Vec<Layer>,
}

/// A step as far as it holds a record, which tells whose journal it is where the journal does not.
#[derive(Deserialize)]
struct Saved {
    #[serde(default)]
    record: Option<schema::Whose>,
}

/// The version that is written today. Journals of version 1 do not say whose they are, those of
/// version 2 not in which store they were written.
pub const SCHEMA: u32 = 3;

/// Reads the journal of `name` and checks that it is one of that VM, in a version that is known.
fn read(store: &Store, name: &Name) -> Result<Option<(Vec<u8>, Head)>> {
    let path = store.layout.journal(name);
    let read = || {
        plain::read(&path).map_err(|error| match error.kind() {
            Kind::Damaged => {
                Error::damaged(format!("the journal of {name} cannot be read: {}", error.message()))
                    .hint(super::how_to_mend(name))
            }
            _ => error,
        })
    };
    let mut text = read()?;
    loop {
        let Some(now) = text else { return Ok(None) };
        let error = match check(store, name, &now) {
            Ok(head) => return Ok(Some((now, head))),
            Err(error) => error,
        };
        // Readers take no lock: the VM and its journal may be others by now.
        text = read()?;
        if text.as_ref() == Some(&now) {
            return Err(error);
        }
    }
}

fn check(store: &Store, name: &Name, text: &[u8]) -> Result<Head> {
    let path = store.layout.journal(name);
    let unreadable = |error: Error| {
        let newer = error.is_newer();
        let hint = if newer {
            "use that version; nothing was changed".to_owned()
        } else {
            super::how_to_mend(name)
        };
        Error::damaged(format!("the journal of {name} cannot be read: {}", path.display()))
            .hint(hint)
            .because_of(&error)
    };
    schema::check_version(text, SCHEMA).map_err(unreadable)?;
    let mut head: Head = schema::parse(text).map_err(unreadable)?;
    head.operation = printable::line(&head.operation).into_owned();
    if head.pivot >= head.steps.len() {
        return Err(unreadable(Error::damaged(
            "it has no step after which there would be no way back",
        )));
    }
    let foreign = |whose: String| {
        Err(Error::damaged(format!("the journal of {name} is that of {whose}: {}", path.display()))
            .hint(super::how_to_mend(name)))
    };
    let now = plain::read_if_possible(&store.layout.vm_json(name))
        .and_then(|text| schema::whose(&text))
        .map(|now| now.uuid);
    if let Some(owner) = head.vm.as_ref().filter(|owner| owner.name != *name) {
        // Who renames a directory by hand takes the VM's own journal along.
        let was_moved = now == Some(owner.uuid)
            && store.twin(name, owner.uuid, Some(owner.name.clone())).is_none();
        if !was_moved {
            return foreign(format!("{} (`{}`)", owner.name, head.operation));
        }
    }
    let saved =
        || head.steps.iter().find_map(|step| step.record.as_ref()).map(|record| record.uuid);
    let uuid = head.vm.as_ref().map(|owner| owner.uuid).or_else(saved);
    if uuid.zip(now).is_some_and(|(uuid, now)| now != uuid) {
        return foreign(format!("another VM (`{}`)", head.operation));
    }
    match store.is_own(head.vm.as_ref().and_then(|owner| owner.store)) {
        true => Ok(head),
        false => foreign(format!("another store (`{}`)", head.operation)),
    }
}

/// The store that the journal of `name` says it was written in.
pub(super) fn written_in(store: &Store, name: &Name) -> Option<Uuid> {
    let text = plain::read_if_possible(&store.layout.journal(name))?;
    serde_json::from_slice::<Head>(&text).ok()?.vm?.store
}

impl<S: Serialize + DeserializeOwned> Journal<S> {
    /// Reads the journal of `name`, if a change was cut short. One of another VM, or of a newer
    /// version, is an error: it is neither executed nor removed.
    pub fn load(store: &Store, name: &Name) -> Result<Option<Self>> {
        let Some((text, _)) = read(store, name)? else { return Ok(None) };
        let path = store.layout.journal(name);
        schema::parse(&text).map(Some).map_err(|error| {
            Error::damaged(format!("the journal of {name} cannot be read: {}", path.display()))
                .hint(super::how_to_mend(name))
                .because_of(&error)
        })
    }

    /// Writes the journal of `name`, durably.
    pub fn save(&self, store: &Store, name: &Name) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::failed("cannot write a journal").because(error))?;
        atomic::write(&store.layout.journal(name), &text)
    }
}

/// Removes the journal of `name`: its change is complete, or undone. Should a power cut bring it
/// back, its steps find themselves done.
pub fn remove(store: &Store, name: &Name) -> Result<()> {
    let path = store.layout.journal(name);
    fault::point("journal.json, about to go").on("remove", &path)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", &path),
        _ => Ok(()),
    }
}

/// The change of `name` that was cut short, in the words of its user: there is a journal, and
/// nobody at work on it. A journal that cannot be read is for others to tell of.
pub fn cut_short(store: &Store, name: &Name) -> Option<String> {
    let path = store.layout.journal(name);
    let (text, head) = read(store, name).ok()??;
    // Who held the lock a moment ago may have come to the end, and another begun.
    let at_work = flock::is_held(&store.layout.lock(name)).unwrap_or(true)
        || plain::read_if_possible(&path).as_deref() != Some(&text[..]);
    (!at_work).then_some(head.operation)
}

/// The layers that the changes under way in `name` rely on; an unreadable journal is an error,
/// because then nobody knows.
pub fn pins(store: &Store, name: &Name) -> Result<Vec<Layer>> {
    Ok(read(store, name)?.map(|(_, head)| head.pins).unwrap_or_default())
}
