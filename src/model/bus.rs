//! The bus that connects a disk with the guest.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Config, Disk};
use crate::error::{Error, Result};

/// The bus of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Bus {
    /// `virtio-blk`: the fastest, for guests that have its driver.
    #[default]
    Virtio,
    /// A SCSI disk on a `virtio-scsi` controller.
    Scsi,
    /// An NVMe controller with one namespace.
    Nvme,
    /// SATA on an AHCI controller, for which every guest has a driver.
    Sata,
    /// IDE, which only machines of type `pc` have.
    Ide,
    /// USB mass storage.
    Usb,
}

/// The two IDE channels of a `pc` have two disks each.
const IDE_DISKS: usize = 4;
/// Three AHCI controllers. With a fourth one, SeaBIOS boots from none of them on a Q35.
const SATA_DISKS: usize = 18;
/// The ports of our USB controller.
pub(crate) const USB_PORTS: usize = 15;
/// The most drives and network cards together: what QEMU has slots for, whatever they are.
pub(crate) const DEVICES: usize = 24;
/// The longest serial number that every bus transfers whole (ATA8-ACS: 20 characters).
const SERIAL_LENGTH: usize = 20;

impl Bus {
    /// Every bus there is.
    pub const ALL: [Self; 6] =
        [Self::Virtio, Self::Scsi, Self::Nvme, Self::Sata, Self::Ide, Self::Usb];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Nvme => "nvme",
            Self::Sata => "sata",
            Self::Ide => "ide",
            Self::Usb => "usb",
        }
    }

    /// The name of the disk number `index` of those that are named alike: `vda`, `sdb`, `nvme0n1`.
    fn target(self, index: usize) -> String {
        let letter = char::from(b'a' + u8::try_from(index).unwrap_or(25).min(25));
        match self {
            Self::Virtio => format!("vd{letter}"),
            Self::Scsi | Self::Sata | Self::Usb => format!("sd{letter}"),
            Self::Ide => format!("hd{letter}"),
            Self::Nvme => format!("nvme{index}n1"),
        }
    }

    /// The bus that CD-ROM drives have in a machine of this type.
    pub fn of_cdroms(machine: &str) -> Self {
        if is_q35(machine) { Self::Sata } else { Self::Ide }
    }

    /// The first name for a drive on this bus that is not `taken`.
    pub fn free_target(self, taken: &BTreeSet<String>) -> String {
        let names = (0..=taken.len()).map(|index| self.target(index));
        names.into_iter().find(|name| !taken.contains(name)).unwrap_or_default()
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Bus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|bus| bus.as_str() == text).ok_or_else(|| {
            Error::usage(format!("{text:?} is not a disk bus"))
                .hint(format!("buses: {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }
}

/// Can a disk have this name? It becomes part of the id of a QEMU device.
pub(crate) fn is_target(text: &str) -> bool {
    let letters =
        ["vd", "sd", "hd", "xvd", "ubd"].into_iter().find_map(|start| text.strip_prefix(start));
    let is_lettered = letters.is_some_and(|rest| {
        matches!(rest.len(), 1..=2) && rest.bytes().all(|b| b.is_ascii_lowercase())
    });
    let number =
        |text: &str| matches!(text.len(), 1..=3) && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = text.strip_prefix("nvme").and_then(|rest| rest.split_once('n'));
    is_lettered
        || numbers.is_some_and(|(controller, namespace)| number(controller) && number(namespace))
}

/// Refuses a serial number that a bus would cut off or change.
pub(crate) fn check_serial(serial: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+:".contains(c);
    if serial.is_empty() || serial.len() > SERIAL_LENGTH || !serial.chars().all(is_plain) {
        return Err(Error::usage(format!("{serial:?} is not the serial number of a disk"))
            .hint(format!("1 to {SERIAL_LENGTH} letters, digits and -_.+:")));
    }
    Ok(())
}

/// Refuses disks that a machine of this type cannot have, of each its bus and whether it is
/// read-only, and CD-ROM drives.
pub(crate) fn check(machine: &str, disks: &[(Bus, bool)], cdroms: &[Bus]) -> Result<()> {
    let all = || disks.iter().map(|disk| disk.0).chain(cdroms.iter().copied());
    let on = |bus: Bus| all().filter(|one| *one == bus).count();
    if let Some(bus) = cdroms.iter().find(|bus| matches!(bus, Bus::Virtio | Bus::Nvme)) {
        return Err(Error::refused(format!("a CD-ROM drive cannot be on {bus}"))
            .hint("choose the bus sata, ide, scsi or usb for it"));
    }
    if on(Bus::Ide) > 0 && is_q35(machine) {
        return Err(Error::refused(format!(
            "a machine of type {machine} has no IDE, so no drive can be on it"
        ))
        .hint("choose the bus sata, or a machine of type pc"));
    }
    for (bus, most) in [(Bus::Ide, IDE_DISKS), (Bus::Usb, USB_PORTS), (Bus::Sata, SATA_DISKS)] {
        if on(bus) > most {
            return Err(Error::refused(format!(
                "a machine has at most {most} drives on the bus {bus}"
            )));
        }
    }
    match disks.iter().find(|(bus, read_only)| *read_only && matches!(bus, Bus::Sata | Bus::Ide)) {
        Some((bus, _)) => Err(Error::refused(format!("a disk on {bus} cannot be read-only"))
            .hint("choose the bus virtio, scsi, nvme or usb for it")),
        None => Ok(()),
    }
}

/// For more than [`DEVICES`].
pub(crate) fn too_many() -> Error {
    Error::refused(format!(
        "a VM has at most {DEVICES} disks, CD-ROM drives and network cards together"
    ))
}

/// Is the chipset of this machine type Q35, and not i440FX?
pub(crate) fn is_q35(machine: &str) -> bool {
    machine.contains("q35")
}

/// A disk whose state in the guest QEMU cannot save. Of such a guest there is no memory to be had
/// (QEMU's `hw/nvme/ctrl.c` has `.unmigratable = 1`).
pub(crate) fn unsaved(config: &Config) -> Option<&Disk> {
    config.disks.iter().find(|disk| disk.bus == Bus::Nvme)
}

/// Refuses to save the memory of `what`, where QEMU cannot.
pub(crate) fn refuse_memory(what: &str, config: &Config) -> Result<()> {
    unsaved(config).map_or(Ok(()), |disk| {
        Err(Error::refused(format!(
            "the memory of {what} cannot be saved: its disk {} is on NVMe, and QEMU does not save \
             the state of NVMe",
            disk.target
        ))
        .hint(format!(
            "QEMU can on the other buses; of a VM that does not run: cowhand set VM \
             disk.{}.bus=sata",
            disk.target
        )))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_get_the_names_that_their_bus_has_in_linux() {
        let mut taken = BTreeSet::new();
        for (bus, name) in [
            (Bus::Virtio, "vda"),
            (Bus::Sata, "sda"),
            (Bus::Usb, "sdb"),
            (Bus::Virtio, "vdb"),
            (Bus::Nvme, "nvme0n1"),
            (Bus::Nvme, "nvme1n1"),
            (Bus::Ide, "hda"),
            (Bus::Scsi, "sdc"),
        ] {
            assert_eq!(bus.free_target(&taken), name);
            assert!(is_target(name));
            taken.insert(name.to_owned());
        }
        for bad in [
            "", "vd", "vdabc", "net0", "nvram", "nvme", "nvme0", "nvmen", "sd1", "seed", "vda,x",
            "nvme0n1x",
        ] {
            assert!(!is_target(bad), "{bad}");
        }
    }

    #[test]
    fn disks_that_no_machine_can_have_are_refused() {
        let (rw, ro) = (|bus| (bus, false), |bus| (bus, true));
        assert!(
            check("pc-q35-7.2", &Bus::ALL.map(rw)[..4], &[Bus::Sata, Bus::Usb, Bus::Scsi]).is_ok()
        );
        assert!(
            check("pc", &[], &[Bus::Virtio])
                .expect_err("no such drive")
                .message()
                .contains("on virtio")
        );
        assert!(check("pc", &[rw(Bus::Ide); 3], &[Bus::Ide; 2]).is_err());
        assert!(
            check("pc-i440fx-7.2", &[rw(Bus::Ide), rw(Bus::Ide), rw(Bus::Ide), rw(Bus::Ide)], &[])
                .is_ok()
        );
        for (machine, disks, words) in [
            ("q35", &[rw(Bus::Ide)][..], "has no IDE"),
            ("pc", &[rw(Bus::Ide); 5], "at most 4"),
            ("pc", &[rw(Bus::Usb); 16], "at most 15"),
            ("pc", &[rw(Bus::Sata); 19], "at most 18"),
            ("q35", &[rw(Bus::Virtio), ro(Bus::Sata)], "cannot be read-only"),
            ("pc", &[ro(Bus::Ide)], "cannot be read-only"),
        ] {
            let error = check(machine, disks, &[]).expect_err(words);
            assert!(error.message().contains(words), "{error:?}");
        }
    }

    #[test]
    fn words_for_buses_and_serial_numbers_are_checked() {
        assert_eq!("sata".parse::<Bus>().expect("a bus"), Bus::Sata);
        let error = "floppy".parse::<Bus>().expect_err("is no bus");
        assert!(error.hints()[0].contains("virtio, scsi, nvme, sata, ide, usb"), "{error:?}");
        assert!(check_serial("WD-1234_5.6").is_ok());
        for bad in ["", "a b", "a,b", "ä", &"x".repeat(21)] {
            assert!(check_serial(bad).is_err(), "{bad}");
        }
    }
}
