//! Which process keeps a file open, seen from outside: for one that answers nobody.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The QEMU that has `path` open (`/proc/PID/fd`). Others may look at it for a moment; they are not
/// meant.
pub(crate) fn of(path: &Path) -> Option<i32> {
    let wanted = fs::metadata(path).ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| is_qemu(*pid) && has_open(*pid, &wanted))
}

/// Has this process `path` open? `None` where we may not see what it has open.
pub(crate) fn has(pid: i32, path: &Path) -> Option<bool> {
    fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    Some(fs::metadata(path).is_ok_and(|wanted| has_open(pid, &wanted)))
}

fn is_qemu(pid: i32) -> bool {
    // A program that was replaced by an upgrade is still itself.
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| {
        exe.file_name().is_some_and(|name| name.to_string_lossy().contains("qemu"))
    })
}

fn has_open(pid: i32, wanted: &fs::Metadata) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::metadata(file.path()).ok())
        .any(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
}
