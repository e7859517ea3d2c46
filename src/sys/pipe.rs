//! Pipes for streams to and from QEMU, and a gate: a pipe that is full, so that whoever writes to
//! it waits until it is opened.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// What an unprivileged process may ask for (`/proc/sys/fs/pipe-max-size`).
const WIDE: usize = 1 << 20;
/// The smallest pipe there is: one page.
const NARROW: usize = 4096;

/// A pipe: the end to read, the end to write.
pub(crate) fn wide() -> io::Result<(File, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Only faster: where the kernel does not allow it, the pipe stays as it is.
    let _ = fcntl_setpipe_size(&write, WIDE);
    Ok((read.into(), write))
}

/// A pipe in which nothing has room, and how many bytes have to be read before what the other side
/// writes.
pub(crate) fn full() -> io::Result<(File, OwnedFd, usize)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let size = fcntl_setpipe_size(&write, NARROW)?;
    let mut file = File::from(write);
    file.write_all(&vec![0; size])?;
    Ok((read.into(), file.into(), size))
}

/// Gives a pipe more room, for speed.
pub(crate) fn widen(read: &File) {
    let _ = fcntl_setpipe_size(read, WIDE);
}

/// Does a thread of the process `pid` whose name begins with one of `names` wait for room in a
/// pipe? `None`: there is no such thread, or the kernel does not say what it waits for.
pub(crate) fn is_waiting_for_room(pid: i32, names: &[&str]) -> Option<bool> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let read = |task: &std::path::Path, file: &str| {
        std::fs::read_to_string(task.join(file)).unwrap_or_default()
    };
    let task = tasks.flatten().map(|entry| entry.path()).find(|task| {
        let name = read(task, "comm");
        names.iter().any(|wanted| name.starts_with(wanted))
    })?;
    Some(read(&task, "wchan").contains("pipe"))
}
