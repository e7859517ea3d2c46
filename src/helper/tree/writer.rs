//! The end that writes: entries and data of a tree become files below one target. Nothing that
//! arrives is trusted.
//!
//! - Every directory below the target is opened from the target's own root in one call that follows
//!   no link and leaves no root (`openat2` with `RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH`), or
//!   component by component on kernels without that call.
//! - Entries arrive depth first, as [`read`](super::read) sends them. A directory is complete when
//!   an entry outside it arrives; it then gets its mode and time. So memory is bounded by the
//!   longest path, not by the number of entries.
//! - Files and links get a temporary name first and are renamed, so an existing file, link or
//!   device is replaced, never written to.

mod bounds;

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bounds::checked;
pub(crate) use bounds::{Budget, Refusal};
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, futimens, mkdirat, openat, openat2,
    renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::{Entry, What, from_letters};

/// The longest target of a symbolic link, in bytes.
const LONGEST_LINK: usize = 4095;

/// A place for a tree: a directory that is open, and a name in it. What happens to the path
/// afterwards changes nothing.
#[derive(Debug)]
pub(crate) struct Target {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Target {
    /// The place at `path`, whose parent directory has to exist. Links in the path of that
    /// directory are followed.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let parent =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(|error| {
            io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", parent.display()))
        })?;
        Ok(Self { parent, name, path: path.to_owned() })
    }

    /// The path it was opened with.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Takes a tree piece by piece. Files appear under their names when they are whole; if the writer
/// is dropped before [`Writer::finish`], only whole files stay.
#[derive(Debug)]
pub(crate) struct Writer {
    target: Target,
    root: Root,
    file: Option<Unfinished>,
    /// The directories that are not complete, outermost first, without the root. Their paths are
    /// prefixes of `path`.
    open: Vec<Open>,
    /// The path of the innermost of them, in bytes.
    path: Vec<u8>,
    /// That directory, once something was put into it.
    innermost: Option<OwnedFd>,
    budget: Budget,
    left: Budget,
    /// Bytes of data that were written.
    bytes: u64,
    /// The permission bits that are taken over.
    bits: u32,
}

/// The first entry of the tree.
#[derive(Debug)]
enum Root {
    Expected,
    File,
    Directory(OwnedFd, About),
}

/// What a directory gets when it is complete.
#[derive(Debug, Clone, Copy)]
struct About {
    mode: u32,
    modified_ns: i64,
}

#[derive(Debug)]
struct Open {
    /// The length of its path, in bytes.
    length: usize,
    about: About,
}

#[derive(Debug)]
struct Unfinished {
    about: About,
    /// Its announced length, and where its data ends so far, in bytes.
    length: u64,
    end: u64,
    directory: OwnedFd,
    name: OsString,
    temporary: OsString,
    file: File,
    done: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

impl Writer {
    /// One for a tree of this host: all permission bits are taken over, and nothing is counted.
    pub(crate) fn trusted(target: Target) -> Self {
        Self::new(target, Budget::UNLIMITED, 0o7777)
    }

    /// One for a tree that a guest sends. Set-uid, set-gid and sticky bits are dropped: who writes
    /// here owns, and may be root.
    pub(crate) fn untrusted(target: Target, budget: Budget) -> Self {
        Self::new(target, budget, 0o777)
    }

    fn new(target: Target, budget: Budget, bits: u32) -> Self {
        Self {
            target,
            root: Root::Expected,
            file: None,
            open: Vec::new(),
            path: Vec::new(),
            innermost: None,
            budget,
            left: budget,
            bytes: 0,
            bits,
        }
    }

    /// The path of the target.
    pub(crate) fn path(&self) -> &Path {
        self.target.path()
    }

    /// Takes an entry.
    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.finish_file()?;
        let path = checked(entry)?;
        self.count(entry)?;
        let named = |error: io::Error| match Refusal::of(&error) {
            Some(_) => error,
            None => io::Error::new(error.kind(), format!("{}: {error}", entry.path().display())),
        };
        match path.is_empty() {
            true => self.root(entry).map_err(named),
            false => self.below(entry, &path).map_err(named),
        }
    }

