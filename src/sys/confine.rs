//! Confinement: how a QEMU that runs a guest is started.
//!
//! QEMU has flaws by which a guest takes it over. Confined, such a QEMU has
//! - with Landlock (Linux 5.13 and newer): its own program and libraries, the files that its guest
//!   needs, and nothing else of the file system; in the directory of its sockets it makes sockets
//!   and removes files, and nowhere else; it sends no signals to others, traces none, and connects
//!   to no sockets of theirs but to those of networks, as far as the kernel knows these rules;
//! - no capability but those that its guest needs, and none can come back (`capabilities(7)`);
//! - no new privileges (`PR_SET_NO_NEW_PRIVS`), no core file, and the environment of
//!   [`super::command`].
//!
//! QEMU's own `-sandbox` comes on top. What is not confined is written down in `docs/security.md`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use landlock::{
    Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope, make_bitflags, path_beneath_rules,
};
use rustix::fs::{Access as Permission, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::Resource;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::cage::{self, RULES};

/// What a QEMU may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    strict: bool,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    sockets: Vec<PathBuf>,
    /// Capabilities.
    kept: CapabilitySet,
}

impl Confinement {
    /// One in which QEMU reaches nothing but its program and what every guest needs. `strict`:
    /// where the kernel does not know all of this, it is not started.
    pub fn new(strict: bool) -> Self {
        let (read, write) =
            (SETTINGS.map(PathBuf::from).to_vec(), DEVICES.map(PathBuf::from).to_vec());
        let all = Self { strict, read, write, sockets: Vec::new(), kept: CapabilitySet::empty() };
        let servers = Path::new(NAME_SERVERS).canonicalize().ok();
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

    /// With a directory in which it makes sockets, removes them, and changes what is there.
    #[must_use]
    pub fn listening(mut self, directory: &Path) -> Self {
        self.sockets.push(directory.to_owned());
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

    /// May it read, or `change`, what lies at `path`?
    pub fn reaches(&self, path: &Path, change: bool) -> bool {
        let is_below = |above: &PathBuf| path.starts_with(above);
        self.write.iter().chain(&self.sockets).any(is_below)
            || !change && self.read.iter().any(is_below)
    }

    /// Can this host do all of it, where that is asked for? Else the reason.
    pub fn check(&self) -> io::Result<()> {
        self.rules(Path::new("/")).map(drop).map_err(io::Error::other)
    }

    /// The capabilities it keeps, as far as we have them. Files without the permission bits for us,
    /// those of another user for example, root opens by `CAP_DAC_OVERRIDE` alone, or, where they
    /// are only read, by `CAP_DAC_READ_SEARCH`.
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
            let writes = all(&self.write, write) && all(&self.sockets, socket);
            Ok::<_, Errno>((all(&self.read, read), writes))
        };
        let (reads, writes) = std::thread::scope(|scope| {
            scope.spawn(opens).join().ok().and_then(Result::ok).unwrap_or_default()
        });
        let needed = match (reads, writes) {
            (_, false) => CapabilitySet::DAC_OVERRIDE,
            (false, true) => CapabilitySet::DAC_READ_SEARCH,
            (true, true) => CapabilitySet::empty(),
        };
        (self.kept | needed) & ours
    }

    /// Confines the program that `command` starts.
    pub fn apply(&self, command: &mut Command) -> io::Result<()> {
        let program = Path::new(command.get_program()).to_owned();
        let mut rules = Some(self.rules(&program).map_err(io::Error::other)?);
        let kept = self.capabilities();
        cage::in_the_child(command, move || {
            cage::limit(Resource::Core, 0)?;
            keep_capabilities(kept)?;
            // It sets no_new_privs, too.
            match rules.take().map(RulesetCreated::restrict_self) {
                Some(Ok(_)) => Ok(()),
                _ => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
            }
        });
        Ok(())
    }

    /// Networks are left alone: QEMU itself connects for its guest.
    fn rules(&self, program: &Path) -> Result<RulesetCreated, RulesetError> {
        let read = AccessFs::from_read(RULES);
        let write: BitFlags<AccessFs> =
            make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate | IoctlDev});
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
            .add_rules(path_beneath_rules(&self.write, write))?
            .add_rules(path_beneath_rules(&self.sockets, listen))
    }
}

/// Where the host says which name servers it asks; libslirp asks them for its guest.
const NAME_SERVERS: &str = "/etc/resolv.conf";

/// What every QEMU may read: random numbers, name servers, and what its libraries read when they
/// are loaded (GnuTLS, OpenSSL, the C library). All of it is for everybody.
const SETTINGS: [&str; 6] = [
    "/dev/urandom", NAME_SERVERS, "/etc/crypto-policies", "/etc/gnutls", "/etc/ssl/openssl.cnf",
    "/etc/localtime",
];

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

/// Does this kernel have Landlock, and has it been switched on?
pub fn has_landlock() -> bool {
    let asked = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    asked.handle_access(AccessFs::Execute).and_then(Ruleset::create).is_ok()
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
