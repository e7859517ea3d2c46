use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::{App, Cli, complete};
use crate::error::{IoContext, Result};

/// The commit that this was built from and its date; none in builds that no package was made of (`scripts/package`).
const COMMIT: Option<&str> = option_env!("COWHAND_COMMIT");

/// The version, with that.
pub const VERSION: &str = match option_env!("COWHAND_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Print shell completions
#[derive(Debug, Args)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub fn run(self, app: &App) -> Result<()> {
        app.printer.raw(&complete::script(self.shell)?);
        Ok(())
    }
}

/// Write manual pages into a directory
#[derive(Debug, Args)]
pub struct Man {
    /// The directory, which has to be there
    directory: PathBuf,
}

impl Man {
    pub fn run(self, app: &App) -> Result<()> {
        clap_mangen::generate_to(Cli::command(), &self.directory).on("write manual pages to", &self.directory)?;
        app.printer
            .done(&format!("manual pages are in {}", self.directory.display()), &json!({"directory": self.directory}));
        Ok(())
    }
}

/// Print the version
#[derive(Debug, Args)]
pub struct Version {}

impl Version {
    pub fn run(self, app: &App) -> Result<()> {
        let version = env!("CARGO_PKG_VERSION");
        let facts = json!({"name": "cowhand", "version": version, "commit": COMMIT});
        app.printer.result(&format!("cowhand {VERSION}"), &facts);
        Ok(())
    }
}
