//! Opening files that other users may have put in place, and how many files this process may open.

use std::ffi::OsString;
use std::fs::{File, FileType, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::cage::Held;
use crate::error::IoContext;

/// As many links as the kernel follows in one path.
const LINKS: usize = 40;

/// Can `count` more files be open at once? The kernel's reason when they cannot.
pub(crate) fn can_open(count: usize) -> io::Result<()> {
    (0..count).map(|_| File::open("/dev/null")).collect::<io::Result<Vec<_>>>().map(drop)
}

/// Raises the soft limit of open files (`RLIMIT_NOFILE`) to the hard one, for this process and the
/// programs it starts. A limit that cannot be raised stays as it is.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// How many files a process may have open (`RLIMIT_NOFILE`, soft limit); `None`: any number.
pub(crate) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Why a path is not followed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The kernel's reason.
    Io(io::Error),
    /// A symbolic link on the way belongs to another user, who can lead it anywhere.
    Link {
        /// The link.
        link: PathBuf,
        /// Its owner's number.
        owner: u32,
    },
    /// The file has several names (hard links) and lies where other users may put names.
    Linked,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// A file that was opened once, and what its path was then. It stays the same file whatever becomes
/// of the path.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// The file, open for reading; what is neither a file nor a directory can only be looked at
    /// (`O_PATH`).
    pub file: File,
    /// Its path without links.
    pub path: PathBuf,
}

impl Pinned {
    /// Opens what is at the end of `path`. Links are followed only when they are ours or root's,
    /// and a file with several names is taken only from a directory in which nobody else can make
    /// names.
    ///
    /// The path is walked component by component on descriptors, so that nothing can be exchanged
    /// between a look and the use.
    pub(crate) fn open(path: &Path) -> Result<Self, Refusal> {
        let path = std::path::absolute(path)?;
        let anchor = |path: &Path| {
            rustix::fs::open(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let mut rest = components(&path);
        let mut at = anchor(Path::new("/"))?;
        let mut directory = at.try_clone()?;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == "/" {
                at = anchor(Path::new("/"))?;
                continue;
            }
            let open = |flags| {
                let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&at, name.as_os_str(), flags, Mode::empty())
            };
            // Asking for a directory mounts what is mounted on demand (autofs).
            let next = open(OFlags::DIRECTORY).or_else(|_| open(OFlags::empty()))?;
            let about = File::from(next.try_clone()?).metadata()?;
            if !about.is_symlink() {
                directory = std::mem::replace(&mut at, next);
                continue;
            }
            if !is_trusted(about.uid()) {
                return Err(Refusal::Link { link: shown(&at)?.join(name), owner: about.uid() });
            }
            // Another user can have given one of ours this name, where the kernel lets them
            // (`fs.protected_hardlinks`).
            if about.nlink() > 1 && is_open_to_others(&File::from(at.try_clone()?).metadata()?) {
                return Err(Refusal::Linked);
            }
            links += 1;
            if links > LINKS {
                return Err(Refusal::Io(rustix::io::Errno::LOOP.into()));
            }
            let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
            rest.extend(components(Path::new(&OsString::from_vec(target.into_bytes()))));
        }
        let about = File::from(at.try_clone()?).metadata()?;
        if about.is_file()
            && about.nlink() > 1
            && is_open_to_others(&File::from(directory).metadata()?)
        {
            return Err(Refusal::Linked);
        }
        let path = shown(&at)?;
        // Opening a device does something to it, and a socket cannot be opened: the caller sees
        // what it is without that.
        if !about.is_file() && !about.is_dir() {
            return Ok(Self { file: File::from(at), path });
        }
        // Through the descriptor: it is the file that was looked at.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(format!("/proc/self/fd/{}", at.as_raw_fd()))?;
        Ok(Self { file, path })
    }

    /// The file for a program in a cage.
    pub(crate) fn held(&self) -> crate::error::Result<Held> {
        Held::of(&self.file, &self.path).on("keep open", &self.path)
    }

    /// A path that leads to this very file for as long as this lives, for programs that we start.
    pub(crate) fn proc_path(&self) -> PathBuf {
        proc_path(&self.file)
    }
}

/// Opens a directory, to lock or flush it. What is none keeps nobody waiting.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Renames a file; what is at `to` already stays, and is an error (`AlreadyExists`).
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // This file system cannot do it in one.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_ok() => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(from, to),
        other => Ok(other?),
    }
}

/// A path that leads to an open file, in this process and in those it starts.
pub(crate) fn proc_path(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// Opens a file to append to it, and makes it if it is not there. It is readable by its owner
/// alone, also when it was there; a link is not followed, and a FIFO does not keep us waiting.
pub(crate) fn append_private(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file =
        OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(flags).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    if about.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// The components of a path, the last one first; `/` for an absolute one.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::CurDir | Component::Prefix(_) => None,
        other => Some(other.as_os_str().to_owned()),
    });
    let mut names: Vec<OsString> = names.collect();
    // A slash at the end asks for a directory.
    if path.as_os_str().as_bytes().ends_with(b"/") && names.last().is_some_and(|name| name != "/") {
        names.push(".".into());
    }
    names.reverse();
    names
}

