//! Fault points: places where a test lets this process die or fail. They exist in builds with debug assertions; a release has none of it.
//!
//! Which one is hit is decided by its number, counted from 1 in the order in which one run comes across them, so that a test can walk through
//! all of them without knowing their names.

use std::io;

/// What happens at the point that is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies, as by `kill -9`.
    Die,
    /// The operation fails, as if the disk had.
    Fail,
}

/// From here on, the point with this number does that, after `tell` has been told where it was.
pub fn arm(number: u32, fault: Fault, tell: fn(&str)) {
    #[cfg(debug_assertions)]
    {
        let _ = armed::FAULT.set((number, fault, tell));
    }
    let _ = (number, fault, tell);
}

/// `7:die`, `3:fail`.
pub fn parse(text: &str) -> Option<(u32, Fault)> {
    let (number, fault) = text.split_once(':')?;
    let fault = match fault {
        "die" => Fault::Die,
        "fail" => Fault::Fail,
        _ => return None,
    };
    Some((number.parse().ok()?, fault))
}

/// A place where it may happen.
#[cfg(debug_assertions)]
pub fn point(name: &str) -> io::Result<()> {
    use std::sync::atomic::Ordering;
    let Some((number, fault, tell)) = armed::FAULT.get() else { return Ok(()) };
    if armed::COUNT.fetch_add(1, Ordering::Relaxed) + 1 != *number {
        return Ok(());
    }
    tell(&format!("fault {number}: {fault:?} at {name}\n"));
    match fault {
        Fault::Fail => Err(io::Error::other(format!("a fault was injected at {name}"))),
        Fault::Die => {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
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

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicU32;

    /// Which point, what happens there, and who is told.
    pub type Armed = (u32, super::Fault, fn(&str));

    pub static FAULT: OnceLock<Armed> = OnceLock::new();
    pub static COUNT: AtomicU32 = AtomicU32::new(0);
}
