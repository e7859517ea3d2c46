//! Starting QEMU and seeing it end.
//!
//! ```text
//! locked run.lock ──spawn──▶ child ──creates qmp.sock──▶ greeting ──▶ running
//!                              └──exits──▶ its last words are the error, nothing is left behind
//! ```
//! The descriptor of `run.lock` is inherited by QEMU alone: the lock is held exactly as long as
//! QEMU lives, however it or we die.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::qmp::{Qmp, QmpError};
use super::sockets::Sockets;
use crate::error::{Error, IoContext, Result};
use crate::store::open_lock;
use crate::sys::cgroup;
use crate::sys::command;
use crate::sys::confine::Confinement;
use crate::sys::fault;
use crate::sys::files;
use crate::sys::flock;
use crate::sys::limiter;
use crate::sys::pidfd::PidFd;
use crate::sys::ready::{Ready, Watch};
use crate::sys::rotated::Rotated;

/// How long QEMU may take from its start to its greeting. Loading a large initrd from a slow disk
/// comes first.
const START: Duration = Duration::from_secs(120);
/// How much of the end of QEMU's log is read for its last words, in bytes.
const LAST_WORDS: u64 = 4096;
/// How often the run lock is tried again when an observer happens to look at it; each look takes
/// microseconds.
const LOCK_TRIES: u32 = 200;

/// Files that go with a start.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    /// The lock QEMU inherits.
    pub run_lock: &'a Path,
    /// What QEMU prints; its directory also has the serial log.
    pub log: &'a Path,
    /// The limit of each log, in bytes.
    pub log_limit: Option<u64>,
    /// What else it keeps open, for the locks on it.
    pub held: Vec<OwnedFd>,
    /// It is killed when we are.
    pub with_us: bool,
    /// What it may reach; `None`: whatever we may.
    pub confinement: Option<Confinement>,
}

/// The argument vector of the process `pid`, as it says itself (`/proc/PID/cmdline`, at most 1 MiB
/// of it); empty when it has ended.
pub(crate) fn argv(pid: i32) -> Vec<String> {
    let mut text = Vec::new();
    let _ = File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(1 << 20).read_to_end(&mut text));
    text.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Starts QEMU and waits for its greeting. When it ends instead, the error quotes it.
pub(crate) async fn start(argv: &[String], sockets: &Sockets, files: Files<'_>) -> Result<Qmp> {
    let lock = take_run_lock(files.run_lock).await?;
    let mut inherited = files.held;
    inherited.push(lock.into());
    let log = open_log(files.log)?;
    let socket = sockets.qmp();
    let watch = Watch::new(sockets.directory()).on("watch", sockets.directory())?;
    fault::point("QEMU, about to be started").on("start QEMU for", sockets.directory())?;
    if let Some(group) = files.confinement.as_ref().and_then(Confinement::group) {
        let link = sockets.group();
        std::os::unix::fs::symlink(group, &link).on("create", &link)?;
    }
    let child = command::detached(argv, &log, inherited, files.with_us, files.confinement.as_ref())
        .map_err(|source| did_not_run(&argv[0], files.confinement.as_ref(), source))?;
    let watched = PidFd::open(child.pid()).and_then(|watched| Ok((watched.try_clone()?, watched)));
    let (process, watched) = watched.map_err(|source| {
        // Nobody would end it.
        let _ = child.kill();
        let _ = child.wait();
        Error::failed("cannot watch QEMU").because(source)
    })?;
    let mut guard = Starting { process: Some(watched) };
    let error = match guard
        .greeted(&process, watch, &socket, files.log_limit.zip(files.log.parent()))
        .await
    {
        Ok(qmp) => {
            guard.process = None;
            return Ok(qmp);
        }
        Err(error) => error,
    };
    drop(guard);
    let _ = child.wait();
    clear(sockets);
    Err(match last_words(files.log) {
        Some(words) => error.because(words),
        None => error,
    })
}

/// Why a program was not started. That it cannot be confined as strictly as was asked for is no
/// fault of the program.
fn did_not_run(program: &str, confinement: Option<&Confinement>, source: io::Error) -> Error {
    match confinement.and_then(|confinement| confinement.refusal(&source)) {
        None => Error::failed(format!("cannot run {program}")).because(source),
        Some(why) => {
            let refused = Error::refused("QEMU cannot be confined as strictly as this");
            let error = refused.because(why).hint(
                "as far as this host can: --confine default    what that means: docs/security.md",
            );
            match confinement.is_some_and(|it| it.is_for_destinations(&source)) {
                true => error.hint(
                    "a guest that reaches nothing needs no filter of destinations: \
                     cowhand set VM net=restricted, or --net restricted of run and clone",
                ),
                false => error,
            }
        }
    }
}

/// An empty log. QEMU appends to it, so that it can be truncated while QEMU writes.
fn open_log(path: &Path) -> Result<File> {
    let log = files::append_private(path).on("open", path)?;
    log.set_len(0).on("truncate", path)?;
    Ok(log)
}

