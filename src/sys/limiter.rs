//! The limiter: a process that keeps the logs of one VM below their limit while its QEMU runs. It
//! is this same program, started with the verb [`VERB`] and setsid(2), because cowhand has no
//! daemon.
//!
//! ```text
//! looks at the sizes ──too large──▶ rotates ──▶ waits: 50 ms after growth,
//!        │                                        │    up to 1 s when nothing comes
//!        └── QEMU ends: looks once more and ends ─┘
//! ```
//! It is not in the path of the data: QEMU and the limiter have the files open independently. A
//! limiter that is killed or stopped costs the limit and nothing else. It has the directory and the
//! files as descriptors, opens no path, and holds one lock: a flock(2) on the newer serial log,
//! which tells that the VM has a limiter, and for which nothing else waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};

use super::pidfd::PidFd;
use super::rotated::Rotated;
use super::{command, flock, relay};

/// The verb under which this program is the limiter.
pub(crate) const VERB: &str = "limit-logs";
/// The logs of a VM. The first one carries the lock.
const LOGS: [&str; 2] = ["serial.log", "qemu.log"];
/// The attribute of the newer serial log with a limit that was changed while the limiter runs:
/// bytes in decimal digits, 0 for none.
const LIMIT: &str = "user.cowhand.limit";
/// The wait after a log has grown.
const SHORTEST: Duration = Duration::from_millis(50);
/// The wait when no log has grown for a while.
const LONGEST: Duration = Duration::from_secs(1);

/// What the limiter was told: the limit in bytes, and descriptors of QEMU's process, the directory
/// and the logs.
#[derive(Debug)]
pub(crate) struct Orders {
    limit: u64,
    process: RawFd,
    directory: RawFd,
    logs: [RawFd; 2],
}

impl Orders {
    /// From the words behind [`VERB`].
    pub(crate) fn parse(words: &[String]) -> Option<Self> {
        let [limit, process, directory, serial, qemu] = words else { return None };
        Some(Self {
            limit: limit.parse().ok()?,
            process: process.parse().ok()?,
            directory: directory.parse().ok()?,
            logs: [serial.parse().ok()?, qemu.parse().ok()?],
        })
    }
}

/// Does the VM whose serial log is `serial_log` have a limiter?
pub(crate) fn is_running(serial_log: &Path) -> io::Result<bool> {
    flock::is_held(serial_log)
}

/// Gives the limiter of the VM whose serial log is `serial_log` another limit, in bytes; `None` is
/// no limit. It obeys within a second. An error when the file system has no extended attributes.
pub(crate) fn change(serial_log: &Path, limit: Option<u64>) -> io::Result<()> {
    let log = File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(serial_log)?;
    Ok(fsetxattr(&log, LIMIT, limit.unwrap_or(0).to_string().as_bytes(), XattrFlags::empty())?)
}

/// The limit in force: the one that [`change`] has left, else the one from the orders.
fn limit(serial_log: &File, ordered: u64) -> u64 {
    let mut digits = [0_u8; 20];
    let changed = fgetxattr(serial_log, LIMIT, &mut digits[..]).ok();
    match changed.and_then(|length| std::str::from_utf8(&digits[..length]).ok()?.parse().ok()) {
        None => ordered,
        Some(0) => u64::MAX,
        Some(bytes) => bytes,
    }
}

/// Starts the limiter for the logs in `directory`; it ends with `process`. Each file may have
/// `limit` bytes.
pub(crate) fn start(directory: &Path, limit: u64, process: &PidFd) -> io::Result<()> {
    let open = |name| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(nix::libc::O_NOFOLLOW).open(directory.join(name))
    };
    let (serial, qemu) = (open(LOGS[0])?, open(LOGS[1])?);
    // The limit of an earlier start.
    let _ = fremovexattr(&serial, LIMIT);
    // Held from here on, so that no second limiter is started. The limiter of a QEMU that has just
    // ended may still have it; then the new one waits for the lock.
    flock::try_exclusive(&serial)?;
    let inherited: Vec<OwnedFd> = vec![
        process.as_fd().try_clone_to_owned()?,
        File::open(directory)?.into(),
        serial.into(),
        qemu.into(),
    ];
    let mut argv = vec![relay::PROGRAM.to_owned(), VERB.to_owned(), limit.to_string()];
    argv.extend(inherited.iter().map(|fd| fd.as_raw_fd().to_string()));
    command::companion(&argv, File::open("/dev/null")?.into(), inherited).map(drop)
}

/// Is the limiter, until QEMU has ended.
pub(crate) fn run(orders: &Orders) -> io::Result<()> {
    // For those who look at a list of processes.
    let _ = std::fs::write("/proc/self/comm", "cowhand-logs");
    let (process, directory) = (own(orders.process), File::from(own(orders.directory)));
    let [serial, qemu] = orders.logs.map(|fd| File::from(own(fd)));
    while !flock::try_exclusive(&serial)? {
        if ended(&process, SHORTEST)? {
            return Ok(());
        }
    }
    let first = serial.try_clone()?;
    let mut logs = [
        Rotated::of(directory.try_clone()?, LOGS[0], serial),
        Rotated::of(directory, LOGS[1], qemu),
    ]
    .map(Limited::new);
    let mut wait = SHORTEST;
    loop {
        let (mut grown, limit) = (false, limit(&first, orders.limit));
        for log in &mut logs {
            grown |= log.look(limit)?;
        }
        wait = if grown { SHORTEST } else { (wait * 2).min(LONGEST) };
        if ended(&process, wait)? {
            return logs.iter_mut().try_for_each(|log| log.look(limit).map(drop));
        }
    }
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: whoever started us handed this descriptor over for good, and nobody else in this
    // process knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

struct Limited {
    log: Rotated,
    bytes: u64,
}

impl Limited {
    fn new(log: Rotated) -> Self {
        Self { log, bytes: 0 }
    }

    /// Rotates the log if it is too large; true when it has changed since the last time. An error
    /// of the file system (a remote one that is away, for example) is left for the next look.
    fn look(&mut self, limit: u64) -> io::Result<bool> {
        let bytes = self.log.current_bytes()?;
        let changed = bytes != self.bytes;
        self.bytes = bytes;
        if bytes > limit {
            let _ = self.log.rotate(limit);
        }
        Ok(changed)
    }
}

/// Waits until the process has ended; false when `limit` comes first.
fn ended(process: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_are_not_complete_numbers_are_refused() {
        let parse = |line: &str| {
            Orders::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).is_some()
        };
        assert!(parse("65536 3 4 5 6"));
        for line in [
            "", "65536", "65536 3 4 5", "65536 3 4 5 6 7", "-1 3 4 5 6", "65536 x 4 5 6",
            "65536 3 4 5 9999999999",
        ] {
            assert!(!parse(line), "{line}");
        }
    }
}
