//! Templates.

use serde::Serialize;

use super::seal::Sealed;
use crate::model::Name;
use crate::output::time::rfc3339;
use crate::seal::Report;
use crate::template::list::Row;
use crate::warm::make::Warmed;

/// `template show`, and an entry of `template ls`.
#[derive(Debug, Serialize)]
pub struct Template<'a> {
    name: &'a Name,
    sealed: bool,
    warm: bool,
    dependents: &'a [Name],
    bytes: u64,
    created: String,
}

impl<'a> From<&'a Row> for Template<'a> {
    fn from(row: &'a Row) -> Self {
        Self {
            name: &row.name,
            sealed: row.sealed,
            warm: row.record.warm.is_some(),
            dependents: &row.dependents,
            bytes: row.bytes,
            created: rfc3339(row.frozen),
        }
    }
}

/// `template create`.
#[derive(Debug, Serialize)]
pub struct FrozenTemplate<'a> {
    name: &'a Name,
    sealed: bool,
    /// Left out where nothing was sealed from the outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<Sealed<'a>>,
    /// True, or left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    warm: Option<bool>,
}

impl<'a> FrozenTemplate<'a> {
    /// The template `name`.
    pub fn new(name: &'a Name, sealed: bool) -> Self {
        Self { name, sealed, seal: None, warm: None }
    }

    /// With what sealing did; with `dry_run`, would do.
    #[must_use]
    pub fn with_report(self, report: &'a Report, dry_run: bool) -> Self {
        Self { seal: Some(Sealed::new(report, dry_run)), ..self }
    }

    /// It was made warm, too.
    #[must_use]
    pub fn made_warm(self) -> Self {
        Self { warm: Some(true), ..self }
    }
}

/// `template warm` and `template cool`.
#[derive(Debug, Serialize)]
pub struct Warmth<'a> {
    name: &'a Name,
    warm: bool,
    /// What its memory takes, or took.
    bytes: u64,
    /// Left out of `cool`.
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
}

impl<'a> Warmth<'a> {
    /// The template `name`, which is warm now.
    pub fn warm(name: &'a Name, warmed: &Warmed) -> Self {
        Self { name, warm: true, bytes: warmed.bytes, ms: Some(warmed.took.as_secs_f64() * 1000.0) }
    }

    /// The template `name`, which is not warm any more; `bytes` were freed.
    pub fn cool(name: &'a Name, bytes: u64) -> Self {
        Self { name, warm: false, bytes, ms: None }
    }
}
