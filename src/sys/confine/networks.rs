//! What a QEMU has of networks, and the control group that decides about it.

use std::path::PathBuf;

use rustix::io::Errno;

use super::super::cgroup::Group;
use super::super::seccomp::Sockets;
pub(crate) use super::destinations::{Destinations, Rule, Verdict};

/// What a QEMU has of networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Networks {
    /// Nothing. It is in a network namespace of its own, where it can be.
    #[default]
    None,
    /// It listens on ports for TCP, and connects to nobody.
    Listening,
    /// It connects to these destinations, sends datagrams to them, and listens on ports. Where it
    /// is started as an ordinary user, or without control groups, it connects to whom it wants.
    To {
        /// The destinations.
        destinations: Destinations,
        /// Where its control group will be (`sys/cgroup.rs`, `planned`); `None`: there can be none.
        group: Option<PathBuf>,
    },
}

impl Networks {
    pub(super) fn sockets(&self) -> Sockets {
        match self {
            Self::None => Sockets::Local,
            Self::Listening => Sockets::Listening,
            Self::To { .. } => Sockets::All,
        }
    }

    /// The control group of a QEMU that is about to be started, where it has one.
    pub(super) fn group(&self) -> Result<Option<Group>, Errno> {
        let Self::To { destinations, group } = self else { return Ok(None) };
        let path = group.as_deref().ok_or(Errno::NOTSUP)?;
        let group = Group::make(path)?;
        match destinations.hold_for(&group) {
            Ok(()) => Ok(Some(group)),
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }
}

/// Is it the host that cannot do it? All else is trouble, with which no QEMU is started.
pub(super) fn is_lacking(error: Errno) -> bool {
    [
        Errno::PERM,
        Errno::ACCESS,
        Errno::ROFS,
        Errno::NOENT,
        Errno::NOSYS,
        Errno::NOTSUP,
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::NODEV,
    ]
    .contains(&error)
}
