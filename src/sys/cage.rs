//! The cage: how programs are started that read files from strangers (`qemu-img`,
//! `qemu-storage-daemon`).
//!
//! Such a program parses bytes that a stranger chose, so a flaw in it must not reach further than
//! the files it was given. In the cage it has
//! - with Landlock (Linux 5.13 and newer): these files, its own program and libraries, and nothing
//!   else of the file system; no signals and no abstract sockets to others, as far as the
//!   kernel knows these;
//! - limits of memory, processor time and file size (`setrlimit(2)`), no core file;
//! - none of the system calls that it never needs, and no networks ([`super::seccomp`]), where the
//!   kernel has filters;
//! - no new privileges (`PR_SET_NO_NEW_PRIVS`), and the environment of [`super::command`].
//!
//! Without Landlock the limits hold, and what an image names is still refused before
//! (`layer/inspect`).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope, path_beneath_rules,
};
use rustix::io::FdFlags;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::seccomp::{Filter, Sockets};

/// What the rules are written for; an older kernel takes what it knows of them.
pub(super) const RULES: ABI = ABI::V6;
/// Programs and libraries of the system, which may be read and executed.
const SYSTEM: [&str; 9] = [
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/nix/store", "/gnu/store",
    "/dev/urandom",
];
/// Where a program that was installed by itself has its libraries and what it reads, beside the
/// directory it lies in. Not all of `share`: below a home directory, others keep secrets there, and
/// the store may lie in it.
const BESIDE: [&str; 11] = [
    "lib", "lib64", "libexec", "bin", "share/qemu", "share/qemu-firmware", "share/seabios",
    "share/ipxe", "share/OVMF", "share/edk2", "share/edk2-ovmf",
];

/// What a program in the cage may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Address space, in bytes.
    pub memory: u64,
    /// Processor time, in seconds; `None`: no limit.
    pub cpu_seconds: Option<u64>,
    /// The largest file it may write, in bytes; `None`: no limit.
    pub file_bytes: Option<u64>,
    /// How long it may take; `None`: no limit.
    pub time: Option<Duration>,
}

impl Limits {
    /// For a look at headers: 1 GiB, 30 s of processor time, two minutes, no writing.
    pub(crate) const LOOK: Self = Self {
        memory: 1 << 30,
        cpu_seconds: Some(30),
        file_bytes: Some(0),
        time: Some(Duration::from_secs(120)),
    };
    /// For a change of headers, or of an internal snapshot: 4 GiB, an hour.
    pub(crate) const EDIT: Self = Self {
        memory: 4 << 30,
        cpu_seconds: Some(3600),
        file_bytes: None,
        time: Some(Duration::from_secs(2 * 3600)),
    };
    /// For reading all of an image of a person's choice, which takes as long as it takes: 4 GiB.
    pub(crate) const READ: Self = Self {
        memory: 4 << 30,
        cpu_seconds: Some(6 * 3600),
        file_bytes: None,
        time: Some(Duration::from_secs(24 * 3600)),
    };
    /// For the engine of block jobs, which is watched over QMP: 16 GiB.
    pub(crate) const ENGINE: Self =
        Self { memory: 16 << 30, cpu_seconds: None, file_bytes: None, time: None };
}

/// The walls around a program.
#[derive(Debug, Clone)]
pub(crate) struct Cage {
    /// Files and directories it may read.
    pub read: Vec<PathBuf>,
    /// Files and directories it may read, change and make.
    pub write: Vec<PathBuf>,
    /// Open files it inherits, and may read.
    pub held: Vec<Held>,
    /// What it may use up.
    pub limits: Limits,
}

/// An open file for a program in the cage: it stays the same file, whatever becomes of the path
/// that it was opened by.
#[derive(Debug, Clone)]
pub struct Held {
    file: Arc<OwnedFd>,
    name: PathBuf,
}

impl Held {
    /// The file that `file` has open, and what it is called in messages.
    pub fn of(file: &File, name: &Path) -> io::Result<Self> {
        Ok(Self { file: Arc::new(file.try_clone()?.into()), name: name.to_owned() })
    }

    /// Where this process and the program find it. It can be opened there in another mode.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

impl Cage {
    /// One with nothing in it but the program.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { read: Vec::new(), write: Vec::new(), held: Vec::new(), limits }
    }

    /// With a file or directory to read.
    #[must_use]
    pub(crate) fn reading(mut self, path: &Path) -> Self {
        self.read.push(path.to_owned());
        self
    }

