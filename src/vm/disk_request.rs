//! A disk of a file, as it is asked for on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::model::{Bus, Format, bus};

/// What becomes of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mode {
    /// Its content is copied into the store.
    #[default]
    Copy,
    /// It stays where it is and is written in place.
    Use,
}

/// A disk file as asked for: `FILE[,copy|use][,format=F][,ro][,bus=B][,serial=S]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskRequest {
    /// The file.
    pub path: PathBuf,
    /// Copy it or use it.
    pub mode: Mode,
    /// What the user says it is.
    pub format: Option<Format>,
    /// The guest shall not write to it.
    pub read_only: bool,
    /// Its bus, where it is not that of the VM's other disks.
    pub bus: Option<Bus>,
    /// The serial number that the guest sees.
    pub serial: Option<String>,
    /// Its name; without one, the next that its bus has.
    pub target: Option<String>,
}

impl DiskRequest {
    /// A copy of the file, with nothing else said of it.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            mode: Mode::Copy,
            format: None,
            read_only: false,
            bus: None,
            serial: None,
            target: None,
        }
    }
}

impl FromStr for DiskRequest {
    type Err = Error;

    /// Options are taken from the end as long as they are known ones, so that a path may contain
    /// commas.
    fn from_str(text: &str) -> Result<Self> {
        let mut request = Self::new(PathBuf::new());
        let mut rest = text;
        while let Some((before, option)) = rest.rsplit_once(',') {
            match option.split_once('=') {
                None if option == "copy" => request.mode = Mode::Copy,
                None if option == "use" => request.mode = Mode::Use,
                None if option == "ro" => request.read_only = true,
                Some(("format", format)) => request.format = Some(format.parse()?),
                Some(("bus", bus)) => request.bus = Some(bus.parse()?),
                Some(("serial", serial)) => {
                    bus::check_serial(serial)?;
                    request.serial = Some(serial.to_owned());
                }
                _ => break,
            }
            rest = before;
        }
        if rest.is_empty() {
            return Err(Error::usage(format!("{text:?} names no disk file"))
                .hint("write FILE[,copy|use][,format=F][,ro][,bus=B][,serial=S]"));
        }
        request.path = rest.into();
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_disk_path_may_contain_commas_and_options_come_last() {
        let disk: DiskRequest = "/a,b/c.img,use,format=raw,ro".parse().expect("a disk");
        assert_eq!(disk.path, Path::new("/a,b/c.img"));
        assert_eq!((disk.mode, disk.format, disk.read_only), (Mode::Use, Some(Format::Raw), true));
        let old: DiskRequest = "c.img,bus=sata,serial=WD-1".parse().expect("a disk");
        assert_eq!((old.bus, old.serial.as_deref()), (Some(Bus::Sata), Some("WD-1")));
        assert!("c.img,bus=mca".parse::<DiskRequest>().is_err());
        assert!("c.img,serial=".parse::<DiskRequest>().is_err());
        let plain: DiskRequest = "json:{},x".parse().expect("a disk");
        assert_eq!((plain.path.as_path(), plain.mode), (Path::new("json:{},x"), Mode::Copy));
        assert!(",use".parse::<DiskRequest>().is_err());
        assert!("a.img,format=floppy".parse::<DiskRequest>().is_err());
    }
}
