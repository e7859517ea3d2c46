//! Waiting for a file to grow (inotify).

use std::io;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches one file.
pub struct Follow(Inotify);

impl Follow {
    /// Begins to watch `path`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        Ok(Self(inotify))
    }

    /// Blocks until it was written to.
    pub fn wait(&self) -> io::Result<()> {
        self.0.read_events().map(drop).map_err(io::Error::from)
    }
}
