//! Lines in, lines out. Cancelling either loses nothing that was received.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::{Event, QmpError};
use crate::qemu::lines::Lines;
use crate::sys::fd_passing;

/// One parsed line.
#[derive(Debug)]
pub(super) enum Incoming {
    /// `{"QMP": …}`, once, with QEMU's version.
    Greeting(String),
    /// `{"event": …}`.
    Event(Event),
    /// `{"return": …}` or `{"error": …}`.
    Reply {
        /// The id the command was sent with.
        id: Option<u64>,
        /// The value, or QEMU's refusal.
        result: Result<Value, Refusal>,
    },
}

/// `{"class": …, "desc": …}`.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) class: String,
    #[serde(default)]
    pub(super) desc: String,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
}

pub(super) struct Wire {
    stream: UnixStream,
    lines: Lines,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, lines: Lines::default() }
    }

    /// Sends one line. Cancelled half-way it leaves the connection useless, so the caller drops it
    /// then.
    pub(super) async fn send(&mut self, line: &str) -> Result<(), QmpError> {
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(b'\n');
        self.stream.write_all(&bytes).await.map_err(|_| QmpError::Closed)
    }

    /// Sends one line together with a file descriptor (`SCM_RIGHTS`), for `getfd` and `add-fd`.
    pub(super) async fn send_with(
        &mut self,
        line: &str,
        fd: BorrowedFd<'_>,
    ) -> Result<(), QmpError> {
        let bytes = format!("{line}\n").into_bytes();
        let sent = self
            .stream
            .async_io(Interest::WRITABLE, || fd_passing::send(self.stream.as_fd(), &bytes, fd))
            .await;
        match sent {
            Ok(sent) => self.stream.write_all(&bytes[sent..]).await.map_err(|_| QmpError::Closed),
            Err(_) => Err(QmpError::Closed),
        }
    }

    /// The next line that means something; lines that are no QMP are passed over.
    pub(super) async fn receive(&mut self) -> Result<Incoming, QmpError> {
        loop {
            let line = self.lines.next(&mut self.stream, b'\n').await.ok_or(QmpError::Closed)?;
            if let Some(incoming) = parse(&line) {
                return Ok(incoming);
            }
        }
    }
}

/// What a line means; `None` for one that is not QMP.
fn parse(line: &[u8]) -> Option<Incoming> {
    let line: Line = serde_json::from_slice(line).ok()?;
    if let Some(greeting) = line.greeting {
        let number = |part| {
            greeting.pointer(&format!("/version/qemu/{part}")).and_then(Value::as_u64).unwrap_or(0)
        };
        return Some(Incoming::Greeting(format!(
            "{}.{}.{}",
            number("major"),
            number("minor"),
            number("micro")
        )));
    }
    if let Some(name) = line.event {
        return Some(Incoming::Event(Event { name, data: line.data }));
    }
    match (line.value, line.error) {
        (_, Some(refusal)) => Some(Incoming::Reply { id: line.id, result: Err(refusal) }),
        (Some(value), None) => Some(Incoming::Reply { id: line.id, result: Ok(value) }),
        (None, None) => None,
    }
}
