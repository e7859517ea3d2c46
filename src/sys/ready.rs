//! Waiting for a child process to create a socket, or to die trying: inotify on the directory
//! beside the child's pidfd.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::pidfd::PidFd;

/// What came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// The file is there.
    Created,
    /// The process has ended.
    Ended,
    /// Neither, in the time given.
    TimedOut,
}

/// Watches a directory for the creation of one file. Made before the process is started, so that
/// nothing is missed.
pub(crate) struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Begins to watch `directory`.
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(directory, AddWatchFlags::IN_CREATE)?;
        Ok(Self { inotify })
    }

    /// Blocks until `path` (in the watched directory) exists, `process` ends, or `timeout` is over.
    pub(crate) fn wait(
        &self,
        path: &Path,
        process: &PidFd,
        timeout: Duration,
    ) -> io::Result<Ready> {
        let deadline = Instant::now() + timeout;
        loop {
            if path.exists() {
                return Ok(Ready::Created);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Ready::TimedOut);
            }
            let mut fds = [
                PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
                PollFd::new(process.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let has =
                |fd: &PollFd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
            if has(&fds[1]) {
                return Ok(Ready::Ended);
            }
            if has(&fds[0]) {
                match self.inotify.read_events() {
                    Ok(_) | Err(Errno::EAGAIN) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}
