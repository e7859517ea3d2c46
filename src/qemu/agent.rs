//! The QEMU guest agent (`docs/interop/qemu-ga.rst`): JSON lines through a virtio-serial port, one
//! client at a time.
//!
//! Every conversation begins with `guest-sync-delimited` and a random id, behind the byte 0xFF that
//! makes the agent drop a line somebody else left unfinished; everything before the answer with
//! that id is somebody else's and is thrown away. Bytes sent before the guest listens wait in the
//! pipe, so waiting for the answer to a sync is waiting for the agent to come up.
//!
//! What the guest has taken and its agent has not read is lost when the guest or the agent is
//! started anew. So a sync that is not answered is sent again, and behind a command that is not
//! answered goes a sync of its own: an agent answers in order, and where that one is answered
//! first, there will be no other answer.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio::time::{Instant, timeout, timeout_at};

use super::lines::{Lines, NoLine};
use super::sockets::Pipes;
use crate::sys::fault;

/// How long the agent may take for an ordinary command.
pub const REPLY: Duration = Duration::from_secs(30);

/// Stands before a sync and before its answer, and nowhere else: UTF-8 does not know it.
const SYNC: u8 = 0xff;

/// How long an answer is waited for before it is asked whether there will be one.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What can go wrong between us and the agent.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AgentError {
    /// Nobody answers, or QEMU hung up.
    #[error("it is silent")]
    Absent,
    /// There are no pipes, or no QEMU at their other end.
    #[error("its pipes cannot be opened")]
    Unreachable(#[source] std::io::Error),
    /// The agent was there and went silent: the command may have been carried out or not.
    #[error(
        "the guest agent did not answer {command} within {seconds} s; \
         whether it was carried out is unknown"
    )]
    Timeout { command: String, seconds: u64 },
    /// The agent, or the whole guest, was started anew before it answered.
    #[error(
        "the guest agent was started anew and did not answer {command}; \
         whether it was carried out is unknown"
    )]
    Restarted { command: String },
    /// The agent said no.
    #[error("the guest agent refused {command}: \"{message}\"")]
    Refused { command: String, message: String },
    /// The answer was not what the command's documentation promises.
    #[error("the guest agent's answer to {command} cannot be read")]
    Decode { command: String, source: serde_json::Error },
    /// The answer is longer than any answer to this command.
    #[error("the guest agent's answer to {command} is longer than {bytes} bytes")]
    TooLong { command: String, bytes: usize },
}

impl From<AgentError> for crate::error::Error {
    fn from(error: AgentError) -> Self {
        let lifted = Self::qemu(error.to_string());
        match error {
            AgentError::Decode { source, .. } => lifted.because(source),
            _ => lifted,
        }
    }
}

/// A conversation with the agent, in step.
pub struct Agent {
    output: Sender,
    input: Receiver,
    lines: Lines,
}

/// Takes back what earlier clients have written and no guest has read: nobody waits for the answers
/// any more.
fn forget_unread(pipes: &Pipes) -> std::io::Result<()> {
    let unread = OpenOptions::new().open_receiver(pipes.to_guest())?;
    let mut waste = [0; 4096];
    while let Ok(1..) = unread.try_read(&mut waste) {}
    Ok(())
}

/// Whether `line` ends in the answer to one of these syncs. Before it may stand what somebody else
/// has left unfinished.
fn answers(line: &[u8], asked: &[u64]) -> bool {
    let Some(at) = line.iter().rposition(|byte| *byte == SYNC) else { return false };
    let answer: Result<Answer<u64>, _> = serde_json::from_slice(&line[at + 1..]);
    answer.is_ok_and(|answer| answer.value.is_some_and(|id| asked.contains(&id)))
}

#[derive(Deserialize)]
#[serde(bound = "T: serde::de::DeserializeOwned")]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

/// The longest line that holds the answer to a sync, in bytes.
const SYNC_LINE: usize = 4096;
/// The most characters of a guest's words in an error.
const WORDS: usize = 1000;

/// The longest answer to a command, in bytes. A guest may send anything; what is kept of it is
/// bounded by what was asked for.
fn longest(command: &str) -> usize {
    match command {
        // 16 MiB of each stream, in base64: what QEMU's agent keeps.
        "guest-exec-status" => 48 << 20,
        // 256 KiB at a time, in base64.
        "guest-file-read" => 1 << 20,
        _ => 256 << 10,
    }
}

/// The beginning of what a guest says, for an error.
fn abridged(words: &str) -> String {
    match words.char_indices().nth(WORDS) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.to_owned(),
    }
}

/// What the agent's answer to `command` says. It is read into `T` directly: what `T` does not have
/// takes no memory.
pub fn parse_answer<T: serde::de::DeserializeOwned>(
    command: &str,
    line: &[u8],
) -> Result<T, AgentError> {
    let decode = |source: serde_json::Error| {
        // It may quote the answer.
        let source = serde::de::Error::custom(abridged(&source.to_string()));
        AgentError::Decode { command: command.to_owned(), source }
    };
    let answer: Answer<T> = serde_json::from_slice(line).map_err(decode)?;
    if let Some(refusal) = answer.error {
        return Err(AgentError::Refused {
            command: command.to_owned(),
            message: abridged(&refusal.desc),
        });
    }
    match answer.value {
        Some(value) => Ok(value),
        None => serde_json::from_str("null").map_err(decode),
    }
}

