//! Running a command in a guest as if it ran here: its input, output, signals and end pass through
//! as they come. The helper runs it; in a guest that cannot run the helper the agent does, without
//! input while it runs, and with its output at the end.

use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use super::agent_exec;
use super::install::{self, Reached};
use super::outcome::{Failure, Finished};
use super::port::{self, Client};
use super::session;
use crate::context::Context;
use crate::error::{Error, Kind as ErrorKind};
use crate::helper::frame::{self, Kind, LARGEST, Reply, WINDOW, Why};
use crate::instance::{launch, sockets, status};
use crate::model::{Name, State};
use crate::qemu::qmp::Qmp;
use crate::sys::rotated::Rotated;

/// How often it is looked whether the guest is still there.
const TICK: Duration = Duration::from_secs(2);
/// How long it may be silent although it was asked.
const SILENCE: Duration = Duration::from_secs(120);
/// How long a command that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How many signals to end, one soon after the other, a command may ignore before we leave it.
const PATIENCE: u32 = 3;
const IN_A_ROW: Duration = Duration::from_secs(10);
/// How much of the end of the serial log is searched for the message of a panic, in bytes.
const PANIC: u64 = 64 << 10;
const INT: u8 = 2;
const QUIT: u8 = 3;
const TERM: u8 = 15;
const KILL: u8 = 9;

/// A command for the guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The program, its arguments, and how it runs; no shell is involved.
    pub exec: frame::Exec,
    /// How long the guest may take to come up.
    pub agent_limit: Duration,
    /// How long the command may take.
    pub limit: Option<Duration>,
    /// Nothing is sent into the guest's memory: its agent has to do.
    pub agent_only: bool,
}

/// Which stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Its standard output.
    Output,
    /// Its standard error.
    Errors,
}

/// What reaches the command while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    /// A signal, by its number.
    Signal(u8),
    /// The terminal has so many rows and columns now.
    Resize(u16, u16),
}

/// The near ends of a command's streams.
pub(crate) struct Streams<'a> {
    /// What it reads; closed at its end.
    pub input: Option<Receiver<Vec<u8>>>,
    /// Signals and sizes.
    pub control: Option<Receiver<Control>>,
    /// Is told what it writes. When it fails, nobody reads any more.
    pub output: &'a mut dyn FnMut(Stream, &[u8]) -> std::io::Result<()>,
}

/// Nobody reads its output any more: as if SIGPIPE had ended it. Or it cannot be written, which is
/// a failure of ours.
fn unread(error: std::io::Error) -> Result<Finished, Failure> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Ok(Finished { code: 128 + 13, truncated: false });
    }
    Err(Error::failed("what the command writes cannot be written here").because(error).into())
}

/// Runs a command in `name` and waits for its end.
pub(crate) async fn exec(
    context: &Context,
    name: &Name,
    request: &Request,
    mut streams: Streams<'_>,
) -> Result<Finished, Failure> {
    if request.exec.command.is_empty() {
        return Err(Error::usage("no command was given")
            .hint("cowhand exec NAME -- COMMAND")
            .into());
    }
    session::ensure_recovered(context, name).await?;
    session::refuse_paused(context, name).await?;
    let reaching = async {
        match request.agent_only {
            true => Ok(Reached::AgentOnly("its agent alone was to be used".to_owned())),
            false => install::reach(context, name, request.agent_limit).await,
        }
    };
    let reached = tokio::select! {
        reached = reaching => reached?,
        () = interrupted(&mut streams.control) => {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted").into());
        }
    };
    match reached {
        Reached::Helper(mut client) => {
            converse(context, name, &mut client, request, &mut streams).await
        }
        Reached::AgentOnly(why) => {
            let exec = &request.exec;
            let wanted = [
                (exec.terminal.is_some(), "a terminal"),
                (exec.directory.is_some(), "a working directory"),
                (exec.user.is_some(), "another user"),
            ];
            if let Some((_, what)) = wanted.into_iter().find(|(wanted, _)| *wanted) {
                return Err(Error::refused(format!(
                    "the guest of {name} cannot give a command {what}: {why}"
                ))
                .into());
            }
            let (mut near, mut control) = (streams.input.take(), streams.control.take());
            let collecting = async {
                let mut input = Vec::new();
                while let Some(bytes) = match &mut near {
                    Some(more) => more.recv().await,
                    None => None,
                } {
                    input.extend(bytes);
                }
                input
            };
            let interrupt = || {
                Error::new(
                    ErrorKind::Interrupted,
                    "interrupted; the command continues in the guest",
                )
            };
            let input = tokio::select! {
                input = collecting => input,
                () = interrupted(&mut control) => {
                    let text = "interrupted; the command was not started";
                    return Err(Error::new(ErrorKind::Interrupted, text).into());
                }
            };
            let request = agent_exec::Request {
                command: exec.command.clone(),
                environment: exec.environment.clone(),
                input: exec.input.then_some(input),
                agent_limit: request.agent_limit,
                limit: request.limit,
            };
            let finished = tokio::select! {
                finished = agent_exec::exec(context, name, &request) => finished?,
                () = interrupted(&mut control) => return Err(interrupt().into()),
            };
            let _ = (streams.output)(Stream::Output, &finished.stdout);
            let _ = (streams.output)(Stream::Errors, &finished.stderr);
            Ok(Finished { code: finished.code, truncated: finished.truncated })
        }
    }
}

