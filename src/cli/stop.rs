use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{App, each};
use crate::error::Result;
use crate::model::Name;
use crate::vm::stop::{self, Stopped};

/// Stop VMs: ask the guest to shut down, and wait for it
///
/// The guest agent is asked if it is there, then the ACPI power button is pressed. A guest that does not comply goes on running.
#[derive(Debug, Args)]
pub struct Stop {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
    /// Pull the plug: end QEMU without asking the guest
    #[arg(short, long)]
    force: bool,
    /// How long the guest may take, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    timeout: u64,
}

impl Stop {
    pub async fn run(self, app: &App) -> Result<()> {
        each(app, &self.names, async |name| {
            let how = stop::stop(&app.context, name, self.force, Duration::from_secs(self.timeout)).await?;
            let (text, word) = match how {
                Stopped::Already => (format!("{name} was not running"), "already"),
                Stopped::Agent => (format!("stopped {name} (shut down by its guest agent)"), "agent"),
                Stopped::Acpi => (format!("stopped {name} (shut down at the power button)"), "acpi"),
                Stopped::Forced => (format!("stopped {name} (the guest was not asked)"), "forced"),
            };
            app.printer.done(&text, &json!({"name": name, "state": "stopped", "how": word}));
            Ok(())
        })
        .await
    }
}
