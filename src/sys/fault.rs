//! Fault points: places where a test lets this process die, fail or stand still. They exist in builds with debug assertions; a release has none of
//! it.
//!
//! Which one is hit is decided by its number, counted from 1 in the order in which one run comes across them, so that a test can walk through
//! all of them without knowing their names.

use std::io;
use std::time::Duration;

/// What happens at the point that is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies, as by `kill -9`.
    Die,
    /// The operation fails, as if the disk had.
    Fail,
    /// The process stands still (`SIGSTOP`) until somebody lets it go on: time to do something to QEMU.
    Stall,
}

/// From here on, the point with this number does that, after `tell` has been told where it was.
pub fn arm(number: u32, fault: Fault, tell: fn(&str)) {
    #[cfg(debug_assertions)]
    {
        let _ = armed::FAULT.set((number, fault, tell));
    }
    let _ = (number, fault, tell);
}

/// `7:die`, `3:fail`, `9:stall`.
pub fn parse(text: &str) -> Option<(u32, Fault)> {
    let (number, fault) = text.split_once(':')?;
    let fault = match fault {
        "die" => Fault::Die,
        "fail" => Fault::Fail,
        "stall" => Fault::Stall,
        _ => return None,
    };
    Some((number.parse().ok()?, fault))
}

/// A place where it may happen.
#[cfg(debug_assertions)]
pub fn point(name: &str) -> io::Result<()> {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::sync::atomic::Ordering;
    let Some((number, fault, tell)) = armed::FAULT.get() else { return Ok(()) };
    if armed::COUNT.fetch_add(1, Ordering::Relaxed) + 1 != *number {
        return Ok(());
    }
    tell(&format!("fault {number}: {fault:?} at {name}\n"));
    match fault {
        Fault::Fail => Err(io::Error::other(format!("a fault was injected at {name}"))),
        Fault::Stall => Ok(kill(Pid::this(), Signal::SIGSTOP)?),
        Fault::Die => {
            let _ = kill(Pid::this(), Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }
}

/// A place where it may happen.
#[cfg(not(debug_assertions))]
#[inline]
pub fn point(_: &str) -> io::Result<()> {
    Ok(())
}

/// From here on, nobody waits longer than that for QEMU.
pub fn set_patience(limit: Duration) {
    #[cfg(debug_assertions)]
    {
        let _ = armed::PATIENCE.set(limit);
    }
    let _ = limit;
}

/// How long QEMU may take where `usual` is the rule.
#[inline]
pub fn patience(usual: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Some(limit) = armed::PATIENCE.get() {
        return usual.min(*limit);
    }
    usual
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    /// Which point, what happens there, and who is told.
    pub type Armed = (u32, super::Fault, fn(&str));

    pub static FAULT: OnceLock<Armed> = OnceLock::new();
    pub static COUNT: AtomicU32 = AtomicU32::new(0);
    pub static PATIENCE: OnceLock<Duration> = OnceLock::new();
}
