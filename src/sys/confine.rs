//! Confinement: how a QEMU that runs a guest is started.
//!
//! QEMU has flaws by which a guest takes it over. Confined, such a QEMU has
//! - with Landlock (Linux 5.13 and newer): its own program and libraries, the files that its guest
//!   needs, and nothing else of the file system; in the directory of its sockets it makes sockets
//!   and removes files, and nowhere else; it sends no signals to others, traces none, and connects
//!   to no sockets of theirs but to those of networks, as far as the kernel knows these rules;
//! - a root directory of its own, in which only these files lie (`root`, Linux 5.12 and newer);
//! - no other process that it can name, and no System V IPC of others (`namespaces`);
//! - no capability but those that its guest needs, and none can come back (`capabilities(7)`);
//! - none of the system calls that it never needs ([`super::seccomp`]);
//! - of networks only what its guest is given (`networks`): none, listening alone, or connections
//!   to some destinations, which programs in the kernel filter where we may load them;
//! - no new privileges (`PR_SET_NO_NEW_PRIVS`), no core file, and the environment of
//!   [`super::command`].
//!
//! QEMU's own `-sandbox` comes on top. What is not confined is written down in `docs/security.md`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use landlock::RulesetCreated;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::cage;
use super::cgroup::Group;
use super::name_servers::LIST;
use super::seccomp::Filter;
use super::started::Started;
use namespaces::{Namespaces, Wanted};
use networks::Networks;
use root::{Root, Use};

mod capabilities;
mod destinations;
mod namespaces;
pub(crate) mod networks;
pub mod observed;
pub(crate) mod pool;
mod root;
mod rules;
pub(crate) mod tried;

/// What a QEMU may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    strict: bool,
    /// Without a filter of destinations it is not started.
    filtered: bool,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    merge: Vec<PathBuf>,
    sockets: Vec<PathBuf>,
    pool: Option<PathBuf>,
    networks: Networks,
    /// Capabilities.
    kept: CapabilitySet,
}

impl Confinement {
    /// One in which QEMU reaches nothing but its program and what every guest needs. `strict`:
    /// where the kernel does not know all of this, it is not started.
    pub fn new(strict: bool) -> Self {
        let (read, write) =
            (SETTINGS.map(PathBuf::from).to_vec(), DEVICES.map(PathBuf::from).to_vec());
        let all = Self {
            strict,
            filtered: strict,
            read,
            write,
            merge: Vec::new(),
            sockets: Vec::new(),
            pool: None,
            networks: Networks::None,
            kept: CapabilitySet::empty(),
        };
        let servers = Path::new(LIST).canonicalize().ok();
        servers.as_deref().and_then(changes_in).into_iter().fold(all, Self::reading)
    }

    /// With a file to read, or all files below a directory.
    #[must_use]
    pub fn reading(mut self, path: &Path) -> Self {
        self.read.push(path.to_owned());
        self
    }

    /// With a file to read and change, or all files below a directory. None can be made there, and
    /// none removed.
    #[must_use]
    pub fn writing(mut self, path: &Path) -> Self {
        self.write.push(path.to_owned());
        self
    }

    /// With a file to read, which may be written to later, for a merge ([`pool::set`]). Where it
    /// has no root directory of its own, at once.
    #[must_use]
    pub fn merging(mut self, path: &Path) -> Self {
        self.merge.push(path.to_owned());
        self
    }

    /// With a directory in which it makes sockets, removes them, and changes what is there.
    #[must_use]
    pub fn listening(mut self, directory: &Path) -> Self {
        self.sockets.push(directory.to_owned());
        self
    }

    /// With the directory of all layers: those of them that it is given, and those that are shown
    /// to it later ([`pool::set`]). Where it has no root directory of its own, all of them.
    #[must_use]
    pub fn layers(mut self, directory: &Path) -> Self {
        self.pool = Some(directory.to_owned());
        self
    }

    /// It may save the memory of a running guest: for `userfaultfd(2)` it keeps `CAP_SYS_PTRACE`.
    /// There is nobody whom Landlock lets it trace.
    #[must_use]
    pub fn saving_memory(mut self) -> Self {
        self.kept |= CapabilitySet::SYS_PTRACE;
        self
    }

