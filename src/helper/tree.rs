//! A file, or a directory with all that is in it, on its way from one machine to the other. Both
//! ends are here: the helper has one of them, the host the other, whichever way it goes.
//!
//! Holes stay holes; modes and times come along; owners do not (whoever writes owns). What arrives
//! is not trusted: it can name nothing outside the place it was sent to, neither by `..` nor
//! through a symbolic link, and it is counted ([`Budget`]).

mod writer;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

pub(crate) use writer::{Budget, Refusal, Target, Writer};

use super::frame::LARGEST;
use crate::sys::sparse::next_data;

/// Bytes of a file in one frame, behind their offset.
const CHUNK: usize = LARGEST - 8;
/// The length that files in /sys say they have.
const PAGE: u64 = 4096;
/// The most bytes of a file that says it has none, or a page.
const MADE_UP: u64 = 64 << 20;

/// One thing in a tree. Its path is relative to the tree's own place, and empty for the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// A byte per character, so that it can be any.
    path: String,
    /// What it is.
    pub what: What,
    /// Permission bits.
    mode: u32,
    /// Nanoseconds since 1970.
    modified_ns: i64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// Its data follows.
    File {
        /// Its length.
        bytes: u64,
    },
    /// What is in it follows.
    Directory,
    /// A symbolic link.
    Link {
        /// Where to, a byte per character.
        to: String,
    },
}

impl Entry {
    /// Where it is in the tree.
    pub(crate) fn path(&self) -> PathBuf {
        OsString::from_vec(
            from_letters(&self.path).unwrap_or_else(|| self.path.clone().into_bytes()),
        )
        .into()
    }
}

fn to_letters(text: &OsStr) -> String {
    text.as_bytes().iter().map(|byte| char::from(*byte)).collect()
}

/// The bytes that [`to_letters`] wrote as text; `None` for text that it does not write.
fn from_letters(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect()
}

/// A piece of a tree.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// Something new.
    Entry(&'a Entry),
    /// Bytes of the file that came last, and where they belong.
    Data(u64, &'a [u8]),
}

/// Hands every piece of the tree at `root` to `give`, depth first. If `root` is a symbolic link,
/// what it points to is read with `follow`, and the link itself without; below that, links are
/// links. What is neither file, directory nor link is left out and named.
pub(crate) fn read(
    root: &Path,
    follow: bool,
    give: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> io::Result<Vec<PathBuf>> {
    let mut left_out = Vec::new();
    let root = if follow { std::fs::canonicalize(root)? } else { root.to_owned() };
    read_one(&root, Path::new(""), give, &mut left_out)?;
    if left_out.contains(&root) {
        let message = format!("{} is no file, directory or link", root.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(left_out)
}

fn read_one(
    path: &Path,
    inside: &Path,
    give: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
    left_out: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let at =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let about = path.symlink_metadata().map_err(at)?;
    let what = match about.file_type() {
        kind if kind.is_file() => What::File { bytes: about.len() },
        kind if kind.is_dir() => What::Directory,
        kind if kind.is_symlink() => {
            What::Link { to: to_letters(std::fs::read_link(path).map_err(at)?.as_os_str()) }
        }
        _ => {
            left_out.push(path.to_owned());
            return Ok(());
        }
    };
    // What the kernel makes up says that it is empty (in /proc), or as long as a page (in /sys),
    // and is not.
    let (made_up, what) = match what {
        What::File { bytes: 0 | PAGE } => {
            let bytes = read_made_up(path).map_err(at)?;
            let what = What::File { bytes: bytes.len() as u64 };
            (bytes, what)
        }
        other => (Vec::new(), other),
    };
    let entry = Entry {
        path: to_letters(inside.as_os_str()),
        what,
        mode: about.mode() & 0o7777,
        modified_ns: about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec()),
    };
    match &entry.what {
        What::File { .. } if !made_up.is_empty() => {
            give(Piece::Entry(&entry))?;
            for (at, bytes) in made_up.chunks(CHUNK).enumerate() {
                give(Piece::Data((at * CHUNK) as u64, bytes))?;
            }
        }
        What::File { bytes } => {
            let file = File::open(path).map_err(at)?;
            give(Piece::Entry(&entry))?;
            read_data(&file, *bytes, give).map_err(at)?;
        }
        What::Link { .. } => give(Piece::Entry(&entry))?,
        What::Directory => {
            let mut names: Vec<OsString> = std::fs::read_dir(path)
                .map_err(at)?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<_>>()?;
            names.sort();
            give(Piece::Entry(&entry))?;
            for name in names {
                read_one(&path.join(&name), &inside.join(&name), give, left_out)?;
            }
        }
    }
    Ok(())
}

/// All of a file that may be longer or shorter than it says. One that would be waited for has
/// nothing now.
fn read_made_up(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    match file.take(MADE_UP + 1).read_to_end(&mut bytes) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ if bytes.len() as u64 > MADE_UP => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is longer than it says, and does not end",
        )),
        _ => Ok(bytes),
    }
}

