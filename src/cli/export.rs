use std::path::PathBuf;

use clap::Args;

use super::App;
use crate::error::Result;
use crate::libvirt::export;
use crate::model::PointRef;
use crate::output::{json, table};

/// Export a VM to a directory, for libvirt
///
/// The directory receives the disks and the domain XML for `virsh define`. Snapshots of the VM are
/// kept; a VM without snapshots, a template, and a single snapshot get one file per disk.
/// Everything that is changed or left out is listed with the reason. The VM itself does not change.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// A stopped VM, a template, or a snapshot (VM@SNAPSHOT)
    #[arg(long, value_name = "VM[@SNAPSHOT]", required = true)]
    libvirt: PointRef,
    /// The directory, which must not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Export {
    pub(super) async fn run(self, app: &App) -> Result<()> {
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
