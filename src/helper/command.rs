//! A command in the guest: its input, output and end, as they come, on pipes or on a terminal of
//! its own.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::frame::{Exec, Kind, LARGEST, Reply, Why};
use super::port::{Event, Port};
use super::users;
use crate::sys::inside;

/// How long others may keep the output open after the command itself has ended.
const LINGER: Duration = Duration::from_secs(1);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it to its end. `None` when the host has gone: then the command was hung up.
pub(super) fn run(port: &mut Port, exec: &Exec) -> Option<Reply> {
    let mut running = match Running::start(exec) {
        Ok(running) => running,
        Err((why, message)) => return Some(Reply::Failed { why, message }),
    };
    let reply = running.attend(port);
    if reply.is_none() {
        running.signal(Signal::SIGHUP as i32);
        running.signal(Signal::SIGCONT as i32);
        // Whoever ignores that may go on; nobody waits for it.
        let child = running.child;
        std::thread::spawn(move || {
            let mut child = child;
            let _ = child.wait();
        });
    }
    reply
}

struct Running {
    child: Child,
    status: Option<ExitStatus>,
    /// Input goes here, and what has come of it and was not taken yet.
    input: Option<File>,
    pending: Vec<u8>,
    input_ended: bool,
    output: Option<File>,
    errors: Option<File>,
    /// Its output is a terminal, which tells the end by an error.
    terminal: bool,
}

type Failed = (Why, String);

