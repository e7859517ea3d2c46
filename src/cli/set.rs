use clap::Args;

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::output::json;
use crate::vm::edit;

/// Change the configuration of a VM
///
/// Keys: memory, cpus, cpu, machine, kernel, initrd, append, ports (HOST:GUEST,…), net (network of
/// all cards: user[,…] or restricted, as in `create --net`), disk.TARGET.bus (virtio, scsi, nvme,
/// sata, ide, usb), disk.TARGET.serial, cloud-init (FILE or DIRECTORY with data for cloud-init in
/// the guest), hostname (host name that cloud-init sets in the guest), credential.NAME (FILE with a
/// credential for systemd in the guest), expires (of a clone with an expiry date: 30m, 2d; `gc`
/// then removes it permanently), log.max (maximum size of each of the two log files: 64K or more,
/// or none; default 16M), limit.io and limit.iops (as in `create --limit`), autostart (on: start
/// the VM with the host; off), tag.KEY. An empty value removes a key or restores its default.
/// Either all changes are made, or none. While the VM runs, only autostart, expires, limits,
/// log.max and tags can be changed.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// The VM
    name: Name,
    /// KEY=VALUE
    #[arg(required = true, value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

impl Set {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        edit::set(&app.context, &self.name, &self.changes).await?;
        app.printer.done(&format!("changed {}", self.name), &json::Named::new(&self.name));
        Ok(())
    }
}

/// Rename a stopped VM, or a template
#[derive(Debug, Args)]
pub(super) struct Rename {
    /// Current name
    old: Name,
    /// New name
    new: Name,
}

impl Rename {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        edit::rename(&app.context, &self.old, &self.new).await?;
        app.printer
            .done(&format!("renamed {} to {}", self.old, self.new), &json::Named::new(&self.new));
        Ok(())
    }
}
