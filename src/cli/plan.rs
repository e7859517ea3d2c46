use clap::Args;

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::qemu::cmdline;
use crate::vm::start;

/// Print the exact QEMU command that would start a VM
///
/// Prints one line for a shell, or with --format json an array of arguments. If you run the line in
/// a shell while the VM is stopped, it starts the VM in the foreground.
#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The VM
    name: Name,
    /// Print the command of `start --paused`
    #[arg(long)]
    paused: bool,
}

impl Plan {
    pub(super) fn run(self, app: &App) -> Result<()> {
        let argv = start::plan(&app.context, &self.name, self.paused)?;
        app.printer.result(&cmdline::shell_line(&argv), &argv);
        Ok(())
    }
}