impl Running {
    fn start(exec: &Exec) -> Result<Self, Failed> {
        let (program, arguments) = exec
            .command
            .split_first()
            .ok_or_else(|| (Why::NotFound, "no command was given".to_owned()))?;
        let user = match &exec.user {
            Some(user) => Some(
                users::find(user)
                    .ok_or_else(|| (Why::Other, format!("the guest has no user {user}")))?,
            ),
            None => None,
        };
        let root = users::find("0").unwrap_or_else(users::root);
        let who = user.as_ref().unwrap_or(&root);
        let home = Path::new(&who.home);
        let directory = exec.directory.as_deref().map(Path::new).unwrap_or(if home.is_dir() {
            home
        } else {
            Path::new("/")
        });
        if !directory.is_dir() {
            return Err((
                Why::Other,
                format!("the guest has no directory {}", directory.display()),
            ));
        }
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", &who.home)
            .env("USER", &who.name)
            .env("LOGNAME", &who.name);
        command.env("SHELL", &who.shell);
        if exec.terminal.is_some() {
            command.env("TERM", "xterm-256color");
        }
        for pair in &exec.environment {
            if let Some((key, value)) = pair.split_once('=') {
                command.env(key, value);
            }
        }
        let cannot =
            |error: std::io::Error| (Why::Other, format!("cannot start a command: {error}"));
        let other = user.as_ref().filter(|user| user.who.uid != 0).map(|user| user.who.clone());
        let mut ours: Option<(OwnedFd, OwnedFd)> = None;
        match exec.terminal {
            Some(size) => {
                let (master, slave) = inside::terminals(size).map_err(cannot)?;
                if let Some(who) = &other {
                    let _ =
                        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(who.uid)), None);
                }
                let clone = || slave.try_clone().map_err(cannot);
                command.stdin(clone()?).stdout(clone()?).stderr(clone()?);
                ours = Some((master.try_clone().map_err(cannot)?, master));
            }
            None => {
                command.stdin(if exec.input { Stdio::piped() } else { Stdio::null() });
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
        }
        inside::prepare(&mut command, exec.terminal.is_some(), other);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => (Why::NotFound, format!("{program}: not found in the guest")),
            ErrorKind::PermissionDenied => {
                (Why::NotExecutable, format!("{program}: not executable in the guest"))
            }
            _ if error.raw_os_error() == Some(nix::libc::ENOEXEC) => (
                Why::NotExecutable,
                format!("{program}: not executable in the guest (no #! line?)"),
            ),
            _ => (Why::Other, format!("{program}: {error}")),
        })?;
        let (input, output, errors): (Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>) =
            match ours {
                Some((write, read)) => (Some(write), Some(read), None),
                None => (
                    child.stdin.take().map(Into::into),
                    child.stdout.take().map(Into::into),
                    child.stderr.take().map(Into::into),
                ),
            };
        for fd in [&input, &output, &errors].into_iter().flatten() {
            inside::never_wait(fd).map_err(cannot)?;
        }
        Ok(Self {
            child,
            status: None,
            input: input.map(File::from),
            pending: Vec::new(),
            input_ended: false,
            output: output.map(File::from),
            errors: errors.map(File::from),
            terminal: exec.terminal.is_some(),
        })
    }

    /// To its end, or until the host goes.
    fn attend(&mut self, port: &mut Port) -> Option<Reply> {
        let mut deadline = None;
        loop {
            if self.status.is_none() {
                self.status = self.child.try_wait().ok().flatten();
                deadline = self.status.map(|_| Instant::now() + LINGER);
            }
            self.give(port);
            let more = pass_on(port, Kind::Output, &mut self.output)
                | pass_on(port, Kind::Errors, &mut self.errors);
            // What it wrote before its end is still to come, as long as there is any.
            if deadline.is_some() && (more || port.is_full()) {
                deadline = Some(Instant::now() + LINGER);
            }
            if let Some(status) = self.status {
                let silent = self.output.is_none() && self.errors.is_none();
                if silent || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Some(match (status.code(), status.signal()) {
                        (Some(code), _) => {
                            Reply::Exited { code: u8::try_from(code & 0xff).unwrap_or(1) }
                        }
                        (None, signal) => Reply::Killed {
                            signal: u8::try_from(signal.unwrap_or(9) & 0x7f).unwrap_or(9),
                        },
                    });
                }
            }
            // What can be sent is sent first: full, or waiting for more, never neither.
            port.flush();
            let full = port.is_full();
            let mut others: Vec<(BorrowedFd<'_>, PollFlags)> = Vec::new();
            if !full {
                let readable = [&self.output, &self.errors].into_iter().flatten();
                others.extend(readable.map(|file| (file.as_fd(), PollFlags::POLLIN)));
            }
            if let Some(input) = self.input.as_ref().filter(|_| !self.pending.is_empty()) {
                others.push((input.as_fd(), PollFlags::POLLOUT));
            }
            match port.wait(&others, deadline) {
                Event::Over => return None,
                Event::Other => {}
                Event::Frame(kind, payload) => self.hear(port, kind, &payload),
            }
        }
    }

    fn hear(&mut self, port: &mut Port, kind: Kind, payload: &[u8]) {
        match (kind, payload) {
            (Kind::Input, []) => self.input_ended = true,
            (Kind::Input, bytes) => self.pending.extend_from_slice(bytes),
            (Kind::Signal, [signal]) => self.signal(i32::from(*signal)),
            (Kind::Resize, [a, b, c, d]) => {
                let size = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                if let Some(terminal) = self.output.as_ref().filter(|_| self.terminal) {
                    let _ = inside::set_terminal_size(terminal, size);
                }
            }
            (Kind::Ping, _) => port.send(Kind::Pong, &[]),
            _ => {}
        }
    }

    /// Gives the command what has come for it.
    fn give(&mut self, port: &mut Port) {
        let Some(input) = &mut self.input else {
            // Nobody reads it any more.
            let waste = std::mem::take(&mut self.pending).len();
            taken(port, waste);
            return;
        };
        let mut done = 0;
        let mut closed = false;
        while done < self.pending.len() {
            match input.write(&self.pending[done..]) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    closed = true;
                    break;
                }
            }
        }
        self.pending.drain(..done);
        taken(port, done);
        if self.input_ended && self.pending.is_empty() && self.terminal {
            // A terminal's input ends by a character.
            let _ = input.write(&[4]);
            self.input_ended = false;
        } else if closed || (self.input_ended && self.pending.is_empty()) {
            self.input = None;
        }
    }

    fn signal(&self, signal: i32) {
        if self.status.is_none()
            && let (Ok(signal), Ok(group)) =
                (Signal::try_from(signal), i32::try_from(self.child.id()))
        {
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }
}

fn taken(port: &mut Port, bytes: usize) {
    if bytes > 0 {
        port.send(Kind::Taken, &u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes());
    }
}

/// Sends what the command has written, as much as there is room for, and says whether there was
/// any; at its end the file is closed.
fn pass_on(port: &mut Port, kind: Kind, from: &mut Option<File>) -> bool {
    let mut buffer = [0; LARGEST];
    let mut any = false;
    while let Some(file) = from.as_mut().filter(|_| !port.is_full()) {
        match file.read(&mut buffer) {
            Ok(read @ 1..) => {
                port.send(kind, &buffer[..read]);
                any = true;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return any,
            // A terminal whose last user has gone says so by an error.
            Ok(_) | Err(_) => *from = None,
        }
    }
    any
}