    /// It may listen on ports below 1024.
    #[must_use]
    pub fn on_low_ports(mut self) -> Self {
        self.kept |= CapabilitySet::NET_BIND_SERVICE;
        self
    }

    /// With these networks instead of none.
    #[must_use]
    pub fn with_networks(mut self, networks: Networks) -> Self {
        self.networks = networks;
        self
    }

    /// Where its destinations cannot be filtered, it is not started.
    #[must_use]
    pub fn only_filtered(mut self) -> Self {
        self.filtered = true;
        self
    }

    /// Is there a filter of destinations among it?
    pub fn filters_destinations(&self) -> bool {
        matches!(self.networks, Networks::To { .. })
    }

    /// Is it that filter that a start has failed for?
    pub fn is_for_destinations(&self, error: &io::Error) -> bool {
        error.raw_os_error().is_some_and(|code| code >= NO_GROUP)
    }

    /// Where its control group will be, if it gets one.
    pub fn group(&self) -> Option<&Path> {
        match &self.networks {
            Networks::To { group, .. } => group.as_deref(),
            Networks::None | Networks::Listening => None,
        }
    }

    /// May it read, or `change`, what lies at `path`?
    pub fn reaches(&self, path: &Path, change: bool) -> bool {
        let is_below = |above: &PathBuf| path.starts_with(above);
        self.write.iter().chain(&self.sockets).any(is_below)
            || !change && self.read.iter().chain(&self.merge).any(is_below)
    }

    /// Why this host cannot do all of it, where that was asked for and `error` came of it.
    pub fn refusal(&self, error: &io::Error) -> Option<String> {
        if let Err(error) = rules::of(self, Path::new("/")) {
            return Some(error.to_string());
        }
        let code = error.raw_os_error()?;
        let (missing, why) = [
            (NO_GROUP, NO_GROUP_WHY),
            (NO_NAMESPACES, "this host gives it no PID namespace (pid_namespaces(7))"),
            (NO_FILTER, "this host filters no system calls (seccomp(2))"),
            (NO_ROOT, "this host gives it no separate root directory (mount_namespaces(7))"),
        ]
        .into_iter()
        .find(|(missing, _)| code >= *missing)?;
        Some(format!("{why}: {}", io::Error::from_raw_os_error(code - missing)))
    }

    /// Starts the program of `command`, confined. `more` is asked of the child before that.
    pub fn start(&self, command: Command, more: impl FnOnce(&mut Command)) -> io::Result<Started> {
        let (kept, missing) = (capabilities::kept_by(self), self.missing());
        let group = match self.networks.group() {
            Ok(group) => group,
            Err(error) if networks::is_lacking(error) => {
                missing(NO_GROUP, error.raw_os_error())?;
                None
            }
            Err(error) => {
                let (error, group) =
                    (io::Error::from(error), self.group().unwrap_or(Path::new("")));
                let text = format!("cannot make its control group {}: {error}", group.display());
                return Err(io::Error::new(error.kind(), text));
            }
        };
        let started = self.start_in(group.as_ref(), command, kept, more);
        if started.is_err() {
            group.into_iter().for_each(Group::remove);
        }
        started
    }

    fn start_in(
        &self,
        group: Option<&Group>,
        mut command: Command,
        kept: CapabilitySet,
        more: impl FnOnce(&mut Command),
    ) -> io::Result<Started> {
        let missing = self.missing();
        let wanted = Wanted { kept, group, network: self.networks == Networks::None };
        let namespaces = Namespaces::new(&mut command, &wanted, move |what, error| {
            missing(what, error.raw_os_error())
        })?;
        more(&mut command);
        self.confine(&mut command, kept, namespaces.are_made())?;
        namespaces.spawn(command)
    }

