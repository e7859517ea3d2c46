//! The disks, CD-ROM drives and network cards of a machine as QEMU's `-device` options, with the
//! controllers that they need. Pure.
//!
//! The order is that of the command line, in which QEMU gives out PCI slots: what sits in a slot of
//! its own comes first. Sources: QEMU's `docs/pcie.txt`, `docs/system/devices/{nvme,usb}.rst`.

use serde_json::{Value, json};

use super::nodes;
use crate::model::{Bus, Config, Nic, NicModel, bus, pci};

/// The disks of an AHCI controller.
const AHCI_PORTS: usize = 6;
/// The slots of the root ports on a Q35, each with eight functions.
const ROOT_PORT_SLOTS: [u8; 2] = [29, 30];

/// The root ports of a Q35: as many as the cards behind them need, since bus numbers have no gaps.
pub(crate) fn root_ports(config: &Config) -> Vec<Value> {
    let buses = config.nics.iter().filter_map(|nic| nic.place).map(|place| place.bus);
    let ports = if config.is_q35() { buses.max().unwrap_or(0).min(pci::ROOT_PORTS) } else { 0 };
    let port = |number: u8| {
        let (slot, function) = (ROOT_PORT_SLOTS[usize::from(number / 8)], number % 8);
        json!({
            "driver": "pcie-root-port",
            "id": root_port(number + 1),
            "bus": "pcie.0",
            "addr": format!("{slot:#x}.{function:#x}"),
            "multifunction": function == 0,
            "chassis": number + 1,
            "port": number,
        })
    };
    (0..ports).map(port).collect()
}

fn root_port(bus: u8) -> String {
    format!("dev-root{bus}")
}

/// A network card on `-netdev net<index>`.
pub(crate) fn card(config: &Config, index: usize, nic: &Nic) -> Value {
    let driver = match nic.model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000 => "e1000",
        NicModel::E1000e => "e1000e",
        NicModel::Rtl8139 => "rtl8139",
    };
    let (id, network) = (format!("dev-net{index}"), format!("net{index}"));
    let mut card = json!({"driver": driver, "id": id, "netdev": network, "mac": nic.mac});
    if let Some(place) = nic.place {
        card["addr"] = format!("{:#x}", place.slot).into();
        card["bus"] = match (place.bus, config.is_q35()) {
            (0, true) => "pcie.0".into(),
            (0, false) => "pci.0".into(),
            (bus, _) => root_port(bus).into(),
        };
    }
    card
}

/// What is connected to a bus for disks.
struct Drive<'a> {
    target: &'a str,
    bus: Bus,
    /// Its block node.
    node: Option<String>,
    serial: Option<&'a str>,
    is_cdrom: bool,
}

/// The disks, then the CD-ROM drives, each behind the controller that it needs, where that is not
/// there yet. The guest boots from the first of them that it can boot from.
pub(crate) fn drives(config: &Config) -> Vec<Value> {
    let disks = config.disks.iter().map(|disk| Drive {
        target: &disk.target,
        bus: disk.bus,
        node: Some(disk.layer.node()),
        serial: Some(disk.serial.as_ref().unwrap_or(&disk.target)),
        is_cdrom: false,
    });
    let cdroms = config.cdroms.iter().map(|cdrom| Drive {
        target: &cdrom.target,
        bus: cdrom.bus,
        node: cdrom.iso.as_ref().map(|iso| nodes::iso_node(&cdrom.target, iso)),
        serial: None,
        is_cdrom: true,
    });
    let drives: Vec<Drive<'_>> = disks.chain(cdroms).collect();
    let mut devices = Vec::new();
    for (index, drive) in drives.iter().enumerate() {
        // Of its bus, it is this one.
        let at = drives[..index].iter().filter(|other| other.bus == drive.bus).count();
        match drive.bus {
            Bus::Virtio => {}
            Bus::Scsi if at == 0 => {
                devices.push(json!({"driver": "virtio-scsi-pci", "id": "dev-scsi"}))
            }
            Bus::Usb => {
                if at == 0 {
                    let ports = bus::USB_PORTS;
                    devices.push(
                        json!({"driver": "qemu-xhci", "id": "dev-usb", "p2": ports, "p3": ports}),
                    );
                }
                devices.push(json!({"driver": "usb-bot", "id": usb(drive), "bus": "dev-usb.0"}));
            }
            // A Q35 has the first controller already.
            Bus::Sata if at.is_multiple_of(AHCI_PORTS) && (at > 0 || !config.is_q35()) => {
                devices.push(json!({"driver": "ich9-ahci", "id": ahci(at)}));
            }
            _ => {}
        }
        devices.push(device(config, drive, at, index + 1));
    }
    devices
}

fn ahci(at: usize) -> String {
    format!("dev-sata{}", at / AHCI_PORTS)
}

/// The USB device whose only SCSI drive it is. The `usb-storage` of QEMU is both in one, but hides
/// its drive from QMP.
fn usb(drive: &Drive<'_>) -> String {
    format!("dev-usb-{}", drive.target)
}

/// The drive number `at` of its bus.
fn device(config: &Config, drive: &Drive<'_>, at: usize, bootindex: usize) -> Value {
    let driver = match (drive.bus, drive.is_cdrom) {
        (Bus::Virtio, _) => "virtio-blk-pci",
        (Bus::Scsi | Bus::Usb, false) => "scsi-hd",
        (Bus::Scsi | Bus::Usb, true) => "scsi-cd",
        (Bus::Nvme, _) => "nvme",
        (Bus::Sata | Bus::Ide, false) => "ide-hd",
        (Bus::Sata | Bus::Ide, true) => "ide-cd",
    };
    let mut device = json!({"driver": driver, "id": nodes::device_id(drive.target)});
    if let Some(node) = &drive.node {
        device["drive"] = node.as_str().into();
    }
    if let Some(serial) = drive.serial {
        device["serial"] = serial.into();
    }
    device["bootindex"] = bootindex.into();
    match drive.bus {
        Bus::Virtio | Bus::Nvme => {}
        Bus::Scsi => {
            device["bus"] = "dev-scsi.0".into();
            device["scsi-id"] = at.into();
        }
        Bus::Usb => device["bus"] = format!("{}.0", usb(drive)).into(),
        Bus::Sata if at < AHCI_PORTS && config.is_q35() => {
            device["bus"] = format!("ide.{at}").into()
        }
        Bus::Sata => device["bus"] = format!("{}.{}", ahci(at), at % AHCI_PORTS).into(),
        Bus::Ide => {
            device["bus"] = format!("ide.{}", at / 2).into();
            device["unit"] = (at % 2).into();
        }
    }
    device
}
