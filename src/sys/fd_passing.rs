//! Handing a file descriptor to another process over a Unix socket (`SCM_RIGHTS`, `unix(7)`).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Sends `bytes` with `fd` beside them; returns how many of the bytes went out.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    Ok(sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &message,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
}