fn shown(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Ours, or root's.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// What a file is, in words, that is no ordinary file, directory or link: opening one can wait for
/// ever, or do something.
pub(crate) fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        _ if kind.is_fifo() => Some("a FIFO"),
        _ if kind.is_socket() => Some("a socket"),
        _ if kind.is_block_device() => Some("a block device"),
        _ if kind.is_char_device() => Some("a character device"),
        _ => None,
    }
}

/// The same of what lies at `path`, or of what a link there leads to. Nothing is opened.
pub(crate) fn special_at(path: &Path) -> Option<&'static str> {
    let kinds = [path.symlink_metadata(), path.metadata()].into_iter().flatten();
    kinds.map(|about| about.file_type()).find_map(special)
}

/// Can other users make names in this directory?
fn is_open_to_others(directory: &std::fs::Metadata) -> bool {
    !is_trusted(directory.uid()) || directory.mode() & 0o022 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_links_are_followed_and_the_path_is_the_files() {
        let directory = tempfile::tempdir().expect("directory");
        let root = directory.path().canonicalize().expect("path");
        std::fs::create_dir_all(root.join("a/b")).expect("directories");
        std::fs::write(root.join("a/b/file"), "x").expect("file");
        std::os::unix::fs::symlink("a/b", root.join("relative")).expect("link");
        std::os::unix::fs::symlink(root.join("a/../relative/file"), root.join("absolute"))
            .expect("link");
        for name in ["a/b/file", "relative/file", "absolute", "a/b/../../relative/./file"] {
            let pinned = Pinned::open(&root.join(name)).expect(name);
            assert_eq!(pinned.path, root.join("a/b/file"), "{name}");
            assert_eq!(std::fs::read(pinned.proc_path()).expect("readable"), b"x");
        }
        std::os::unix::fs::symlink("loop", root.join("loop")).expect("link");
        assert!(matches!(Pinned::open(&root.join("loop")), Err(Refusal::Io(_))));
        let none = Pinned::open(&root.join("none"));
        assert!(matches!(none, Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound));
        assert!(matches!(Pinned::open(&root.join("absolute/")), Err(Refusal::Io(_))));
    }

    #[test]
    fn a_file_with_two_names_is_refused_where_others_can_make_names() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("file");
        std::fs::write(&file, "x").expect("file");
        std::fs::hard_link(&file, directory.path().join("other")).expect("link");
        assert!(Pinned::open(&file).is_ok());
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777))
            .expect("mode");
        assert!(matches!(Pinned::open(&file), Err(Refusal::Linked)));
    }

    #[test]
    fn a_link_with_two_names_is_refused_where_others_can_make_names() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "x").expect("file");
        std::os::unix::fs::symlink("file", at("link")).expect("link");
        std::fs::hard_link(at("link"), at("other")).expect("link");
        assert!(Pinned::open(&at("other")).is_ok());
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777))
            .expect("mode");
        assert!(matches!(Pinned::open(&at("other")), Err(Refusal::Linked)));
        assert!(Pinned::open(&at("file")).is_ok());
    }

    #[test]
    fn what_is_no_ordinary_file_is_told_and_so_is_what_a_link_leads_to() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        std::fs::write(at("file"), "x").expect("file");
        for (link, target) in [("to-pipe", "pipe"), ("to-file", "file"), ("nowhere", "none")] {
            std::os::unix::fs::symlink(target, at(link)).expect("link");
        }
        for (name, what) in [
            ("pipe", Some("a FIFO")),
            ("to-pipe", Some("a FIFO")),
            ("file", None),
            ("to-file", None),
        ] {
            assert_eq!(special_at(&at(name)), what, "{name}");
        }
        assert_eq!(
            (special_at(&at("nowhere")), special_at(&at("none")), special_at(directory.path())),
            (None, None, None)
        );
        assert_eq!(special_at(Path::new("/dev/null")), Some("a character device"));
    }

    #[test]
    fn a_pipe_does_not_keep_us_waiting() {
        let directory = tempfile::tempdir().expect("directory");
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        assert!(
            Pinned::open(&pipe).is_ok_and(|pinned| !pinned
                .file
                .metadata()
                .expect("metadata")
                .is_file())
        );
    }

    #[test]
    fn a_private_file_is_no_link_and_no_pipe_and_ours_alone() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("open"), "before").expect("file");
        std::fs::set_permissions(at("open"), Permissions::from_mode(0o666)).expect("mode");
        for name in ["open", "new"] {
            let file = append_private(&at(name)).expect(name);
            assert_eq!(file.metadata().expect("metadata").mode() & 0o777, 0o600, "{name}");
        }
        assert_eq!(std::fs::read(at("open")).expect("file"), b"before");
        std::os::unix::fs::symlink("elsewhere", at("link")).expect("link");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(at("pipe"));
        for name in ["link", "pipe", "."] {
            assert!(append_private(&at(name)).is_err(), "{name}");
        }
        assert!(!at("elsewhere").exists());
    }
}
