//! The devices of a domain: disks and network cards, which come over, and everything else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use roxmltree::Node;

use super::interfaces::{self, Buses};
use super::xml::{Notes, child, child_text, elements, others};
use crate::model::{Bus, Format, Nic, bus};

/// The devices of a domain that come over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Its disks, the one that is booted from first.
    pub disks: Vec<Disk>,
    /// Its CD-ROM drives.
    pub cdroms: Vec<CdromDrive>,
    /// Its network cards.
    pub nics: Vec<Nic>,
}

/// A disk of the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What the domain calls it: `sda`.
    pub target: String,
    /// Its bus.
    pub bus: Bus,
    /// Its serial number.
    pub serial: Option<String>,
    /// The file; or why it does not come over by itself.
    pub file: Result<PathBuf, String>,
    /// Its format, as libvirt has it.
    pub format: Option<Format>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// What is written to it is not for it alone, or not to stay (`shareable`, `transient`).
    pub is_shared: bool,
    /// Its place when the guest boots; the smallest is first.
    order: u32,
}

/// A CD-ROM drive of the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CdromDrive {
    /// What the domain calls it: `sda`.
    pub target: String,
    /// Its bus.
    pub bus: Bus,
    /// The file in it, if there is one; or why it does not come over by itself.
    pub file: Result<Option<PathBuf>, String>,
}

/// Behind all that have a place in the order of boot.
const LAST: u32 = u32::MAX;

/// Reads the devices of a machine of the type `machine`. `boot` is the order of kinds of devices,
/// in the old form.
pub(super) fn read(
    devices: Node<'_, '_>,
    machine: &str,
    boot: &[&str],
    notes: &mut Notes,
) -> Devices {
    let mut found = Devices::default();
    // The first in the order of boot that is no disk.
    let (mut first_other, mut has_serial, mut controllers) = (LAST, false, 0);
    let mut left: BTreeMap<(String, String), usize> = BTreeMap::new();
    let buses = Buses::of(devices, bus::is_q35(machine));
    let has = |name: &'static str| elements(devices, name).next().is_some();
    for device in devices.children().filter(Node::is_element) {
        match device.tag_name().name() {
            "disk" => match device.attribute("device").unwrap_or("disk") {
                "disk" => found.disks.push(disk(device, devices, notes)),
                "cdrom" => {
                    first_other = first_other.min(order(device));
                    found.cdroms.push(cdrom(device, devices, Bus::of_cdroms(machine), notes));
                }
                kind => {
                    first_other = first_other.min(order(device));
                    let target = child(device, "target")
                        .and_then(|target| target.attribute("dev"))
                        .unwrap_or("?");
                    notes.left(format!("{kind} {target}"), "is not supported");
                }
            },
            "interface" => {
                first_other = first_other.min(order(device));
                found.nics.extend(interfaces::read(device, &buses, &found.nics, notes));
            }
            "controller" | "hub" => controllers += 1,
            "emulator" => {}
            "channel" => channel(device, notes),
            "serial" | "console"
                if !has_serial && (device.tag_name().name() == "serial" || !has("serial")) =>
            {
                has_serial = true;
                match device.attribute("type") {
                    Some("pty") => notes.kept("serial console", "cowhand console"),
                    other => notes.changed(
                        "serial console",
                        format!(
                            "{} becomes serial.log and `cowhand console`",
                            other.unwrap_or("?")
                        ),
                    ),
                }
            }
            "console" if device.attribute("type") == Some("pty") => {}
            "rng" => notes.kept("rng", "virtio, from the host"),
            other => *left.entry((other.to_owned(), why(other, device))).or_default() += 1,
        }
    }
    for ((what, why), count) in left {
        let what = if count > 1 { format!("{what} ({count})") } else { what };
        notes.left(what, why);
    }
    if controllers > 0 {
        notes.kept("controllers", "QEMU has those that its devices need");
    }
    if !found.disks.is_empty() {
        notes.changed(
            "PCI addresses",
            "of disks are others: their names in /dev/disk/by-path can change",
        );
    }
    // The old form names kinds alone, so disks stay in their order.
    found.disks.sort_by_key(|disk| disk.order);
    let first_disk = found.disks.first().map_or(LAST, |disk| disk.order);
    let removable_first = boot.first().is_some_and(|first| *first != "hd");
    if first_other < first_disk || removable_first {
        notes.changed(
            "boot order",
            "the VM boots from its first disk, or else from what follows it",
        );
    }
    found
}

