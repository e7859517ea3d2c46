use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use super::{App, Cli};
use crate::error::{IoContext, Result};

/// Print shell completions
#[derive(Debug, Args)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub fn run(self, app: &App) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "cowhand", &mut script);
        app.printer.raw(&script);
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
        app.printer.result(&format!("cowhand {version}"), &json!({"name": "cowhand", "version": version}));
        Ok(())
    }
}
