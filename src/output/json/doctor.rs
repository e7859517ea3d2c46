//! Findings.

use serde::Serialize;

use crate::doctor;
use crate::model::Name;

/// An entry of `doctor`.
#[derive(Debug, Serialize)]
pub struct Finding<'a> {
    check: &'static str,
    /// Of what concerns all, null.
    vm: Option<&'a Name>,
    level: &'static str,
    message: &'a str,
    hint: Option<&'a str>,
    repairable: bool,
    repaired: bool,
}

impl<'a> From<&'a doctor::Finding> for Finding<'a> {
    fn from(finding: &'a doctor::Finding) -> Self {
        Self {
            check: finding.check,
            vm: finding.vm.as_ref(),
            level: finding.level.as_str(),
            message: &finding.message,
            hint: finding.hint.as_deref(),
            repairable: finding.remedy.is_some() && !finding.repaired,
            repaired: finding.repaired,
        }
    }
}
