//! Running programs. Nothing here ever reaches a shell; a failing program's own last words become the error.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use command_fds::CommandFdExt;

use super::pidfd::PidFd;
use crate::error::{Error, Result};

/// How much of a failing program's standard error is kept.
const TAIL: usize = 4096;

/// The full path of a program: as given when it contains a slash, else the first executable of that name in the
/// `search` path (a colon-separated list, as `PATH` is).
pub fn find(program: &Path, search: &OsStr) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let executable = |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    if program.components().count() > 1 {
        return executable(program).then(|| program.to_path_buf());
    }
    std::env::split_paths(search).map(|directory| directory.join(program)).find(|candidate| executable(candidate))
}

/// Runs a program to its end and returns what it printed; a non-zero exit is an error that quotes it.
pub fn output<I, S>(program: &Path, args: I) -> Result<Vec<u8>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    tracing::debug!(target: "run", "{command:?}");
    let output = command
        .output()
        .map_err(|source| Error::failed(format!("cannot run {}", program.display())).because(source))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::qemu(format!("{} failed ({})", program.display(), output.status)).because(tail(&output.stderr)))
}

/// Runs a program without blocking the caller; `paths` follow `args`, behind `--`. An exit code that is not in `fine` is an error that
/// quotes its last words. Dropped half-way, the program is killed.
pub async fn run(program: &Path, args: &[&str], paths: &[&Path], fine: &[i32]) -> Result<Vec<u8>> {
    let cannot = |source: io::Error| Error::failed(format!("cannot run {}", program.display())).because(source);
    let mut command = Command::new(program);
    command.args(args).arg("--").args(paths).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    dies_with_us(&mut command);
    tracing::debug!(target: "run", "{command:?}");
    let child = command.spawn().map_err(cannot)?;
    let output = to_its_end(child).await.map_err(cannot)?;
    match output.status.code() {
        Some(code) if fine.contains(&code) => Ok(output.stdout),
        _ => {
            let what = args.first().copied().unwrap_or_default();
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            Err(Error::qemu(format!("{name} {what} failed ({})", output.status))
                .because(format!("\"{}\"", tail(&output.stderr))))
        }
    }
}

/// Runs a program to its end, however it ends; dropped half-way, the program is killed.
pub async fn outcome(program: &Path, args: &[String]) -> io::Result<Output> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    dies_with_us(&mut command);
    tracing::debug!(target: "run", "{command:?}");
    to_its_end(command.spawn()?).await
}

async fn to_its_end(child: Child) -> io::Result<Output> {
    let _guard = KillOnDrop(PidFd::open(child.id().cast_signed())?);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await;
    output.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

struct KillOnDrop(PidFd);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Of one that has ended it is harmless.
        let _ = self.0.kill();
    }
}

/// Runs a program, gives it `input` and returns what it printed; a non-zero exit is an error that quotes it.
pub fn conversation<I, S>(program: &Path, args: I, input: &[u8]) -> Result<Vec<u8>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    tracing::debug!(target: "run", "{command:?}");
    let cannot = |source: io::Error| Error::failed(format!("cannot run {}", program.display())).because(source);
    let mut child = command.spawn().map_err(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that dies before reading says why on its standard error.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::qemu(format!("{} failed ({})", program.display(), output.status)).because(tail(&output.stderr)))
}

/// The last lines of what a program printed.
pub fn tail(text: &[u8]) -> String {
    let start = text.len().saturating_sub(TAIL);
    String::from_utf8_lossy(&text[start..]).trim().to_owned()
}

/// Starts a program that outlives us, unless `with_us`: a session of its own, no standard input, its output in `log`, and `inherited` kept open.
pub fn detached(argv: &[String], log: &File, inherited: Vec<OwnedFd>, with_us: bool) -> io::Result<Child> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    command.preserved_fds(inherited);
    in_new_session(&mut command);
    if with_us {
        is_killed_with_us(&mut command);
    }
    tracing::debug!(target: "run", "{command:?}");
    command.spawn()
}

/// Starts a companion that outlives us: a session of its own, `orders` as its standard input, `inherited` kept open.
pub fn companion(argv: &[String], orders: OwnedFd, inherited: Vec<OwnedFd>) -> io::Result<Child> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(orders).stdout(Stdio::null()).stderr(Stdio::null());
    command.preserved_fds(inherited);
    in_new_session(&mut command);
    tracing::debug!(target: "run", "{command:?}");
    command.spawn()
}

/// Starts a helper that ends with us: no standard input, `inherited` kept open, its errors piped, killed by the kernel when we die.
pub fn helper(argv: &[String], inherited: OwnedFd) -> io::Result<Child> {
    let (program, args) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.preserved_fds(vec![inherited]);
    dies_with_us(&mut command);
    tracing::debug!(target: "run", "{command:?}");
    command.spawn()
}

#[allow(unsafe_code)]
fn in_new_session(command: &mut Command) {
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
}

#[allow(unsafe_code)]
fn is_killed_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?));
    }
}

#[allow(unsafe_code)]
fn dies_with_us(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) and setpgid(2) are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            Ok(rustix::process::setpgid(None, None)?)
        });
    }
}