impl Agent {
    /// Opens the agent's pipes and gets in step, all within `limit`.
    pub async fn connect(pipes: &Pipes, limit: Duration) -> Result<Self, AgentError> {
        let deadline = Instant::now() + limit;
        // Fails while no QEMU has it open for reading.
        let output =
            OpenOptions::new().open_sender(pipes.to_guest()).map_err(AgentError::Unreachable)?;
        let input = OpenOptions::new()
            .open_receiver(pipes.from_guest())
            .map_err(AgentError::Unreachable)?;
        let mut agent = Self { output, input, lines: Lines::default() };
        match timeout_at(deadline, agent.sync(pipes)).await {
            Ok(result) => result.map(|()| agent),
            Err(_) => Err(AgentError::Absent),
        }
    }

    /// Runs a typed command.
    pub async fn run<C: qapi::Command>(
        &mut self,
        command: &C,
        limit: Duration,
    ) -> Result<C::Ok, AgentError> {
        self.run_within(command, limit, longest(C::NAME)).await
    }

    /// Runs a typed command whose answer has to come in a line of at most `bytes` bytes.
    pub async fn run_within<C: qapi::Command>(
        &mut self,
        command: &C,
        limit: Duration,
        bytes: usize,
    ) -> Result<C::Ok, AgentError> {
        let decode = |source| AgentError::Decode { command: C::NAME.to_owned(), source };
        let point = |when: &str| match C::NAME {
            "guest-fsfreeze-freeze" | "guest-fsfreeze-thaw" => {
                fault::point(&format!("{}, {when}", C::NAME)).map_err(|_| AgentError::Absent)
            }
            _ => Ok(()),
        };
        let arguments = serde_json::to_value(command).map_err(decode)?;
        tracing::debug!(target: "agent", "→ {}", C::NAME);
        point("about to be sent")?;
        let line = json!({"execute": C::NAME, "arguments": arguments}).to_string();
        let late =
            |_| AgentError::Timeout { command: C::NAME.to_owned(), seconds: limit.as_secs() };
        let deadline = Instant::now() + limit;
        timeout_at(deadline, self.send(line.as_bytes())).await.map_err(late)??;
        let answer = timeout_at(deadline, self.answer(C::NAME, bytes)).await.map_err(late)??;
        point("answered")?;
        parse_answer::<C::Ok>(C::NAME, &answer)
    }

    /// Sends a command that is never answered when it works (`guest-shutdown`).
    pub async fn tell<C: qapi::Command>(&mut self, command: &C) -> Result<(), AgentError> {
        let decode = |source| AgentError::Decode { command: C::NAME.to_owned(), source };
        let arguments = serde_json::to_value(command).map_err(decode)?;
        tracing::debug!(target: "agent", "→ {}", C::NAME);
        self.send(json!({"execute": C::NAME, "arguments": arguments}).to_string().as_bytes()).await
    }

    /// Gets in step: after the answer to the last sync comes nothing that was asked before. Each is
    /// waited for twice as long as the one before, so that an agent that is slow is caught up with.
    async fn sync(&mut self, pipes: &Pipes) -> Result<(), AgentError> {
        let mut patience = ASK_AGAIN;
        loop {
            forget_unread(pipes).map_err(AgentError::Unreachable)?;
            self.write(&[SYNC]).await?;
            let id = self.ask().await?;
            let answered = async {
                loop {
                    if answers(&self.tail().await?, &[id]) {
                        return Ok(());
                    }
                }
            };
            match timeout(patience, answered).await {
                Ok(result) => return result,
                Err(_) => patience *= 2,
            }
        }
    }

    /// The answer to the command that was just sent, without those to syncs before it.
    async fn answer(&mut self, command: &str, bytes: usize) -> Result<Vec<u8>, AgentError> {
        let mut asked = Vec::new();
        loop {
            let line = self.lines.within(&mut self.input, b'\n', bytes);
            let Ok(line) = timeout(ASK_AGAIN, line).await else {
                asked.push(self.ask().await?);
                continue;
            };
            let line = line.map_err(|no| match no {
                NoLine::Ended => AgentError::Absent,
                NoLine::TooLong => AgentError::TooLong { command: command.to_owned(), bytes },
            })?;
            if answers(&line, &asked) {
                return Err(AgentError::Restarted { command: command.to_owned() });
            }
            if !line.contains(&SYNC) {
                return Ok(line);
            }
        }
    }

    /// Sends a sync; its id. The byte before one is not always wanted: the agent complains of it,
    /// in an answer of its own.
    async fn ask(&mut self) -> Result<u64, AgentError> {
        // The schema's integers are signed; keep the sign out of it.
        let id = uuid::Uuid::new_v4().as_u64_pair().0 >> 2;
        let request =
            json!({"execute": "guest-sync-delimited", "arguments": {"id": id}}).to_string();
        self.send(request.as_bytes()).await?;
        Ok(id)
    }

    async fn send(&mut self, line: &[u8]) -> Result<(), AgentError> {
        let mut bytes = line.to_vec();
        bytes.push(b'\n');
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.output.write_all(bytes).await.map_err(|_| AgentError::Absent)
    }

    /// The end of the next line. Before the answer to a sync anything may stand, such as a long
    /// answer that nobody has heard.
    async fn tail(&mut self) -> Result<Vec<u8>, AgentError> {
        self.lines.tail(&mut self.input, b'\n', SYNC_LINE).await.map_err(|_| AgentError::Absent)
    }
}
