//! What can be taken back, and what is gone for good.

use std::borrow::Cow;

use serde::Serialize;

use crate::maintenance::{gc, undo};
use crate::model::{Name, printable};
use crate::output::time::rfc3339;

/// `undo`, and an entry of `undo --list`.
#[derive(Debug, Serialize)]
pub struct Undoable<'a> {
    vm: &'a Name,
    /// The verb.
    what: &'a str,
    /// The whole command.
    operation: &'a str,
    when: String,
    bytes: u64,
    possible: bool,
    /// Why it is not possible, on one line.
    reason: Option<Cow<'a, str>>,
}

impl<'a> From<&'a undo::Undoable> for Undoable<'a> {
    fn from(row: &'a undo::Undoable) -> Self {
        Self {
            vm: &row.vm,
            what: row.entry.what.as_str(),
            operation: &row.entry.operation,
            when: rfc3339(row.entry.when),
            bytes: row.bytes,
            possible: row.obstacle.is_none(),
            reason: row.obstacle.as_deref().map(printable::line),
        }
    }
}

/// `gc`.
#[derive(Debug, Serialize)]
pub struct Collected<'a> {
    bytes: u64,
    dry_run: bool,
    removed: Vec<Gone<'a>>,
}

#[derive(Debug, Serialize)]
struct Gone<'a> {
    what: &'a str,
    why: &'static str,
    bytes: u64,
}

impl<'a> Collected<'a> {
    /// What was collected; with `dry_run`, what would be.
    pub fn new(collected: &'a [gc::Collected], dry_run: bool) -> Self {
        let bytes = collected.iter().map(|item| item.bytes).sum();
        Self { bytes, dry_run, removed: collected.iter().map(Gone::from).collect() }
    }
}

impl<'a> From<&'a gc::Collected> for Gone<'a> {
    fn from(item: &'a gc::Collected) -> Self {
        Self { what: &item.what, why: item.why, bytes: item.bytes }
    }
}