/// The same, in a conversation that has begun.
pub(crate) async fn converse(
    context: &Context,
    name: &Name,
    client: &mut Client,
    request: &Request,
    streams: &mut Streams<'_>,
) -> Result<Finished, Failure> {
    client.ask(&frame::Request::Exec(request.exec.clone())).await?;
    let mut window = WINDOW;
    let mut pending: Vec<u8> = Vec::new();
    let mut input_ended = !request.exec.input;
    let far = Duration::from_secs(365 * 86_400);
    let mut deadline = Instant::now() + request.limit.unwrap_or(far);
    let mut timed_out = false;
    let mut last = [TERM, KILL].into_iter();
    let (mut signals, mut last_signal) = (0, Instant::now());
    let mut paused = false;
    let mut heard = Instant::now();
    let printed = Rotated::open(&context.store.layout.serial_log(name))
        .and_then(|log| log.end())
        .unwrap_or(0);
    let mut tick = Instant::now() + TICK;
    loop {
        tokio::select! {
            // Signals and deadlines come first: a guest that writes without end does not keep them
            // away. Then what has come is heard, before anybody asks whether something has.
            biased;
            Some(control) = receive(&mut streams.control) => match control {
                Control::Signal(signal) => {
                    if matches!(signal, INT | QUIT | TERM) {
                        signals = if last_signal.elapsed() < IN_A_ROW { signals + 1 } else { 1 };
                        last_signal = Instant::now();
                    }
                    if signals >= PATIENCE || paused && signals > 0 {
                        let message = "interrupted; the command was hung up";
                        return Err(Error::new(ErrorKind::Interrupted, message).into());
                    }
                    client.send(Kind::Signal, &[signal]).await?;
                }
                Control::Resize(rows, columns) => {
                    let size = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
                    client.send(Kind::Resize, &size).await?;
                }
            },
            () = sleep_until(deadline) => {
                let Some(signal) = last.next() else {
                    if paused {
                        context.ui.warn(&format!(
                            "{name} is paused: the command may go on when it does"
                        ));
                    }
                    return Err(Failure::TimedOut);
                };
                client.send(Kind::Signal, &[signal]).await?;
                timed_out = true;
                deadline = Instant::now() + GRACE;
            }
            frame = client.next() => {
                match frame.map_err(|error| last_words(context, name, error))? {
                    (Kind::Output, bytes) => match (streams.output)(Stream::Output, &bytes) {
                        Ok(()) => {}
                        Err(error) => return unread(error),
                    },
                    (Kind::Errors, bytes) => match (streams.output)(Stream::Errors, &bytes) {
                        Ok(()) => {}
                        Err(error) => return unread(error),
                    },
                    (Kind::Taken, bytes) => {
                        window += bytes.try_into().map_or(0, u32::from_le_bytes) as usize;
                        window = window.min(WINDOW);
                        give(client, &mut pending, &mut window).await?;
                    }
                    (Kind::Reply, payload) => {
                        return match port::parse(&payload)? {
                            _ if timed_out => Err(Failure::TimedOut),
                            Reply::Exited { code } => Ok(Finished { code, truncated: false }),
                            Reply::Killed { signal } => {
                                let code = 128u8.saturating_add(signal & 0x7f);
                                Ok(Finished { code, truncated: false })
                            }
                            Reply::Failed { why, message } => Err(match why {
                                Why::NotFound => Failure::NotFound(message),
                                Why::NotExecutable => Failure::NotExecutable(message),
                                Why::Other => Error::failed(message).into(),
                            }),
                            _ => Err(Error::qemu(
                                "what the guest answers is no answer to a command",
                            )
                            .into()),
                        };
                    }
                    _ => {}
                }
                // Behind the output, which may wait for whoever reads ours.
                heard = Instant::now();
            }
            bytes = receive(&mut streams.input), if !input_ended && pending.is_empty() => {
                match bytes {
                    Some(bytes) => {
                        pending = bytes;
                        give(client, &mut pending, &mut window).await?;
                    }
                    None => {
                        input_ended = true;
                        client.send(Kind::Input, &[]).await?;
                    }
                }
            }
            () = sleep_until(tick) => {
                tick = Instant::now() + TICK;
                look(context, name, client, &mut heard, printed).await?;
                let silent = heard.elapsed() >= TICK * 2;
                paused = silent && is_paused(context, name, paused).await?;
                if paused && signals > 0 {
                    let message = format!(
                        "interrupted; {name} is paused, and the command may go on when it does"
                    );
                    return Err(Error::new(ErrorKind::Interrupted, message).into());
                }
            }
        }
    }
}

