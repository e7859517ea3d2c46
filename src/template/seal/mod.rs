//! Sealing: taking out of a guest's disks what clones must not share, and putting in what they should have.
//!
//! | part | what it is |
//! |---|---|
//! | [`operations`], [`selection`] | what is taken out, as a table of paths; which of it |
//! | [`customise`], [`wishes`] | what can be put in; what the user's options ask for, in their order |
//! | [`firstboot`] | what a clone does by itself when it boots for the first time |
//! | [`vm`], [`file`](mod@file) | the two things that can be sealed: a stopped VM, bare images |
//! | [`pending`] | what makes sealing bare images all or nothing |
//!
//! All of it is carried out inside the [appliance](crate::appliance), on an overlay: the disks change when everything has worked, or not at all.

pub mod customise;
pub mod file;
pub mod firstboot;
pub mod operations;
pub mod pending;
pub mod selection;
pub mod vm;
pub mod wishes;

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
}

/// One path that was, or would be, changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// In the guest's tree.
    pub path: String,
    /// What became of it.
    pub how: How,
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
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
