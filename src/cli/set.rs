use clap::Args;

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::output::json;
use crate::vm::edit;

/// Change the configuration of a VM
///
/// Keys: memory, cpus, cpu, machine, kernel, initrd, append, ports (HOST:GUEST,…), net
/// (what the guest reaches: see create --net), disk.TARGET.bus
/// (virtio, scsi, nvme, sata, ide, usb), disk.TARGET.serial, cloud-init (FILE or DIRECTORY with
/// what cloud-init in the guest is told), hostname (what it calls the guest), credential.NAME (FILE
/// with what systemd in the guest is given under that name), expires (of a clone that has a date:
/// 30m, 2d; gc removes it then, for good), log.max (limit of each of the two files of a log: 64K or
/// more, or none; 16M without it), autostart (on: start the VM with the host; off), tag.KEY. An
/// empty value takes a key away. All changes are made, or none. While the VM runs, only autostart,
/// expires, log.max and tags can be changed.
#[derive(Debug, Args)]
pub struct Set {
    /// The VM
    name: Name,
    /// KEY=VALUE
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

impl Set {
    pub async fn run(self, app: &App) -> Result<()> {
        edit::set(&app.context, &self.name, &self.changes).await?;
        app.printer.done(&format!("changed {}", self.name), &json::Named::new(&self.name));
        Ok(())
    }
}

/// Rename a stopped VM, or a template
#[derive(Debug, Args)]
pub struct Rename {
    /// What it is called now
    old: Name,
    /// What it is to be called
    new: Name,
}

impl Rename {
    pub async fn run(self, app: &App) -> Result<()> {
        edit::rename(&app.context, &self.old, &self.new).await?;
        app.printer
            .done(&format!("renamed {} to {}", self.old, self.new), &json::Named::new(&self.new));
        Ok(())
    }
}