    /// What becomes of a start where the host lacks something: an error, if it was to be strict.
    fn missing(&self) -> impl Fn(i32, i32) -> io::Result<()> + Send + Sync + Copy + use<> {
        let (strict, filtered) = (self.strict, self.filtered);
        move |what, errno| match if what == NO_GROUP { filtered } else { strict } {
            true => Err(io::Error::from_raw_os_error(what + errno)),
            false => Ok(()),
        }
    }

    /// Confines the program that `command` starts.
    fn confine(
        &self,
        command: &mut Command,
        kept: CapabilitySet,
        is_apart: Arc<AtomicBool>,
    ) -> io::Result<()> {
        let program = Path::new(command.get_program()).to_owned();
        let mut rules = Some(rules::of(self, &program).map_err(io::Error::other)?);
        let root = Root::new(self.shown(&program), self.pool.as_deref(), kept, is_apart);
        let pool = self.pool.as_deref().map(root::c_string).transpose()?;
        let filter = Filter::new(self.networks.sockets())?;
        let missing = self.missing();
        cage::in_the_child(command, move || {
            cage::limit(Resource::Core, 0)?;
            root.as_ref()
                .map_err(|error| *error)
                .and_then(Root::enter)
                .or_else(|error| missing(NO_ROOT, error.raw_os_error()))?;
            capabilities::keep(kept)?;
            let rules = rules.take().and_then(|rules| match &pool {
                Some(pool) => rules::with_layers(rules, pool).ok(),
                None => Some(rules),
            });
            // It sets no_new_privs, too.
            match rules.map(RulesetCreated::restrict_self) {
                Some(Ok(_)) => {}
                _ => return Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            }
            // The last one: it refuses calls that were made above.
            filter
                .apply()
                .or_else(|error| missing(NO_FILTER, error.raw_os_error().unwrap_or_default()))
        });
        Ok(())
    }

    /// All that lies in its root directory.
    fn shown(&self, program: &Path) -> impl Iterator<Item = (PathBuf, Use)> {
        let with = |how| move |path: &PathBuf| (path.clone(), how);
        let given = std::iter::once(program.to_owned());
        given
            .chain(cage::programs(program))
            .map(|path| (path, Use::RUN))
            .chain([(PathBuf::from(ALTERNATIVES), Use::READ)])
            .chain(self.read.iter().chain(&self.merge).map(with(Use::READ)))
            .chain(self.write.iter().chain(&self.sockets).map(with(Use::WRITE)))
    }
}

/// What a start fails with that was to be strict, where there is no root directory for QEMU: this,
/// and the number of the error that says why. The kernel's own are below.
const NO_ROOT: i32 = 1 << 16;
/// The same, where there is no filter of system calls.
const NO_FILTER: i32 = 1 << 17;
/// The same, where there are no namespaces for it.
const NO_NAMESPACES: i32 = 1 << 18;
/// The same, where there is no filter of destinations.
const NO_GROUP: i32 = 1 << 19;
const NO_GROUP_WHY: &str =
    "its guest has a user network, and this host filters no destinations (bpf(2))";

/// What every QEMU may read: random numbers, name servers, and what its libraries read when they
/// are loaded (GnuTLS, OpenSSL, the C library). All of it is for everybody.
const SETTINGS: [&str; 6] = [
    "/dev/urandom", LIST, "/etc/crypto-policies", "/etc/gnutls", "/etc/ssl/openssl.cnf",
    "/etc/localtime",
];

/// Links through which libraries below `/usr` lead to others there (`update-alternatives(1)`).
const ALTERNATIVES: &str = "/etc/alternatives";
/// What every QEMU may open: nothing, and what `userfaultfd(2)` is with newer kernels and QEMUs, by
/// which memory is saved while the guest runs.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/userfaultfd"];

/// The directory in which the list of name servers is replaced when they change, where nothing else
/// lies in it; in others, and in `/etc` most of all, may lie what nobody should read.
fn changes_in(servers: &Path) -> Option<&'static Path> {
    let known = ["/run/systemd/resolve", "/run/resolvconf", "/run/netconfig"].map(Path::new);
    known.into_iter().find(|directory| servers.starts_with(directory))
}

#[cfg(test)]
mod tests;
