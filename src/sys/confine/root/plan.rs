//! The plan of a root directory: what is made in it, in which order. Pure, but for looks at what
//! there is on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, OsString};
use std::fs::FileType;
use std::ops::BitOr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

/// No programs with privileges, no devices, no programs at all.
pub(in super::super) const NOTHING_SPECIAL: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);
/// The directory that nobody may enter, and the directory of all layers in it.
pub(in super::super) const CLOSED: &CStr = c".cowhand-closed";
pub(in super::super) const ALL: &CStr = c".cowhand-closed/layers";
/// A link to the directory in which QEMU looks for layers. It may have been started by another path
/// of the store than the one we know.
pub(in super::super) const POOL: &CStr = c".cowhand-layers";
/// How many links may lead from a path to its file, as for the kernel (`path_resolution(7)`).
const MOST_LINKS: usize = 40;

/// What may be done with what is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Use {
    /// It may be written to.
    pub write: bool,
    /// It may be executed.
    pub run: bool,
}

impl Use {
    pub(in super::super) const READ: Self = Self { write: false, run: false };
    pub(in super::super) const RUN: Self = Self { write: false, run: true };
    pub(in super::super) const WRITE: Self = Self { write: true, run: false };

    fn holds(self, other: Self) -> bool {
        self | other == self
    }
}

impl BitOr for Use {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { write: self.write || other.write, run: self.run || other.run }
    }
}

/// One step of making it; paths are relative to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Directory(CString),
    /// An empty file, over which another is mounted.
    File(CString),
    /// An empty file system in memory, over a directory.
    Memory(CString),
    /// A directory that nobody may enter any more.
    Close(CString),
    Link {
        at: CString,
        to: CString,
    },
    /// Something of the host, which is a directory or not.
    Show {
        from: CString,
        at: CString,
        is_dir: bool,
        attributes: MountAttrFlags,
    },
}

/// What is to be at a place.
#[derive(Clone, Copy)]
enum Content {
    /// What is there on the host.
    Shown(Use),
    /// An empty file system in memory.
    Memory,
}

/// The steps by which a root directory comes to show `paths`. What does not exist is left out.
pub(super) fn plan(
    paths: impl Iterator<Item = (PathBuf, Use)>,
    pool: Option<&Path>,
) -> Result<Vec<Step>, Errno> {
    let (mut way, mut shown) = (Way::default(), BTreeMap::<PathBuf, Use>::new());
    for (path, how) in paths {
        let Some(place) = way.follow(&path) else { continue };
        let known = shown.entry(place).or_default();
        *known = *known | how;
    }
    // The host's own root directory would show everything.
    shown.remove(Path::new("/"));
    let mut all: BTreeMap<PathBuf, Content> =
        shown.into_iter().map(|(place, how)| (place, Content::Shown(how))).collect();
    let (mut steps, mut made) = (Vec::new(), BTreeSet::from([PathBuf::from("/")]));
    if let Some(pool) = pool.and_then(|pool| way.follow(pool)) {
        steps.extend(of_pool(&pool)?);
        // The store may lie below a directory that is shown, `/usr/local` for example.
        if let Some(store) = pool.parent()
            && store.ancestors().any(|above| all.contains_key(above))
        {
            all.insert(store.to_owned(), Content::Memory);
        }
        all.insert(pool, Content::Memory);
    }
    let above = |path: &Path| {
        let nearest = path.ancestors().skip(1).find_map(|above| all.get(above));
        nearest.and_then(|content| match content {
            Content::Shown(how) => Some(*how),
            Content::Memory => None,
        })
    };
    for (place, content) in &all {
        let (at, shown_above) = (inside(place)?, above(place));
        let how = match content {
            Content::Shown(how) if shown_above.is_some_and(|above| above.holds(*how)) => continue,
            Content::Shown(how) => Some(*how),
            Content::Memory => None,
        };
        let Ok(about) = place.metadata() else { continue };
        // What is mounted above it may have brought it along.
        if shown_above.is_none() {
            directories_above(place, &mut made, &mut steps)?;
            let at = at.clone();
            steps.push(if about.is_dir() { Step::Directory(at) } else { Step::File(at) });
        }
        match how {
            Some(how) => {
                let all = shown_above.map_or(how, |above| above | how);
                let attributes = attributes(about.file_type(), all);
                let (from, is_dir) = (c_string(place)?, about.is_dir());
                steps.push(Step::Show { from, at, is_dir, attributes });
            }
            None => {
                made.insert(place.clone());
                steps.push(Step::Memory(at));
            }
        }
    }
    for inside_of_crossed in way.crossed.iter().map(|crossed| crossed.join("..")) {
        if above(&inside_of_crossed).is_none() {
            directories_above(&inside_of_crossed, &mut made, &mut steps)?;
        }
    }
    for (at, to) in way.links.iter().filter(|(at, _)| above(at).is_none()) {
        directories_above(at, &mut made, &mut steps)?;
        steps.push(Step::Link { at: inside(at)?, to: c_string(to)? });
    }
    Ok(steps)
}

