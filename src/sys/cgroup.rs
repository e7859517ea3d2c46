//! Control groups (`cgroups(7)`, version 2): a group for one program, below the group that we are
//! in, so that all limits of ours hold for it, too, and it ends with us where that is wanted
//! (`systemd.kill(5)`). Only who may make directories there has them: root, and whom a part of the
//! tree was given to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, mkdir, open, rmdir, statfs};
use rustix::io::Errno;

/// Where systemd mounts the tree: alone, or beside those of version 1.
const TREES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC`.
const VERSION_2: u64 = 0x6367_7270;
/// How the names of our groups begin.
const OURS: &str = "cowhand-";
/// How often the removal of a group is tried whose last process is just about to be gone, a
/// millisecond apart.
const TRIES: u32 = 20;

/// A group that is there.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    directory: OwnedFd,
}

impl Group {
    /// Makes the group at `path`, which [`planned`] has told. One that was left there, without
    /// processes, makes room for it.
    pub fn make(path: &Path) -> Result<Self, Errno> {
        match mkdir(path, Mode::RWXU) {
            Err(Errno::EXIST) => {
                rmdir(path)?;
                mkdir(path, Mode::RWXU)?;
            }
            made => made?,
        }
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { path: path.to_owned(), directory: open(path, how, Mode::empty())? })
    }

    /// Removes it again.
    pub fn remove(self) {
        remove(&self.path);
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Where the group for the program that is called `name` would be; `None` where this host has no
/// tree of version 2.
pub(crate) fn planned(name: &str) -> Option<PathBuf> {
    Some(path_of("self")?.join(format!("{OURS}{name}")))
}

/// Removes a group of ours in which no process is left.
pub(crate) fn remove(path: &Path) {
    let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(OURS));
    if !is_ours || !is_version_2(path) {
        return;
    }
    for _ in 0..TRIES {
        match rmdir(path) {
            Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
}

/// Is the process `pid` in a group of ours?
pub(crate) fn has_one(pid: i32) -> bool {
    of(pid).is_some()
}

/// The directory of the group that the process `pid` is in, if that is one of ours.
pub(crate) fn of(pid: i32) -> Option<io::Result<OwnedFd>> {
    let path = path_of(&pid.to_string())?;
    let name = path.file_name()?.to_string_lossy();
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    name.starts_with(OURS)
        .then(|| rustix::fs::openat(CWD, &path, how, Mode::empty()).map_err(io::Error::from))
}

fn path_of(process: &str) -> Option<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let tree = TREES.iter().map(Path::new).find(|tree| is_version_2(tree))?;
    Some(tree.join(below_the_tree(&groups)?))
}

/// Where the group of version 2 is below the tree, by `/proc/PID/cgroup`. One above our own root of
/// the tree (`cgroup_namespaces(7)`) is out of reach.
fn below_the_tree(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.split('/').any(|part| part == "..")).then_some(path)
}

fn is_version_2(path: &Path) -> bool {
    statfs(path).is_ok_and(|about| u64::try_from(about.f_type) == Ok(VERSION_2))
}

#[cfg(test)]
mod tests {
    use super::super::skipped::skipped;
    use super::*;

    #[test]
    fn the_group_of_version_2_is_found_among_those_of_version_1() {
        let groups = "9:name=systemd:/\n4:memory:/a/b\n0::/user.slice/session-1.scope\n";
        assert_eq!(below_the_tree(groups), Some("user.slice/session-1.scope"));
        assert_eq!(below_the_tree("0::/\n"), Some(""));
        assert_eq!(below_the_tree("4:memory:/a\n"), None);
        assert_eq!(below_the_tree("0::/../other\n"), None);
    }

    #[test]
    fn only_groups_of_ours_are_removed() {
        let other = tempfile::tempdir().expect("a directory");
        let named = other.path().join("cowhand-x");
        std::fs::create_dir(&named).expect("a directory");
        remove(&named);
        assert!(named.is_dir(), "it is no group");
        let Some(path) = planned(&format!("test-{}", std::process::id())) else {
            return skipped("no control groups of version 2");
        };
        let Ok(group) = Group::make(&path) else {
            return skipped("no control group can be made");
        };
        // One that was left there makes room.
        drop(group);
        let group = Group::make(&path).expect("another group");
        group.remove();
        assert!(!path.exists());
    }
}
