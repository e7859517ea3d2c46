//! How much a VM may take from its host.

use std::fmt;
use std::str::FromStr;

use super::{human, parse_size};
use crate::error::{Error, Result};

/// The word for no limits.
const NONE: &str = "none";
/// All limits, for messages.
const ALL: &str = "io=SIZE (bytes per second) and iops=COUNT";

/// The limits of a VM. Each is one for all of its disks together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that the guest reads and writes in a second.
    pub io: Option<u64>,
    /// Reads and writes of the guest in a second.
    pub iops: Option<u64>,
}

impl Limits {
    /// The smallest limit of bytes in a second.
    pub const SMALLEST_IO: u64 = 64 << 10;
    /// The largest limit of either; QEMU takes none that is larger (`THROTTLE_VALUE_MAX`).
    pub const LARGEST: u64 = 1_000_000_000_000_000;

    /// Is there none?
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// Sets the limit of this name; an empty `value` removes it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let limit = (!value.is_empty()).then_some(value);
        match name {
            "io" => self.io = limit.map(io).transpose()?,
            "iops" => self.iops = limit.map(iops).transpose()?,
            _ => {
                return Err(Error::usage(format!("{name:?} is not a limit: there are {ALL}")));
            }
        }
        Ok(())
    }

    /// From the saved form. A limit that QEMU would not take is the nearest one that it takes.
    pub fn from_saved(io: Option<u64>, iops: Option<u64>) -> Self {
        Self {
            io: io.map(|bytes| bytes.clamp(Self::SMALLEST_IO, Self::LARGEST)),
            iops: iops.map(|count| count.clamp(1, Self::LARGEST)),
        }
    }
}

fn io(text: &str) -> Result<u64> {
    let bytes = parse_size(text)?;
    if (Limits::SMALLEST_IO..=Limits::LARGEST).contains(&bytes) {
        return Ok(bytes);
    }
    Err(Error::usage(format!("{text} is not a limit of bytes per second: 64K to 909T")))
}

fn iops(text: &str) -> Result<u64> {
    let count = text.parse().ok().filter(|count| (1..=Limits::LARGEST).contains(count));
    count.ok_or_else(|| {
        Error::usage(format!(
            "{text:?} is not a limit of reads and writes per second: a number from 1 to {}",
            Limits::LARGEST
        ))
    })
}

/// `io=20M,iops=500`, or `none`.
impl FromStr for Limits {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut limits = Self::default();
        if text == NONE {
            return Ok(limits);
        }
        let mut names = Vec::new();
        for limit in text.split(',') {
            let (name, value) =
                limit.split_once('=').filter(|(_, value)| !value.is_empty()).ok_or_else(|| {
                    Error::usage(format!("{limit:?} is not a limit: there are {ALL}"))
                })?;
            if names.contains(&name) {
                return Err(Error::usage(format!("the limit {name} is given twice")));
            }
            limits.set(name, value)?;
            names.push(name);
        }
        Ok(limits)
    }
}

/// `20 MiB/s, 500 IOPS`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let io = self.io.map(|bytes| format!("{}/s", human(bytes)));
        let iops = self.iops.map(|count| format!("{count} IOPS"));
        let all: Vec<String> = io.into_iter().chain(iops).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_read_as_typed_and_what_qemu_would_not_take_is_refused() {
        let read = |text: &str| text.parse::<Limits>();
        let both = Limits { io: Some(20 << 20), iops: Some(500) };
        assert_eq!(read("io=20M,iops=500").expect("limits"), both);
        assert_eq!(both.to_string(), "20 MiB/s, 500 IOPS");
        assert_eq!(read("iops=1").expect("a limit"), Limits { io: None, iops: Some(1) });
        for text in [
            "", "io", "io=", "io=1", "io=63K", "io=1000T", "io=-1", "iops=0", "iops=1.5", "iops=x",
            "iops=1000000000000001", "cpu=1", "io=1M,", "io=1M;iops=1", "io=1M,io=2M",
            "none,io=1M",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(read("none").expect("no limits").are_none());
        let mut limits = both;
        limits.set("io", "").expect("no limit");
        limits.set("iops", "").expect("no limit");
        assert!(limits.are_none());
    }

    proptest! {
        #[test]
        fn whatever_a_record_says_is_a_limit_that_qemu_takes(
            io in proptest::option::of(any::<u64>()),
            iops in proptest::option::of(any::<u64>()),
        ) {
            let limits = Limits::from_saved(io, iops);
            prop_assert_eq!(limits.io.is_some(), io.is_some());
            let (bytes, counts) = (Limits::SMALLEST_IO..=Limits::LARGEST, 1..=Limits::LARGEST);
            prop_assert!(limits.io.is_none_or(|io| bytes.contains(&io)));
            prop_assert!(limits.iops.is_none_or(|iops| counts.contains(&iops)));
            prop_assert_eq!(Limits::from_saved(limits.io, limits.iops), limits);
        }
    }
}
