//! `entry.json` of a directory of the trash.
//!
//! Version 1 has no `schema`, `uuid` and `store`. What is not known of an entry is passed over:
//! what a directory of the trash holds is kept all the same.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::form::Saved;
use super::{parse, refuse_newer};
use crate::error::{Error, Result};
use crate::model::{FileStamp, Layer, LayerId, Name};
use crate::store::trash::entry::{Entry, SCHEMA};
use crate::store::trash::kind::Kind;

/// An entry, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Entry")]
struct EntryForm {
    #[serde(default = "first")]
    schema: u32,
    what: String,
    vm: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uuid: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<Uuid>,
    when: Timestamp,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    layers: Vec<Layer>,
    #[serde(default)]
    below: Vec<StampForm>,
    #[serde(rename = "way_back", default, skip_serializing_if = "Option::is_none")]
    undo_snapshot: Option<String>,
}

/// A layer's file as it was, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Stamp")]
pub(crate) struct StampForm {
    layer: Layer,
    bytes: u64,
    modified_ns: i64,
}

/// The version alone.
#[derive(Deserialize)]
#[serde(rename = "Entry")]
struct Versioned {
    #[serde(default = "first")]
    schema: u32,
}

/// What a directory of the trash needs, as far as its entry says. Whatever else is wrong with that:
/// it is kept for the day on which it is put right.
#[derive(Default, Deserialize)]
pub(in crate::store) struct Needs {
    #[serde(default = "first")]
    schema: u32,
    what: String,
    #[serde(default)]
    below: Vec<StampForm>,
    /// The internal snapshot that it is taken back with.
    #[serde(rename = "way_back", default)]
    pub(in crate::store) undo_snapshot: Option<String>,
}

/// The version that entries have which say nothing of one.
fn first() -> u32 {
    1
}

/// Reads an entry of any version this program knows.
pub fn parse_entry(text: &[u8]) -> Result<Entry> {
    let version: Versioned = parse(text)?;
    refuse_newer(version.schema, SCHEMA)?;
    parse::<EntryForm>(text).map(Entry::from)
}

/// Writes an entry, in the version that it was read in; a new one in today's.
pub fn render_entry(entry: &Entry) -> Result<Vec<u8>> {
    serde_json::to_vec(&EntryForm::from(entry))
        .map_err(|error| Error::failed("cannot describe trash").because(error))
}

impl Needs {
    /// Reads what an entry says of it; `None`: nobody knows.
    pub(in crate::store) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// The layers that have to be there, as they are, as long as it can be had back.
    pub(in crate::store) fn layers(self) -> impl Iterator<Item = LayerId> {
        // Which verbs a newer version can undo only that version knows.
        let counts = self.schema > SCHEMA || Kind::from(self.what).can_be_undone();
        self.below.into_iter().filter(move |_| counts).map(|stamp| stamp.layer.id)
    }
}

impl From<&Entry> for EntryForm {
    fn from(entry: &Entry) -> Self {
        let Entry { schema, what, vm, uuid, store, when, operation, layers, below, undo_snapshot } =
            entry.clone();
        let (what, below) = (what.to_form(), below.to_form());
        Self { schema, what, vm, uuid, store, when, operation, layers, below, undo_snapshot }
    }
}

impl From<EntryForm> for Entry {
    fn from(form: EntryForm) -> Self {
        let EntryForm {
            schema,
            what,
            vm,
            uuid,
            store,
            when,
            operation,
            layers,
            below,
            undo_snapshot,
        } = form;
        let (what, below) = (Kind::from_form(what), Vec::from_form(below));
        Self { schema, what, vm, uuid, store, when, operation, layers, below, undo_snapshot }
    }
}

impl Saved for Kind {
    type Form = String;

    fn to_form(&self) -> String {
        self.as_str().to_owned()
    }

    fn from_form(form: String) -> Self {
        Self::from(form)
    }
}

impl Saved for FileStamp {
    type Form = StampForm;

    /// Nanoseconds since 1970 fit into 64 bits until the year 2262.
    fn to_form(&self) -> StampForm {
        let modified_ns = i64::try_from(self.modified_ns).unwrap_or(i64::MAX);
        StampForm { layer: self.layer.clone(), bytes: self.bytes, modified_ns }
    }

    fn from_form(StampForm { layer, bytes, modified_ns }: StampForm) -> Self {
        Self { layer, bytes, modified_ns: modified_ns.into() }
    }
}
