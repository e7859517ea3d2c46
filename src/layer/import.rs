//! Looking at a file the user wants as a disk, before anything is touched.
//!
//! The format is taken from the file's first bytes only here, when a person names the file; from then on it is recorded and
//! told to QEMU, because a guest could write a header of its own choice into a raw disk.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{census, qcow2};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::Format;
use crate::sys::{command, image_lock};

/// A file that can become a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its absolute path, links resolved.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// The size the guest will see, in bytes.
    pub virtual_bytes: u64,
}

/// Examines `path`; `format` is what the user says it is.
pub fn examine(context: &Context, path: &Path, format: Option<Format>) -> Result<Candidate> {
    let shown = path.display();
    let resolved = match path.canonicalize() {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::not_found(format!("there is no disk file {shown}")));
        }
        Err(error) => return Err(error).on("find the disk file", path),
    };
    let about = resolved.metadata().on("read", &resolved)?;
    if about.is_dir() {
        return Err(Error::refused(format!("{shown} is a directory, not a disk file")));
    }
    if !about.is_file() {
        return Err(Error::refused(format!("{shown} is not an ordinary file"))
            .hint("copy the device into a file first: qemu-img convert -O qcow2 DEVICE FILE"));
    }
    if image_lock::is_written_to(&resolved).on("look at the locks of", &resolved)? {
        return Err(
            Error::refused(format!("{shown} is in use: a running QEMU writes to it")).hint("stop that VM first")
        );
    }
    let start = census::read_start(&resolved)?;
    let seen = qcow2::sniff(&start);
    let format = match format {
        Some(format) if format != seen => {
            return Err(Error::refused(format!("{shown} is {seen} by its header, not {format}"))
                .hint(format!("say --disk {shown},format={seen}, or leave the format out")));
        }
        _ => seen,
    };
    let virtual_bytes = match format {
        Format::Raw => about.len(),
        Format::Qcow2 => qcow2_size(&start, &resolved)?,
        _ => size_from_qemu_img(context, &resolved, format)?,
    };
    if virtual_bytes == 0 {
        return Err(
            Error::refused(format!("{shown} is an empty disk of 0 bytes")).hint("for a blank disk, say --size 20G")
        );
    }
    if !virtual_bytes.is_multiple_of(512) {
        return Err(Error::refused(format!(
            "{shown} has {virtual_bytes} bytes, which is not a whole number of 512-byte sectors"
        ))
        .hint(format!("fill it up first: truncate -s %512 {shown}")));
    }
    Ok(Candidate { path: resolved, format, virtual_bytes })
}

fn qcow2_size(start: &[u8], path: &Path) -> Result<u64> {
    let shown = path.display();
    let header = qcow2::parse(start)
        .map_err(|error| Error::refused(format!("{shown} cannot be used")).because(error))?
        .ok_or_else(|| Error::refused(format!("{shown} has no qcow2 header")))?;
    if let Some(backing) = header.backing_file {
        return Err(Error::refused(format!("{shown} is an overlay: it stands on {backing}"))
            .hint(format!("make it one file first: qemu-img convert -O qcow2 {shown} whole.qcow2")));
    }
    if header.data_file {
        return Err(Error::refused(format!("{shown} keeps its data in another file"))
            .hint(format!("make it one file first: qemu-img convert -O qcow2 {shown} whole.qcow2")));
    }
    if header.encrypted {
        return Err(Error::refused(format!("{shown} is encrypted, which is not supported")));
    }
    Ok(header.virtual_bytes)
}

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "virtual-size")]
    virtual_size: u64,
    #[serde(rename = "backing-filename", default)]
    backing: Option<String>,
}

/// For formats whose header we do not read ourselves (`qemu-img info`, with the format named).
fn size_from_qemu_img(context: &Context, path: &Path, format: Format) -> Result<u64> {
    let program = command::find(Path::new("qemu-img"), &context.settings.search_path)
        .ok_or_else(|| Error::failed("qemu-img is not in PATH").hint("install it: apt-get install qemu-utils"))?;
    let args = ["info".as_ref(), "--output=json".as_ref(), "-f".as_ref(), format.as_str().as_ref(), path.as_os_str()];
    let text = command::output(&program, args)?;
    let info: Info =
        serde_json::from_slice(&text).map_err(|error| Error::qemu("cannot read what qemu-img says").because(error))?;
    match info.backing {
        Some(backing) => {
            Err(Error::refused(format!("{} stands on {backing}, which is outside the store", path.display()))
                .hint(format!("make it one file first: qemu-img convert -O qcow2 {} whole.qcow2", path.display())))
        }
        None => Ok(info.virtual_size),
    }
}
