//! LVM, by the host's own `lvm`, which the initramfs carries along where the host has it.

use std::path::Path;

use super::program;
use crate::error::{Error, Result};

const LVM: &str = "/sbin/lvm";
/// There is no udev here, and nothing to keep.
const CONFIG: &str = "devices { use_devicesfile=0 obtain_device_list_from_udev=0 \
                      external_device_info_source=\"none\" } \
                      activation { udev_sync=0 udev_rules=0 monitoring=0 } \
                      backup { backup=0 archive=0 } \
                      global { use_lvmpolld=0 event_activation=0 }";

/// Makes the logical volumes appear.
pub(super) fn activate() -> Result<()> {
    if !super::modules::load("lvm")? {
        return Err(Error::refused(
            "the guest's disks are LVM's, and the appliance's kernel has no device mapper",
        ));
    }
    if !Path::new(LVM).exists() {
        return Err(Error::refused(
            "the guest's disks are LVM's, and this host has no lvm for the appliance",
        )
        .hint("install it: apt-get install lvm2"));
    }
    run(&["vgchange", "--activate", "y"])
}

/// Gives everything up again, so that it is whole.
pub(super) fn deactivate() -> Result<()> {
    run(&["vgchange", "--activate", "n"])
}

/// New UUIDs for all physical volumes and volume groups.
pub(super) fn new_uuids() -> Result<()> {
    if !Path::new(LVM).exists() || !super::devices::mapped().is_empty() {
        return Ok(());
    }
    for group in groups()? {
        run(&["vgchange", "--uuid", &group])?;
    }
    for volume in names("pvs", "pv_name")? {
        run(&["pvchange", "--uuid", &volume])?;
    }
    Ok(())
}

/// The volume groups there are.
pub(super) fn groups() -> Result<Vec<String>> {
    names("vgs", "vg_name")
}

fn names(command: &str, field: &str) -> Result<Vec<String>> {
    let text = program::output(LVM, &[command, "--noheadings", "-o", field, "--config", CONFIG])?;
    Ok(text.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn run(args: &[&str]) -> Result<()> {
    program::output(LVM, &[args, &["--config", CONFIG]].concat()).map(drop)
}
