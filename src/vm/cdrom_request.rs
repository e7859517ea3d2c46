//! CD-ROM drives as asked for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::model::{Bus, Cdrom, Disk};

/// A CD-ROM drive as asked for: `FILE[,bus=B]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CdromRequest {
    /// What is in it.
    pub iso: Option<PathBuf>,
    /// Its bus, where it is not the usual one of the machine.
    pub bus: Option<Bus>,
    /// Its name; without one, the next that its bus has.
    pub target: Option<String>,
}

impl CdromRequest {
    /// Its bus in a machine of this type.
    pub(crate) fn bus(&self, machine: &str) -> Bus {
        self.bus.unwrap_or(Bus::of_cdroms(machine))
    }
}

impl FromStr for CdromRequest {
    type Err = Error;

    /// A path may contain commas, but not end in `,bus=WORD`.
    fn from_str(text: &str) -> Result<Self> {
        let (path, bus) = match text.rsplit_once(",bus=") {
            Some((path, bus)) => (path, Some(bus.parse()?)),
            None => (text, None),
        };
        if path.is_empty() {
            return Err(
                Error::usage(format!("{text:?} names no ISO image")).hint("write FILE[,bus=BUS]")
            );
        }
        Ok(Self { iso: Some(path.into()), bus, target: None })
    }
}

/// The drives with a name each, beside `disks`.
pub(crate) fn named(requests: &[CdromRequest], machine: &str, disks: &[Disk]) -> Vec<Cdrom> {
    let mut taken: BTreeSet<String> = disks.iter().map(|disk| disk.target.clone()).collect();
    taken.extend(requests.iter().filter_map(|request| request.target.clone()));
    let named = |request: &CdromRequest| {
        let bus = request.bus(machine);
        let target = request.target.clone().unwrap_or_else(|| bus.free_target(&taken));
        taken.insert(target.clone());
        Cdrom { target, bus, iso: request.iso.clone() }
    };
    requests.iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_path_may_contain_commas_and_the_bus_comes_last() {
        let plain: CdromRequest = "/a,b/c.iso".parse().expect("a drive");
        assert_eq!((plain.iso.as_deref(), plain.bus), (Some(Path::new("/a,b/c.iso")), None));
        assert_eq!((plain.bus("pc-q35-7.2"), plain.bus("pc-i440fx-7.2")), (Bus::Sata, Bus::Ide));
        let usb: CdromRequest = "c.iso,bus=usb".parse().expect("a drive");
        assert_eq!((usb.iso.as_deref(), usb.bus), (Some(Path::new("c.iso")), Some(Bus::Usb)));
        for bad in ["", ",bus=usb", "c.iso,bus=", "c.iso,bus=mca"] {
            assert!(bad.parse::<CdromRequest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn drives_are_named_beside_the_disks() {
        let layer = crate::model::Layer::new(crate::model::Format::Qcow2);
        let disks = [Disk { bus: Bus::Sata, ..Disk::new("sda", layer, 512) }];
        let ask = |bus, target: Option<&str>| CdromRequest {
            iso: None,
            bus,
            target: target.map(str::to_owned),
        };
        let asked = [ask(None, None), ask(Some(Bus::Usb), Some("sdb")), ask(Some(Bus::Ide), None)];
        let named = named(&asked, "pc-q35-7.2", &disks);
        let names: Vec<_> = named.iter().map(|cdrom| (cdrom.target.as_str(), cdrom.bus)).collect();
        assert_eq!(names, [("sdc", Bus::Sata), ("sdb", Bus::Usb), ("hda", Bus::Ide)]);
    }
}
