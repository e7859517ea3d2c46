//! What a QEMU reaches, by the argument vector it is started with ([`super::cmdline`]). Pure, but
//! for a look at which layers are links.

use std::path::Path;

use super::cmdline::{Machine, StartMode};
use crate::settings::Confine;
use crate::sys::confine::Confinement;

/// The ports that only root listens on (`ip(7)`) are below this one.
const FIRST_FREE_PORT: u16 = 1024;

/// The confinement of the QEMU of `machine`; `None` where none is wanted. It reaches all `layers`,
/// the directory with the files of all VMs: an overlay is added while it runs, and no rule can be.
pub fn of(machine: &Machine<'_>, wanted: Confine, layers: &Path) -> Option<Confinement> {
    let strict = match wanted {
        Confine::Default => false,
        Confine::Strict => true,
        Confine::Off => return None,
    };
    let config = machine.config;
    let kvm = (machine.accel.accel == "kvm").then_some(Path::new("/dev/kvm"));
    let mut reach = kvm
        .into_iter()
        .fold(Confinement::new(strict), Confinement::writing)
        .listening(machine.sockets.directory())
        .writing(machine.serial_log)
        .writing(layers)
        .saving_memory();
    for (disk, chain) in config.volumes().zip(machine.chains) {
        for (depth, link) in chain.links().iter().enumerate() {
            // A commit writes to what is below, also where that is a file in its place.
            let is_written = !disk.read_only && (depth == 0 || link.path.is_symlink());
            reach = match is_written {
                true => reach.writing(&link.path),
                false => reach.reading(&link.path),
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
