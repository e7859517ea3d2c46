//! What a file is and which other files it names, told from its own bytes alone.
//!
//! Image formats can name other files: a backing file, an external data file, extents, a parent.
//! Whoever opens such an image opens those files, too, with the rights of the one who opens it. A
//! file from a stranger is therefore inspected here before any program of QEMU's sees it. The
//! inspector is pure, reads at most [`BUDGET`] bytes, and is on the safe side: where it cannot
//! tell, the file names something.
//!
//! | format | what can name a file |
//! |---|---|
//! | qcow2 | backing file, external data file |
//! | vmdk | every extent of a descriptor, the parent of a delta disk |
//! | vhdx, vpc (VHD), vdi | the parent of a differencing disk |
//! | raw | nothing |
//!
//! The documents:
//!
//! - qcow2: QEMU `docs/interop/qcow2.txt`
//! - vmdk: QEMU `block/vmdk.c`, "VMware Virtual Disks 5.0"
//! - vhdx: MS-VHDX
//! - vpc: "Virtual Hard Disk Image Format Specification"
//! - vdi: QEMU `block/vdi.c`

mod other;
mod qcow2;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use vmdk::{Extent, ExtentKind};

use super::qcow2::{be32, be64};
use crate::model::Format;

/// The most bytes that are read of a file, whatever it says.
pub const BUDGET: u64 = 4 << 20;
/// The longest name of another file that is repeated, in bytes.
const NAME: usize = 4096;

/// Bytes that can be read at any offset.
pub trait Source {
    /// How many bytes there are.
    fn length(&self) -> u64;
    /// Reads up to `buffer.len()` bytes from `at` on; fewer only at the end.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Source for &[u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

impl Source for File {
    fn length(&self) -> u64 {
        self.metadata().map_or(0, |about| about.len())
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], at.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// A source of which only [`BUDGET`] bytes can be read.
struct Reader<'a> {
    source: &'a dyn Source,
    left: Cell<u64>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a dyn Source) -> Self {
        Self { source, left: Cell::new(BUDGET) }
    }

    fn length(&self) -> u64 {
        self.source.length()
    }

    /// Up to `length` bytes from `at` on: fewer at the end of the file.
    fn read(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let wanted =
            u64::try_from(length).unwrap_or(u64::MAX).min(self.length().saturating_sub(at));
        let left = self.left.get().checked_sub(wanted);
        self.left.set(left.ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, "its headers are too large")
        })?);
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        let read = self.source.read_at(at, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }
}

/// What the bytes of a file look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing that is known: the bytes of a disk.
    Raw,
    /// An image in a format that cowhand works with; never `Raw`.
    Image(Format),
    /// A file that is no disk image for cowhand.
    Other(Other),
}

/// Files that are taken for disk images and are none, or are in a format that is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// An image format of QEMU's or others that is not supported, by its name.
    Format(&'static str),
    /// A compressed file, with the command that decompresses it.
    Compressed(&'static str, &'static str),
    /// An archive, with the command that unpacks it.
    Archive(&'static str, &'static str),
    /// A web page, which a server sends in the place of an image.
    Html,
    /// XML, such as the definition of a libvirt domain.
    Xml,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Image(format) => format.fmt(f),
            Self::Other(Other::Html) => f.write_str("a web page (HTML)"),
            Self::Other(Other::Xml) => f.write_str("XML text"),
            Self::Other(Other::Format(name)) => f.write_str(name),
            Self::Other(Other::Compressed(name, _) | Other::Archive(name, _)) => {
                write!(f, "{name} data")
            }
        }
    }
}

/// How an image names another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A backing file: what the image does not hold is read from there.
    Backing,
    /// A file that holds all data of the guest.
    DataFile,
    /// A part of the disk.
    Extent,
    /// The parent of a delta or differencing disk.
    Parent,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backing => "backing file",
            Self::DataFile => "external data file",
            Self::Extent => "extent",
            Self::Parent => "parent",
        })
    }
}

/// Another file that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// What the other file is to the image.
    pub role: Role,
    /// Its name as the image spells it; `None`: the image has one, and the name cannot be read.
    pub name: Option<String>,
}

impl Reference {
    fn new(role: Role, name: &[u8]) -> Self {
        let name = &name[..name.len().min(NAME)];
        Self {
            role,
            name: Some(String::from_utf8_lossy(name).into_owned()).filter(|name| !name.is_empty()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} {name:?}", self.role),
            None => write!(f, "{} whose name cannot be read", self.role),
        }
    }
}

/// What an image says of itself when it is opened in one format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// The variant of the format, in the format's own words: `monolithicFlat`, `differencing`.
    pub variant: Option<String>,
    /// The size the guest sees, in bytes; 0: not known.
    pub virtual_bytes: u64,
    /// The other files that whoever opens the image opens, too.
    pub names: Vec<Reference>,
    /// The format of the backing file, where the image spells it out.
    pub backing_format: Option<String>,
    /// How many internal snapshots there are.
    pub snapshots: u32,
    /// The image is encrypted.
    pub encrypted: bool,
    /// The extents of a vmdk descriptor, in the order of the disk.
    pub extents: Vec<Extent>,
    /// Why the image cannot be used, although it names nothing.
    pub unusable: Option<String>,
}

impl Inspection {
    fn unusable(why: impl Into<String>) -> Self {
        Self { unusable: Some(why.into()), ..Self::default() }
    }
}

/// What a file looks like.
pub fn content(source: &dyn Source) -> io::Result<Content> {
    let reader = Reader::new(source);
    let start = reader.read(0, 64 << 10)?;
    Ok(match &start[..] {
        // Version 1 has another driver and another layout.
        [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 1, ..] => {
            Content::Other(Other::Format("qcow (version 1)"))
        }
        [b'Q', b'F', b'I', 0xfb, ..] => Content::Image(Format::Qcow2),
        [b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..] => Content::Image(Format::Vmdk),
        bytes if vmdk::is_descriptor(bytes) => Content::Image(Format::Vmdk),
        bytes if bytes.starts_with(b"vhdxfile") => Content::Image(Format::Vhdx),
        bytes if bytes.starts_with(b"conectix") => Content::Image(Format::Vpc),
        bytes if bytes.get(64..68) == Some(&vdi::MAGIC) => Content::Image(Format::Vdi),
        bytes => match other::recognise(bytes) {
            Some(other) => Content::Other(other),
            // The header of a fixed VHD is its last sector.
            None if vpc::has_footer(&reader)? => Content::Image(Format::Vpc),
            None => Content::Raw,
        },
    })
}

/// What a file says when it is opened as `format`, whatever it looks like.
pub fn inspect(source: &dyn Source, format: Format) -> io::Result<Inspection> {
    let reader = Reader::new(source);
    match format {
        Format::Raw => Ok(Inspection { virtual_bytes: reader.length(), ..Inspection::default() }),
        Format::Qcow2 => qcow2::inspect(&reader),
        Format::Vmdk => vmdk::inspect(&reader),
        Format::Vhdx => vhdx::inspect(&reader),
        Format::Vdi => vdi::inspect(&reader),
        Format::Vpc => vpc::inspect(&reader),
    }
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}

#[cfg(test)]
mod tests;
