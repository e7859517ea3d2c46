//! Programs in the kernel that decide about the sockets of a control group (`bpf(2)`,
//! `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` and `BPF_PROG_TYPE_CGROUP_SKB`, Linux 4.18 and newer). Only who
//! has `CAP_BPF` and `CAP_NET_ADMIN` loads them, in the host's own user namespace. They need no
//! process and no file: they are there as long as the group is.

use std::ffi::{CStr, c_long};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

pub(crate) mod code;

use code::Instruction;

/// What a program is asked about (`enum bpf_attach_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    /// A packet that arrives.
    Ingress = 0,
    /// A packet that leaves.
    Egress = 1,
    /// `connect(2)` to an IPv4 address.
    Connect4 = 10,
    /// The same to an IPv6 address.
    Connect6 = 11,
    /// A datagram to an IPv4 address that is given with it.
    Send4 = 14,
    /// The same to an IPv6 address.
    Send6 = 15,
}

impl Hook {
    /// Those by which something is sent.
    pub(crate) const SENDING: [Self; 5] =
        [Self::Egress, Self::Connect4, Self::Connect6, Self::Send4, Self::Send6];

    /// `enum bpf_prog_type`.
    fn program(self) -> u32 {
        match self {
            Self::Ingress | Self::Egress => 8,
            _ => 18,
        }
    }
}

/// `BPF_MAP_CREATE`.
const MAP: i32 = 0;
/// `BPF_PROG_LOAD`.
const LOAD: i32 = 5;
/// `BPF_PROG_ATTACH`.
const ATTACH: i32 = 8;
/// `BPF_PROG_QUERY`.
const QUERY: i32 = 16;
/// Beside the programs of others, of which each can refuse (`BPF_F_ALLOW_MULTI`).
const BESIDE: u32 = 2;
const LICENSE: &CStr = c"MIT";
/// `BPF_MAP_TYPE_LRU_HASH`.
const LRU_HASH: u32 = 9;

/// `union bpf_attr` for [`MAP`].
#[repr(C)]
struct Map {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

/// The same for [`LOAD`].
#[repr(C)]
#[derive(Default)]
struct Load {
    program: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    hook: u32,
}

/// The same for [`ATTACH`] and [`QUERY`].
#[repr(C)]
#[derive(Default)]
struct Attached {
    target: u32,
    /// For a query: the hook.
    program: u32,
    /// For a query: whether what is above counts.
    hook: u32,
    flags: u32,
    numbers: u64,
    count: u32,
    rest: [u32; 9],
}

/// A table of the most recent keys, for programs: `key_bytes` each, with a value of four bytes.
pub(crate) fn recent_keys(key_bytes: u32, entries: u32) -> io::Result<OwnedFd> {
    call(MAP, &mut Map { kind: LRU_HASH, key_bytes, value_bytes: 4, entries }).and_then(owned)
}

/// Gives the kernel a program. It looks through it, and refuses one that could go wrong.
pub(crate) fn load(hook: Hook, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"cowhand");
    let mut attributes = Load {
        program: hook.program(),
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        name,
        hook: hook as u32,
        ..Load::default()
    };
    call(LOAD, &mut attributes).and_then(owned)
}

/// Lets a program decide about the sockets of the control group whose directory `group` is.
pub(crate) fn attach(group: impl AsFd, hook: Hook, program: &OwnedFd) -> io::Result<()> {
    let mut attributes = Attached {
        target: number(group)?,
        program: number(program)?,
        hook: hook as u32,
        flags: BESIDE,
        ..Attached::default()
    };
    call(ATTACH, &mut attributes).map(drop)
}

/// How many programs decide about this in the control group, not counting those of the groups above
/// it.
pub(crate) fn attached(group: impl AsFd, hook: Hook) -> io::Result<u32> {
    let mut attributes =
        Attached { target: number(group)?, program: hook as u32, ..Attached::default() };
    call(QUERY, &mut attributes)?;
    Ok(attributes.count)
}

fn owned(descriptor: c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn number(descriptor: impl AsFd) -> io::Result<u32> {
    u32::try_from(descriptor.as_fd().as_raw_fd()).map_err(io::Error::other)
}

#[allow(unsafe_code)]
fn call<T>(command: i32, attributes: &mut T) -> io::Result<c_long> {
    let (at, size) = (std::ptr::from_mut(attributes), size_of::<T>());
    // SAFETY: the kernel reads and writes `size` bytes at `at`. What the attributes point to, the
    // instructions and the licence, lives longer than the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
