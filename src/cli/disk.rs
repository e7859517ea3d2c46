use clap::{Args, Subcommand};
use serde_json::Value;

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::output::{json, table};
use crate::vm::list;

/// Look at the disks of a VM
#[derive(Debug, Subcommand)]
pub enum Disk {
    Ls(Ls),
    Chain(Chain),
}

impl Disk {
    pub fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Ls(verb) => verb.run(app),
            Self::Chain(verb) => verb.run(app),
        }
    }
}

/// List the disks of a VM with their files
#[derive(Debug, Args)]
pub struct Ls {
    /// The VM or template
    vm: Name,
}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::disks(&app.context, &self.vm)?;
        app.printer.result(&table::disks(&rows), &Value::Array(rows.iter().map(json::disk).collect()));
        Ok(())
    }
}

/// Show the chain of layers under a disk: the active layer first, the base last
#[derive(Debug, Args)]
pub struct Chain {
    /// The VM or template
    vm: Name,
    /// One disk [default: all]
    disk: Option<String>,
}

impl Chain {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::chains(&app.context, &self.vm, self.disk.as_deref())?;
        app.printer.result(&table::chains(&rows), &Value::Array(rows.iter().map(json::chain).collect()));
        Ok(())
    }
}
