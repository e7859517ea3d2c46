//! QMP, the machine protocol of QEMU (`docs/interop/qmp-spec.rst`): JSON objects, a line each, over
//! a Unix socket.
//!
//! One task uses a connection at a time, so no reader runs in the background: whoever waits for a
//! reply reads, keeps the events that come by, and drops replies nobody waits for any more. Giving
//! up on a command is therefore harmless, and means *unknown outcome*: the command was sent.
//!
//! Commands and replies are the types of the `qapi` crate where those decode on every QEMU we
//! support; elsewhere small structs of our own, which ignore what they do not know.

pub(crate) mod block;
pub(crate) mod error;
pub mod jobs;
pub(crate) mod migration;
mod wire;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use qapi::qmp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use crate::sys::fault;
use crate::sys::pidfd::PidFd;
pub use error::QmpError;
use wire::{Incoming, Wire};

/// How long QEMU may take to answer an ordinary command before the answer counts as unknown.
pub const REPLY: Duration = Duration::from_secs(60);
/// How long an observer waits, who would rather know little than wait.
pub const GLANCE: Duration = Duration::from_millis(500);

/// An event: `JOB_STATUS_CHANGE`, `SHUTDOWN`, …
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// What happened.
    #[serde(rename = "event")]
    pub name: String,
    /// To whom, and how.
    #[serde(default)]
    pub data: Value,
}

/// A connection after the greeting and `qmp_capabilities`.
pub struct Qmp {
    wire: Wire,
    next_id: u64,
    events: VecDeque<Event>,
    pid: Option<i32>,
    process: Option<PidFd>,
    version: String,
}

/// What the guest's CPUs are doing, as `query-status` has it.
#[derive(Debug, Clone, Deserialize)]
pub struct RunState {
    /// Do they run?
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `io-error`, …
    pub status: String,
}

