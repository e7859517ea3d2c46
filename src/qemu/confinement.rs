//! What a QEMU reaches: by the argument vector it is started with ([`super::cmdline`]), pure but
//! for a look at which layers are links, at the host's name servers, and at the control group that
//! we are in; and what of it changes while it runs.

use std::path::{Path, PathBuf};

use super::cmdline::{Machine, StartMode};
use super::networks;
use super::qmp::Qmp;
use crate::error::{IoContext, Result};
use crate::settings::Confine;
use crate::sys::confine::Confinement;
use crate::sys::confine::pool::{self, Shown};
use crate::sys::{cgroup, name_servers};

/// The ports that only root listens on (`ip(7)`) are below this one.
const FIRST_FREE_PORT: u16 = 1024;

/// The confinement of the QEMU of `machine`; `None` where none is wanted. `layers` is the directory
/// with those of all VMs, of which it reaches its own: [`show`] adds an overlay while it runs.
pub fn of(machine: &Machine<'_>, wanted: Confine, layers: &Path) -> Option<Confinement> {
    let strict = match wanted {
        Confine::Default => false,
        Confine::Strict => true,
        Confine::Off => return None,
    };
    let config = machine.config;
    let kvm = (machine.accel.accel == "kvm").then_some(Path::new("/dev/kvm"));
    let group = || cgroup::planned(&machine.sockets.directory().file_name()?.to_string_lossy());
    let networks = networks::of(&config.nics, &name_servers::of_host(), group);
    let mut reach = kvm
        .into_iter()
        .fold(Confinement::new(strict), Confinement::writing)
        .listening(machine.sockets.directory())
        .writing(machine.serial_log)
        .layers(layers)
        .with_networks(networks)
        .saving_memory();
    for (disk, chain) in config.volumes().zip(machine.chains) {
        for (depth, link) in chain.links().iter().enumerate() {
            // A commit writes to what is below, also where that is a file in its place.
            reach = match (disk.read_only, depth) {
                (false, 0) => reach.writing(&link.path),
                (false, _) if link.path.is_symlink() => reach.merging(&link.path),
                _ => reach.reading(&link.path),
            };
        }
    }
    let isos = config.cdroms.iter().filter_map(|cdrom| cdrom.iso.as_deref());
    let boot = config.kernel.iter().flat_map(|boot| {
        [Some(boot.kernel.as_path()), boot.initrd.as_deref()].into_iter().flatten()
    });
    for file in isos.chain(boot).chain(machine.uefi_code) {
        reach = reach.reading(file);
    }
    match machine.how {
        StartMode::Warming(file) | StartMode::Warm { file, readonly: false, .. } => {
            reach = reach.writing(file);
        }
        StartMode::Warm { file, readonly: true, .. } => reach = reach.reading(file),
        StartMode::Running
        | StartMode::Paused
        | StartMode::Incoming { .. }
        | StartMode::Loading { .. } => {}
    }
    let ports = config.nics.iter().flat_map(|nic| &nic.ports);
    let is_low = ports.map(|port| port.host).any(|port| port < FIRST_FREE_PORT);
    Some(if is_low { reach.on_low_ports() } else { reach })
}

/// The layer at `path` is about to be opened by the QEMU that `qmp` leads to, or to be written to
/// where it was only read. The path at which QEMU finds it.
pub fn show(qmp: &Qmp, path: &Path) -> Result<PathBuf> {
    change(qmp, path, Shown::ToWrite)
}

/// The layer at `path` is of no use any more to the QEMU that `qmp` leads to. Until then, what it
/// takes on the disk stays taken, also when it is removed.
pub fn hide(qmp: &Qmp, path: &Path) -> Result<()> {
    change(qmp, path, Shown::Not).map(drop)
}

fn change(qmp: &Qmp, path: &Path, how: Shown) -> Result<PathBuf> {
    match (qmp.process(), qmp.pid()) {
        (Some(process), Some(pid)) => {
            pool::set(&process, pid, path, how).on("change what QEMU reaches:", path)
        }
        _ => Ok(path.to_owned()),
    }
}
