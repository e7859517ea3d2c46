//! How much room there is, and how much memory a process has in use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate};

/// Bytes that are free for us on the file system of `path` (`statvfs(3)`).
pub(crate) fn free(path: &Path) -> io::Result<u64> {
    let about = rustix::fs::statvfs(path)?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// The same of an open file (`fstatvfs(3)`).
pub(crate) fn free_of(file: &File) -> io::Result<u64> {
    let about = rustix::fs::fstatvfs(file)?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Bytes in all on the file system of `path`, and how many more files it can hold (`None` where it
/// does not count them).
pub(crate) fn size(path: &Path) -> io::Result<(u64, Option<u64>)> {
    let about = rustix::fs::statvfs(path)?;
    Ok((
        about.f_blocks.saturating_mul(about.f_frsize),
        (about.f_files > 0).then_some(about.f_favail),
    ))
}

/// Makes the file `path` (0600) take so many bytes on disk (`fallocate(2)`).
pub(crate) fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    // Whatever lies in its place keeps nobody waiting.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    Ok(fallocate(file, FallocateFlags::empty(), 0, bytes)?)
}

/// Bytes of memory the host has (`/proc/meminfo`).
pub(crate) fn memory() -> Option<u64> {
    meminfo("MemTotal:")
}

/// Bytes of memory that can be had without swapping.
pub(crate) fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(what: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(what))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Bytes of memory the process `pid` has in use (`/proc/<pid>/statm`).
pub(crate) fn resident(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
