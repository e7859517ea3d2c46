use clap::Args;

use super::{App, each};
use crate::error::Result;
use crate::maintenance::remove::{self, Options, Which};
use crate::model::Name;
use crate::output::json;

/// Remove VMs; their disks stay in the trash until `gc`
///
/// Refused while the VM runs, or while clones depend on its layers.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The VMs
    #[arg(required = true)]
    names: Vec<Name>,
    /// Also remove running VMs, without shutting them down
    #[arg(short, long)]
    force: bool,
    /// Also remove the clones that depend on them
    #[arg(long)]
    cascade: bool,
}

impl Rm {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let options = Options { force: self.force, cascade: self.cascade };
        each(app, &self.names, async |name| {
            let gone = remove::remove(&app.context, name, Which::Vm, options).await?;
            let names: Vec<&str> = gone.iter().map(Name::as_str).collect();
            app.printer.done(&format!("removed {}", names.join(", ")), &json::Removed::new(&gone));
            Ok(())
        })
        .await
    }
}
