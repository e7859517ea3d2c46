//! Files that a person names and that a stranger may have written: opened with care, inspected, and
//! refused when they name other files, before any program of QEMU's sees them.
//!
//! ```text
//! path ─open─▶ a regular file ─first bytes and name─▶ format ([`rule`])
//!      ─headers─┬▶ names nothing: used
//!               └▶ names files: refused, or, where the user asks for them, each inspected
//!                  ([`chain`])
//! ```

pub(crate) mod chain;
pub(crate) mod rule;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::inspect::{self, ExtentKind, Inspection, Role};
use crate::error::{Error, IoContext, Result};
use crate::model::{FileId, Format, printable};
use crate::sys::cage::Held;
use crate::sys::fault;
use crate::sys::files::{self, Pinned, Refusal};
use rule::Ask;

/// A file whose headers have been read. It was opened once: whoever owns its directory may exchange
/// it, and what is read then is still this one.
#[derive(Debug, Clone)]
pub(crate) struct Foreign {
    /// Its absolute path, links resolved.
    pub path: PathBuf,
    /// The file itself, open, for QEMU's programs.
    pub held: Held,
    /// Which file it is.
    pub id: FileId,
    /// Its format.
    pub format: Format,
    /// What it says in that format.
    pub inspection: Inspection,
}

/// Opens a regular file for reading. A FIFO, a device or a directory is refused at once, and so is
/// what another user's link leads to.
pub(crate) fn open(path: &Path) -> Result<Pinned> {
    let pinned = Pinned::open(path).map_err(|refusal| refused(path, refusal))?;
    refuse_unless_regular(path, &pinned.file.metadata().on("read", path)?)?;
    Ok(pinned)
}

/// In words, why a file was not opened.
pub(crate) fn refused(path: &Path, refusal: Refusal) -> Error {
    let shown = path.display();
    match refusal {
        Refusal::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Error::not_found(format!("there is no disk file {shown}"))
        }
        Refusal::Io(error) => Error::failed(format!("cannot open {shown}")).because(error),
        Refusal::Link { link, owner } => Error::refused(format!(
            "{shown} is reached through the symbolic link {}, \
             which belongs to another user (uid {owner})",
            link.display()
        ))
        .hint("if it is the right one, name the file that it leads to"),
        Refusal::Linked => Error::refused(format!(
            "{shown} has other names (hard links), \
             and lies in a directory in which other users can make some"
        ))
        .hint(format!(
            "if it is the right one, name it in a directory of yours, or a copy: cp {} COPY",
            printable::shell(path)
        )),
    }
}

/// Refuses what is not a regular file, and says what it is.
pub(crate) fn refuse_unless_regular(path: &Path, about: &std::fs::Metadata) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let kind = about.file_type();
    let shown = path.display();
    if kind.is_file() {
        return Ok(());
    }
    if kind.is_dir() {
        return Err(Error::refused(format!("{shown} is a directory, not a disk file")));
    }
    let what = files::special(kind).unwrap_or("a symbolic link");
    let error = Error::refused(format!("{shown} is {what}, not an ordinary file"));
    Err(match kind.is_block_device() {
        true => error.hint(format!(
            "copy the device into a file first: dd if={shown} of=FILE.raw bs=1M conv=sparse"
        )),
        false => error,
    })
}

/// Opens and inspects `ask.path`. Whether it names other files is for the caller to judge.
pub(crate) fn look(ask: &Ask<'_>) -> Result<Foreign> {
    look_at(open(ask.path)?, ask)
}

/// The same of a file that is open already.
fn look_at(opened: Pinned, ask: &Ask<'_>) -> Result<Foreign> {
    let held = opened.held()?;
    let Pinned { path, file } = opened;
    let content = inspect::content(&file).on("read", &path)?;
    let format = rule::decide(ask, content)?;
    let inspection = inspect::inspect(&file, format).on("read the headers of", &path)?;
    let about = file.metadata().on("read", &path)?;
    let id = FileId { device: about.dev(), inode: about.ino() };
    fault::point("a file from outside, looked at").on("read", &path)?;
    Ok(Foreign { path, held, id, format, inspection })
}

/// Does the file name no other one, in this format?
pub(crate) fn is_alone(file: &File, path: &Path, format: Format) -> Result<bool> {
    let inspection = inspect::inspect(file, format).on("read the headers of", path)?;
    Ok(inspection.names.is_empty() && inspection.unusable.is_none())
}

impl Foreign {
    /// Refuses an image that names other files, with these files; and one that cannot be used.
    pub(crate) fn refuse_references(&self) -> Result<()> {
        self.refuse_unusable()?;
        let names = &self.inspection.names;
        if names.is_empty() {
            return Ok(());
        }
        let shown = self.path.display();
        let listed: Vec<String> = names.iter().take(5).map(ToString::to_string).collect();
        let more = names
            .len()
            .checked_sub(5)
            .filter(|more| *more > 0)
            .map(|more| format!(", and {more} more"));
        let what = match self.inspection.variant.as_deref() {
            Some(variant) if self.format != Format::Qcow2 => format!("{}, {variant}", self.format),
            _ => self.format.to_string(),
        };
        let error = Error::refused(format!(
            "{shown} ({what}) names other files, which are not opened: {}{}",
            listed.join(", "),
            more.unwrap_or_default()
        ));
        Err(match self.conversion() {
            Some(command) => error.hint(command),
            None => error.hint(
                "use an image that is one file; for an image of your own, `create` and `image \
                 convert` have \
                 --with-backing, which lists the files before it reads them",
            ),
        })
    }

    /// Refuses what no program can work with.
    pub(crate) fn refuse_unusable(&self) -> Result<()> {
        let shown = self.path.display();
        if let Some(why) = &self.inspection.unusable {
            return Err(Error::refused(format!(
                "{shown} cannot be used as {}: {why}",
                self.format
            )));
        }
        if self.inspection.encrypted {
            return Err(Error::refused(format!("{shown} is encrypted, which is not supported")));
        }
        Ok(())
    }

    /// The command that makes one file of an image in several parts that all lie beside it. The
    /// command opens no file outside that directory, and inspects each.
    fn conversion(&self) -> Option<String> {
        let extents = &self.inspection.extents;
        let beside =
            |name: &str| !name.contains('/') && !name.contains(':') && !name.starts_with('.');
        let all_beside = !extents.is_empty() && extents.iter().all(|extent| beside(&extent.name));
        let parts = self.inspection.names.iter().all(|name| name.role == Role::Extent);
        let supported = extents.iter().all(|extent| extent.kind != ExtentKind::Other);
        (self.format == Format::Vmdk && all_beside && parts && supported).then(|| {
            let name = self.path.with_extension("qcow2");
            format!(
                "make one file of the parts beside it, each of which is inspected: cowhand image \
                 convert --with-backing {} {}",
                printable::shell(&self.path),
                printable::shell(Path::new(name.file_name().unwrap_or_default()))
            )
        })
    }
}
