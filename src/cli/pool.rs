use clap::{Args, Subcommand};

use super::App;
use crate::ephemeral::standby;
use crate::error::Result;
use crate::model::Name;
use crate::output::{Format, json, table};

/// Keep QEMUs waiting to become clones of a warm template
///
/// `run` claims one in a few milliseconds and starts another in its place. They take little memory
/// until they are claimed.
#[derive(Debug, Subcommand)]
pub enum Pool {
    Fill(Fill),
    Ls(Ls),
    Drain(Drain),
    #[command(hide = true)]
    TopUp(TopUp),
}

impl Pool {
    pub async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Fill(verb) => verb.run(app).await,
            Self::Ls(verb) => verb.run(app),
            Self::Drain(verb) => verb.run(app).await,
            Self::TopUp(verb) => standby::top_up(&app.context, &verb.template).await.map(drop),
        }
    }
}

/// Keep so many waiting from now on
#[derive(Debug, Args)]
pub struct Fill {
    /// A warm template
    template: Name,
    /// How many; 0 ends those that wait
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
    count: u32,
}

impl Fill {
    async fn run(self, app: &App) -> Result<()> {
        let started = standby::fill(&app.context, &self.template, self.count).await?;
        let text = format!("{} wait for {} ({started} started)", self.count, self.template);
        app.printer.done(&text, &json::Filled::new(&self.template, self.count, started));
        Ok(())
    }
}

/// Show how many wait
#[derive(Debug, Args)]
pub struct Ls {}

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

/// End those that wait, and start no new ones
#[derive(Debug, Args)]
pub struct Drain {
    /// The template [default: all]
    template: Option<Name>,
}

impl Drain {
    async fn run(self, app: &App) -> Result<()> {
        let drained = standby::drain(&app.context, self.template.as_ref()).await?;
        app.printer.done(&format!("ended {drained}"), &json::Drained::new(drained));
        Ok(())
    }
}

/// Start those that are missing
#[derive(Debug, Args)]
pub struct TopUp {
    template: Name,
}
