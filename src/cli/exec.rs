use std::fmt::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Serialize, Serializer};

use super::{App, local};
use crate::error::{Error, Kind, Result};
use crate::guest::exec::{self, Request, Stream, Streams};
use crate::guest::outcome::{Failure, Finished};
use crate::helper::frame;
use crate::model::{Name, parse_size, parse_time};
use crate::output::{Format, Printer, json};

/// Run a command in a guest, and exit with its exit code
///
/// The command is not run by a shell; for one, use `-- sh -c '…'`. Output is streamed. Signals are
/// forwarded; three of SIGINT, SIGQUIT or SIGTERM in a row disconnect. The first `exec` copies a
/// small helper into the guest's memory through the guest agent. Where that is not possible
/// (Windows, or an agent that refuses), the agent itself runs the command, and its output, at most
/// 16 MiB, is printed when it ends. Exit codes: the command's own; 128 and more for a signal; 124
/// if the time limit is reached; 125 if cowhand itself fails; 126 not executable; 127 not found in
/// the guest.
#[derive(Debug, Args)]
pub(super) struct Exec {
    #[command(flatten)]
    how: ExecOptions,
    /// Time limit: seconds, or 90s, 10m, 2h. At the limit the command gets SIGTERM, and SIGKILL 5 s
    /// later; one that was started through the guest agent only is left running
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// Seconds to wait for the guest to boot and its agent to answer
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    agent_timeout: u64,
    /// Use the guest agent only: no helper is copied into the guest; output is printed at the end
    #[arg(long)]
    agent_only: bool,
    /// What to exit with when the command could not be run
    #[arg(long, hide = true, value_name = "CODE", default_value_t = OURS)]
    failure_code: u8,
    /// The VM
    name: Name,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How a command runs in a guest.
#[derive(Debug, Args)]
pub(super) struct ExecOptions {
    /// Forward standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Allocate a terminal in the guest, of the size of this one
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable; without a value, pass on cowhand's own; can be repeated
    #[arg(short, long = "env", value_name = "K[=V]")]
    env: Vec<String>,
    /// Read environment variables from a file, one per line; `-` is standard input; can be
    /// repeated. Keeps values out of `ps`
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory in the guest [default: the user's home directory]
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    directory: Option<String>,
    /// User to run the command as, by name or number [default: root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// With --format json: keep at most this much of each output stream, and print `truncated` if
    /// there was more
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size)]
    pub max_output: u64,
}

/// Our own failure.
pub(super) const OURS: u8 = 125;

impl Exec {
    pub(super) async fn run(self, app: &App) -> u8 {
        let (_raw, size) = match self.how.tty.then(local::terminal).transpose() {
            Ok(terminal) => terminal.unzip(),
            Err(error) => return fail(app, self.failure_code, &error),
        };
        let request = match self.how.command(self.command, size) {
            Ok(exec) => Request {
                exec,
                agent_limit: Duration::from_secs(self.agent_timeout),
                limit: self.timeout,
                agent_only: self.agent_only,
            },
            Err(error) => return fail(app, self.failure_code, &error),
        };
        let near = match Near::new(&app.printer, &request, &self.how) {
            Ok(near) => near,
            Err(error) => return fail(app, self.failure_code, &error),
        };
        let name = self.name;
        let (result, captured) = near
            .attend(async |streams| exec::exec(&app.context, &name, &request, streams).await)
            .await;
        let ours =
            matches!(&result, Err(Failure::Ours(error)) if error.kind() != Kind::Interrupted);
        match code(app, name.as_str(), request.limit, result, &captured, None) {
            _ if ours => self.failure_code,
            code => code,
        }
    }
}

impl ExecOptions {
    /// The command as the guest is asked for it, on a terminal of this size.
    pub(super) fn command(
        &self,
        command: Vec<String>,
        terminal: Option<(u16, u16)>,
    ) -> Result<frame::Exec> {
        let mut environment = Vec::new();
        for file in &self.env_file {
            if file.as_os_str() == "-" && (self.interactive || self.tty) {
                return Err(Error::usage(
                    "--env-file - and the command (-i, -t) cannot both have standard input",
                )
                .hint("read the variables from a file: --env-file FILE"));
            }
            environment.extend(local::variables(file)?);
        }
        for pair in &self.env {
            environment
                .push(local::variable(pair).map_err(|why| Error::usage(format!("-e: {why}")))?);
        }
        let environment = local::last_of_each(environment);
        Ok(frame::Exec {
            command,
            environment,
            directory: self.directory.clone(),
            user: self.user.clone(),
            terminal,
            input: self.interactive || self.tty,
        })
    }
}

/// What a command wrote, where it was not printed at once.
#[derive(Debug, Default)]
pub(super) struct Captured {
    stdout: Kept,
    stderr: Kept,
}

/// The beginning of a stream.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    /// Keeps `bytes` as far as there is room for them in `limit` bytes. What comes later is
    /// dropped: the command has to go on.
    fn take(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.truncated |= bytes.len() > room;
    }
}

