use clap::{Args, Subcommand};
use serde_json::{Value, json as value};

use super::{App, each};
use crate::error::{Error, Result};
use crate::model::Name;
use crate::output::{Format, json, table};
use crate::template::{freeze, list};
use crate::vm::remove::{self, Options, Which};

/// Freeze VMs into templates, and look after them
#[derive(Debug, Subcommand)]
pub enum Template {
    Create(Create),
    Ls(Ls),
    Show(Show),
    Rm(Rm),
}

impl Template {
    pub async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Create(verb) => verb.run(app).await,
            Self::Ls(verb) => verb.run(app),
            Self::Show(verb) => verb.run(app),
            Self::Rm(verb) => verb.run(app).await,
        }
    }
}

/// Freeze a stopped VM into a template, for ever
///
/// Its files become read-only, it cannot be started or changed any more, and it cannot be removed while clones stand on it.
#[derive(Debug, Args)]
pub struct Create {
    /// The VM
    vm: Name,
    /// Leave host-specific state (machine-id, host keys, logs) as it is: clones will share it (needed: this version does not strip it)
    #[arg(long)]
    no_seal: bool,
    /// Rename it at the same time
    #[arg(long = "as", value_name = "NAME")]
    new_name: Option<Name>,
}

impl Create {
    async fn run(self, app: &App) -> Result<()> {
        let record = app.context.store.load(&self.vm)?;
        crate::vm::open::refuse_template(&self.vm, &record, "make a template of")?;
        if !self.no_seal {
            return Err(Error::refused(format!(
                "cannot seal {}: this version does not strip host-specific state",
                self.vm
            ))
            .hint(format!("clean it inside the guest, then: cowhand template create {} --no-seal", self.vm)));
        }
        let name = freeze::freeze(&app.context, &self.vm, self.new_name.as_ref()).await?;
        let text = format!("{name} is a template now; make a VM of it: cowhand clone {name} NEW");
        app.printer.done(&text, &value!({"name": name, "sealed": false}));
        Ok(())
    }
}

/// List the templates and who stands on them
#[derive(Debug, Args)]
pub struct Ls {}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::list(&app.context)?;
        match (app.printer.format, app.printer.quiet) {
            (Format::Table, true) => rows.iter().for_each(|row| app.printer.text(row.name.as_str())),
            _ => app.printer.result(&table::templates(&rows), &Value::Array(rows.iter().map(json::template).collect())),
        }
        Ok(())
    }
}

/// Show one template
#[derive(Debug, Args)]
pub struct Show {
    /// The template
    name: Name,
}

impl Show {
    fn run(self, app: &App) -> Result<()> {
        let row = list::show(&app.context, &self.name)?;
        app.printer.result(&table::templates(std::slice::from_ref(&row)), &json::template(&row));
        Ok(())
    }
}

/// Remove templates; refused while clones stand on them
#[derive(Debug, Args)]
pub struct Rm {
    /// The templates
    #[arg(required = true)]
    names: Vec<Name>,
    /// The clones that stand on them, too
    #[arg(long)]
    cascade: bool,
    /// With --cascade: running clones, too: their plug is pulled
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    async fn run(self, app: &App) -> Result<()> {
        let options = Options { force: self.force, cascade: self.cascade };
        each(app, &self.names, async |name| {
            let gone = remove::remove(&app.context, name, Which::Template, options).await?;
            let names: Vec<&str> = gone.iter().map(Name::as_str).collect();
            app.printer.done(&format!("removed {}", names.join(", ")), &value!({"removed": names}));
            Ok(())
        })
        .await
    }
}
