//! The guest's end of a port: a character device that one process has open, with a host that comes
//! and goes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::frame::{self, Decoder, Kind, Next, START, VERSION, WELCOME};
use crate::model::{PORTS, port_name};
use crate::sys::inside;

/// While nobody is at the other end: how often it is looked all the same, should news have been
/// missed.
const LOOK: Duration = Duration::from_secs(1);
/// So many bytes may wait to be sent before no more are made.
const FULL: usize = 256 << 10;

/// The devices of our ports, by their number.
pub(super) fn devices() -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
            let index = (0..PORTS).find(|index| name.trim() == port_name(*index))?;
            Some((index, Path::new("/dev").join(entry.file_name())))
        })
        .collect();
    found.sort();
    found
}

/// What happened while we waited.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A frame of this conversation.
    Frame(Kind, Vec<u8>),
    /// The conversation is over: the host has gone, or another one has begun.
    Over,
    /// One of the descriptors asked for is ready, a child has ended, or the time is over.
    Other,
}

/// An open port.
pub(super) struct Port {
    file: File,
    signals: SignalFd,
    decoder: Decoder,
    unsent: Vec<u8>,
    /// The host's client is there, and we are in step with it.
    talking: bool,
}

impl Port {
    /// Opens the device.
    pub(super) fn open(device: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).open(device)?;
        let signals = inside::signals()?;
        inside::tell_of_changes(&file)?;
        Ok(Self { file, signals, decoder: Decoder::default(), unsent: Vec::new(), talking: false })
    }

    /// Sends a frame, sooner or later.
    pub(super) fn send(&mut self, kind: Kind, payload: &[u8]) {
        if self.talking {
            frame::put(&mut self.unsent, kind, payload);
        }
    }

    /// Sends a frame that is JSON.
    pub(super) fn say(&mut self, kind: Kind, value: &impl serde::Serialize) {
        self.send(kind, &serde_json::to_vec(value).unwrap_or_default());
    }

    /// Is so much waiting to be sent that no more should be made?
    pub(super) fn is_full(&self) -> bool {
        self.unsent.len() >= FULL
    }

    /// Waits until the host begins a conversation.
    pub(super) fn begin(&mut self) {
        loop {
            if let Some(token) = self.decoder.find::<16>(&START) {
                self.wait_for_host();
                self.unsent.clear();
                self.unsent.extend_from_slice(&WELCOME);
                self.unsent.extend_from_slice(&token);
                self.unsent.extend_from_slice(&VERSION.to_le_bytes());
                self.talking = true;
                return;
            }
            self.talking = false;
            self.unsent.clear();
            self.exchange(&[], None);
        }
    }

    /// The event that a client has connected may take a longer way than the first words.
    fn wait_for_host(&self) {
        let deadline = Instant::now() + LOOK;
        while Instant::now() < deadline {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
            let polled = poll(&mut fds, PollTimeout::ZERO);
            if polled.is_ok()
                && fds[0].revents().is_some_and(|events| !events.contains(PollFlags::POLLHUP))
            {
                return;
            }
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll(
                &mut fds,
                PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()))
                    .unwrap_or(PollTimeout::ZERO),
            );
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }

    /// The next frame of this conversation; `None` when it is over.
    pub(super) fn next(&mut self) -> Option<(Kind, Vec<u8>)> {
        loop {
            self.flush();
            match self.wait(&[], None) {
                Event::Frame(kind, payload) => return Some((kind, payload)),
                Event::Over => return None,
                Event::Other => {}
            }
        }
    }

    /// Waits until there is room to send more; false when the conversation is over. Frames that
    /// come meanwhile stay for [`Self::wait`].
    pub(super) fn has_room(&mut self) -> bool {
        loop {
            self.flush();
            // Nothing is expected; what is no frame is the beginning of another conversation.
            if self.decoder.cut() == Next::Lost {
                self.talking = false;
            }
            if !self.talking || !self.is_full() {
                return self.talking;
            }
            self.exchange(&[], None);
        }
    }

    /// Waits for a frame, for one of `others`, for the end of a child, or until `deadline`.
    pub(super) fn wait(
        &mut self,
        others: &[(BorrowedFd<'_>, PollFlags)],
        deadline: Option<Instant>,
    ) -> Event {
        match self.decoder.cut() {
            Next::Frame(kind, payload) => return Event::Frame(kind, payload),
            Next::Lost => self.talking = false,
            Next::More => {}
        }
        if !self.talking {
            return Event::Over;
        }
        self.exchange(others, deadline);
        if !self.talking {
            return Event::Over;
        }
        Event::Other
    }

    /// Waits until something happens, and receives. What it was, the caller looks for itself; what
    /// it wants to wait for it has decided after a [`Self::flush`], because what was sent in
    /// between would never wake it.
    fn exchange(&mut self, others: &[(BorrowedFd<'_>, PollFlags)], deadline: Option<Instant>) {
        let ours = if self.unsent.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLIN | PollFlags::POLLOUT
        };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.file.as_fd(), ours),
        ];
        fds.extend(others.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)));
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        if poll(&mut fds, timeout).is_err() {
            return;
        }
        let has = |fd: &PollFd<'_>, flag| fd.revents().is_some_and(|events| events.contains(flag));
        let signalled = has(&fds[0], PollFlags::POLLIN);
        let (readable, gone) = (has(&fds[1], PollFlags::POLLIN), has(&fds[1], PollFlags::POLLHUP));
        drop(fds);
        // While nobody is there the port counts as readable, and what is read is its end.
        let gone = if readable { self.receive() } else { gone };
        if gone {
            self.talking = false;
            if !signalled {
                // What comes between the two polls stays to be read.
                let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX));
            }
        }
        if signalled || gone {
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
    }

    /// Takes what has come; true when nobody is there any more.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; frame::LARGEST];
        match (&self.file).read(&mut buffer) {
            Ok(0) => return true,
            Ok(read) => self.decoder.push(&buffer[..read]),
            Err(_) => {}
        }
        false
    }

    /// Sends what the port takes at once.
    pub(super) fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            let end = self.unsent.len().min(sent + frame::LARGEST);
            match (&self.file).write(&self.unsent[sent..end]) {
                Ok(0) => break,
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.unsent.drain(..sent);
    }
}