fn order(device: Node<'_, '_>) -> u32 {
    child(device, "boot").and_then(|boot| boot.attribute("order")?.parse().ok()).unwrap_or(LAST)
}

fn cdrom(device: Node<'_, '_>, devices: Node<'_, '_>, usual: Bus, notes: &mut Notes) -> CdromDrive {
    let target = child(device, "target")
        .and_then(|target| target.attribute("dev"))
        .unwrap_or("?")
        .to_owned();
    let what = format!("CD-ROM {target}");
    let bus = bus_of(device, devices, &what, usual, notes);
    let source = child(device, "source");
    let of_source = |name: &str| source.and_then(|source| source.attribute(name));
    let file = match (device.attribute("type").unwrap_or("file"), of_source("file")) {
        ("file", file) => Ok(file.map(PathBuf::from)),
        ("block", _) => Err("is a drive of the host, which is not supported".to_owned()),
        (kind, _) => Err(format!("is of the type {kind}, and not in a file of this host")),
    };
    let known =
        ["source", "target", "driver", "readonly", "boot", "address", "alias", "backingStore"];
    others(device, &known, &["type", "device"], &what, notes);
    CdromDrive { target, bus, file }
}

fn disk(disk: Node<'_, '_>, devices: Node<'_, '_>, notes: &mut Notes) -> Disk {
    let of_target = |name: &str| child(disk, "target").and_then(|target| target.attribute(name));
    let target = of_target("dev").unwrap_or("?").to_owned();
    let what = format!("disk {target}");
    let bus = bus_of(disk, devices, &what, Bus::Virtio, notes);
    let source = child(disk, "source");
    let driver = child(disk, "driver");
    let of_source = |name: &str| source.and_then(|source| source.attribute(name));
    let said = |name: &str| driver.and_then(|driver| driver.attribute(name));
    let is_in = |name: &str| {
        child(disk, name).is_some() || source.is_some_and(|source| child(source, name).is_some())
    };
    let format = said("type").unwrap_or("raw").parse().ok();
    let kind = disk.attribute("type").unwrap_or("file");
    let file = match (kind, of_source("file"), of_source("dev")) {
        _ if is_in("encryption") => Err("is encrypted, which is not supported".to_owned()),
        _ if is_in("slices") => Err("is a part of a file, which is not supported".to_owned()),
        ("file", Some(_), _) if format.is_none() => {
            Err(format!("has the format {}, which is not supported", said("type").unwrap_or("?")))
        }
        ("file", Some(file), _) => Ok(PathBuf::from(file)),
        ("block", _, Some(device)) => {
            Err(format!("is the block device {device}: make a file of it (qemu-img convert)"))
        }
        (kind, ..) => Err(format!("is of the type {kind}, and not in a file of this host")),
    };
    let serial = child_text(disk, "serial").filter(|serial| {
        let is_possible = bus::check_serial(serial).is_ok();
        if !is_possible {
            notes.changed(
                format!("{what}, serial"),
                format!("{serial} is too long or odd: it becomes that of the disk's name"),
            );
        }
        is_possible
    });
    let known = [
        "source", "target", "driver", "serial", "readonly", "boot", "address", "alias",
        "backingStore",
    ];
    let known = [&known[..], &["encryption"]].concat();
    others(disk, &known, &["type", "device"], &what, notes);
    source.into_iter().for_each(|source| {
        let of_file = ["file", "dev", "index", "startupPolicy"];
        others(source, &["encryption", "slices", "seclabel"], &of_file, &what, notes);
    });
    driver.into_iter().for_each(|driver| others(driver, &[], &["name", "type"], &what, notes));
    child(disk, "target")
        .into_iter()
        .for_each(|target| others(target, &[], &["dev", "bus"], &what, notes));
    let is_shared = child(disk, "transient").is_some() || child(disk, "shareable").is_some();
    let read_only = child(disk, "readonly").is_some();
    Disk { target, bus, serial, file, format, read_only, is_shared, order: order(disk) }
}

