//! Errors.

use serde::Serialize;

use crate::error::Error;

/// An error of any command, on standard error.
#[derive(Debug, Serialize)]
pub struct Failure<'a> {
    error: Inner<'a>,
}

#[derive(Debug, Serialize)]
struct Inner<'a> {
    kind: &'static str,
    /// With all causes.
    message: String,
    /// What to type next, a line each; null where there is nothing.
    hint: Option<String>,
    /// The objects that stand in the way. Left out where there are none.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    dependents: &'a [String],
}

impl<'a> From<&'a Error> for Failure<'a> {
    fn from(error: &'a Error) -> Self {
        Self {
            error: Inner {
                kind: error.kind().word(),
                message: error.full_message(),
                hint: (!error.hints().is_empty()).then(|| error.hints().join("\n")),
                dependents: error.dependent_names(),
            },
        }
    }
}
