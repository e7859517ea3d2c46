use clap::Args;
use serde_json::json;

use super::{App, each};
use crate::error::Result;
use crate::model::Name;
use crate::vm::{edit, start};

/// Start VMs
#[derive(Debug, Args)]
pub struct Start {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
    /// Leave the guest's CPUs standing still; `resume` lets them go
    #[arg(long)]
    paused: bool,
}

impl Start {
    pub async fn run(self, app: &App) -> Result<()> {
        let state = if self.paused { "paused" } else { "running" };
        each(app, &self.names, async |name| {
            start::start(&app.context, name, self.paused).await?;
            app.printer.done(&format!("started {name}"), &json!({"name": name, "state": state}));
            Ok(())
        })
        .await
    }
}

/// Let the CPUs of running VMs stand still
#[derive(Debug, Args)]
pub struct Pause {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
}

impl Pause {
    pub async fn run(self, app: &App) -> Result<()> {
        each(app, &self.names, async |name| {
            edit::pause(&app.context, name).await?;
            app.printer.done(&format!("paused {name}"), &json!({"name": name, "state": "paused"}));
            Ok(())
        })
        .await
    }
}

/// Let the CPUs of paused VMs go on
#[derive(Debug, Args)]
pub struct Resume {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
}

impl Resume {
    pub async fn run(self, app: &App) -> Result<()> {
        each(app, &self.names, async |name| {
            edit::resume(&app.context, name).await?;
            app.printer.done(&format!("resumed {name}"), &json!({"name": name, "state": "running"}));
            Ok(())
        })
        .await
    }
}
