//! Fault points: places where a test lets this process die, fail or stand still. They exist in
//! builds with debug assertions; a release has none of it.
//!
//! Which one is hit is decided by its number, counted from 1 in the order in which one run comes
//! across them, so that a test can walk through all of them without knowing their names; or by its
//! name, where a test is about one place. A name is hit once.

use std::io;
use std::time::Duration;

/// What happens at the point that is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process dies, as by `kill -9`.
    Die,
    /// The operation fails, as if the disk had.
    Fail,
    /// The process stands still (`SIGSTOP`) until it is continued: time to do something to
    /// QEMU.
    Stall,
}

/// Which point is hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The one that a run comes across at this place, counted from 1.
    Number(u32),
    /// The first one of this name.
    Name(String),
}

/// From here on, the point at this place does that, after `tell` has been told where it was.
pub(crate) fn arm(place: Place, fault: Fault, tell: fn(&str)) {
    #[cfg(debug_assertions)]
    let _ = armed::FAULT.set((place, fault, tell));
    #[cfg(not(debug_assertions))]
    drop((place, fault, tell));
}

/// `7:die`, `3:fail`, `a VM, in the trash:stall`.
pub(crate) fn parse(text: &str) -> Option<(Place, Fault)> {
    let (place, fault) = text.rsplit_once(':')?;
    let fault = match fault {
        "die" => Fault::Die,
        "fail" => Fault::Fail,
        "stall" => Fault::Stall,
        _ => return None,
    };
    Some((place.parse().map_or_else(|_| Place::Name(place.to_owned()), Place::Number), fault))
}

/// A place where it may happen.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) -> io::Result<()> {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use std::sync::atomic::Ordering;
    let Some((place, fault, tell)) = armed::FAULT.get() else { return Ok(()) };
    let number = match place {
        Place::Name(wanted) if wanted != name => return Ok(()),
        _ => armed::COUNT.fetch_add(1, Ordering::Relaxed) + 1,
    };
    let wanted = match place {
        Place::Number(wanted) => *wanted,
        Place::Name(_) => 1,
    };
    if number != wanted {
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
pub(crate) fn set_patience(limit: Duration) {
    #[cfg(debug_assertions)]
    {
        let _ = armed::PATIENCE.set(limit);
    }
    let _ = limit;
}

/// How long QEMU may take where `usual` is the rule.
#[inline]
pub(crate) fn patience(usual: Duration) -> Duration {
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
    pub(super) type Armed = (super::Place, super::Fault, fn(&str));

    pub(super) static FAULT: OnceLock<Armed> = OnceLock::new();
    pub(super) static COUNT: AtomicU32 = AtomicU32::new(0);
    pub(super) static PATIENCE: OnceLock<Duration> = OnceLock::new();
}