/// Ends when a signal comes: before there is a command, it is for us.
pub(crate) async fn interrupted(control: &mut Option<Receiver<Control>>) {
    while !matches!(receive(control).await, Some(Control::Signal(_))) {}
}

/// What comes from a channel; never anything where there is none.
async fn receive<T>(channel: &mut Option<Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

async fn give(client: &mut Client, pending: &mut Vec<u8>, window: &mut usize) -> Result<(), Error> {
    while !pending.is_empty() && *window > 0 {
        let length = pending.len().min(*window).min(LARGEST);
        client.send(Kind::Input, &pending[..length]).await?;
        pending.drain(..length);
        *window -= length;
    }
    Ok(())
}

/// Is the guest still there? A kernel that has panicked says so on its console, behind what it had
/// `printed` before, and nothing else ever again.
async fn look(
    context: &Context,
    name: &Name,
    client: &mut Client,
    heard: &mut Instant,
    printed: u64,
) -> Result<(), Error> {
    if heard.elapsed() < TICK * 2 {
        return Ok(());
    }
    // It was asked by now, and has not answered.
    if heard.elapsed() > TICK * 3
        && let Some(words) = panic(context, name, printed)
    {
        let error = Error::qemu(format!("the kernel of the guest of {name} has panicked"));
        return Err(error.because(format!("\"{words}\"")));
    }
    if let Some(sockets) = sockets::of(context, name)
        && let Some(open) = Qmp::open_ports(&sockets.status()).await
        && open.get(client.index()) == Some(&false)
    {
        return Err(Error::qemu(format!(
            "the guest of {name} was restarted, or its helper was ended"
        )));
    }
    if heard.elapsed() > SILENCE {
        // A paused guest answers when it is resumed.
        if status::observe(context, name).await?.state == State::Paused {
            *heard = Instant::now();
            return Ok(());
        }
        return Err(Error::qemu(format!(
            "the guest of {name} has not answered for {} s",
            SILENCE.as_secs()
        ))
        .hint(format!("what it printed last: cowhand logs {name}")));
    }
    client.send(Kind::Ping, &[]).await
}

/// A paused guest hears nothing, and answers when it goes on; the first time, it is said so.
async fn is_paused(context: &Context, name: &Name, told: bool) -> Result<bool, Error> {
    let now = status::observe(context, name).await?;
    if now.state != State::Paused {
        return Ok(false);
    }
    if !told {
        let why =
            if now.has_io_error() { ": one of its disks cannot be written; make room" } else { "" };
        context.ui.warn(&format!(
            "{name} is paused{why}. The command continues with it: cowhand resume {name}"
        ));
    }
    Ok(true)
}

fn panic(context: &Context, name: &Name, printed: u64) -> Option<String> {
    let log = Rotated::open(&context.store.layout.serial_log(name)).ok()?;
    let bytes = log.tail(printed, PANIC).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().find(|line| line.contains("Kernel panic - not syncing"))?;
    Some(line.trim().trim_start_matches(|c: char| c != 'K').to_owned())
}

fn last_words(context: &Context, name: &Name, error: Error) -> Error {
    match launch::last_words(context, name) {
        Some(words) => error.because(words),
        None => error,
    }
}
