//! What the helper needs of the guest's kernel: random generator, network cards, clock, terminals,
//! news of its port.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};

/// The most bytes [`add_entropy`] takes.
pub(crate) const ENTROPY: usize = 64;

#[repr(C)]
struct PoolInfo {
    bits: libc::c_int,
    bytes: libc::c_int,
    data: [u8; ENTROPY],
}

/// The requests of ioctl(2), as their manual pages have them.
#[allow(missing_docs)]
mod request {
    use nix::libc;

    nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 0x03, [libc::c_int; 2]);
    nix::ioctl_none!(rnd_reseed_crng, b'R', 0x07);
    nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(set_hardware_address, libc::SIOCSIFHWADDR, libc::ifreq);
}

/// Mixes `seed` into the kernel's random generator, and makes it use it from now on (`random(4)`:
/// `RNDADDENTROPY`, `RNDRESEEDCRNG`).
#[allow(unsafe_code)]
pub(crate) fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    let mut info = PoolInfo { bits: 0, bytes: 0, data: [0; ENTROPY] };
    let length = seed.len().min(ENTROPY);
    info.data[..length].copy_from_slice(&seed[..length]);
    info.bytes = libc::c_int::try_from(length).unwrap_or_default();
    info.bits = info.bytes * 8;
    // SAFETY: the kernel reads the two numbers and then `bytes` bytes behind them, all of which are
    // in `info`.
    unsafe { request::rnd_add_entropy(random.as_raw_fd(), std::ptr::from_ref(&info).cast()) }?;
    // SAFETY: takes no argument. Kernels before 5.x that have it not have no other way either.
    unsafe { request::rnd_reseed_crng(random.as_raw_fd()) }?;
    Ok(())
}

/// Gives a network card another address (`netdevice(7)`: `SIOCSIFHWADDR`), which virtio cards allow
/// while they are up.
#[allow(unsafe_code)]
pub(crate) fn set_card_address(card: &str, address: [u8; 6]) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))?;
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if card.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(card.bytes()) {
        *to = from.cast_signed();
    }
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().zip(address) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    // SAFETY: the kernel reads an `ifreq`, which this is.
    unsafe { request::set_hardware_address(socket.as_raw_fd(), &request) }?;
    Ok(())
}

/// Sets the clock.
pub(crate) fn set_clock(nanoseconds: u64) -> io::Result<()> {
    let time = rustix::time::Timespec {
        tv_sec: i64::try_from(nanoseconds / 1_000_000_000).unwrap_or_default(),
        tv_nsec: i64::try_from(nanoseconds % 1_000_000_000).unwrap_or_default(),
    };
    Ok(rustix::time::clock_settime(rustix::time::ClockId::Realtime, time)?)
}

/// Signals as something to poll: of children that end, and of the port.
pub(crate) fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    [Signal::SIGIO, Signal::SIGCHLD].into_iter().for_each(|signal| set.add(signal));
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Asks for `SIGIO` when somebody comes to the other end of a virtio-serial port, or goes. While
/// nobody is there, poll(2) returns at once.
#[allow(unsafe_code)]
pub(crate) fn tell_of_changes(port: &File) -> io::Result<()> {
    let fd = port.as_raw_fd();
    // SAFETY: plain numbers in, none out; the descriptor is open.
    let told = unsafe {
        libc::fcntl(fd, libc::F_SETOWN, libc::getpid()) >= 0
            && libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC) >= 0
    };
    if told { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Rows and columns of the terminal behind `fd`.
#[allow(unsafe_code)]
pub(crate) fn terminal_size(fd: impl AsFd) -> Option<(u16, u16)> {
    // SAFETY: all zeros is a valid `winsize`, and the kernel writes one.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        request::get_window_size(fd.as_fd().as_raw_fd(), &mut size).ok()?;
        size
    };
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Gives the terminal behind `fd` a size.
#[allow(unsafe_code)]
pub(crate) fn set_terminal_size(fd: impl AsFd, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads a `winsize`, which this is.
    unsafe { request::set_window_size(fd.as_fd().as_raw_fd(), &size) }?;
    Ok(())
}

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    /// The user.
    pub uid: u32,
    /// The user's own group.
    pub gid: u32,
    /// The others the user is in.
    pub groups: Vec<u32>,
}

/// Has `command` start in a session of its own, on `terminal` if there is one (its standard input),
/// as `who`, with no signal blocked.
#[allow(unsafe_code)]
pub(crate) fn prepare(command: &mut Command, terminal: bool, who: Option<Who>) {
    let groups: Option<Vec<Gid>> =
        who.as_ref().map(|who| who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect());
    // SAFETY: between fork and exec only system calls are made, which are async-signal-safe; what
    // they need was allocated before.
    unsafe {
        command.pre_exec(move || {
            SigSet::empty().thread_set_mask()?;
            // A shell that starts something in the background has it ignore some.
            for signal in
                [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGPIPE]
            {
                nix::sys::signal::signal(signal, SigHandler::SigDfl)?;
            }
            setsid()?;
            if terminal {
                request::set_controlling_terminal(0, 0)?;
            }
            if let (Some(who), Some(groups)) = (&who, &groups) {
                setgroups(groups)?;
                setgid(Gid::from_raw(who.gid))?;
                setuid(Uid::from_raw(who.uid))?;
            }
            Ok(())
        });
    }
}

/// A new pair of terminals: ours, and the command's.
pub(crate) fn terminals(size: (u16, u16)) -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = nix::pty::openpty(None, None)?;
    set_terminal_size(&pair.master, size)?;
    for fd in [&pair.master, &pair.slave] {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok((pair.master, pair.slave))
}

/// Reading and writing never wait from now on.
pub(crate) fn never_wait(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd.as_fd())?;
    Ok(rustix::fs::fcntl_setfl(fd.as_fd(), flags | rustix::fs::OFlags::NONBLOCK)?)
}