/// The steps that put the directory of all layers, at `place`, where nobody may enter, and that say
/// where it is.
fn of_pool(place: &Path) -> Result<[Step; 5], Errno> {
    let attributes = NOTHING_SPECIAL | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let from = c_string(place)?;
    Ok([
        Step::Directory(CLOSED.to_owned()),
        Step::Directory(ALL.to_owned()),
        Step::Show { from: from.clone(), at: ALL.to_owned(), is_dir: true, attributes },
        Step::Close(CLOSED.to_owned()),
        Step::Link { at: POOL.to_owned(), to: from },
    ])
}

/// How something is mounted that is used so.
fn attributes(kind: FileType, how: Use) -> MountAttrFlags {
    let is_device = kind.is_char_device() || kind.is_block_device();
    let mut attributes = NOTHING_SPECIAL;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NODEV, !is_device);
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !how.run);
    // What is written to a device is written to no file system; its permissions are in one.
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, !how.write || is_device);
    attributes
}

/// The directories on the way to `place` that are not there yet.
fn directories_above(
    place: &Path,
    made: &mut BTreeSet<PathBuf>,
    steps: &mut Vec<Step>,
) -> Result<(), Errno> {
    let mut missing: Vec<&Path> =
        place.ancestors().skip(1).take_while(|above| !made.contains(*above)).collect();
    while let Some(directory) = missing.pop() {
        steps.push(Step::Directory(inside(directory)?));
        made.insert(directory.to_owned());
    }
    Ok(())
}

/// What lies on the way to what is shown.
#[derive(Default)]
struct Way {
    /// Links, and what they lead to.
    links: BTreeMap<PathBuf, PathBuf>,
    /// Directories that are left again by `..`.
    crossed: BTreeSet<PathBuf>,
}

impl Way {
    /// Where `path` leads to, without links; `None` where it leads nowhere.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let mut rest = names(&std::path::absolute(path).ok()?);
        let (mut place, mut followed) = (PathBuf::from("/"), 0);
        while let Some(name) = rest.pop() {
            if name == ".." {
                self.crossed.insert(place.clone());
                place.pop();
                continue;
            }
            let next = place.join(name);
            if !next.symlink_metadata().ok()?.is_symlink() {
                place = next;
                continue;
            }
            followed += 1;
            if followed > MOST_LINKS {
                return None;
            }
            let target = next.read_link().ok()?;
            if target.is_absolute() {
                place = PathBuf::from("/");
            }
            rest.extend(names(&target));
            self.links.insert(next, target);
        }
        Some(place)
    }
}

/// The names in a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

/// `place`, relative to the root directory.
fn inside(place: &Path) -> Result<CString, Errno> {
    c_string(place.strip_prefix("/").unwrap_or(place))
}

pub(in super::super) fn c_string(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests;
