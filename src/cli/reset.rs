use clap::Args;

use super::App;
use crate::ephemeral::reset;
use crate::error::Result;
use crate::model::Name;
use crate::output::json;

/// Reset a VM to the template or snapshot it was cloned from, and start it
///
/// The guest is ended without a shutdown, so data that it has not written to its disks is lost.
/// What the VM has on its disks is moved to the trash, for `undo`; if the VM has an expiry date, it
/// is deleted. Full and flattened clones cannot be reset. From a warm template the guest resumes in
/// well under a second.
#[derive(Debug, Args)]
pub(super) struct Reset {
    /// The VM
    name: Name,
    /// Do not start the VM
    #[arg(long)]
    stopped: bool,
}

impl Reset {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let done = reset::reset(&app.context, &self.name, self.stopped).await?;
        let how = done.kind.map_or("stopped", |kind| match kind.as_str() {
            "warm" => "running, warm",
            _ => "booting",
        });
        let text = format!("{} is back at {} ({how})", self.name, done.origin);
        app.printer.done(&text, &json::Reset::new(&self.name, &done));
        Ok(())
    }
}