/// What a QEMU printed last, quoted; `None` when it said nothing.
pub(crate) fn last_words(log: &Path) -> Option<String> {
    let words = Rotated::open(log)
        .and_then(|log| log.tail(0, LAST_WORDS))
        .map(|text| command::tail(&text))
        .unwrap_or_default();
    (!words.is_empty()).then(|| quote(&words))
}

/// A QEMU that has not greeted us yet; dropped before it has, it is killed.
struct Starting {
    process: Option<PidFd>,
}

impl Starting {
    /// The first conversation with it; its logs are limited by then.
    async fn greeted(
        &mut self,
        process: &PidFd,
        watch: Watch,
        socket: &Path,
        log_limit: Option<(u64, &Path)>,
    ) -> Result<Qmp> {
        fault::point("QEMU, started").on("watch QEMU at", socket)?;
        if let Some((limit, directory)) = log_limit {
            // QEMU takes tens of milliseconds to its greeting; the limiter is there before.
            limiter::start(directory, limit, process).map_err(|source| {
                Error::failed("cannot start the process that limits the logs").because(source)
            })?;
        }
        let qmp = match self.wait(watch, socket.to_owned()).await? {
            Ready::Created => greet(socket, process).await?,
            Ready::Ended => return Err(Error::qemu("QEMU ended at its start")),
            Ready::TimedOut => {
                return Err(Error::qemu(format!(
                    "QEMU did not start within {} s",
                    START.as_secs()
                )));
            }
        };
        fault::point("QEMU, at its greeting").on("speak to QEMU at", socket)?;
        Ok(qmp)
    }

    async fn wait(&mut self, watch: Watch, socket: PathBuf) -> Result<Ready> {
        let Some(process) = &self.process else {
            return Ok(Ready::Ended);
        };
        let process = process
            .try_clone()
            .map_err(|source| Error::failed("cannot watch QEMU").because(source))?;
        let waiting = tokio::task::spawn_blocking(move || watch.wait(&socket, &process, START));
        let ready =
            waiting.await.map_err(|panic| Error::failed("cannot watch QEMU").because(panic))?;
        ready.map_err(|source| Error::failed("cannot watch QEMU").because(source))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            let _ = process.kill();
        }
    }
}

/// QEMU's own words, without the time before each line.
fn quote(words: &str) -> String {
    let lines: Vec<&str> = words.lines().map(strip_timestamp).collect();
    format!("\"{}\"", lines.join("\n"))
}

/// `-msg timestamp=on` puts `2026-11-22T09:12:01.123456Z ` before QEMU's own messages.
fn strip_timestamp(line: &str) -> &str {
    match line.split_once(' ') {
        Some((stamp, rest)) if stamp.len() == 27 && stamp.ends_with('Z') && stamp.contains('T') => {
            rest
        }
        _ => line,
    }
}

/// The socket's file appears a moment before QEMU listens on it, and stays behind when QEMU ends in
/// that moment.
async fn greet(socket: &Path, process: &PidFd) -> Result<Qmp> {
    loop {
        match Qmp::connect(socket, START).await {
            Err(QmpError::Connect { source, .. })
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                if wait_for_end(process, Duration::from_millis(1)).await? {
                    return Err(Error::qemu("QEMU ended at its start"));
                }
            }
            Err(QmpError::Closed) => return Err(Error::qemu("QEMU ended at its start")),
            other => return Ok(other?),
        }
    }
}

async fn take_run_lock(path: &Path) -> Result<File> {
    let lock = open_lock(path)?;
    for _ in 0..LOCK_TRIES {
        if flock::try_exclusive(&lock).on("lock", path)? {
            return Ok(lock);
        }
        // The caller has seen that no QEMU runs; an observer holds the lock for an instant, and
        // flock tells no event for that.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Err(Error::refused("it is running already"))
}

/// Removes the sockets of a QEMU that ended, and its control group.
pub(crate) fn clear_sockets(sockets: &Sockets) {
    let link = sockets.group();
    if let Ok(group) = std::fs::read_link(&link) {
        cgroup::remove(&group);
    }
    // Whatever it is by now: QEMU may remove files here, and make sockets.
    let _ = std::fs::remove_file(link);
    for path in sockets.all().into_iter().chain(sockets.credentials()) {
        let _ = std::fs::remove_file(path);
    }
}

/// Removes what a QEMU that ended badly has left of its sockets, and their directory.
pub(crate) fn clear(sockets: &Sockets) {
    clear_sockets(sockets);
    let _ = std::fs::remove_dir(sockets.directory());
}

/// Waits until the process has ended; false when `limit` comes first.
pub(crate) async fn wait_for_end(process: &PidFd, limit: Duration) -> Result<bool> {
    match tokio::time::timeout(limit, process.ended()).await {
        Ok(result) => result
            .map(|()| true)
            .map_err(|source| Error::failed("cannot wait for QEMU").because(source)),
        Err(_) => Ok(false),
    }
}
