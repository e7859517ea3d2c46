//! The network cards of a domain, and where they sit.

use std::collections::BTreeMap;

use roxmltree::Node;

use super::xml::{Notes, child, elements, others};
use crate::model::{Nic, NicModel, PciSlot};

/// The PCI buses of a domain.
pub(super) struct Buses {
    is_q35: bool,
    /// The number that the guest's firmware gives to the bus of each root port, by the index of its
    /// controller.
    numbers: BTreeMap<u8, u8>,
}

/// A PCI address, as an XML has it: bus, slot, function. The bus is the index of a controller.
type Address = (u8, u8, u8);

impl Buses {
    pub(super) fn of(devices: Node<'_, '_>, is_q35: bool) -> Self {
        let of_pci =
            elements(devices, "controller").filter(|one| one.attribute("type") == Some("pci"));
        let mut bridges: Vec<(Address, u8, &str)> = Vec::new();
        for bridge in of_pci {
            let index = bridge.attribute("index").and_then(|index| index.parse().ok());
            let model = bridge.attribute("model").unwrap_or_default();
            match (index, address(bridge)) {
                (Some(0), _) => {}
                // A bus whose number the domain chooses is beside all others.
                (Some(index), Some(address)) if !model.contains("expander") => {
                    bridges.push((address, index, model))
                }
                // Where it sits is not known, so neither are the numbers of others.
                _ => return Self { is_q35, numbers: BTreeMap::new() },
            }
        }
        bridges.sort_unstable();
        let mut numbers = BTreeMap::new();
        // The firmware goes down each bridge before it goes on to the next one (PCI Local Bus
        // Specification).
        let mut next: u8 = 1;
        let mut pending: Vec<usize> = below(&bridges, 0);
        while let Some(at) = pending.pop() {
            let (address, index, model) = bridges[at];
            if model == "pcie-root-port" && address.0 == 0 {
                numbers.insert(index, next);
            }
            next = match next.checked_add(1) {
                Some(next) => next,
                // One that is below itself.
                None => return Self { is_q35, numbers: BTreeMap::new() },
            };
            pending.extend(below(&bridges, index));
        }
        Self { is_q35, numbers }
    }

    /// Where a device sits, if our machine can have it there.
    fn place(&self, device: Node<'_, '_>) -> Option<PciSlot> {
        let (bus, slot, function) = address(device)?;
        let bus = if bus == 0 { 0 } else { *self.numbers.get(&bus)? };
        let place = PciSlot { bus, slot };
        (function == 0 && place.is_possible(self.is_q35)).then_some(place)
    }
}

/// The bridges on a bus, the last one first.
fn below(bridges: &[(Address, u8, &str)], bus: u8) -> Vec<usize> {
    let on_it = bridges.iter().enumerate().filter(|(_, (address, ..))| address.0 == bus);
    on_it.map(|(at, _)| at).rev().collect()
}

fn address(device: Node<'_, '_>) -> Option<Address> {
    let address =
        child(device, "address").filter(|address| address.attribute("type") == Some("pci"))?;
    let number = |name: &str| {
        let text = address.attribute(name).unwrap_or("0");
        match text.strip_prefix("0x") {
            // A domain has four digits.
            Some(digits) => {
                u16::from_str_radix(digits, 16).ok().and_then(|number| u8::try_from(number).ok())
            }
            None => text.parse().ok(),
        }
    };
    (number("domain")? == 0).then_some((number("bus")?, number("slot")?, number("function")?))
}

/// Reads a network card. `before` are those that have been read.
pub(super) fn read(
    interface: Node<'_, '_>,
    buses: &Buses,
    before: &[Nic],
    notes: &mut Notes,
) -> Option<Nic> {
    let mac = child(interface, "mac")
        .and_then(|mac| mac.attribute("address"))
        .map(str::to_ascii_lowercase);
    let what = format!("network card {}", mac.as_deref().unwrap_or("without an address"));
    let kind = interface.attribute("type").unwrap_or("?");
    if matches!(kind, "hostdev" | "vdpa" | "vhostuser") {
        notes.left(what, format!("{kind}: devices of the host are not supported"));
        return None;
    }
    network(interface, kind, &what, notes);
    let known = ["mac", "source", "model", "boot", "address", "alias", "target"];
    others(interface, &known, &["type"], &what, notes);
    let mut nic = Nic { model: model(interface, &what, notes), ..Nic::new() };
    match mac.filter(|mac| Nic::is_address(mac) && before.iter().all(|other| other.mac != *mac)) {
        Some(mac) => nic.mac = mac,
        None => notes.changed(format!("{what}, address"), "is a new one"),
    }
    nic.place = buses
        .place(interface)
        .filter(|place| before.iter().all(|other| other.place != Some(*place)));
    match nic.place {
        Some(place) => notes.kept(
            format!("{what}, PCI"),
            format!("bus and slot {place}: its interface keeps its name"),
        ),
        None => notes.changed(
            format!("{what}, PCI"),
            "has another address: the name of its interface in the guest, \
             such as enp1s0, can change",
        ),
    }
    Some(nic)
}

fn network(interface: Node<'_, '_>, kind: &str, what: &str, notes: &mut Notes) {
    let source = child(interface, "source");
    let names = ["network", "bridge", "dev"];
    let named = source.and_then(|source| names.into_iter().find_map(|name| source.attribute(name)));
    if kind == "user" {
        return notes.kept(what, "user network");
    }
    let to = named.map(|name| format!(" {name}")).unwrap_or_default();
    let becomes = "becomes a user network; to forward ports: set NAME ports=HOST:GUEST";
    notes.changed(what, format!("{kind}{to} {becomes}"));
}

fn model(interface: Node<'_, '_>, what: &str, notes: &mut Notes) -> NicModel {
    let what = format!("{what}, model");
    let Some(model) = child(interface, "model").and_then(|model| model.attribute("type")) else {
        notes.kept(what, "rtl8139, which libvirt takes where none is named");
        return NicModel::Rtl8139;
    };
    match model {
        "virtio-transitional" | "virtio-non-transitional" => NicModel::Virtio,
        _ => model.parse().unwrap_or_else(|_| {
            notes.changed(
                what,
                format!("{model} becomes e1000e, for which the guest needs a driver"),
            );
            NicModel::E1000e
        }),
    }
}
