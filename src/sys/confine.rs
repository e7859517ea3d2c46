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

use std::ffi::CStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use landlock::{
    Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, make_bitflags, path_beneath_rules,
};
use rustix::fs::{Access as Permission, AtFlags, CWD, Mode, OFlags, accessat, open};
use rustix::io::Errno;
use rustix::process::Resource;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::cage::{self, RULES};
use super::cgroup::Group;
use super::name_servers::LIST;
use super::seccomp::Filter;
use super::started::Started;
use namespaces::{Namespaces, Wanted};
use networks::Networks;
use root::{Root, Use};

mod destinations;
mod namespaces;
pub mod networks;
pub mod observed;
pub mod pool;
mod root;
pub mod tried;

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
        if let Err(error) = self.rules(Path::new("/")) {
            return Some(error.to_string());
        }
        let code = error.raw_os_error()?;
        let (missing, why) = [
            (NO_GROUP, NO_GROUP_WHY),
            (NO_NAMESPACES, "this host gives it no processes of its own (pid_namespaces(7))"),
            (NO_FILTER, "this host filters no system calls (seccomp(2))"),
            (NO_ROOT, "this host gives it no root directory of its own (mount_namespaces(7))"),
        ]
        .into_iter()
        .find(|(missing, _)| code >= *missing)?;
        Some(format!("{why}: {}", io::Error::from_raw_os_error(code - missing)))
    }

    /// The capabilities it keeps, as far as we have them. Files without the permission bits for us,
    /// those of another user for example, root opens by `CAP_DAC_OVERRIDE` alone. That is more than
    /// is needed where they are only read; but `CAP_DAC_READ_SEARCH` lifts the root directory, too
    /// (`open_by_handle_at(2)`).
    fn capabilities(&self) -> CapabilitySet {
        let by_privilege = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        let ours = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
        if !ours.intersects(by_privilege) {
            return self.kept & ours;
        }
        // Capabilities are those of a thread.
        let opens = || {
            let without = |sets: CapabilitySet| sets & !by_privilege;
            let sets = capabilities(None)?;
            let (effective, permitted) = (without(sets.effective), without(sets.permitted));
            set_capabilities(None, CapabilitySets { effective, permitted, ..sets })?;
            let (read, write) = (Permission::READ_OK, Permission::READ_OK | Permission::WRITE_OK);
            let all = |paths: &[PathBuf], how| paths.iter().all(|path| is_open(path, how));
            let socket = write | Permission::EXEC_OK;
            let writes =
                all(&self.write, write) && all(&self.merge, write) && all(&self.sockets, socket);
            Ok::<_, Errno>(writes && all(&self.read, read))
        };
        let needs_none = std::thread::scope(|scope| {
            scope.spawn(opens).join().ok().and_then(Result::ok).unwrap_or_default()
        });
        let needed = match needs_none {
            true => CapabilitySet::empty(),
            false => CapabilitySet::DAC_OVERRIDE,
        };
        (self.kept | needed) & ours
    }

    /// Starts the program of `command`, confined. `more` is asked of the child before that.
    pub fn start(&self, command: Command, more: impl FnOnce(&mut Command)) -> io::Result<Started> {
        let (kept, missing) = (self.capabilities(), self.missing());
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
        let mut rules = Some(self.rules(&program).map_err(io::Error::other)?);
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
            keep_capabilities(kept)?;
            let rules = rules.take().and_then(|rules| match &pool {
                Some(pool) => with_layers(rules, pool).ok(),
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

    /// Those of networks are not among them: they know ports, and no addresses.
    fn rules(&self, program: &Path) -> Result<RulesetCreated, RulesetError> {
        let read = AccessFs::from_read(RULES);
        let write = to_write();
        let listen = write | make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
        let level = match self.strict {
            true => CompatLevel::HardRequirement,
            false => CompatLevel::BestEffort,
        };
        Ruleset::default()
            .set_compatibility(level)
            .handle_access(AccessFs::from_all(RULES))?
            .scope(Scope::from_all(RULES))?
            // It listens on sockets, and connects to none that is a file (Linux 7.1).
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::ResolveUnix)?
            .create()?
            .add_rules(path_beneath_rules(cage::programs(program), read))?
            .add_rules(path_beneath_rules(&self.read, AccessFs::ReadFile))?
            .add_rules(path_beneath_rules(self.write.iter().chain(&self.merge), write))?
            .add_rules(path_beneath_rules(&self.sockets, listen))
    }
}

/// What a file that is written to is opened with.
fn to_write() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev})
}

/// With the layers in the directory `pool` of the calling process's root directory.
fn with_layers(rules: RulesetCreated, pool: &CStr) -> Result<RulesetCreated, RulesetError> {
    let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open(pool, how, Mode::empty()) {
        Ok(directory) => rules.add_rule(PathBeneath::new(directory, to_write())),
        // There are none.
        Err(_) => Ok(rules),
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

/// May the calling thread open what lies at `path`? What is not there is no matter of permissions.
fn is_open(path: &Path, how: Permission) -> bool {
    accessat(CWD, path, how, AtFlags::empty()) != Err(Errno::ACCESS)
}

/// Gives up all capabilities of the calling thread but those in `kept`, for whatever it executes
/// next, too. The bounding set is what root would have then, where it may be emptied; with
/// `no_new_privs`, no program has more than its caller.
fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let each = || (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    // There are none before Linux 4.3.
    let _ = clear_ambient_capability_set();
    for capability in each().filter(|capability| !kept.contains(*capability)) {
        match remove_capability_from_bounding_set(capability) {
            // The kernel knows no more of them, or we may not.
            Err(Errno::INVAL | Errno::PERM) => break,
            other => other?,
        }
    }
    let permitted = capabilities(None)?.permitted & kept;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: permitted };
    set_capabilities(None, sets)?;
    // Else an ordinary user's program would lose them.
    for capability in each().filter(|capability| permitted.contains(*capability)) {
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
