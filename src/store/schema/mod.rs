//! How records are written down. Each version has a file of its own, apart from the live types of [`crate::model`], and never
//! changes once released; older ones are migrated in memory, newer ones are refused.

mod v1;

use std::path::Path;

use serde::Deserialize;

use super::atomic;
use crate::error::{Error, IoContext, Result};
use crate::model::Record;

pub use v1::RecordV1;

/// The version written today.
pub const CURRENT: u32 = 1;

#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

/// Reads a record of any version this program knows.
pub fn parse_record(text: &[u8]) -> Result<Record> {
    if text.is_empty() {
        return Err(Error::damaged("the file is empty"));
    }
    let version: Versioned = parse(text)?;
    match version.schema {
        1 => Record::try_from(parse::<v1::RecordV1>(text)?),
        other => Err(too_new(other)),
    }
}

/// Writes a record in today's version.
pub fn render_record(record: &Record) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(&v1::RecordV1::from(record))
        .map_err(|error| Error::failed("cannot write a record").because(error))?;
    text.push(b'\n');
    Ok(text)
}

/// Writes `store.json` for a new store.
pub fn write_store_file(path: &Path) -> Result<()> {
    atomic::write(path, format!("{{\"schema\":{CURRENT}}}\n").as_bytes())
}

/// Refuses a store that a newer version has written.
pub fn check_store_file(path: &Path) -> Result<()> {
    let text = std::fs::read(path).on("read", path)?;
    let version: Versioned = parse(&text)
        .map_err(|error| Error::damaged(format!("cannot read {}", path.display())).because(error.full_message()))?;
    if version.schema > CURRENT { Err(too_new(version.schema)) } else { Ok(()) }
}

/// Does this error say that a newer version has written it? Then it is not damaged, and not ours to mend.
pub fn is_newer(error: &Error) -> bool {
    error.full_message().contains(NEWER)
}

const NEWER: &str = "written by a newer version of cowhand";

fn too_new(schema: u32) -> Error {
    Error::damaged(format!("{NEWER} (schema {schema}, this one knows {CURRENT})"))
        .hint("use that version; nothing was changed")
}

/// Parses JSON and says where it is wrong: line, path and reason.
fn parse<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = error.path().to_string();
        let inner = error.into_inner();
        let reason = inner.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let reason = reason.split(", expected one of ").next().unwrap_or_default().replace('`', "\"");
        let place = if at == "." || at == "?" { String::new() } else { format!(" at {at}") };
        Error::damaged(format!("line {}: {reason}{place}", inner.line()))
    })
}
