//! Names of VMs, templates and snapshots, and how a command line addresses them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The name of a VM, a template or a snapshot: 1 to 64 of `A-Z a-z 0-9 . _ -`, the first a letter
/// or a digit.
///
/// It becomes a directory name and part of QEMU's options, so it holds nothing that means something
/// there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The longest name, in characters.
    pub const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| {
            Error::usage(format!("{text:?} is not a name: {why}")).hint(
                "a name is 1 to 64 letters, digits, dots, dashes and underscores, and starts with \
                 a letter or digit",
            )
        };
        let Some(first) = text.chars().next() else {
            return Err(bad("it is empty".into()));
        };
        if text.chars().count() > Self::MAX {
            return Err(bad(format!(
                "it has {} characters, {} are allowed",
                text.chars().count(),
                Self::MAX
            )));
        }
        if !first.is_ascii_alphanumeric() {
            return Err(bad(format!("it starts with {first:?}")));
        }
        if let Some(odd) =
            text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
        {
            return Err(bad(format!("it contains {odd:?}")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `vm` or `vm@snapshot`, as typed. `vm@current` is the snapshot the head is based on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointRef {
    /// The VM or template.
    pub vm: Name,
    /// The snapshot, when one was named.
    pub snapshot: Option<Name>,
}

impl PointRef {
    /// The word that means "the snapshot the head is based on".
    pub const CURRENT: &'static str = "current";
}

impl FromStr for PointRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('@') {
            None => Ok(Self { vm: text.parse()?, snapshot: None }),
            Some((vm, snapshot)) => Ok(Self { vm: vm.parse()?, snapshot: Some(snapshot.parse()?) }),
        }
    }
}

impl fmt::Display for PointRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => write!(f, "{}", self.vm),
            Some(snapshot) => write!(f, "{}@{snapshot}", self.vm),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_store_or_confuse_qemu_are_refused() {
        let long = "x".repeat(200);
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "-n",
            "a/b",
            "a b",
            "a,b",
            "a@b",
            "a\n",
            "é",
            "a%s",
            "json:{}",
            long.as_str(),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn ordinary_names_are_kept_as_typed() {
        for good in ["web", "Web-1", "9lives", "a.b_c-d", "x".repeat(64).as_str()] {
            assert_eq!(good.parse::<Name>().expect("a good name").as_str(), good);
        }
    }

    #[test]
    fn a_point_is_a_vm_and_perhaps_a_snapshot() {
        let point: PointRef = "web@before".parse().expect("a point");
        assert_eq!(
            (point.vm.as_str(), point.snapshot.as_ref().map(Name::as_str)),
            ("web", Some("before"))
        );
        assert!("web@".parse::<PointRef>().is_err());
        assert!("web@a@b".parse::<PointRef>().is_err());
    }
}
