//! Waiting for a file to grow (inotify).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::pidfd::PidFd;

/// Watches one file.
pub(crate) struct Follow(Inotify);

impl Follow {
    /// Begins to watch `path`.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        Ok(Self(inotify))
    }

    /// Blocks until it was written to, or the process has ended. Returns whether that has ended.
    pub(crate) fn wait(&self, process: Option<&PidFd>) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        fds.extend(process.map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        let is_ready = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        if is_ready(0) {
            self.0.read_events()?;
        }
        Ok(is_ready(1))
    }
}