    /// Takes bytes of the file that came last. They follow each other, perhaps with holes between
    /// them.
    pub(crate) fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(unfinished) = &mut self.file else { return Err(Refusal::Data.into()) };
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= unfinished.length);
        let Some(end) = end.filter(|_| !bytes.is_empty() && offset >= unfinished.end) else {
            return Err(Refusal::Data.into());
        };
        unfinished.file.write_all_at(bytes, offset)?;
        unfinished.end = end;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The tree is whole. Returns the bytes of data that were written.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.finish_file()?;
        self.leave(0)?;
        if let Root::Directory(root, about) = &self.root {
            finish(root.as_fd(), *about, self.bits)?;
        }
        Ok(self.bytes)
    }

    fn count(&mut self, entry: &Entry) -> io::Result<()> {
        let Some(entries) = self.left.entries.checked_sub(1) else {
            return Err(Refusal::TooManyEntries(self.budget.entries).into());
        };
        let length = if let What::File { bytes } = entry.what { bytes } else { 0 };
        let Some(bytes) = self.left.bytes.checked_sub(length) else {
            return Err(Refusal::TooManyBytes(self.budget.bytes).into());
        };
        self.left = Budget { bytes, entries };
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> io::Result<()> {
        let Root::Expected = self.root else { return Err(Refusal::Order(entry.path()).into()) };
        let (parent, name) = (self.target.parent.as_fd(), self.target.name.clone());
        match &entry.what {
            What::Link { .. } => return Err(Refusal::Link.into()),
            What::Directory => {
                make_directory(parent, &name)?;
                self.root = Root::Directory(step(parent, &name)?, about(entry));
            }
            What::File { bytes } => {
                self.file = Some(Unfinished::new(
                    parent.try_clone_to_owned()?,
                    &name,
                    *bytes,
                    about(entry),
                )?);
                self.root = Root::File;
            }
        }
        Ok(())
    }

    fn below(&mut self, entry: &Entry, path: &[u8]) -> io::Result<()> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let name = OsStr::from_bytes(name);
        self.enter(parent, entry)?;
        let directory = self.innermost()?;
        match &entry.what {
            What::Directory => {
                make_directory(directory, name)?;
                // It has to be a directory, not a link to one.
                let made = step(directory, name)?;
                self.open.push(Open { length: path.len(), about: about(entry) });
                self.path = path.to_vec();
                self.innermost = Some(made);
            }
            What::File { bytes } => {
                self.file = Some(Unfinished::new(
                    directory.try_clone_to_owned()?,
                    name,
                    *bytes,
                    about(entry),
                )?);
            }
            What::Link { to } => {
                let to = from_letters(to)
                    .filter(|to| (1..=LONGEST_LINK).contains(&to.len()) && !to.contains(&0));
                let to = CString::new(to.ok_or_else(|| Refusal::Path(entry.path()))?)?;
                let temporary = temporary();
                symlinkat(&to, directory, &temporary)?;
                if let Err(error) = renameat(directory, &temporary, directory, name) {
                    let _ = unlinkat(directory, &temporary, AtFlags::empty());
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Makes `parent` the innermost open directory. It has to be open: whatever lies deeper is
    /// complete.
    fn enter(&mut self, parent: &[u8], entry: &Entry) -> io::Result<()> {
        let Root::Directory(..) = self.root else {
            return Err(Refusal::Order(entry.path()).into());
        };
        let is_open = parent.is_empty()
            || self.path.starts_with(parent)
                && self.open.iter().any(|open| open.length == parent.len());
        if !is_open {
            return Err(Refusal::Order(entry.path()).into());
        }
        self.leave(parent.len())
    }

    /// Completes the open directories whose paths are longer than `length`.
    fn leave(&mut self, length: usize) -> io::Result<()> {
        while let Some(open) = self.open.pop_if(|open| open.length > length) {
            self.path.truncate(open.length);
            let bits = self.bits;
            finish(self.innermost()?, open.about, bits)?;
            self.innermost = None;
        }
        self.path.truncate(length);
        Ok(())
    }

    /// The innermost open directory, found from the root without following a link.
    fn innermost(&mut self) -> io::Result<BorrowedFd<'_>> {
        let Root::Directory(root, _) = &self.root else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if self.path.is_empty() {
            return Ok(root.as_fd());
        }
        let directory = match self.innermost.take() {
            Some(directory) => directory,
            None => beneath(root.as_fd(), &self.path)?,
        };
        let directory: &OwnedFd = self.innermost.insert(directory);
        Ok(directory.as_fd())
    }

    fn finish_file(&mut self) -> io::Result<()> {
        let Some(mut unfinished) = self.file.take() else { return Ok(()) };
        let Unfinished { about, length, file, directory, temporary, name, .. } = &mut unfinished;
        file.set_len(*length)?;
        finish(file.as_fd(), *about, self.bits)?;
        renameat(&*directory, &*temporary, &*directory, &*name)?;
        unfinished.done = true;
        Ok(())
    }
}

impl Unfinished {
    fn new(directory: OwnedFd, name: &OsStr, length: u64, about: About) -> io::Result<Self> {
        let temporary = temporary();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
        let name = name.to_owned();
        Ok(Self {
            about,
            length,
            end: 0,
            directory,
            name,
            temporary,
            file: file.into(),
            done: false,
        })
    }
}

fn temporary() -> OsString {
    format!(".cowhand-{}", uuid::Uuid::new_v4().simple()).into()
}

fn about(entry: &Entry) -> About {
    About { mode: entry.mode, modified_ns: entry.modified_ns }
}

fn make_directory(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match mkdirat(directory, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Opens the directory `name`, which is no link.
fn step(directory: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, DIRECTORY, Mode::empty())?)
}

/// Opens the directory at `path` below `root`; no component of it is a link.
fn beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    match openat2(root, OsStr::from_bytes(path), DIRECTORY, Mode::empty(), resolve) {
        Ok(directory) => Ok(directory),
        // Linux before 5.6, or a filter that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => beneath_by_steps(root, path),
        Err(error) => Err(error.into()),
    }
}

/// The same, component by component.
fn beneath_by_steps(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let mut at = root.try_clone_to_owned()?;
    for name in path.split(|byte| *byte == b'/') {
        at = step(at.as_fd(), OsStr::from_bytes(name))?;
    }
    Ok(at)
}

fn finish(file: BorrowedFd<'_>, about: About, bits: u32) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(about.mode & bits))?;
    let time = Timespec {
        tv_sec: about.modified_ns.div_euclid(1_000_000_000),
        tv_nsec: about.modified_ns.rem_euclid(1_000_000_000),
    };
    Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

#[cfg(test)]
mod tests;
