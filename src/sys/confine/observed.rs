//! What the kernel tells of the confinement of a process that runs (`proc_pid_status(5)`,
//! `namespaces(7)`).

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::thread::CapabilitySet;

use super::super::bpf::{Hook, attached};
use super::super::cgroup;

/// Filters of system calls beyond QEMU's own: how many QEMU has at least that we have started.
const WITH_OURS: u32 = 2;

/// How far a process is confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Its effective user id, as we know it.
    pub user: u32,
    /// The capabilities it may use, in the order of their numbers, without the `CAP_`.
    pub capabilities: Vec<String>,
    /// It has a root directory of its own.
    pub root_directory: bool,
    /// It is in a PID namespace of its own.
    pub processes: bool,
    /// It has our filter of system calls. With that, it has Landlock's rules, where the kernel has
    /// Landlock.
    pub system_calls: bool,
    /// It is in a network namespace of its own.
    pub network: bool,
    /// It has a filter of destinations.
    pub destinations: bool,
}

impl Observed {
    /// Looks at the process `pid`, which may be that of another user only for root.
    pub fn of(pid: i32) -> io::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let differs = |what: &str| {
            let place = |of: &str| {
                let about = std::fs::metadata(format!("/proc/{of}/{what}"))?;
                Ok::<_, io::Error>((about.dev(), about.ino()))
            };
            Ok::<_, io::Error>(place(&pid.to_string())? != place("self")?)
        };
        let told = Told(&status);
        Ok(Self {
            user: told.word("Uid:", 1).parse().map_err(io::Error::other)?,
            capabilities: names(
                u64::from_str_radix(told.word("CapPrm:", 0), 16).map_err(io::Error::other)?,
            ),
            // Kernels before 5.9 do not tell how many there are.
            system_calls: told
                .word("Seccomp_filters:", 0)
                .parse()
                .is_ok_and(|filters: u32| filters >= WITH_OURS),
            root_directory: differs("root")?,
            processes: differs("ns/pid")?,
            network: differs("ns/net")?,
            destinations: cgroup::of(pid).and_then(Result::ok).is_some_and(is_decided),
        })
    }

    /// Has it all that a QEMU gets where the host can give it?
    pub fn is_complete(&self) -> bool {
        self.root_directory && self.processes && self.system_calls
    }
}

/// Is there a program about each of it?
fn is_decided(group: OwnedFd) -> bool {
    Hook::SENDING.into_iter().all(|hook| attached(&group, hook).is_ok_and(|count| count > 0))
}

/// In words: what it has, then what it shares with us.
impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.root_directory, "root directory"),
            (self.processes, "processes"),
            (self.network, "network"),
        ];
        let list = |own: bool| {
            let names: Vec<&str> =
                parts.iter().filter(|part| part.0 == own).map(|part| part.1).collect();
            names.join(", ")
        };
        let capabilities = match &self.capabilities[..] {
            [] => "no capabilities".to_owned(),
            few @ [_, ..] if few.len() <= 3 => format!("capabilities {}", few.join(", ")),
            many => format!("{} capabilities", many.len()),
        };
        write!(f, "user id {}, {capabilities}", self.user)?;
        write!(f, "; {} filter of system calls", if self.system_calls { "a" } else { "no" })?;
        if self.destinations {
            f.write_str("; a filter of destinations")?;
        }
        for (own, words) in [(true, "its own"), (false, "the host's")] {
            if parts.iter().any(|part| part.0 == own) {
                write!(f, "; {words}: {}", list(own))?;
            }
        }
        Ok(())
    }
}

struct Told<'a>(&'a str);

impl<'a> Told<'a> {
    /// A word of the line that begins with `field`; empty where there is none.
    fn word(&self, field: &str, number: usize) -> &'a str {
        let line = self.0.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.split_whitespace().nth(number).unwrap_or_default()
    }
}

fn names(bits: u64) -> Vec<String> {
    let each = (0..u64::BITS).filter(|number| bits >> number & 1 == 1);
    let name = |number: u32| {
        let set = CapabilitySet::from_bits_retain(1 << number);
        let known = set.iter_names().next().map(|(name, _)| name.to_owned());
        known.unwrap_or_else(|| number.to_string())
    };
    each.map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_like_us_has_nothing_of_its_own() {
        let ourselves = std::process::id().cast_signed();
        let observed = Observed::of(ourselves).expect("a process");
        assert_eq!(observed.user, nix::unistd::geteuid().as_raw());
        assert!(!observed.root_directory && !observed.processes && !observed.network);
        assert!(!observed.is_complete());
        assert!(!observed.destinations);
        assert!(Observed::of(i32::MAX).is_err());
    }

    #[test]
    fn what_it_has_and_what_it_shares_is_told_in_words() {
        let observed = Observed {
            user: 0,
            capabilities: names(1 << 19 | 1 << 63),
            root_directory: true,
            processes: true,
            system_calls: true,
            network: false,
            destinations: true,
        };
        assert!(observed.is_complete());
        assert_eq!(
            observed.to_string(),
            "user id 0, capabilities SYS_PTRACE, 63; a filter of system calls; a filter of \
             destinations; its own: root directory, processes; the host's: network"
        );
        let bare = Observed {
            capabilities: names(u64::MAX >> 24),
            root_directory: false,
            processes: false,
            system_calls: false,
            destinations: false,
            ..observed
        };
        assert_eq!(
            bare.to_string(),
            "user id 0, 40 capabilities; no filter of system calls; the host's: root directory, \
             processes, network"
        );
    }
}
