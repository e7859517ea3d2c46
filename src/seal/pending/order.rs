//! An order: the disks that are to be written, and what they looked like when it was given.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};
use crate::model::{Format, printable};
use crate::store::atomic;
use crate::sys::files::Pinned;

/// The version of an order that is written today.
pub(super) const SCHEMA: u32 = 1;
/// The name of an order in its directory.
pub(super) const ORDER: &str = "order.json";
/// The most bytes an order may have: some thousand disks.
const LONGEST: u64 = 1 << 20;

/// Disks, and what they looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) schema: u32,
    /// Some of it may be in the disks.
    pub(super) started: bool,
    /// The overlay of each is called after its place in this list.
    pub(super) disks: Vec<Stamped>,
}

/// A disk, and what it looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamped {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970, where the file system notes it: an inode is used again when its file
    /// is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born: Option<u128>,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamped {
    fn of(path: &Path, format: Format, about: &Metadata) -> Self {
        let born =
            about.created().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            path: path.to_owned(),
            format,
            device: about.dev(),
            inode: about.ino(),
            born: born.map(|since| since.as_nanos()),
            bytes: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
        }
    }

    /// Is it the same file? The number of a device may be another after a boot.
    fn is_same(&self, other: &Self) -> bool {
        let born = (self.born.is_some() && other.born.is_some()).then_some(self.born == other.born);
        let placed = self.device == other.device || (self.path == other.path && born == Some(true));
        self.inode == other.inode && placed && born != Some(false)
    }

    /// Is it what it was?
    fn is_unchanged(&self, now: &Self) -> bool {
        (self.bytes, self.modified) == (now.bytes, now.modified)
    }
}

/// A disk of this command's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GivenDisk<'a> {
    /// The file, open.
    pub file: &'a Pinned,
    /// Its format.
    pub format: Format,
}

impl GivenDisk<'_> {
    pub(super) fn stamp(&self) -> Result<Stamped> {
        let about = self.file.file.metadata().on("look at", &self.file.path)?;
        Ok(Stamped::of(&self.file.path, self.format, &about))
    }
}

/// Reads an order. `None`: there is none. An error: it is not to be understood.
pub(super) fn read(path: &Path) -> std::io::Result<Option<Order>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let about = file.metadata()?;
    if !about.is_file() || about.uid() != nix::unistd::geteuid().as_raw() || about.len() > LONGEST {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    parse(&text).map(Some)
}

fn parse(text: &[u8]) -> std::io::Result<Order> {
    let order: Order = serde_json::from_slice(text)?;
    if order.schema != SCHEMA || order.disks.is_empty() {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(order)
}

/// Words of a command that names these disks.
pub(super) fn names<'a>(paths: impl Iterator<Item = &'a Path>) -> String {
    paths.map(printable::shell).collect::<Vec<_>>().join(" ")
}

impl Order {
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::failed("cannot write an order").because(error))?;
        atomic::write(&directory.join(ORDER), &text)
    }

    /// Is it about one of these disks?
    pub(super) fn concerns(&self, disks: &[GivenDisk<'_>]) -> Result<bool> {
        let now: Vec<Stamped> = disks.iter().map(GivenDisk::stamp).collect::<Result<_>>()?;
        Ok(self
            .disks
            .iter()
            .any(|disk| now.iter().any(|now| disk.is_same(now) || disk.path == now.path)))
    }

    /// This command's disks in the order's order, if it concerns them: all of them have to be
    /// named, and to be what they were.
    pub(super) fn matched<'a>(
        &self,
        disks: &[GivenDisk<'a>],
        directory: &Path,
    ) -> Result<Option<Vec<GivenDisk<'a>>>> {
        let now: Vec<Stamped> = disks.iter().map(GivenDisk::stamp).collect::<Result<_>>()?;
        let forget = format!("to forget that one: rm -r {}", directory.display());
        let mut mine = Vec::new();
        let mut missing = Vec::new();
        for disk in &self.disks {
            let at = now.iter().position(|now| disk.is_same(now));
            let replaced = at.is_none() && now.iter().any(|now| now.path == disk.path);
            if replaced || at.is_some_and(|at| !self.started && !disk.is_unchanged(&now[at])) {
                return Err(Error::refused(format!(
                    "an earlier `seal` of {} was cut short, \
                     and it is not the disk any more that it was then",
                    disk.path.display()
                ))
                .hint(forget));
            }
            match at {
                Some(at) => mine.push(disks[at]),
                None => missing.push(disk.path.as_path()),
            }
        }
        match (mine.is_empty(), &missing[..]) {
            (true, _) => Ok(None),
            (false, []) => Ok(Some(mine)),
            (false, [first, ..]) => Err(Error::refused(format!(
                "an earlier `seal` of {} was cut short; it writes to {} as well, \
                 which is not named here",
                mine[0].file.path.display(),
                first.display()
            ))
            .hint(format!(
                "name all of its disks: cowhand seal {}",
                names(self.disks.iter().map(|disk| disk.path.as_path()))
            ))
            .hint(forget)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamped {
        Stamped {
            path: "/images/a".into(),
            format: Format::Raw,
            device: 1,
            inode: 2,
            born: Some(3),
            bytes: 4,
            modified: (5, 6),
        }
    }

    #[test]
    fn a_file_that_was_replaced_is_another_one() {
        let old = stamp();
        assert!(old.is_same(&Stamped { bytes: 9, path: "/elsewhere".into(), ..stamp() }));
        assert!(!old.is_same(&Stamped { inode: 9, ..stamp() }));
        // The inode was used again.
        assert!(!old.is_same(&Stamped { born: Some(9), ..stamp() }));
        // The host was booted.
        assert!(old.is_same(&Stamped { device: 9, ..stamp() }));
        assert!(!old.is_same(&Stamped { device: 9, path: "/elsewhere".into(), ..stamp() }));
        assert!(!old.is_same(&Stamped { device: 9, born: None, ..stamp() }));
        assert!(old.is_same(&Stamped { born: None, ..stamp() }));
    }

    #[test]
    fn orders_that_are_not_ours_are_not_understood() {
        let whole = Order { schema: SCHEMA, started: false, disks: vec![stamp()] };
        let text = serde_json::to_vec(&whole).expect("written");
        assert_eq!(parse(&text).expect("read"), whole);
        for bad in [Order { schema: 2, ..whole.clone() }, Order { disks: Vec::new(), ..whole }] {
            assert!(parse(&serde_json::to_vec(&bad).expect("written")).is_err());
        }
        assert!(parse(&text[..text.len() - 1]).is_err());
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("good"), &text).expect("written");
        std::os::unix::fs::symlink(at("good"), at("link")).expect("link");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        File::create(at("long")).and_then(|file| file.set_len(LONGEST + 1)).expect("long");
        assert!(read(&at("good")).is_ok_and(|order| order.is_some()));
        assert!(read(&at("none")).is_ok_and(|order| order.is_none()));
        for bad in ["link", "pipe", "long"] {
            assert!(read(&at(bad)).is_err(), "{bad}");
        }
    }
}
