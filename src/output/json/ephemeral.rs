//! The pool, and VMs that go back to where they came from.

use serde::Serialize;

use crate::ephemeral::{reset, standby};
use crate::model::Name;

/// `reset`.
#[derive(Debug, Serialize)]
pub struct Reset<'a> {
    name: &'a Name,
    /// The template or snapshot that it is back at.
    origin: &'a str,
    /// How it was started; null of a VM that was not.
    kind: Option<&'static str>,
}

impl<'a> Reset<'a> {
    /// The VM `name`, which was reset.
    pub fn new(name: &'a Name, done: &'a reset::Reset) -> Self {
        Self { name, origin: &done.origin, kind: done.kind.map(|kind| kind.as_str()) }
    }
}

/// An entry of `pool ls`.
#[derive(Debug, Serialize)]
pub struct StandbyStatus<'a> {
    template: &'a Name,
    wanted: u32,
    waiting: u32,
}

impl<'a> From<&'a standby::StandbyStatus> for StandbyStatus<'a> {
    fn from(status: &'a standby::StandbyStatus) -> Self {
        Self { template: &status.template, wanted: status.wanted, waiting: status.waiting }
    }
}

/// `pool fill`.
#[derive(Debug, Serialize)]
pub struct Filled<'a> {
    template: &'a Name,
    wanted: u32,
    started: u32,
}

impl<'a> Filled<'a> {
    /// `wanted` wait for `template`, of which `started` are new.
    pub fn new(template: &'a Name, wanted: u32, started: u32) -> Self {
        Self { template, wanted, started }
    }
}

/// `pool drain`: how many were ended.
#[derive(Debug, Serialize)]
pub struct Drained {
    drained: usize,
}

impl Drained {
    /// So many were ended.
    pub fn new(drained: usize) -> Self {
        Self { drained }
    }
}
