//! How much of a VM's output is kept on the host.

use super::parse_size;
use crate::error::{Error, Result};

/// The limit of each of the files `serial.log` and `qemu.log`. The file with the older output,
/// `.1`, has the same limit and up to a quarter more, for what was printed while it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLimit {
    /// At most so many bytes.
    Bytes(u64),
    /// No limit: the files grow until the VM is removed.
    Unlimited,
}

impl LogLimit {
    /// The limit of a VM that has no other, in bytes.
    pub const DEFAULT: u64 = 16 << 20;
    /// The smallest limit, in bytes: the messages of a kernel that boots fit into it.
    pub const SMALLEST: u64 = 64 << 10;
    /// The word for no limit.
    const NONE: &str = "none";

    /// Reads a size, `none`, or nothing, which is the default.
    pub fn parse(text: &str) -> Result<Self> {
        match text.trim() {
            "" => Ok(Self::default()),
            Self::NONE => Ok(Self::Unlimited),
            size => match parse_size(size)? {
                bytes @ Self::SMALLEST.. => Ok(Self::Bytes(bytes)),
                _ => Err(Error::usage(format!(
                    "a limit of {size} for a log is too small; the smallest limit is 64K"
                ))
                .hint("no limit: none")),
            },
        }
    }

    /// The limit in bytes; `None` when there is no limit.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Unlimited => None,
        }
    }

    /// The saved form; `None` stands for the default and 0 for no limit.
    pub fn to_saved(self) -> Option<u64> {
        (self != Self::default()).then(|| self.bytes().unwrap_or(0))
    }

    /// From the saved form. A limit below the smallest one is raised to it.
    pub fn from_saved(saved: Option<u64>) -> Self {
        match saved {
            None => Self::default(),
            Some(0) => Self::Unlimited,
            Some(bytes) => Self::Bytes(bytes.max(Self::SMALLEST)),
        }
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::Bytes(Self::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_sizes_none_or_nothing_and_never_tiny() {
        assert_eq!(LogLimit::parse("64K").expect("a limit"), LogLimit::Bytes(65_536));
        assert_eq!(LogLimit::parse("none").expect("a limit"), LogLimit::Unlimited);
        assert_eq!(LogLimit::parse("").expect("a limit"), LogLimit::default());
        for word in ["0", "65535", "1", "-1", "NONE", "1X", "99999999999999999999T", "64K,none"] {
            assert!(LogLimit::parse(word).is_err(), "{word}");
        }
    }

    proptest! {
        #[test]
        fn a_saved_limit_is_read_back_and_never_below_the_smallest(bytes: u64, none: bool) {
            let limit = if none { LogLimit::Unlimited } else { LogLimit::from_saved(Some(bytes)) };
            prop_assert!(limit.bytes().is_none_or(|bytes| bytes >= LogLimit::SMALLEST));
            prop_assert_eq!(LogLimit::from_saved(limit.to_saved()), limit);
        }
    }
}
