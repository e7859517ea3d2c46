//! What the caller decides before anything runs. The CLI fills this in from flags and the
//! environment; the library only reads it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Which processor runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// KVM where it has hardware behind it, else TCG with a warning.
    #[default]
    Auto,
    /// KVM, whatever the host looks like.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// How a QEMU that runs a guest is confined ([`crate::sys::confine`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confine {
    /// As far as the host can.
    #[default]
    Default,
    /// In all of its ways, or it is not started.
    Strict,
    /// Not at all.
    Off,
}

/// Everything the library would otherwise have to guess.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The root of the store.
    pub store: PathBuf,
    /// Where the sockets of running VMs go: one directory per VM below it.
    pub runtime: PathBuf,
    /// Which processor runs the guests.
    pub accel: Accel,
    /// How QEMU is confined.
    pub confine: Confine,
    /// The system emulator: a name looked up in `PATH`, or a path.
    pub qemu: PathBuf,
    /// Where programs are looked up (a colon-separated list, as `PATH` is).
    pub search_path: OsString,
    /// How long to wait for a lock.
    pub lock_wait: Duration,
}
