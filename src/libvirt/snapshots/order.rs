//! The order and the names of the snapshots of a domain.

use std::collections::{BTreeMap, BTreeSet};

use super::super::request::Request;
use super::super::xml::Notes;
use super::{MOST, Snapshot, parse};
use crate::error::{Error, Result};
use crate::model::Name;

/// The longest documents of a domain together, in bytes.
const LONGEST_TOGETHER: usize = 32 << 20;

/// The snapshots, the parents before their children, and else by their age.
pub(super) fn ordered(request: &Request, notes: &mut Notes) -> Result<Vec<Snapshot>> {
    if request.snapshots.len() > MOST
        || request.snapshots.iter().map(String::len).sum::<usize>() > LONGEST_TOGETHER
    {
        return Err(Error::refused(format!(
            "{} has more than {MOST} snapshots, or they are described in more than {} MiB",
            request.shown,
            LONGEST_TOGETHER >> 20
        )));
    }
    let mut waiting: Vec<Snapshot> = Vec::new();
    for (at, text) in request.snapshots.iter().enumerate() {
        let snapshot = parse(text, &format!("snapshot {} of {}", at + 1, request.shown))?;
        if waiting.iter().any(|other| other.name == snapshot.name) {
            return Err(Error::refused(format!(
                "{} has two snapshots {}",
                request.shown, snapshot.name
            )));
        }
        waiting.push(snapshot);
    }
    waiting.sort_by_key(|snapshot| snapshot.created);
    let names: BTreeSet<String> = waiting.iter().map(|snapshot| snapshot.name.clone()).collect();
    let mut ordered: Vec<Snapshot> = Vec::new();
    while !waiting.is_empty() {
        let is_ready = |snapshot: &Snapshot| {
            let parent = snapshot.parent.as_ref().filter(|parent| names.contains(*parent));
            parent.is_none_or(|parent| ordered.iter().any(|other| other.name == *parent))
        };
        let (ready, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut waiting).into_iter().partition(is_ready);
        if ready.is_empty() {
            // Each is a descendant of itself.
            rest.iter().for_each(|one| {
                notes.left(format!("snapshot {}", one.name), "its parent follows it")
            });
            break;
        }
        ordered.extend(ready);
        waiting = rest;
    }
    Ok(ordered)
}

/// The nearest ancestor that comes over.
pub(super) fn before(
    snapshot: &Snapshot,
    all: &[Snapshot],
    names: &BTreeMap<&str, Name>,
) -> Option<Name> {
    let mut parent = snapshot.parent.as_deref();
    while let Some(name) = parent {
        match names.get(name) {
            Some(name) => return Some(name.clone()),
            None => {
                parent = all
                    .iter()
                    .find(|other| other.name == name)
                    .and_then(|other| other.parent.as_deref())
            }
        }
    }
    None
}

/// The name for a snapshot: its own, or one like it.
pub(super) fn name_for(name: &str, taken: &[Name]) -> Name {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .take(50)
        .collect();
    let plain = plain.trim_start_matches(['.', '_', '-']);
    let stem = if plain.is_empty() { "snapshot" } else { plain };
    let numbered = (2..).map(|number| format!("{stem}-{number}"));
    let mut names = [name.to_owned(), stem.to_owned()].into_iter().chain(numbered);
    let is_free = |name: &Name| !taken.contains(name);
    names
        .find_map(|name| name.parse::<Name>().ok().filter(is_free))
        .unwrap_or_else(|| unreachable!("one of the numbers is free"))
}
