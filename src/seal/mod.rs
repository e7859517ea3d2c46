//! Sealing: taking out of a guest's disks what clones must not share, and putting in what they
//! should have.
//!
//! | part | what it is |
//! |---|---|
//! | [`operations`], [`selection`] | what is taken out, as a table of paths; which of it |
//! | [`customise`], [`options`] | what can be put in; what the options ask for, in order |
//! | [`firstboot`] | what a clone does by itself when it boots for the first time |
//! | [`vm`], [`image`] | the two things that can be sealed: a stopped VM, bare images |
//! | [`overlay`], [`run`] | what the appliance works on; what it is told, and answers |
//! | [`pending`] | what makes sealing bare images all or nothing |
//!
//! All of it is carried out inside the [appliance](crate::appliance), on an overlay: the disks
//! change when everything has worked, or not at all.

pub(crate) mod customise;
pub(crate) mod firstboot;
pub(crate) mod image;
pub mod operations;
pub mod options;
pub(crate) mod overlay;
pub(crate) mod pending;
pub(crate) mod run;
pub(crate) mod selection;
pub(crate) mod step;
pub(crate) mod vm;

use serde::{Deserialize, Serialize};

use customise::Wish;

/// What is to be done to the operating system on some disks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The names of the operations, in the order of the table.
    pub operations: Vec<String>,
    /// What is put in, in this order.
    pub wishes: Vec<Wish>,
}

impl Plan {
    /// Does any of it run a program of the guest's?
    pub fn runs_programs(&self) -> bool {
        self.wishes.iter().any(|wish| wish.what.runs_programs())
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// The operating system, in its own words (`PRETTY_NAME` of `os-release(5)`).
    pub system: String,
    /// What was mounted where: `vda2 on / (ext4)`.
    pub mounts: Vec<String>,
    /// Per operation, what it touched; operations that found nothing are not in it.
    pub operations: Vec<Performed>,
}

/// What one operation, or customise option, did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Performed {
    /// Which.
    pub name: String,
    /// Where.
    pub touched: Vec<Touched>,
    /// How many more paths there were, for which a report has no room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How many mounts a report has at most.
const MOUNTS: usize = 100;
/// How long a name in a report is at most, in bytes.
const NAME: usize = 256;
/// How long a path in a report is at most, in bytes; the kernel has no longer ones.
const PATH: usize = 4096;

impl Report {
    /// The same, no larger than people read: it comes from a machine that a stranger's file systems
    /// were mounted in.
    pub fn bounded(mut self) -> Self {
        cut(&mut self.system, NAME);
        self.mounts.truncate(MOUNTS);
        self.mounts.iter_mut().for_each(|mount| cut(mount, PATH));
        for performed in &mut self.operations {
            cut(&mut performed.name, NAME);
            performed.touched.iter_mut().for_each(|touched| cut(&mut touched.path, PATH));
        }
        self
    }
}

fn cut(text: &mut String, length: usize) {
    if text.len() > length {
        let end = (0..=length).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
}

/// One path that was, or would be, changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Touched {
    /// In the guest's tree.
    pub path: String,
    /// What became of it.
    pub how: PathChange,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathChange {
    /// It is gone.
    Removed,
    /// It is there, and empty.
    Emptied,
    /// Its content or its mode is another.
    Changed,
    /// It was not there before.
    Created,
    /// A program of the guest's was run.
    Ran,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_bounded() {
        let long = "ä".repeat(10_000);
        let touched = Touched { path: long.clone(), how: PathChange::Removed };
        let report = Report {
            system: long.clone(),
            mounts: vec![long.clone(); 1000],
            operations: vec![Performed { name: long, touched: vec![touched], more: 3 }],
        };
        let report = report.bounded();
        assert!(report.system.len() <= NAME + 3 && report.mounts.len() == MOUNTS);
        assert!(report.mounts[0].len() <= PATH + 3 && report.operations[0].name.len() <= NAME + 3);
        assert!(
            report.operations[0].touched[0].path.len() <= PATH + 3
                && report.operations[0].more == 3
        );
    }
}
