use std::io::Read;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::App;
use crate::error::Error;
use crate::guest::exec::{self, Failure, Request};
use crate::model::Name;
use crate::output::Format;

/// Run a command in a guest through its agent, and exit as it does
///
/// No shell is involved: for one, say `-- sh -c '…'`. The output arrives when the command has ended, at most 16 MiB of it. Exit codes:
/// the command's own; 124 timeout, 125 our own failure, 126 not executable, 127 not found in the guest.
#[derive(Debug, Args)]
pub struct Exec {
    /// Give it what comes on standard input (all of it, before it starts)
    #[arg(short, long)]
    interactive: bool,
    /// Not possible through the guest agent; use `console`
    #[arg(short, long, hide = true)]
    tty: bool,
    /// Set a variable of its environment; can be repeated. It then has these alone
    #[arg(short, long = "env", value_name = "K=V")]
    env: Vec<String>,
    /// How long it may take, in seconds; afterwards it goes on in the guest
    #[arg(long, value_name = "SECS")]
    timeout: Option<u64>,
    /// How long the guest may take to boot as far as its agent, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    agent_timeout: u64,
    /// The VM
    name: Name,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Our own failure.
const OURS: u8 = 125;

impl Exec {
    pub async fn run(self, app: &App) -> u8 {
        let fail = |code: u8, error: &Error| {
            app.printer.error(error);
            code
        };
        if self.tty {
            let error = Error::usage("a terminal cannot be had through the guest agent")
                .hint(format!("use the console: cowhand console {}", self.name));
            return fail(OURS, &error);
        }
        for pair in &self.env {
            if let Err(error) = super::create::tag_pair(pair) {
                return fail(OURS, &error);
            }
        }
        let mut input = None;
        if self.interactive {
            // In a thread, so that Ctrl-C is heard while nothing comes.
            let read = tokio::task::spawn_blocking(|| {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
            });
            match read.await.map_err(std::io::Error::other).and_then(|read| read) {
                Ok(bytes) => input = Some(bytes),
                Err(source) => return fail(OURS, &Error::failed("cannot read standard input").because(source)),
            }
        }
        let request = Request {
            command: self.command,
            environment: self.env,
            input,
            agent_limit: Duration::from_secs(self.agent_timeout),
            limit: self.timeout.map(Duration::from_secs),
        };
        match exec::exec(&app.context, &self.name, &request).await {
            Ok(finished) if app.printer.format == Format::Json => {
                let value = json!({
                    "exit_code": finished.code,
                    "stdout": String::from_utf8_lossy(&finished.stdout),
                    "stderr": String::from_utf8_lossy(&finished.stderr),
                    "truncated": finished.truncated,
                });
                app.printer.result("", &value);
                finished.code
            }
            Ok(finished) => {
                app.printer.raw(&finished.stdout);
                app.printer.raw_error(&finished.stderr);
                if finished.truncated {
                    app.context.ui.warn("the guest agent kept only the beginning of the output");
                }
                finished.code
            }
            Err(Failure::TimedOut { pid }) => {
                let seconds = self.timeout.unwrap_or_default();
                let error =
                    Error::qemu(format!("the command did not end within {seconds} s; it goes on in {}", self.name))
                        .hint(format!("end it: cowhand exec {} -- kill {pid}", self.name));
                fail(124, &error)
            }
            Err(Failure::NotExecutable(message)) => fail(126, &Error::failed(message)),
            Err(Failure::NotFound(message)) => fail(127, &Error::not_found(message)),
            Err(Failure::Ours(error)) => fail(OURS, &error),
        }
    }
}
