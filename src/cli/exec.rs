use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::{App, local};
use crate::error::{Error, Kind, Result};
use crate::guest::exec::{self, Failure, Finished, Request, Stream, Streams};
use crate::helper::frame;
use crate::model::{Name, parse_time};
use crate::output::{Format, Printer};

/// Run a command in a guest as if it ran here, and exit as it does
///
/// No shell is involved: for one, say `-- sh -c '…'`. Output comes as it is written; signals are handed on, and three in a row hang up. The first time, a small helper is sent
/// into the guest's memory through its agent; where that cannot be (Windows, no agent's leave), the agent itself runs the command, and the
/// output arrives at its end, at most 16 MiB of it. Exit codes: the command's own, 128 and more for a signal; 124 timeout, 125 our own failure, 126 not executable,
/// 127 not found in the guest.
#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    how: How,
    /// How long it may take, in seconds or like 90s, 10m, 2h; then it is terminated, and 5 s later killed
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// How long the guest may take to boot as far as its agent, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    agent_timeout: u64,
    /// Through the guest agent alone: nothing is sent into the guest's memory, output comes at the end
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
pub struct How {
    /// Give it what comes on standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal of its own, as large as this one
    #[arg(short, long)]
    pub tty: bool,
    /// Add a variable to its environment; can be repeated. Without a value: the one it has here
    #[arg(short, long = "env", value_name = "K[=V]")]
    env: Vec<String>,
    /// Where it runs in the guest [default: the user's home]
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    directory: Option<String>,
    /// Who runs it in the guest, by name or number [default: root]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
}

/// Our own failure.
pub const OURS: u8 = 125;

impl Exec {
    pub async fn run(self, app: &App) -> u8 {
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
        let near = match Near::new(&app.printer, &request, self.how.interactive) {
            Ok(near) => near,
            Err(error) => return fail(app, self.failure_code, &error),
        };
        let name = self.name;
        let (result, captured) =
            near.attend(async |streams| exec::exec(&app.context, &name, &request, streams).await).await;
        let ours = matches!(&result, Err(Failure::Ours(error)) if error.kind() != Kind::Interrupted);
        match code(app, name.as_str(), request.limit, result, &captured, Value::Null) {
            _ if ours => self.failure_code,
            code => code,
        }
    }
}

impl How {
    /// The command as the guest is asked for it, on a terminal of this size.
    pub fn command(&self, command: Vec<String>, terminal: Option<(u16, u16)>) -> Result<frame::Exec> {
        let mut environment = Vec::new();
        for pair in &self.env {
            match pair.split_once('=') {
                Some(_) => {
                    super::create::tag_pair(pair)?;
                    environment.push(pair.clone());
                }
                None => match std::env::var(pair) {
                    Ok(value) => environment.push(format!("{pair}={value}")),
                    Err(_) => {
                        return Err(Error::usage(format!("-e {pair}: there is no such variable here"))
                            .hint(format!("give it a value: -e {pair}=…")));
                    }
                },
            }
        }
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
pub struct Captured {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Our ends of a command's streams.
pub struct Near<'a> {
    printer: &'a Printer,
    terminal: bool,
    input: bool,
}

impl<'a> Near<'a> {
    /// Ends for `request`.
    pub fn new(printer: &'a Printer, request: &Request, interactive: bool) -> Result<Self> {
        let terminal = request.exec.terminal.is_some();
        if terminal && printer.format == Format::Json {
            return Err(Error::usage("a terminal cannot be had in JSON").hint("leave out -t or --format json"));
        }
        Ok(Self { printer, terminal, input: interactive || terminal })
    }

    /// Runs `work` on them.
    pub async fn attend<T>(
        self,
        work: impl AsyncFnOnce(Streams<'_>) -> std::result::Result<T, Failure>,
    ) -> (std::result::Result<T, Failure>, Captured) {
        let mut captured = Captured::default();
        let control = match local::control(self.terminal) {
            Ok(control) => control,
            Err(error) => return (Err(error.into()), captured),
        };
        let json = self.printer.format == Format::Json;
        let printer = self.printer;
        let mut output = |stream: Stream, bytes: &[u8]| match (stream, json) {
            (Stream::Output, true) => {
                captured.stdout.extend_from_slice(bytes);
                Ok(())
            }
            (Stream::Errors, true) => {
                captured.stderr.extend_from_slice(bytes);
                Ok(())
            }
            (Stream::Output, false) => printer.pass(bytes),
            (Stream::Errors, false) => printer.pass_error(bytes),
        };
        let streams = Streams { input: self.input.then(local::input), control: Some(control), output: &mut output };
        let result = work(streams).await;
        (result, captured)
    }
}

/// Says how it ended, and returns the exit code for that.
pub fn code(
    app: &App,
    name: &str,
    limit: Option<Duration>,
    result: std::result::Result<Finished, Failure>,
    captured: &Captured,
    about: Value,
) -> u8 {
    let seconds = limit.unwrap_or_default().as_secs();
    let tell = |code: u8, truncated: bool, timed_out: bool, about: Value| {
        let mut value = json!({
            "exit_code": code,
            "stdout": String::from_utf8_lossy(&captured.stdout),
            "stderr": String::from_utf8_lossy(&captured.stderr),
            "truncated": truncated,
            "timed_out": timed_out,
        });
        if let (Value::Object(value), Value::Object(about)) = (&mut value, about) {
            value.extend(about);
        }
        app.printer.result("", &value);
    };
    let in_json = app.printer.format == Format::Json;
    // A VM that was kept has to be named, and so has what came before a timeout.
    match &result {
        Err(Failure::TimedOut) if in_json => tell(124, false, true, about.clone()),
        Err(_) if in_json && about["name"].is_string() => tell(OURS, false, false, about.clone()),
        _ => {}
    }
    match result {
        Ok(finished) => {
            if in_json {
                tell(finished.code, finished.truncated, false, about);
            } else if finished.truncated {
                app.context.ui.warn("the guest agent kept only the beginning of the output");
            }
            finished.code
        }
        Err(Failure::TimedOut) => {
            fail(app, 124, &Error::qemu(format!("the command did not end within {seconds} s and was ended")))
        }
        Err(Failure::GoesOn { pid }) => {
            let error = Error::qemu(format!("the command did not end within {seconds} s; it goes on in {name}"))
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

pub fn fail(app: &App, code: u8, error: &Error) -> u8 {
    app.printer.error(error);
    code
}
