//! The boot of the host: which one it is, and how long ago it was. Nobody sets that clock.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Its identity, another one after each boot (`/proc/sys/kernel/random/boot_id`).
pub(crate) fn id() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// The time since then, with the time that the host was suspended (`CLOCK_BOOTTIME`).
pub(crate) fn elapsed() -> Duration {
    let since = clock_gettime(ClockId::Boottime);
    Duration::new(since.tv_sec.unsigned_abs(), u32::try_from(since.tv_nsec).unwrap_or(0))
}
