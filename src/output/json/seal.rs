//! What sealing did to a guest.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::seal::operations::Operation;
use crate::seal::options::GeneratedPassword;
use crate::seal::{PathChange, Performed, Report, Touched};

/// `seal`, and `seal` of `template create`.
#[derive(Debug, Serialize)]
pub struct Sealed<'a> {
    dry_run: bool,
    system: &'a str,
    mounts: &'a [String],
    operations: Vec<Done<'a>>,
}

/// What one operation did.
#[derive(Debug, Serialize)]
struct Done<'a> {
    name: &'a str,
    touched: Vec<Path<'a>>,
    /// How many further paths there were. Left out where there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<u64>,
}

/// A path in the guest.
#[derive(Debug, Serialize)]
struct Path<'a> {
    path: &'a str,
    how: PathChange,
}

impl<'a> Sealed<'a> {
    /// What was done; with `dry_run`, what would be.
    pub fn new(report: &'a Report, dry_run: bool) -> Self {
        let operations = report.operations.iter().map(Done::from).collect();
        Self { dry_run, system: &report.system, mounts: &report.mounts, operations }
    }
}

impl<'a> From<&'a Performed> for Done<'a> {
    fn from(performed: &'a Performed) -> Self {
        Self {
            name: &performed.name,
            touched: performed.touched.iter().map(Path::from).collect(),
            more: Some(performed.more).filter(|more| *more > 0),
        }
    }
}

impl<'a> From<&'a Touched> for Path<'a> {
    fn from(touched: &'a Touched) -> Self {
        Self { path: &touched.path, how: touched.how }
    }
}

/// A result of `seal` or `template create`, and the passwords that were made up for it.
#[derive(Debug, Serialize)]
pub struct WithPasswords<'a, T: Serialize> {
    #[serde(flatten)]
    result: &'a T,
    /// Per user. Left out where none was made up.
    #[serde(skip_serializing_if = "Map::is_empty")]
    passwords: Map<String, Value>,
}

impl<'a, T: Serialize> WithPasswords<'a, T> {
    /// `result`, with `passwords`.
    pub fn new(result: &'a T, passwords: &[GeneratedPassword]) -> Self {
        let word = |one: &GeneratedPassword| (one.user.clone(), Value::from(one.password.as_str()));
        Self { result, passwords: passwords.iter().map(word).collect() }
    }
}

/// An entry of `seal --list-operations`.
#[derive(Debug, Serialize)]
pub struct SealOperation {
    name: &'static str,
    /// It is done unless told otherwise.
    default: bool,
    about: &'static str,
}

impl From<&Operation> for SealOperation {
    fn from(operation: &Operation) -> Self {
        Self { name: operation.name, default: operation.default, about: operation.about }
    }
}