    /// With a file or directory to change.
    #[must_use]
    pub(crate) fn writing(mut self, path: &Path) -> Self {
        self.write.push(path.to_owned());
        self
    }

    /// With an open file to read, at [`Held::path`].
    #[must_use]
    pub(crate) fn holding(mut self, file: &Held) -> Self {
        self.held.push(file.clone());
        self
    }

    /// What the program says, with the names of the open files instead of where it has found them.
    pub(crate) fn named(&self, text: &str) -> String {
        let mut files: Vec<(String, &Held)> = self
            .held
            .iter()
            .map(|held| (held.path().to_string_lossy().into_owned(), held))
            .collect();
        // /proc/self/fd/1 is in /proc/self/fd/12, too.
        files.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        files.iter().fold(text.to_owned(), |text, (path, held)| {
            text.replace(path, &held.name.to_string_lossy())
        })
    }

    /// Puts the program that `command` starts into the cage.
    pub(crate) fn apply(&self, command: &mut Command) -> io::Result<()> {
        let mut rules = self.rules(command.get_program()).map_err(io::Error::other)?;
        let limits = self.limits;
        let held = self.held.clone();
        let filter = Filter::new(Sockets::Local)?;
        in_the_child(command, move || {
            for file in &held {
                rustix::io::fcntl_setfd(&*file.file, FdFlags::empty())?;
            }
            limit(Resource::Core, 0)?;
            limit(Resource::As, limits.memory)?;
            limits.cpu_seconds.map_or(Ok(()), |seconds| limit(Resource::Cpu, seconds))?;
            limits.file_bytes.map_or(Ok(()), |bytes| limit(Resource::Fsize, bytes))?;
            // It sets no_new_privs, too.
            if let Some(Err(_)) = rules.take().map(RulesetCreated::restrict_self) {
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
            // QEMU's tools start on a kernel without it, too.
            let _ = filter.apply();
            Ok(())
        });
        Ok(())
    }

    fn rules(&self, program: &OsStr) -> Result<Option<RulesetCreated>, landlock::RulesetError> {
        let (read, write) = (AccessFs::from_read(RULES), AccessFs::from_all(RULES));
        // What is given as a link is meant to be what it leads to; Landlock follows it.
        let readable = programs(Path::new(program))
            .chain(self.read.iter().cloned())
            .chain(self.held.iter().map(Held::path));
        let writable = self.write.iter().cloned().chain(["/dev/null".into()]);
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))?
            .handle_access(AccessNet::from_all(RULES))?
            .scope(Scope::from_all(RULES))?
            .create()?
            .add_rules(path_beneath_rules(readable, read))?
            .add_rules(path_beneath_rules(writable, write))
            .map(Some)
    }
}

/// A program, and what of the system a program may need.
pub(super) fn programs(program: &Path) -> impl Iterator<Item = PathBuf> {
    SYSTEM.iter().map(PathBuf::from).chain(around(program))
}

/// The program and what it may need beside it. Never a directory that others keep their files in.
fn around(program: &Path) -> Vec<PathBuf> {
    let Ok(program) = program.canonicalize() else { return Vec::new() };
    let mut all = vec![program.clone()];
    let directory =
        program.parent().filter(|directory| directory.file_name() == Some(OsStr::new("bin")));
    if let Some(above) = directory.and_then(Path::parent).filter(|above| above.parent().is_some()) {
        all.extend(BESIDE.map(|name| above.join(name)));
    }
    all
}

#[allow(unsafe_code)]
pub(super) fn in_the_child(
    command: &mut Command,
    action: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: between fork and exec only system calls are made (fcntl, getrlimit, setrlimit, prctl,
    // capget, capset, landlock_restrict_self, seccomp, close, and those of `confine/root.rs` and
    // `confine/namespaces.rs`), all of them async-signal-safe; everything that allocates was done
    // before.
    unsafe {
        command.pre_exec(action);
    }
}

/// Never more than there was.
pub(super) fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let maximum =
        rustix::process::getrlimit(resource).maximum.map_or(value, |maximum| maximum.min(value));
    // The soft limit of processor time sends a signal of its own, the hard one kills.
    let current =
        if matches!(resource, Resource::Cpu) { maximum.saturating_sub(1).max(1) } else { maximum };
    Ok(setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) })?)
}

#[cfg(test)]
mod tests {
    use super::super::skipped::skipped;
    use super::*;

    fn caged(cage: &Cage, script: &str) -> std::process::Output {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        cage.apply(&mut command).expect("a cage");
        command.output().expect("a shell")
    }

