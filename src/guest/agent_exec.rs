//! Running a command in a guest that has no helper, through its agent (`guest-exec`,
//! `guest-exec-status`). The agent tells no event at its end, so it is asked, at first often and
//! then every tenth of a second. Output arrives when the command has ended; QEMU's agent keeps at
//! most 16 MiB.

use std::time::Duration;

use qapi::qga::{GuestExecCaptureOutput, guest_exec, guest_exec_status};
use tokio::time::Instant;

use super::outcome::Failure;
use super::{is_frozen, session, stays_frozen};
use crate::context::Context;
use crate::error::Error;
use crate::model::Name;
use crate::qemu::agent::{AgentError, REPLY};

const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(100);

/// A command for the guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// The program and its arguments; no shell is involved.
    pub command: Vec<String>,
    /// `KEY=VALUE`. The agent starts programs with exactly these where any are given.
    pub environment: Vec<String>,
    /// What the program reads on its standard input.
    pub input: Option<Vec<u8>>,
    /// How long the agent may take to answer for the first time.
    pub agent_limit: Duration,
    /// How long the command may take.
    pub limit: Option<Duration>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    /// The exit code, or 128 plus the signal that ended it.
    pub code: u8,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// The guest agent kept only the beginning of the output.
    pub truncated: bool,
}

/// Runs a command in `name` and waits for its end.
pub(crate) async fn exec(
    context: &Context,
    name: &Name,
    request: &Request,
) -> Result<Finished, Failure> {
    let (program, arguments) = request
        .command
        .split_first()
        .ok_or_else(|| Error::usage("no command was given").hint("cowhand exec NAME -- COMMAND"))?;
    session::ensure_recovered(context, name).await?;
    session::refuse_paused(context, name).await?;
    let command = guest_exec {
        path: program.clone(),
        arg: Some(arguments.to_vec()),
        env: (!request.environment.is_empty()).then(|| request.environment.clone()),
        input_data: request.input.clone(),
        capture_output: Some(GuestExecCaptureOutput::flag(true)),
    };
    let patience = Instant::now() + request.agent_limit;
    let mut limit = request.agent_limit;
    let pid = loop {
        let mut session = session::open(context, name, limit).await?;
        match session.agent.run(&command, REPLY).await {
            Ok(started) => break started.pid,
            Err(error) if is_frozen(&error) && Instant::now() < patience => {}
            Err(error) if is_frozen(&error) => {
                return Err(Failure::Ours(stays_frozen(name, error)));
            }
            Err(AgentError::Refused { message, .. }) => {
                return Err(cannot_start(program, &message));
            }
            Err(error) => return Err(error.into()),
        }
        drop(session);
        // It is there: from now on it has as long as any other answer, however little of the
        // patience is left.
        limit = REPLY;
        tokio::time::sleep(LAST_LOOK).await;
    };
    let deadline = request.limit.map(|limit| Instant::now() + limit);
    let mut pause = FIRST_LOOK;
    loop {
        let status = {
            let mut session = session::open(context, name, REPLY).await?;
            match session.agent.run(&guest_exec_status { pid }, REPLY).await {
                Ok(status) => Some(status),
                Err(error) if is_frozen(&error) => None,
                Err(error) => return Err(error.into()),
            }
        };
        if let Some(status) = status.filter(|status| status.exited) {
            let code = match (status.exitcode, status.signal) {
                (Some(code), _) => u8::try_from(code & 0xff).unwrap_or(1),
                (None, Some(signal)) => u8::try_from(128 + (signal & 0x7f)).unwrap_or(1),
                (None, None) => 1,
            };
            return Ok(Finished {
                code,
                stdout: status.out_data.unwrap_or_default(),
                stderr: status.err_data.unwrap_or_default(),
                truncated: status.out_truncated.unwrap_or(false)
                    || status.err_truncated.unwrap_or(false),
            });
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Failure::GoesOn { pid });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
}

/// The agent's refusal names the reason only in words, GLib's: `Failed to execute child process “x”
/// (No such file or directory)`.
fn cannot_start(program: &str, message: &str) -> Failure {
    if message.contains("No such file") {
        Failure::NotFound(format!("{program}: not found in the guest"))
    } else if message.contains("Permission denied") || message.contains("Exec format") {
        Failure::NotExecutable(format!("{program}: not executable in the guest"))
    } else {
        Failure::Ours(
            Error::qemu(format!("the guest agent cannot run {program}"))
                .because(format!("\"{message}\"")),
        )
    }
}
