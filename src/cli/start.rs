use clap::Args;

use super::{App, each};
use crate::error::Result;
use crate::model::Name;
use crate::output::json;
use crate::vm::select::{self, Selected};
use crate::vm::{edit, start};

/// Start VMs
#[derive(Debug, Args)]
pub(super) struct Start {
    /// The VMs
    #[arg(required_unless_present = "autostart")]
    names: Vec<Name>,
    /// Start all VMs with autostart=on that are not running, in the order of their names
    #[arg(long, conflicts_with = "names")]
    autostart: bool,
    /// Start paused; continue with `resume`
    #[arg(long)]
    paused: bool,
}

impl Start {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        if !self.autostart {
            return self.start(app, &self.names).await;
        }
        let Selected { names, unclear, .. } = select::with_autostart(&app.context)?;
        if names.is_empty() && unclear.is_empty() && !select::any_with_autostart(&app.context)? {
            app.context.ui.note(
                "no VM has autostart=on; to start one with the host: cowhand set NAME autostart=on",
            );
        }
        let mut result = self.start(app, &names).await;
        for error in unclear {
            if let Err(earlier) = std::mem::replace(&mut result, Err(error)) {
                app.printer.error(&earlier);
            }
        }
        result
    }

    async fn start(&self, app: &App, names: &[Name]) -> Result<()> {
        each(app, names, async |name| {
            start::start(&app.context, name, self.paused).await?;
            let state =
                if self.paused { json::State::paused(name) } else { json::State::running(name) };
            app.printer.done(&format!("started {name}"), &state);
            Ok(())
        })
        .await
    }
}

/// Pause running VMs
#[derive(Debug, Args)]
pub(super) struct Pause {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
}

impl Pause {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        each(app, &self.names, async |name| {
            edit::pause(&app.context, name).await?;
            app.printer.done(&format!("paused {name}"), &json::State::paused(name));
            Ok(())
        })
        .await
    }
}

/// Resume paused VMs
#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
}

impl Resume {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        each(app, &self.names, async |name| {
            edit::resume(&app.context, name).await?;
            app.printer.done(&format!("resumed {name}"), &json::State::running(name));
            Ok(())
        })
        .await
    }
}
