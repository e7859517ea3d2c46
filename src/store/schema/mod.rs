//! How records, entries of the trash and parts of journals are written down: the saved forms, apart
//! from the live types of [`crate::model`].
//!
//! Each version of a record has a directory of its own and never changes once released. Older ones
//! are migrated in memory, newer ones are refused. A form that stands for a live type has its name
//! in `serde(rename)`, so that errors call it by that.
//!
//! These live types are written as they are:
//!
//! - [`Name`], `LayerId`, `Format` and `PointRef`'s parts: one word each, by their own `FromStr`.
//! - `Layer`: its two fields, `id` and `format`, are the name of its file. Every step, record and
//!   entry has layers, and what a layer is does not change.
//!
//! The steps of a journal are forms themselves: [`crate::change`] writes their fields. A field of a
//! live type is written by its form, see [`form`]. So are the files that only one module reads and
//! writes (`store.json`, `clock.json`, `sums.json`, the journal's head): the type is the form.

mod devices;
pub(crate) mod form;
mod steps;
pub(in crate::store) mod trash;
mod v1;

use serde::Deserialize;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::model::{Name, Record};

pub use trash::{parse_entry, render_entry};
pub use v1::RecordV1;

/// The version written today.
pub const CURRENT: u32 = 1;

#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

/// Whose record it is, as far as the record says so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Whose {
    /// The identity of the VM or template.
    pub uuid: Uuid,
    /// Its name. Records that were last written before names were noted have none.
    #[serde(default)]
    pub name: Option<Name>,
}

/// Reads whose record `text` is; `None` when that cannot be read.
pub fn whose(text: &[u8]) -> Option<Whose> {
    serde_json::from_slice(text).ok()
}

/// Reads the store that a record, or an entry of the trash, says it was written in.
pub fn written_in(text: &[u8]) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct Written {
        store: Option<Uuid>,
    }
    serde_json::from_slice::<Written>(text).ok()?.store
}

/// A record, and what it says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The record.
    pub record: Record,
    /// The VM that it was written for.
    pub name: Option<Name>,
    /// The store that it was written in.
    pub store: Option<Uuid>,
}

/// Reads a record of any version this program knows.
pub fn parse_record(text: &[u8]) -> Result<Record> {
    parse_written(text).map(|written| written.record)
}

/// Reads a record, and for which VM and in which store it was written.
pub fn parse_written(text: &[u8]) -> Result<Written> {
    if text.is_empty() {
        return Err(Error::damaged("the file is empty"));
    }
    let version: Versioned = parse(text)?;
    match version.schema {
        1 => {
            let record: v1::RecordV1 = parse(text)?;
            let (name, store) = (record.name().cloned(), record.store());
            Ok(Written { record: Record::try_from(record)?, name, store })
        }
        other => Err(too_new(other, CURRENT)),
    }
}

/// Writes the record of the VM or template `name` of the store `store` in today's version.
pub fn render_record(record: &Record, name: Option<&Name>, store: Option<Uuid>) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(&v1::RecordV1::from(record).written(name, store))
        .map_err(|error| Error::failed("cannot write a record").because(error))?;
    text.push(b'\n');
    Ok(text)
}

/// Refuses text of a newer version than `known`; text without a version is damaged.
pub(super) fn check_version(text: &[u8], known: u32) -> Result<()> {
    let version: Versioned = parse(text)?;
    refuse_newer(version.schema, known)
}

fn refuse_newer(schema: u32, known: u32) -> Result<()> {
    if schema > known { Err(too_new(schema, known)) } else { Ok(()) }
}

fn too_new(schema: u32, known: u32) -> Error {
    Error::newer(format!(
        "written by a newer version of cowhand (schema {schema}, this one knows {known})"
    ))
    .hint("use that version; nothing was changed")
}

/// Parses JSON and says where it is wrong: line, path and reason.
pub(super) fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = error.path().to_string();
        let inner = error.into_inner();
        let reason = inner.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let reason =
            reason.split(", expected one of ").next().unwrap_or_default().replace('`', "\"");
        let place = if at == "." || at == "?" { String::new() } else { format!(" at {at}") };
        Error::damaged(format!("line {}: {reason}{place}", inner.line()))
    })
}
