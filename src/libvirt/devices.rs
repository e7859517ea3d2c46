//! The devices of a domain: disks and network cards, which come over, and everything else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use roxmltree::Node;

use super::Fate;
use super::domain::{Notes, child, child_text, elements, others};
use crate::model::{Format, Nic};

/// The devices of a domain that come over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    /// Its disks, the one that is booted from first.
    pub disks: Vec<Disk>,
    /// The addresses of its network cards.
    pub macs: Vec<String>,
}

/// A disk of the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What the domain calls it: `sda`.
    pub target: String,
    /// Its bus: `virtio`, `sata`.
    pub bus: String,
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

/// Behind all that have a place in the order of boot.
const LAST: u32 = u32::MAX;

/// Reads the devices. `boot` is the order of kinds of devices, in the old form.
pub(super) fn read(devices: Node<'_, '_>, boot: &[&str], notes: &mut Notes) -> Devices {
    let mut found = Devices::default();
    // The first in the order of boot that is no disk.
    let (mut first_other, mut has_serial, mut controllers) = (LAST, false, 0);
    let mut left: BTreeMap<(String, String), usize> = BTreeMap::new();
    let has = |name: &'static str| elements(devices, name).next().is_some();
    for device in devices.children().filter(Node::is_element) {
        match device.tag_name().name() {
            "disk" => match device.attribute("device").unwrap_or("disk") {
                "disk" => found.disks.push(disk(device, notes)),
                kind => {
                    first_other = first_other.min(order(device));
                    removable(device, kind, notes);
                }
            },
            "interface" => {
                first_other = first_other.min(order(device));
                found.macs.extend(interface(device, &found.macs, notes));
            }
            "controller" | "hub" => controllers += 1,
            "emulator" => {}
            "channel" => channel(device, notes),
            "serial" | "console" if !has_serial && (device.tag_name().name() == "serial" || !has("serial")) => {
                has_serial = true;
                match device.attribute("type") {
                    Some("pty") => notes.kept("serial console", "cowhand console"),
                    other => notes.changed(
                        "serial console",
                        format!("{} becomes serial.log and `cowhand console`", other.unwrap_or("?")),
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
    if !found.disks.is_empty() || !found.macs.is_empty() {
        let how = "are others: names of network interfaces in the guest, such as enp1s0, can change";
        notes.changed("PCI addresses", how);
    }
    // The old form names kinds alone, so disks stay in their order.
    found.disks.sort_by_key(|disk| disk.order);
    let first_disk = found.disks.first().map_or(LAST, |disk| disk.order);
    let removable_first = boot.first().is_some_and(|first| *first != "hd");
    if first_other < first_disk || removable_first {
        notes.changed("boot order", "the VM boots from its first disk");
    }
    found
}

fn order(device: Node<'_, '_>) -> u32 {
    child(device, "boot").and_then(|boot| boot.attribute("order")?.parse().ok()).unwrap_or(LAST)
}

/// CD-ROMs, floppies and devices of the host.
fn removable(disk: Node<'_, '_>, kind: &str, notes: &mut Notes) {
    let target = child(disk, "target").and_then(|target| target.attribute("dev")).unwrap_or("?");
    let medium = child(disk, "source").and_then(|source| source.attribute("file").or(source.attribute("dev")));
    let what = if kind == "cdrom" { format!("CD-ROM {target}") } else { format!("{kind} {target}") };
    notes.left(what, format!("{}: is not supported yet", medium.unwrap_or("empty")));
}

fn disk(disk: Node<'_, '_>, notes: &mut Notes) -> Disk {
    let of_target = |name: &str| child(disk, "target").and_then(|target| target.attribute(name));
    let target = of_target("dev").unwrap_or("?").to_owned();
    let bus = of_target("bus").unwrap_or("ide").to_owned();
    let what = format!("disk {target}");
    let source = child(disk, "source");
    let driver = child(disk, "driver");
    let of_source = |name: &str| source.and_then(|source| source.attribute(name));
    let said = |name: &str| driver.and_then(|driver| driver.attribute(name));
    let is_in = |name: &str| child(disk, name).is_some() || source.is_some_and(|source| child(source, name).is_some());
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
    if let Some(serial) = child_text(disk, "serial") {
        notes.changed(format!("{what}, serial"), format!("{serial} becomes the name of the disk (vda)"));
    }
    let known = ["source", "target", "driver", "serial", "readonly", "boot", "address", "alias", "backingStore"];
    let known = [&known[..], &["encryption"]].concat();
    others(disk, &known, &["type", "device"], &what, notes);
    source.into_iter().for_each(|source| {
        let of_file = ["file", "dev", "index", "startupPolicy"];
        others(source, &["encryption", "slices", "seclabel"], &of_file, &what, notes);
    });
    driver.into_iter().for_each(|driver| others(driver, &[], &["name", "type"], &what, notes));
    child(disk, "target").into_iter().for_each(|target| others(target, &[], &["dev", "bus"], &what, notes));
    let is_shared = child(disk, "transient").is_some() || child(disk, "shareable").is_some();
    let read_only = child(disk, "readonly").is_some();
    Disk { target, bus, file, format, read_only, is_shared, order: order(disk) }
}

fn interface(interface: Node<'_, '_>, before: &[String], notes: &mut Notes) -> Option<String> {
    let mac = child(interface, "mac").and_then(|mac| mac.attribute("address")).map(str::to_ascii_lowercase);
    let what = format!("network card {}", mac.as_deref().unwrap_or("without an address"));
    let kind = interface.attribute("type").unwrap_or("?");
    if matches!(kind, "hostdev" | "vdpa" | "vhostuser") {
        notes.left(what, format!("{kind}: devices of the host are not supported"));
        return None;
    }
    let source = child(interface, "source");
    let names = ["network", "bridge", "dev"];
    let named = source.and_then(|source| names.into_iter().find_map(|name| source.attribute(name)));
    if kind == "user" {
        notes.kept(what.clone(), "user network");
    } else {
        let to = named.map(|name| format!(" {name}")).unwrap_or_default();
        notes.changed(
            what.clone(),
            format!("{kind}{to} becomes a user network; ports lead in (set NAME ports=HOST:GUEST)"),
        );
    }
    let model = child(interface, "model").and_then(|model| model.attribute("type")).unwrap_or("the default model");
    if !matches!(model, "virtio" | "virtio-non-transitional") {
        notes.changed(format!("{what}, model"), format!("{model} becomes virtio, for which the guest needs a driver"));
    }
    let known = ["mac", "source", "model", "boot", "address", "alias", "target"];
    others(interface, &known, &["type"], &what, notes);
    match mac.filter(|mac| is_mac(mac) && !before.contains(mac)) {
        Some(mac) => Some(mac),
        None => {
            notes.changed(format!("{what}, address"), "is a new one");
            Some(Nic::new().mac)
        }
    }
}

/// Six bytes that are the address of one card, in the form that QEMU takes.
fn is_mac(text: &str) -> bool {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+')))
        .collect();
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes[0] & 1 == 0 && bytes.iter().any(|byte| *byte != 0))
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
        "graphics" | "video" | "audio" | "sound" | "input" => "VMs have a serial console and no screen",
        "tpm" => "is not supported yet; what the guest has sealed in it (BitLocker) asks for its recovery key",
        "memballoon" => "is not supported yet; the guest keeps its memory",
        "hostdev" | "redirdev" | "redirfilter" | "smartcard" => "devices of the host are not supported",
        "filesystem" => "shared directories are not supported yet",
        "watchdog" | "panic" | "vsock" | "shmem" | "nvram" | "iommu" | "crypto" | "memory" | "pstore" => {
            "is not supported yet"
        }
        "serial" | "console" => "there is one serial console",
        _ => "has no counterpart",
    };
    match node.attribute("type").or_else(|| node.attribute("model")) {
        Some(kind) => format!("{kind}: {reason}"),
        None => reason.to_owned(),
    }
}

impl Disk {
    /// What becomes of it as the disk `becomes` of the VM, from the file `file`.
    pub(super) fn note(&self, file: &std::path::Path, becomes: &str, notes: &mut Notes) {
        let what = format!("disk {}", self.target);
        let file = file.display();
        let renamed = if self.target == becomes { String::new() } else { format!(", as {becomes}") };
        match self.bus.as_str() {
            "virtio" => notes.add(Fate::Kept, what, format!("{file}{renamed}")),
            bus => notes.add(
                Fate::Changed,
                what,
                format!("{file}{renamed}: {bus} becomes virtio, for which the guest needs a driver"),
            ),
        }
    }
}
