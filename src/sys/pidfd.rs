//! A process by file descriptor: its end can be waited for, and a signal never hits a recycled pid
//! (`pidfd_open(2)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process that is, or was, alive.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid`; `ESRCH` when there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self(pidfd_open(pid, PidfdFlags::NONBLOCK)?))
    }

    /// Opens the process that listened at the other end of a connected socket (`SO_PEERPIDFD`,
    /// Linux 6.5).
    ///
    /// An older kernel tells its number only. Whoever has that number is the one meant as long as
    /// the connection lasts after the process was opened: a process that ends hangs up.
    pub fn of_peer(socket: &impl AsFd) -> io::Result<Self> {
        match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(process) => Ok(Self(process)),
            Err(Errno::ENOPROTOOPT) => Self::of_peer_by_number(socket),
            Err(error) => Err(error.into()),
        }
    }

    fn of_peer_by_number(socket: &impl AsFd) -> io::Result<Self> {
        let process = Self::open(getsockopt(socket, sockopt::PeerCredentials)?.pid())?;
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        match fds[0].revents() {
            Some(events) if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) => {
                Err(io::ErrorKind::NotConnected.into())
            }
            _ => Ok(process),
        }
    }

    /// A second descriptor for the same process.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Kills it (`SIGKILL`). A process that has ended already is not an error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Waits until it has ended.
    #[allow(unsafe_code)]
    pub async fn ended(&self) -> io::Result<()> {
        // SAFETY: the descriptor is borrowed from `self`, which outlives the registration: it ends
        // with this function.
        let fd =
            unsafe { AsyncFd::register_with_interest(self.0.as_raw_fd(), Interest::READABLE) }?;
        fd.readable().await?.retain_ready();
        Ok(())
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The number of the process, as `/proc` has it for a descriptor.
    fn number(process: &PidFd) -> i32 {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))
            .expect("a descriptor");
        let number = about.lines().find_map(|line| line.strip_prefix("Pid:")).expect("a number");
        number.trim().parse().expect("a number")
    }

    #[test]
    fn a_peer_is_opened_with_and_without_the_kernels_help_and_not_after_it_hung_up() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let ourselves = std::process::id().cast_signed();
        assert_eq!(number(&PidFd::of_peer(&one).expect("a peer")), ourselves);
        assert_eq!(number(&PidFd::of_peer_by_number(&one).expect("a peer")), ourselves);
        drop(other);
        let late = PidFd::of_peer_by_number(&one).expect_err("nobody is there");
        assert_eq!(late.kind(), io::ErrorKind::NotConnected);
    }
}
