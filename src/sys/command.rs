//! Running programs. Nothing here ever reaches a shell; a failing program's own last words become
//! the error.
//!
//! A program gets an environment of an allow-list (PATH, HOME, TMPDIR, XDG_RUNTIME_DIR, the
//! locale), because a QEMU that waits in a pool would otherwise carry the variables of one CI job
//! into another. Our own program, when it starts itself, keeps its own variables as well. Programs
//! that read files from strangers run in a [`Cage`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use command_fds::CommandFdExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::cage::Cage;
use super::confine::Confinement;
use super::pidfd::PidFd;
use super::relay;
use super::started::Started;
use crate::error::{Error, Result};

/// How much of a failing program's standard error is kept.
const TAIL: usize = 4096;

/// The full path of a program: as given when it contains a slash, else the first executable of that
/// name in the `search` path (a colon-separated list, as `PATH` is).
pub(crate) fn find(program: &Path, search: &OsStr) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return executable(program).then(|| program.to_path_buf());
    }
    std::env::split_paths(search)
        .map(|directory| directory.join(program))
        .find(|candidate| executable(candidate))
}

/// A command with the environment that programs get.
fn clean(program: impl AsRef<OsStr>) -> Command {
    let own = program.as_ref() == OsStr::new(relay::PROGRAM);
    let mut command = Command::new(program);
    command.env_clear().envs(environment(own));
    command
}

/// The variables of our own environment that a program inherits. Nothing is decided by their
/// values.
fn environment(own: bool) -> impl Iterator<Item = (OsString, OsString)> {
    let kept = move |name: &OsStr| {
        let Some(name) = name.to_str() else { return false };
        matches!(name, "PATH" | "HOME" | "TMPDIR" | "XDG_RUNTIME_DIR" | "LANG" | "LANGUAGE")
            || name.starts_with("LC_")
            || own && (name.starts_with("COWHAND_") || name == "XDG_DATA_HOME")
    };
    std::env::vars_os().filter(move |(name, _)| kept(name))
}

/// Runs a program to its end and returns what it printed; a non-zero exit is an error that quotes
/// it.
pub(crate) fn output<I, S>(program: &Path, args: I) -> Result<Vec<u8>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = clean(program);
    command.args(args).stdin(Stdio::null());
    tracing::debug!(target: "run", "{command:?}");
    let output = command.output().map_err(|source| {
        Error::failed(format!("cannot run {}", program.display())).because(source)
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::qemu(format!("{} failed ({})", program.display(), output.status))
        .because(tail(&output.stderr)))
}

/// Runs a program in `cage` without blocking the caller; `paths` follow `args`, behind `--`. An
/// exit code that is not in `fine` is an error that quotes its last words. Dropped half-way, or
/// when its time is over, the program is killed.
pub(crate) async fn run(
    program: &Path,
    args: &[&str],
    paths: &[&OsStr],
    fine: &[i32],
    cage: &Cage,
) -> Result<Vec<u8>> {
    let cannot = |source: io::Error| {
        Error::failed(format!("cannot run {}", program.display())).because(source)
    };
    let what = args.first().copied().unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let mut command = clean(program);
    command
        .args(args)
        .arg("--")
        .args(paths)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    dies_with_us(&mut command);
    cage.apply(&mut command).map_err(cannot)?;
    tracing::debug!(target: "run", "{command:?}");
    let child = command.spawn().map_err(cannot)?;
    let end = to_its_end(child);
    let output = match cage.limits.time {
        Some(limit) => tokio::time::timeout(limit, end).await.map_err(|_| {
            Error::qemu(format!(
                "{name} {what} took longer than {} s and was ended",
                limit.as_secs()
            ))
        })?,
        None => end.await,
    }
    .map_err(cannot)?;
    match output.status.code() {
        Some(code) if fine.contains(&code) => Ok(output.stdout),
        _ => {
            let failed = Error::qemu(format!("{name} {what} failed ({})", output.status));
            let failed = match std::os::unix::process::ExitStatusExt::signal(&output.status) {
                Some(signal) if signal == nix::libc::SIGXCPU => {
                    failed.hint("it used more processor time than it may")
                }
                Some(signal) if signal == nix::libc::SIGXFSZ => {
                    failed.hint("it wrote a larger file than it may")
                }
                _ => failed,
            };
            Err(failed.because(format!("\"{}\"", cage.named(&tail(&output.stderr)))))
        }
    }
}

/// Runs a program to its end, however it ends; dropped half-way, the program is killed.
pub(crate) async fn outcome(program: &Path, args: &[String]) -> io::Result<Output> {
    let mut command = clean(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    dies_with_us(&mut command);
    tracing::debug!(target: "run", "{command:?}");
    to_its_end(command.spawn()?).await
}

/// The most that is kept of what a program prints, in bytes; a program that prints more fails.
const PRINTED: u64 = 64 << 20;

async fn to_its_end(mut child: Child) -> io::Result<Output> {
    let _guard = KillOnDrop(PidFd::open(child.id().cast_signed())?);
    let output = tokio::task::spawn_blocking(move || {
        let errors =
            child.stderr.take().map(|stderr| std::thread::spawn(move || last_bytes(stderr)));
        let mut stdout = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(PRINTED + 1).read_to_end(&mut stdout)?;
        }
        if stdout.len() as u64 > PRINTED {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it printed more than {PRINTED} bytes"),
            ));
        }
        let stderr = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
        Ok(Output { status: child.wait()?, stdout, stderr })
    })
    .await;
    output.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Reads to the end and keeps the last [`TAIL`] bytes.
fn last_bytes(mut from: impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        let over = kept.len().saturating_sub(TAIL);
        kept.drain(..over);
    }
    kept
}

