//! VMs: the list of them, and what is said of one that was created, changed, started or stopped.

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use crate::model::Name;
use crate::output::time::rfc3339;
use crate::vm::list::{About, Row};

/// An entry of `ls`. Of a VM whose record cannot be read (`broken`), the name and the reason are
/// known.
#[derive(Debug, Serialize)]
pub struct Vm<'a> {
    name: &'a Name,
    state: &'static str,
    memory_bytes: Option<u64>,
    cpus: Option<u32>,
    template: Option<bool>,
    image: Option<bool>,
    from: Option<&'a str>,
    /// How many.
    snapshots: Option<usize>,
    disk_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    autostart: Option<bool>,
    expires: Option<String>,
    /// Left out of a VM that is `broken`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a BTreeMap<String, String>>,
    /// Why it is in that state. Left out where the state says all.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The command that was cut short. Left out where none was, and of a VM that is `broken`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut_short: Option<&'a str>,
}

impl<'a> From<&'a Row> for Vm<'a> {
    fn from(row: &'a Row) -> Self {
        match &row.about {
            Ok(about) => {
                Self { cut_short: row.cut_short.as_deref(), ..Self::readable(&row.name, about) }
            }
            Err(reason) => Self::broken(&row.name, reason),
        }
    }
}

impl<'a> Vm<'a> {
    fn readable(name: &'a Name, about: &'a About) -> Self {
        let (record, config) = (&about.record, &about.record.config);
        Self {
            name,
            state: about.status.state.as_str(),
            memory_bytes: Some(config.memory_bytes),
            cpus: Some(config.cpus),
            template: Some(record.is_template()),
            image: Some(record.image().is_some()),
            from: about.from.as_deref(),
            snapshots: Some(record.snapshots.len()),
            disk_bytes: Some(about.own_bytes),
            virtual_bytes: Some(about.virtual_bytes),
            autostart: Some(record.autostart),
            expires: record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.expires).map(rfc3339),
            tags: Some(&config.tags),
            reason: about.status.detail.as_deref(),
            cut_short: None,
        }
    }

    fn broken(name: &'a Name, reason: &'a str) -> Self {
        Self {
            name,
            state: "broken",
            memory_bytes: None,
            cpus: None,
            template: None,
            image: None,
            from: None,
            snapshots: None,
            disk_bytes: None,
            virtual_bytes: None,
            autostart: None,
            expires: None,
            tags: None,
            reason: Some(reason),
            cut_short: None,
        }
    }
}

/// `create`.
#[derive(Debug, Serialize)]
pub struct Created<'a> {
    name: &'a Name,
    uuid: Uuid,
}

impl<'a> Created<'a> {
    /// The VM `name`, which was created.
    pub fn new(name: &'a Name, uuid: Uuid) -> Self {
        Self { name, uuid }
    }
}

/// `set`, `rename` and `snapshot rename`: what is called `name` now.
#[derive(Debug, Serialize)]
pub struct Named<'a> {
    name: &'a Name,
}

impl<'a> Named<'a> {
    /// What was changed.
    pub fn new(name: &'a Name) -> Self {
        Self { name }
    }
}

/// `start`, `pause`, `resume` and `stop`: what a VM is doing now.
#[derive(Debug, Serialize)]
pub struct State<'a> {
    name: &'a Name,
    state: &'static str,
    /// How it was stopped. Left out of those that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<&'static str>,
}

impl<'a> State<'a> {
    /// A VM whose CPUs run.
    pub fn running(name: &'a Name) -> Self {
        Self { name, state: "running", how: None }
    }

    /// A VM whose CPUs stand still.
    pub fn paused(name: &'a Name) -> Self {
        Self { name, state: "paused", how: None }
    }

    /// A VM that was stopped; `how` is `agent`, `acpi`, `forced`, `already` or `ended`.
    pub fn stopped(name: &'a Name, how: &'static str) -> Self {
        Self { name, state: "stopped", how: Some(how) }
    }
}

/// `rm`, `template rm` and `image rm`.
#[derive(Debug, Serialize)]
pub struct Removed<'a> {
    removed: &'a [Name],
}

impl<'a> Removed<'a> {
    /// What was removed.
    pub fn new(removed: &'a [Name]) -> Self {
        Self { removed }
    }
}