    #[test]
    fn a_program_in_the_cage_reads_what_it_was_given_and_nothing_else() {
        let room = tempfile::tempdir().expect("a directory");
        let (given, secret) = (room.path().join("given"), room.path().join("secret"));
        std::fs::write(&given, "given").expect("a file");
        std::fs::write(&secret, "secret").expect("a file");
        let cage = Cage::new(Limits::LOOK).reading(&given);
        let script = format!(
            "cat {}; cat {}; echo x > {}",
            given.display(),
            secret.display(),
            given.display()
        );
        let output = caged(&cage, &script);
        if landlock_is_missing() {
            return skipped("this kernel has no Landlock");
        }
        assert_eq!(String::from_utf8_lossy(&output.stdout), "given", "{output:?}");
        assert_eq!(std::fs::read(&given).expect("a file"), b"given");
    }

    #[test]
    fn an_open_file_stays_the_one_that_was_opened() {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("file");
        std::fs::write(&path, "opened").expect("a file");
        let held = File::open(&path).and_then(|file| Held::of(&file, &path)).expect("an open file");
        std::fs::rename(&path, room.path().join("away")).expect("renamed");
        std::fs::write(&path, "another").expect("a file");
        let script =
            format!("cat {0}; cat {1}; echo x > {0}", held.path().display(), path.display());
        let output = caged(&Cage::new(Limits::LOOK).holding(&held), &script);
        if landlock_is_missing() {
            return skipped("this kernel has no Landlock");
        }
        assert_eq!(String::from_utf8_lossy(&output.stdout), "opened", "{output:?}");
        let said = format!("cannot read '{}'", held.path().display());
        let named = Cage::new(Limits::LOOK).holding(&held).named(&said);
        assert_eq!(named, format!("cannot read '{}'", path.display()));
        let cage = Cage::new(Limits::EDIT).holding(&held).writing(&held.path());
        caged(&cage, &format!("echo changed > {}", held.path().display()));
        assert_eq!(std::fs::read(room.path().join("away")).expect("a file"), b"changed\n");
    }

    #[test]
    fn a_program_in_the_cage_writes_no_more_than_it_may() {
        let room = tempfile::tempdir().expect("a directory");
        let cage =
            Cage::new(Limits { file_bytes: Some(4096), ..Limits::EDIT }).writing(room.path());
        let file = room.path().join("file");
        caged(&cage, &format!("head -c 1000000 /dev/zero > {}", file.display()));
        assert!(file.metadata().is_ok_and(|about| about.len() <= 4096));
    }

    #[test]
    fn a_program_in_the_cage_takes_no_more_processor_time_than_it_may() {
        use std::os::unix::process::ExitStatusExt;
        let cage = Cage::new(Limits { cpu_seconds: Some(2), ..Limits::LOOK });
        let output = caged(&cage, "while :; do :; done");
        assert_eq!(output.status.signal(), Some(nix::libc::SIGXCPU), "{output:?}");
    }

    #[test]
    fn only_the_neighbours_of_an_installed_program_are_readable() {
        assert_eq!(around(Path::new("/does/not/exist")), Vec::<PathBuf>::new());
        let room = tempfile::tempdir().expect("a directory");
        let home = room.path().canonicalize().expect("a path");
        std::fs::write(home.join("qemu-img"), "").expect("a file");
        assert_eq!(around(&home.join("qemu-img")), [home.join("qemu-img")]);
        std::fs::create_dir(home.join("bin")).expect("a directory");
        std::fs::write(home.join("bin/qemu-img"), "").expect("a file");
        let beside = around(&home.join("bin/qemu-img"));
        let reaches = |path: &str| beside.iter().any(|one| home.join(path).starts_with(one));
        assert!(reaches("lib/libc.so.6") && reaches("share/qemu/bios.bin"), "{beside:?}");
        assert!(!reaches("share/cowhand/vms") && !reaches("share"), "{beside:?}");
    }

    fn landlock_is_missing() -> bool {
        // LANDLOCK_CREATE_RULESET_VERSION fails where there is none; the crate does not say so
        // before a ruleset is enforced.
        let status = Ruleset::default().handle_access(AccessFs::Execute).and_then(Ruleset::create);
        let enforced = std::thread::spawn(|| status.and_then(RulesetCreated::restrict_self))
            .join()
            .expect("a thread");
        enforced.is_ok_and(|status| status.ruleset == landlock::RulesetStatus::NotEnforced)
    }
}
