use clap::Args;

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::qemu::cmdline;
use crate::vm::start;

/// Print the exact QEMU command a VM would be started with
///
/// One line for a shell, or with --format json an array of arguments. Pasted into a shell while the
/// VM does not run, it starts it, in the foreground.
#[derive(Debug, Args)]
pub struct Plan {
    /// The VM
    name: Name,
    /// As `start --paused` would
    #[arg(long)]
    paused: bool,
}

impl Plan {
    pub fn run(self, app: &App) -> Result<()> {
        let argv = start::plan(&app.context, &self.name, self.paused)?;
        app.printer.result(&cmdline::shell_line(&argv), &argv);
        Ok(())
    }
}
