use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{App, Cli, complete};
use crate::error::{IoContext, Result};
use crate::output::json;

/// The commit that this was built from and its date; none in builds that no package was made of
/// (`scripts/package`).
const COMMIT: Option<&str> = option_env!("COWHAND_COMMIT");

/// The version, with that.
pub(super) const VERSION: &str = match option_env!("COWHAND_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Print shell completions
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, app: &App) -> Result<()> {
        app.printer.raw(&complete::script(self.shell)?);
        Ok(())
    }
}

/// Write manual pages into a directory
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The directory, which must exist
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self, app: &App) -> Result<()> {
        clap_mangen::generate_to(Cli::command(), &self.directory)
            .on("write manual pages to", &self.directory)?;
        let text = format!("manual pages are in {}", self.directory.display());
        app.printer.done(&text, &json::Man::new(&self.directory));
        Ok(())
    }
}

/// Print the version
#[derive(Debug, Args)]
pub(super) struct Version {}

impl Version {
    pub(super) fn run(self, app: &App) -> Result<()> {
        let facts = json::Version::new(env!("CARGO_PKG_VERSION"), COMMIT);
        app.printer.result(&format!("cowhand {VERSION}"), &facts);
        Ok(())
    }
}
