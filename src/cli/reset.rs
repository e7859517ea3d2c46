use clap::Args;

use super::App;
use crate::ephemeral::reset;
use crate::error::Result;
use crate::model::Name;
use crate::output::json;

/// Put a VM back to the template or snapshot it was made from, and start it, at once
///
/// The guest is ended without being asked, so what it has not written to its disks yet is lost.
/// What it has goes into the trash, for `undo`; of a VM with a date on which it goes, nothing is
/// kept. From a warm template it goes on in well under a second.
#[derive(Debug, Args)]
pub struct Reset {
    /// The VM
    name: Name,
    /// Do not start it
    #[arg(long)]
    stopped: bool,
}

impl Reset {
    pub async fn run(self, app: &App) -> Result<()> {
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