impl Qmp {
    /// Connects to a QMP socket and shakes hands, all within `limit`.
    pub async fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let limit = fault::patience(limit);
        let deadline = Instant::now() + limit;
        let connect = |source| QmpError::Connect { path: path.to_owned(), source };
        let stream = match timeout_at(deadline, UnixStream::connect(path)).await {
            Ok(stream) => stream.map_err(connect)?,
            Err(_) => {
                return Err(QmpError::Timeout {
                    command: "connect".into(),
                    seconds: limit.as_secs(),
                });
            }
        };
        Self::handshake(stream, limit).await
    }

    /// Shakes hands over a connected socket: greeting, then `qmp_capabilities`.
    pub async fn handshake(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + limit;
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let process = PidFd::of_peer(&stream).ok();
        let mut qmp = Self {
            wire: Wire::new(stream),
            next_id: 0,
            events: VecDeque::new(),
            pid,
            process,
            version: String::new(),
        };
        loop {
            match qmp.receive("greeting", deadline, limit).await? {
                Incoming::Greeting(version) => {
                    qmp.version = version;
                    break;
                }
                Incoming::Event(event) => qmp.events.push_back(event),
                Incoming::Reply { .. } => {}
            }
        }
        qmp.send::<qmp::qmp_capabilities>(&qmp::qmp_capabilities { enable: None }, limit).await?;
        Ok(qmp)
    }

    /// What an observer wants to know, in one round trip: the process at the other end and
    /// `query-status`. `None` when nobody answers within [`GLANCE`].
    pub async fn query_once(path: &Path) -> Option<(Option<i32>, RunState)> {
        let look = async {
            let stream = UnixStream::connect(path).await.ok()?;
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            let mut wire = Wire::new(stream);
            // QEMU reads what was sent before its greeting.
            wire.send(
                "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\",\"id\":1}",
            )
            .await
            .ok()?;
            loop {
                if let Incoming::Reply { id: Some(1), result } = wire.receive().await.ok()? {
                    return Some((pid, serde_json::from_value(result.ok()?).ok()?));
                }
            }
        };
        timeout_at(Instant::now() + GLANCE, look).await.ok().flatten()
    }

    /// Which of the helper's ports the guest has opened, in their order; the ones there are. `None`
    /// when nobody answers within [`GLANCE`].
    pub async fn open_ports(path: &Path) -> Option<Vec<bool>> {
        #[derive(Deserialize)]
        struct Chardev {
            label: String,
            #[serde(rename = "frontend-open")]
            open: bool,
        }
        let look = async {
            let mut wire = Wire::new(UnixStream::connect(path).await.ok()?);
            wire.send(
                "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-chardev\",\"id\":1}",
            )
            .await
            .ok()?;
            loop {
                if let Incoming::Reply { id: Some(1), result } = wire.receive().await.ok()? {
                    let mut ports: Vec<Chardev> = serde_json::from_value(result.ok()?).ok()?;
                    ports.retain(|chardev| {
                        chardev
                            .label
                            .strip_prefix("port")
                            .is_some_and(|rest| rest.parse::<usize>().is_ok())
                    });
                    return Some(ports.iter().map(|port| port.open).collect());
                }
            }
        };
        timeout_at(Instant::now() + GLANCE, look).await.ok().flatten()
    }

    /// The process at the other end (`SO_PEERCRED`).
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The same process, as a descriptor of our own, which no other process can come to mean.
    pub fn process(&self) -> Option<PidFd> {
        self.process.as_ref()?.try_clone().ok()
    }

    /// QEMU's version, from its greeting: `7.2.22`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Hands QEMU a file descriptor under a name (`getfd`).
    pub async fn give_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), QmpError> {
        let arguments = json!({"fdname": name});
        self.exchange_with::<_, Value>("getfd", arguments, REPLY, Some(fd)).await.map(drop)
    }

    /// Hands QEMU a file descriptor, in a set of its own (`add-fd`): `/dev/fdset/N`, for the number
    /// N that this returns, is a path of what is open.
    pub async fn add_fd(&mut self, fd: BorrowedFd<'_>) -> Result<i64, QmpError> {
        let added: qmp::AddfdInfo =
            self.exchange_with("add-fd", json!({}), REPLY, Some(fd)).await?;
        Ok(added.fdset_id)
    }

    /// Takes the set back (`remove-fd`). What was opened by its path stays open.
    pub async fn remove_fd(&mut self, set: i64) -> Result<(), QmpError> {
        self.call::<Value>("remove-fd", json!({"fdset-id": set})).await.map(drop)
    }

    /// Runs a typed command.
    pub async fn run<C: qapi::Command>(&mut self, command: &C) -> Result<C::Ok, QmpError> {
        self.send(command, REPLY).await
    }

    /// Runs a command given as JSON, for those whose types are too closed.
    pub async fn call<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        self.exchange(command, arguments, REPLY).await
    }

    /// `query-status`.
    pub async fn status(&mut self, limit: Duration) -> Result<RunState, QmpError> {
        self.exchange("query-status", json!({}), limit).await
    }

    /// The next event, or `None` when `deadline` comes first.
    pub async fn event(&mut self, deadline: Instant) -> Result<Option<Event>, QmpError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        loop {
            match timeout_at(deadline, self.wire.receive()).await {
                Err(_) => return Ok(None),
                Ok(incoming) => {
                    if let Incoming::Event(event) = incoming? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// Waits for the event `name`, dropping others.
    pub async fn wait_for_event(&mut self, name: &str) -> Result<(), QmpError> {
        let deadline = Instant::now() + REPLY;
        while let Some(event) = self.event(deadline).await? {
            if event.name == name {
                return Ok(());
            }
        }
        Err(QmpError::Timeout { command: name.to_owned(), seconds: REPLY.as_secs() })
    }

    /// Did the guest shut down (`SHUTDOWN` with `guest`, see qapi/run-state.json)? For a QEMU that
    /// has ended: what it said last can still be read. One that was killed has said nothing.
    pub async fn guest_has_shut_down(&mut self) -> bool {
        let deadline = Instant::now() + REPLY;
        while let Ok(Some(event)) = self.event(deadline).await {
            if event.name == "SHUTDOWN" {
                return event.data["guest"] == true;
            }
        }
        false
    }

    async fn send<C: qapi::Command>(
        &mut self,
        command: &C,
        limit: Duration,
    ) -> Result<C::Ok, QmpError> {
        let arguments = serde_json::to_value(command)
            .map_err(|source| QmpError::Decode { command: C::NAME.into(), source })?;
        self.exchange(C::NAME, arguments, limit).await
    }

    async fn exchange<A: Serialize, T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: A,
        limit: Duration,
    ) -> Result<T, QmpError> {
        self.exchange_with(command, arguments, limit, None).await
    }

    async fn exchange_with<A: Serialize, T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: A,
        limit: Duration,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<T, QmpError> {
        let limit = fault::patience(limit);
        let deadline = Instant::now() + limit;
        let id = self.submit(command, arguments, deadline, limit, fd).await?;
        loop {
            match self.receive(command, deadline, limit).await? {
                Incoming::Event(event) => self.events.push_back(event),
                Incoming::Reply { id: Some(got), result } if got == id => {
                    tracing::debug!(target: "qmp", "← {result:?}");
                    let value = accepted(command, result)?;
                    point(command, "answered")?;
                    return serde_json::from_value(value)
                        .map_err(|source| QmpError::Decode { command: command.into(), source });
                }
                Incoming::Reply { .. } | Incoming::Greeting(_) => {}
            }
        }
    }

    /// Sends a command; its reply will carry the number returned.
    async fn submit<A: Serialize>(
        &mut self,
        command: &str,
        arguments: A,
        deadline: Instant,
        limit: Duration,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<u64, QmpError> {
        point(command, "about to be sent")?;
        self.next_id += 1;
        let id = self.next_id;
        let line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        tracing::debug!(target: "qmp", "→ {line}");
        let send = async {
            match fd {
                Some(fd) => self.wire.send_with(&line, fd).await,
                None => self.wire.send(&line).await,
            }
        };
        timeout_at(deadline, send).await.map_err(|_| QmpError::Timeout {
            command: command.into(),
            seconds: limit.as_secs(),
        })??;
        Ok(id)
    }

    async fn receive(
        &mut self,
        command: &str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Incoming, QmpError> {
        match timeout_at(deadline, self.wire.receive()).await {
            Ok(incoming) => incoming,
            Err(_) => Err(QmpError::Timeout { command: command.into(), seconds: limit.as_secs() }),
        }
    }
}

/// A fault point at a command that changes something.
fn point(command: &str, when: &str) -> Result<(), QmpError> {
    match command {
        "qmp_capabilities" | "qom-get" => Ok(()),
        _ if command.starts_with("query-") => Ok(()),
        _ => fault::point(&format!("{command}, {when}")).map_err(|_| QmpError::Closed),
    }
}

/// What QEMU returned, or its refusal.
fn accepted(command: &str, result: Result<Value, wire::Refusal>) -> Result<Value, QmpError> {
    result.map_err(|refusal| QmpError::Refused {
        command: command.into(),
        class: refusal.class,
        message: refusal.desc,
    })
}