fn read_data(
    file: &File,
    bytes: u64,
    give: &mut dyn FnMut(Piece<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while let Some((start, end)) = next_data(file, offset, bytes)? {
        let mut at = start;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            match file.read_at(&mut buffer[..length], at) {
                // It has become shorter while we read.
                Ok(0) => return Ok(()),
                Ok(read) => {
                    give(Piece::Data(at, &buffer[..read]))?;
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        offset = end;
    }
    Ok(())
}

/// Where a tree called `name` goes when it is sent to `target`: into a directory that is there, or
/// that the path says is meant; else it gets that name itself. `target` is what the user typed, so
/// it may be a link to a directory; the [`Writer`] follows none below it.
pub(crate) fn destination(target: &Path, name: &OsStr) -> PathBuf {
    let slash = target.as_os_str().as_bytes().ends_with(b"/");
    if slash || target.is_dir() { target.join(name) } else { target.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn copy(from: &Path, to: &Path) -> io::Result<u64> {
        let mut writer = Writer::trusted(Target::at(to)?);
        read(from, true, &mut |piece| match piece {
            Piece::Entry(entry) => writer.entry(entry),
            Piece::Data(offset, bytes) => writer.data(offset, bytes),
        })?;
        writer.finish()
    }

    #[test]
    fn a_tree_arrives_as_it_was() {
        let room = tempfile::tempdir().expect("a directory");
        let (from, to) = (room.path().join("from"), room.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).expect("directories");
        std::fs::write(from.join("a/x"), vec![5; 100_000]).expect("a file");
        std::fs::write(from.join(OsStr::from_bytes(b"odd\xff name\n")), "odd").expect("a file");
        symlink("../a", from.join("a/b/link")).expect("a link");
        let sparse = File::create(from.join("sparse")).expect("a file");
        sparse.set_len(1 << 30).expect("a hole");
        sparse.write_all_at(b"end", (1 << 30) - 3).expect("an end");
        std::fs::set_permissions(from.join("a/x"), PermissionsExt::from_mode(0o751))
            .expect("a mode");
        std::fs::set_permissions(from.join("a/b"), PermissionsExt::from_mode(0o555))
            .expect("a mode");
        let bytes = copy(&from, &to).expect("a copy");
        assert!(bytes < 1 << 20, "{bytes} bytes for a file that is nearly all hole");
        assert_eq!(std::fs::read(to.join("a/x")).expect("a file"), vec![5; 100_000]);
        assert_eq!(
            std::fs::read(to.join(OsStr::from_bytes(b"odd\xff name\n"))).expect("a file"),
            b"odd"
        );
        assert_eq!(std::fs::read_link(to.join("a/b/link")).expect("a link"), Path::new("../a"));
        let about = to.join("sparse").metadata().expect("a file");
        assert_eq!(about.len(), 1 << 30);
        assert!(about.blocks() < 100);
        assert_eq!(to.join("a/x").metadata().expect("a file").mode() & 0o7777, 0o751);
        assert_eq!(to.join("a/b").metadata().expect("a directory").mode() & 0o7777, 0o555);
        assert_eq!(
            to.join("a/x").metadata().expect("to").mtime_nsec(),
            from.join("a/x").metadata().expect("from").mtime_nsec()
        );
        copy(&from, &to).expect("a copy over the copy");
    }

    #[test]
    fn what_the_kernel_makes_up_arrives_whatever_length_it_says_it_has() {
        let room = tempfile::tempdir().expect("a directory");
        let to = room.path().join("version");
        let bytes = copy(Path::new("/proc/version"), &to).expect("a copy");
        assert_eq!(
            std::fs::read(&to).expect("a file"),
            std::fs::read("/proc/version").expect("a file")
        );
        assert_eq!(bytes, to.metadata().expect("a file").len());
        let page = Path::new("/sys/kernel/uevent_seqnum");
        assert_eq!(page.metadata().expect("a file").len(), PAGE);
        let bytes = copy(page, &to).expect("a copy");
        assert!(bytes > 0 && bytes < PAGE, "{bytes}");
        assert!(!std::fs::read(&to).expect("a file").contains(&0));
        std::fs::write(room.path().join("empty"), "").expect("a file");
        assert_eq!(copy(&room.path().join("empty"), &to).expect("a copy"), 0);
        let error = copy(Path::new("/dev/zero"), &to).expect_err("a device");
        assert!(error.to_string().contains("no file, directory or link"), "{error}");
    }
}
