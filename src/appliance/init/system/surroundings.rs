//! What a guest's programs expect to find while they run: `/proc`, `/dev` and the like, and a
//! network.

use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::super::{Host, program};
use crate::error::{IoContext, Result};

/// What a guest's programs expect to find, mounted for as long as they run. Made inside the tree.
pub(crate) struct Surroundings {
    places: Vec<&'static str>,
}

impl Surroundings {
    /// Mounts them; with a network, also sets that up as QEMU's user network has it.
    pub(crate) fn make(host: &mut Host, network: bool) -> Result<Self> {
        let mut made = Self { places: Vec::new() };
        for (kind, place) in [
            ("proc", "/proc"),
            ("sysfs", "/sys"),
            ("devtmpfs", "/dev"),
            ("tmpfs", "/run"),
            ("devpts", "/dev/pts"),
        ] {
            if Path::new(place).is_dir() || std::fs::create_dir(place).is_ok() {
                mount(kind, place, kind, MountFlags::empty(), None)
                    .on("mount", Path::new(place))?;
                made.places.push(place);
            }
        }
        if network {
            modules_network(host)?;
            made.name_server()?;
        }
        Ok(made)
    }

    /// QEMU's own name server, wherever the guest's resolver looks.
    fn name_server(&mut self) -> Result<()> {
        let ours = Path::new("/run/cowhand-resolv.conf");
        std::fs::write(ours, "nameserver 10.0.2.3\n").on("write", ours)?;
        let place = "/etc/resolv.conf";
        if let Ok(target) = std::fs::read_link(place) {
            let target = Path::new("/etc").join(target);
            if target.starts_with("/run") || target.starts_with("/etc/../run") {
                let _ = target.parent().map(std::fs::create_dir_all);
                let _ = std::fs::write(&target, "nameserver 10.0.2.3\n");
            } else if target.exists() {
                mount_bind(ours, &target).on("mount", &target)?;
                self.places.push(place);
            }
        } else if Path::new(place).exists() {
            mount_bind(ours, place).on("mount", Path::new(place))?;
            self.places.push(place);
        }
        Ok(())
    }

    /// Takes them away again; a program that still runs must not keep the tree.
    pub(crate) fn remove(self) -> Result<()> {
        for place in self.places.iter().rev() {
            unmount(*place, UnmountFlags::DETACH).on("unmount", Path::new(place))?;
        }
        Ok(())
    }
}

fn modules_network(host: &mut Host) -> Result<()> {
    let script = "ip link set lo up; ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && \
                  ip route add default via 10.0.2.2";
    program::in_tree(host, "ip", "/bin/sh", &["-c", script])
}
