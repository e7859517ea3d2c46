use clap::{Args, Subcommand};

use super::App;
use crate::ephemeral::standby;
use crate::error::Result;
use crate::model::Name;
use crate::output::{Format, json, table};

/// Keep standby QEMUs ready for clones of a warm template
///
/// `run` claims a standby QEMU in a few milliseconds and starts another in its place. A standby
/// QEMU needs little memory until it is claimed.
#[derive(Debug, Subcommand)]
pub(super) enum Pool {
    Fill(Fill),
    Ls(Ls),
    Drain(Drain),
    #[command(hide = true)]
    TopUp(TopUp),
}

impl Pool {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Fill(verb) => verb.run(app).await,
            Self::Ls(verb) => verb.run(app),
            Self::Drain(verb) => verb.run(app).await,
            Self::TopUp(verb) => standby::top_up(&app.context, &verb.template).await.map(drop),
        }
    }
}

/// Keep COUNT standby QEMUs ready from now on
#[derive(Debug, Args)]
pub(super) struct Fill {
    /// A warm template
    template: Name,
    /// Number of standby QEMUs; 0 ends them all
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
    count: u32,
}

impl Fill {
    async fn run(self, app: &App) -> Result<()> {
        let started = standby::fill(&app.context, &self.template, self.count).await?;
        let (count, template) = (self.count, &self.template);
        let text = format!("standby QEMUs for {template}: {count} ({started} started)");
        app.printer.done(&text, &json::Filled::new(&self.template, self.count, started));
        Ok(())
    }
}

/// List templates with their numbers of standby QEMUs
#[derive(Debug, Args)]
pub(super) struct Ls {}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let statuses = standby::list(&app.context)?;
        match (app.printer.format, app.printer.quiet) {
            (Format::Table, true) => {
                statuses.iter().for_each(|status| app.printer.text(status.template.as_str()))
            }
            _ => {
                let entries: Vec<_> = statuses.iter().map(json::StandbyStatus::from).collect();
                app.printer.result(&table::pool(&statuses), &entries);
            }
        }
        Ok(())
    }
}

/// End the standby QEMUs, and start no new ones
#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The template [default: all]
    template: Option<Name>,
}

impl Drain {
    async fn run(self, app: &App) -> Result<()> {
        let drained = standby::drain(&app.context, self.template.as_ref()).await?;
        app.printer.done(&format!("standby QEMUs ended: {drained}"), &json::Drained::new(drained));
        Ok(())
    }
}

/// Start missing standby QEMUs
#[derive(Debug, Args)]
pub(super) struct TopUp {
    template: Name,
}
