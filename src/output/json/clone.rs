//! Clones.

use serde::Serialize;

use crate::clone;
use crate::model::Name;
use crate::output::time::milliseconds;

/// An entry of `clone`.
#[derive(Debug, Serialize)]
pub struct Cloned<'a> {
    name: &'a Name,
    kind: &'static str,
    ms: f64,
    /// How its data got there.
    reason: &'a str,
}

impl<'a> From<&'a clone::Cloned> for Cloned<'a> {
    fn from(clone: &'a clone::Cloned) -> Self {
        Self {
            name: &clone.name,
            kind: clone.kind.as_str(),
            ms: milliseconds(clone.took),
            reason: &clone.reason,
        }
    }
}