fn channel(channel: Node<'_, '_>, notes: &mut Notes) {
    let name = child(channel, "target").and_then(|target| target.attribute("name"));
    match name {
        Some("org.qemu.guest_agent.0") => notes.kept("guest agent", "its channel is there"),
        other => notes.left(format!("channel {}", other.unwrap_or("?")), "has no counterpart"),
    }
}

/// Why a device does not come over.
fn why(device: &str, node: Node<'_, '_>) -> String {
    let reason = match device {
        "graphics" | "video" | "audio" | "sound" | "input" => {
            "VMs have a serial console and no screen"
        }
        "tpm" => {
            "is not supported yet; what the guest has sealed in it (BitLocker) \
             asks for its recovery key"
        }
        "memballoon" => "is not supported yet; the guest keeps its memory",
        "hostdev" | "redirdev" | "redirfilter" | "smartcard" => {
            "devices of the host are not supported"
        }
        "filesystem" => "shared directories are not supported yet",
        "watchdog" | "panic" | "vsock" | "shmem" | "nvram" | "iommu" | "crypto" | "memory"
        | "pstore" => "is not supported yet",
        "serial" | "console" => "there is one serial console",
        _ => "has no counterpart",
    };
    match node.attribute("type").or_else(|| node.attribute("model")) {
        Some(kind) => format!("{kind}: {reason}"),
        None => reason.to_owned(),
    }
}

/// The bus of a drive; of one that it cannot be on here, the `usual` one.
fn bus_of(
    disk: Node<'_, '_>,
    devices: Node<'_, '_>,
    what: &str,
    usual: Bus,
    notes: &mut Notes,
) -> Bus {
    let of_target = |name: &str| child(disk, "target").and_then(|target| target.attribute(name));
    // Where none is said, libvirt takes the one that the name stands for.
    let word = of_target("bus").unwrap_or_else(|| match of_target("dev").unwrap_or_default() {
        name if name.starts_with("vd") => "virtio",
        name if name.starts_with("sd") => "scsi",
        name if name.starts_with("xvd") => "xen",
        _ => "ide",
    });
    let has_it = |bus: &Bus| usual == Bus::Virtio || !matches!(bus, Bus::Virtio | Bus::Nvme);
    let bus = word.parse().ok().filter(has_it).unwrap_or_else(|| {
        notes.changed(
            format!("{what}, bus"),
            format!("{word} becomes {usual}, for which the guest needs a driver"),
        );
        usual
    });
    if bus == Bus::Scsi {
        let index = child(disk, "address")
            .and_then(|address| address.attribute("controller"))
            .unwrap_or("0");
        let mut controllers = elements(devices, "controller").filter(|one| {
            one.attribute("type") == Some("scsi") && one.attribute("index").unwrap_or("0") == index
        });
        let model = controllers.find_map(|one| one.attribute("model")).unwrap_or("lsilogic");
        if !model.starts_with("virtio") {
            let how = format!("{model} becomes virtio-scsi, for which the guest needs a driver");
            notes.changed(format!("{what}, controller"), how);
        }
    }
    bus
}

impl Disk {
    /// What becomes of it as the disk `becomes` of the VM, from the file `file`.
    pub(super) fn note(&self, file: &std::path::Path, becomes: &str, notes: &mut Notes) {
        let renamed =
            if self.target == becomes { String::new() } else { format!(", as {becomes}") };
        notes.kept(
            format!("disk {}", self.target),
            format!("{} on {}{renamed}", file.display(), self.bus),
        );
    }
}
