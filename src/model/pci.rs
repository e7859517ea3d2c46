//! Where a device sits in the guest's PCI hierarchy.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A bus and a slot on it. Linux makes the names of network interfaces from these: `enp1s0` is slot
/// 0 of bus 1.
///
/// Bus 0 is the root bus. On Q35, each other bus is that of a root port, and has slot 0 alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciSlot {
    /// The number of the bus, which the firmware gives in the order of the root ports.
    pub bus: u8,
    /// The number of the slot.
    pub slot: u8,
}

/// The most root ports that a machine gets: two slots with eight functions each.
pub(crate) const ROOT_PORTS: u8 = 16;

impl PciSlot {
    /// Can a machine have a device there, and nothing of its own?
    ///
    /// Q35 has its LPC bridge at slot 31, and our root ports need two slots below it. i440FX has
    /// its chipset in the slots 0 and 1.
    pub fn is_possible(self, is_q35: bool) -> bool {
        match (is_q35, self.bus) {
            (true, 0) => (1..=28).contains(&self.slot),
            (true, bus) => bus <= ROOT_PORTS && self.slot == 0,
            (false, 0) => (2..=31).contains(&self.slot),
            (false, _) => false,
        }
    }
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}", self.bus, self.slot)
    }
}

impl FromStr for PciSlot {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let byte = |text: &str| {
            u8::from_str_radix(text, 16).ok().filter(|_| text.len() == 2 && !text.starts_with('+'))
        };
        let parts = text.split_once(':').and_then(|(bus, slot)| Some((byte(bus)?, byte(slot)?)));
        parts
            .map(|(bus, slot)| Self { bus, slot })
            .ok_or_else(|| Error::damaged(format!("{text:?} is not a PCI bus and slot")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_as_written() {
        let slot = PciSlot { bus: 1, slot: 0x1f };
        assert_eq!(slot.to_string(), "01:1f");
        assert_eq!("01:1f".parse::<PciSlot>().expect("a slot"), slot);
        for bad in ["", "1:2", "01", "01:zz", "001:02", "+1:02"] {
            assert!(bad.parse::<PciSlot>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_the_chipset_takes_is_not_possible() {
        let slot = |bus, slot| PciSlot { bus, slot };
        for (place, q35, pc) in [
            (slot(0, 0), false, false),
            (slot(0, 1), true, false),
            (slot(0, 3), true, true),
            (slot(0, 31), false, true),
            (slot(1, 0), true, false),
            (slot(1, 1), false, false),
            (slot(17, 0), false, false),
        ] {
            assert_eq!((place.is_possible(true), place.is_possible(false)), (q35, pc), "{place}");
        }
    }
}