struct KillOnDrop(PidFd);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Of one that has ended it is harmless.
        let _ = self.0.kill();
    }
}

/// Runs a program, gives it `input` and returns what it printed; a non-zero exit is an error that
/// quotes it.
pub(crate) fn conversation<I, S>(program: &Path, args: I, input: &[u8]) -> Result<Vec<u8>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = clean(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tracing::debug!(target: "run", "{command:?}");
    let cannot = |source: io::Error| {
        Error::failed(format!("cannot run {}", program.display())).because(source)
    };
    let mut child = command.spawn().map_err(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that dies before reading says why on its standard error.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::qemu(format!("{} failed ({})", program.display(), output.status))
        .because(tail(&output.stderr)))
}

/// The last lines of what a program printed.
pub(crate) fn tail(text: &[u8]) -> String {
    let start = text.len().saturating_sub(TAIL);
    String::from_utf8_lossy(&text[start..]).trim().to_owned()
}

/// Starts a program that outlives us, unless `with_us`: a session of its own, no standard input,
/// its output in `log`, and `inherited` kept open. It runs in its `confinement`, if there is one.
pub(crate) fn detached(
    argv: &[String],
    log: &File,
    inherited: Vec<OwnedFd>,
    with_us: bool,
    confinement: Option<&Confinement>,
) -> io::Result<Started> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = clean(program);
    command
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?);
    tracing::debug!(target: "run", "{command:?}");
    let us = if with_us { Some(PidFd::open(std::process::id().cast_signed())?) } else { None };
    let prepare = |command: &mut Command| {
        keep_no_others(command);
        command.preserved_fds(inherited);
        in_new_session(command, us);
    };
    match confinement {
        Some(confinement) => confinement.start(command, prepare),
        None => {
            prepare(&mut command);
            Started::of(&command.spawn()?)
        }
    }
}

/// Starts a companion that outlives us: a session of its own, `orders` as its standard input,
/// `inherited` kept open.
pub(crate) fn companion(
    argv: &[String],
    orders: OwnedFd,
    inherited: Vec<OwnedFd>,
) -> io::Result<Child> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = clean(program);
    command.args(args).current_dir("/").stdin(orders).stdout(Stdio::null()).stderr(Stdio::null());
    command.preserved_fds(inherited);
    in_new_session(&mut command, None);
    tracing::debug!(target: "run", "{command:?}");
    command.spawn()
}

/// Starts a helper that ends with us: no standard input, `inherited` kept open, its errors piped,
/// killed by the kernel when we die.
pub(crate) fn helper(argv: &[String], inherited: OwnedFd) -> io::Result<Child> {
    start_helper(argv, inherited, None)
}

/// The same, in a cage.
pub(crate) fn caged_helper(argv: &[String], inherited: OwnedFd, cage: &Cage) -> io::Result<Child> {
    start_helper(argv, inherited, Some(cage))
}

fn start_helper(argv: &[String], inherited: OwnedFd, cage: Option<&Cage>) -> io::Result<Child> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = clean(program);
    command
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.preserved_fds(vec![inherited]);
    dies_with_us(&mut command);
    cage.map_or(Ok(()), |cage| cage.apply(&mut command))?;
    tracing::debug!(target: "run", "{command:?}");
    command.spawn()
}

/// Whatever else is open stays with us, what we have inherited ourselves, too (`close_range(2)`,
/// Linux 5.11): an open directory is a way to the host's files. To be called before descriptors are
/// chosen that are kept.
#[allow(unsafe_code)]
fn keep_no_others(command: &mut Command) {
    use nix::libc::{CLOSE_RANGE_CLOEXEC, SYS_close_range, c_uint, syscall};
    const FIRST: c_uint = 3;
    // SAFETY: between fork and exec only close_range(2) is called, which is async-signal-safe. It
    // closes nothing before exec, so that nobody's descriptor is closed under them.
    unsafe {
        command.pre_exec(|| {
            // An older kernel does not know it.
            syscall(SYS_close_range, FIRST, c_uint::MAX, CLOSE_RANGE_CLOEXEC);
            Ok(())
        });
    }
}

/// A session of its own. The kernel kills it when the process `us` dies, if there is one.
#[allow(unsafe_code)]
fn in_new_session(command: &mut Command, us: Option<PidFd>) {
    let begin = move || {
        if us.is_some() {
            set_parent_process_death_signal(Some(Signal::KILL))?;
        }
        nix::unistd::setsid()?;
        // A parent that has died before is not noticed by the kernel. One that was dying when the
        // signal was set has ended after setsid(2), which takes the lock that deaths are under.
        match &us {
            Some(us) if has_ended(us)? => Err(io::Error::from_raw_os_error(nix::libc::ESRCH)),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec only prctl(2), setsid(2) and poll(2) are called, which are
    // async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(begin);
    }
}

/// Can be asked in another PID namespace, too, where the parent has no number.
fn has_ended(process: &PidFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

#[allow(unsafe_code)]
fn dies_with_us(command: &mut Command) {
    let us = rustix::process::getpid();
    // SAFETY: between fork and exec only prctl(2), getppid(2) and setpgid(2) are called, which are
    // async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            be_killed_with(us)?;
            Ok(rustix::process::setpgid(None, None)?)
        });
    }
}

/// In the child: the kernel kills it when `parent` dies (`PR_SET_PDEATHSIG`). A parent that has
/// died before that is not noticed by the kernel, and is looked for here: the child has another
/// parent then, and must not go on.
fn be_killed_with(parent: rustix::process::Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        _ => Err(io::Error::from_raw_os_error(nix::libc::ESRCH)),
    }
}

#[cfg(test)]
mod tests;