/// As text, without a copy of it. What is not UTF-8 becomes U+FFFD; a character that the limit has
/// cut in two is left out.
impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chunks = self.bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            f.write_str(chunk.valid())?;
            let cut = self.truncated && chunks.peek().is_none() && chunk.invalid().len() < 4;
            if !chunk.invalid().is_empty() && !cut {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

/// Our ends of a command's streams.
pub(super) struct Near<'a> {
    printer: &'a Printer,
    terminal: bool,
    input: bool,
    /// Bytes of each stream that are kept in memory.
    limit: usize,
}

impl<'a> Near<'a> {
    /// Ends for `request`.
    pub(super) fn new(printer: &'a Printer, request: &Request, how: &ExecOptions) -> Result<Self> {
        let terminal = request.exec.terminal.is_some();
        if terminal && printer.format == Format::Json {
            return Err(Error::usage("-t cannot be used with --format json")
                .hint("leave out -t or --format json"));
        }
        let limit = usize::try_from(how.max_output).unwrap_or(usize::MAX);
        Ok(Self { printer, terminal, input: how.interactive || terminal, limit })
    }

    /// Runs `work` on them.
    pub(super) async fn attend<T>(
        self,
        work: impl AsyncFnOnce(Streams<'_>) -> std::result::Result<T, Failure>,
    ) -> (std::result::Result<T, Failure>, Captured) {
        let mut captured = Captured::default();
        let control = match local::control(self.terminal) {
            Ok(control) => control,
            Err(error) => return (Err(error.into()), captured),
        };
        let json = self.printer.format == Format::Json;
        let (printer, limit) = (self.printer, self.limit);
        let mut output = |stream: Stream, bytes: &[u8]| match (stream, json) {
            (Stream::Output, true) => {
                captured.stdout.take(bytes, limit);
                Ok(())
            }
            (Stream::Errors, true) => {
                captured.stderr.take(bytes, limit);
                Ok(())
            }
            (Stream::Output, false) => printer.pass(bytes),
            (Stream::Errors, false) => printer.pass_error(bytes),
        };
        let streams = Streams {
            input: self.input.then(local::input),
            control: Some(control),
            output: &mut output,
        };
        let result = work(streams).await;
        (result, captured)
    }
}

/// Says how it ended, and returns the exit code for that.
pub(super) fn code(
    app: &App,
    name: &str,
    limit: Option<Duration>,
    result: std::result::Result<Finished, Failure>,
    captured: &Captured,
    about: Option<&json::Run<'_>>,
) -> u8 {
    let seconds = limit.unwrap_or_default().as_secs();
    let tell = |exit_code: u8, truncated: bool, timed_out: bool| {
        let Captured { stdout, stderr } = captured;
        let truncated = truncated || stdout.truncated || stderr.truncated;
        app.printer.json(&json::Ended {
            exit_code,
            stdout,
            stderr,
            truncated,
            timed_out,
            run: about,
        });
    };
    let in_json = app.printer.format == Format::Json;
    // A VM that was kept has to be named, and so has what came before a timeout.
    match &result {
        Err(Failure::TimedOut) if in_json => tell(124, false, true),
        Err(_) if in_json && about.is_some_and(json::Run::is_kept) => tell(OURS, false, false),
        _ => {}
    }
    match result {
        Ok(finished) => {
            if in_json {
                tell(finished.code, finished.truncated, false);
            } else if finished.truncated {
                app.context.ui.warn("the guest agent kept only the beginning of the output");
            }
            finished.code
        }
        Err(Failure::TimedOut) => fail(
            app,
            124,
            &Error::qemu(format!("the command did not end within {seconds} s and was ended")),
        ),
        Err(Failure::GoesOn { pid }) => {
            let error = Error::qemu(format!(
                "the command did not end within {seconds} s; it continues in {name}"
            ))
            .hint(format!("end it: cowhand exec {name} -- kill {pid}"));
            fail(app, 124, &error)
        }
        Err(Failure::NotExecutable(message)) => fail(app, 126, &Error::failed(message)),
        Err(Failure::NotFound(message)) => fail(app, 127, &Error::not_found(message)),
        Err(Failure::Ours(error)) if error.kind() == Kind::Interrupted => {
            fail(app, Kind::Interrupted.exit_code(), &error)
        }
        Err(Failure::Ours(error)) => fail(app, OURS, &error),
    }
}

pub(super) fn fail(app: &App, code: u8, error: &Error) -> u8 {
    app.printer.error(error);
    code
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_says_when_it_is_not_all() {
        let mut kept = Kept::default();
        kept.take("grün".as_bytes(), 4);
        // The limit has cut no character in two.
        assert_eq!((kept.to_string().as_str(), kept.truncated), ("grü", true));
        let mut kept = Kept::default();
        kept.take("grü".as_bytes(), 3);
        assert_eq!((kept.to_string().as_str(), kept.truncated), ("gr", true));
        kept.take(&[0; 100], 3);
        assert_eq!(kept.bytes.len(), 3);
        let mut exact = Kept::default();
        exact.take(b"abc", 3);
        exact.take(b"", 3);
        assert!(!exact.truncated);
        assert_eq!(serde_json::to_string(&exact).expect("JSON"), "\"abc\"");
    }

    proptest! {
        #[test]
        fn what_is_kept_reads_as_std_reads_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut kept = Kept::default();
            kept.take(&bytes, 1000);
            prop_assert_eq!(kept.to_string(), String::from_utf8_lossy(&bytes));
        }
    }
}
