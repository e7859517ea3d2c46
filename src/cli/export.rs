use std::path::PathBuf;

use clap::Args;

use super::App;
use crate::error::Result;
use crate::libvirt::export;
use crate::model::PointRef;
use crate::output::{json, table};

/// Write a VM into a directory from which libvirt takes it over
///
/// The directory gets the XML of a domain and its disks, which `virsh define` takes. A VM with
/// snapshots keeps them; a VM without, a template, and a snapshot get one file for each disk. What
/// the domain has otherwise, or not at all, is listed with the reason. Nothing of the VM changes.
#[derive(Debug, Args)]
pub struct Export {
    /// The VM or template, which does not run, or VM@SNAPSHOT
    #[arg(long, value_name = "VM[@SNAPSHOT]", required = true)]
    libvirt: PointRef,
    /// The directory, which is new
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Export {
    pub async fn run(self, app: &App) -> Result<()> {
        let exported = export::export(&app.context, &self.libvirt, &self.directory).await?;
        let list = table::domain(&exported.notes);
        let commands = exported.commands(&self.libvirt.vm);
        let text = format!(
            "{list}\nexported {} to {}; to take it over:\n  {}",
            self.libvirt,
            self.directory.display(),
            commands.join("\n  ")
        );
        app.printer.done(&text, &json::Exported::new(&self.libvirt.vm, &exported, &commands));
        Ok(())
    }
}
