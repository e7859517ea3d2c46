//! Copying an image file: shared blocks where the file system can (reflink), else only the data,
//! leaving holes as holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::ui::Counter;

/// How the bytes got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The two files share their blocks until one of them writes.
    Reflink,
    /// The data was copied, holes were kept.
    Copied,
}

/// Set it, and the copy stops at the next chunk with [`io::ErrorKind::Interrupted`].
pub(crate) type Stop = Arc<AtomicBool>;

const CHUNK: usize = 16 << 20;

/// Copies `source` to `to`, which must not exist and gets mode 0600, and flushes it to the disk.
pub(crate) fn copy(source: &File, to: &Path, counter: &Counter, stop: &Stop) -> io::Result<Method> {
    let target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    // FICLONE of ioctl_ficlonerange(2): btrfs, xfs and others.
    if ioctl_ficlone(&target, source).is_ok() {
        target.sync_all()?;
        return Ok(Method::Reflink);
    }
    let length = source.metadata()?.len();
    ftruncate(&target, length)?;
    let mut offset = 0;
    while let Some((start, end)) = next_data(source, offset, length)? {
        copy_range(source, &target, start, end, counter, stop)?;
        offset = end;
    }
    target.sync_all()?;
    Ok(Method::Copied)
}

/// The next stretch of data at or after `offset`; file systems that know no holes report the whole
/// rest.
pub(crate) fn next_data(file: &File, offset: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    if offset >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((offset, length))),
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, seek(file, SeekFrom::Hole(start))?.min(length))))
}

fn copy_range(
    source: &File,
    target: &File,
    start: u64,
    end: u64,
    counter: &Counter,
    stop: &Stop,
) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let chunk = usize::try_from(end - from).unwrap_or(CHUNK).min(CHUNK);
        let copied = match copy_file_range(source, Some(&mut from), target, Some(&mut to), chunk) {
            Ok(copied) => copied,
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                copy_by_hand(source, target, &mut from, &mut to, chunk)?
            }
            Err(error) => return Err(error.into()),
        };
        if copied == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was copied",
            ));
        }
        counter.add(copied as u64);
    }
    Ok(())
}

fn copy_by_hand(
    source: &File,
    target: &File,
    from: &mut u64,
    to: &mut u64,
    chunk: usize,
) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; chunk.min(1 << 20)];
    let read = source.read_at(&mut buffer, *from)?;
    target.write_all_at(&buffer[..read], *to)?;
    *from += read as u64;
    *to += read as u64;
    Ok(read)
}
