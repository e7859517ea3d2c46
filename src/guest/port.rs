//! A conversation with the helper in a guest, on one of its ports (`helper/frame.rs`). A port
//! serves one client at a time, so there is a lock for each; a VM has several, so that a long
//! command keeps nobody else out.

use std::fs::File;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::helper::frame::{
    self, Decoder, Kind, LARGEST, Next, Reply, Request, START, VERSION, WELCOME,
};
use crate::instance::sockets;
use crate::model::{Name, PORTS};
use crate::store::open_lock;
use crate::sys::flock;

/// How long an answer to the first words may take before they are said again.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a port that is taken is tried again; flock tells no event for one of several.
const RETRY: Duration = Duration::from_millis(20);

/// The right to use a port.
#[derive(Debug)]
pub(crate) struct PortLock {
    index: usize,
    _lock: File,
}

impl PortLock {
    /// Which port it is.
    pub(crate) fn index(&self) -> usize {
        self.index
    }
}

/// Takes a port that nobody uses, waiting for one until `deadline`.
pub(crate) async fn lock_port(
    context: &Context,
    name: &Name,
    deadline: Instant,
) -> Result<PortLock> {
    let mut told = false;
    loop {
        for index in 0..PORTS {
            let path = context.store.layout.port_lock(name, index);
            let lock = open_lock(&path)?;
            if flock::try_exclusive(&lock).on("lock", &path)? {
                return Ok(PortLock { index, _lock: lock });
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::locked(format!(
                "{PORTS} commands are talking to the guest of {name} already"
            ))
            .hint("run the command again when one of them has ended"));
        }
        if !std::mem::replace(&mut told, true) {
            context.ui.note(&format!(
                "{PORTS} commands are talking to the guest of {name}: waiting for one to end"
            ));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A socket to a port, before anything was said.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
    lock: PortLock,
}

impl Wire {
    /// Connects.
    pub(crate) async fn connect(context: &Context, name: &Name, lock: PortLock) -> Result<Self> {
        let sockets = sockets::of(context, name).ok_or_else(|| {
            Error::damaged(format!("{name} runs, but where its sockets are is not known"))
        })?;
        let path = sockets.port(lock.index);
        let stream = UnixStream::connect(&path).await.on("connect to", &path)?;
        Ok(Self { stream, lock })
    }

    /// Which port it is.
    pub(crate) fn index(&self) -> usize {
        self.lock.index
    }

    /// Sends bytes that are no frames.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Gets in step with the helper, which has until `deadline`.
    pub(crate) async fn begin(self, name: &Name, deadline: Instant) -> Result<Client> {
        let silent = || Error::qemu(format!("nothing in the guest of {name} answers on its port"));
        let (from, to) = self.stream.into_split();
        let mut client =
            Client { from, to, decoder: Decoder::default(), name: name.clone(), lock: self.lock };
        let mut first = true;
        loop {
            let token = uuid::Uuid::new_v4().into_bytes();
            let mut words = Vec::new();
            if !first {
                // What another client has begun and not ended ends with this.
                words.resize(LARGEST + 8, 0);
            }
            words.extend_from_slice(&START);
            words.extend_from_slice(&token);
            let again = deadline.min(Instant::now() + AGAIN);
            let exchange = async {
                client.to.write_all(&words).await?;
                client.welcome(token).await
            };
            match timeout_at(again, exchange).await {
                Ok(Ok(VERSION)) => return Ok(client),
                Ok(Ok(other)) => {
                    return Err(Error::refused(format!(
                        "the helper in the guest of {name} speaks version {other}, and this \
                         program version {VERSION}"
                    ))
                    .hint(format!(
                        "restart the guest: cowhand stop {name} && cowhand start {name}"
                    )));
                }
                Ok(Err(source)) => return Err(silent().because(source)),
                Err(_) if Instant::now() >= deadline => return Err(silent()),
                Err(_) => first = false,
            }
        }
    }
}

/// A conversation in step.
#[derive(Debug)]
pub(crate) struct Client {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    decoder: Decoder,
    name: Name,
    lock: PortLock,
}

impl Client {
    /// On which port it is.
    pub(crate) fn index(&self) -> usize {
        self.lock.index
    }

    async fn welcome(&mut self, token: [u8; 16]) -> std::io::Result<u32> {
        loop {
            while let Some(answer) = self.decoder.find::<20>(&WELCOME) {
                if let (Some(got), Some(version)) =
                    (answer.first_chunk::<16>(), answer.last_chunk::<4>())
                    && *got == token
                {
                    return Ok(u32::from_le_bytes(*version));
                }
            }
            self.receive().await?;
        }
    }

    async fn receive(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; LARGEST];
        match self.from.read(&mut buffer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.decoder.push(&buffer[..read]);
                Ok(())
            }
        }
    }

    /// The next frame. Nothing is lost when this is dropped.
    pub(crate) async fn next(&mut self) -> Result<(Kind, Vec<u8>)> {
        loop {
            match self.decoder.cut() {
                Next::Frame(kind, payload) => return Ok((kind, payload)),
                Next::Lost => {
                    return Err(Error::qemu(format!(
                        "invalid response from the guest of {}",
                        self.name
                    )));
                }
                Next::More => {}
            }
            if self.receive().await.is_err() {
                return Err(Error::qemu(format!("{} ended while it was spoken to", self.name)));
            }
        }
    }

    /// Sends a frame.
    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + 5);
        frame::put(&mut bytes, kind, payload);
        let name = &self.name;
        self.to
            .write_all(&bytes)
            .await
            .map_err(|_| Error::qemu(format!("{name} ended while it was spoken to")))
    }

    /// Sends a request.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<()> {
        let payload = serde_json::to_vec(request)
            .map_err(|error| Error::failed("cannot write a request").because(error))?;
        if payload.len() > LARGEST {
            return Err(Error::usage(format!(
                "the command and its environment are longer than {LARGEST} bytes"
            ))
            .hint("give what is long on standard input (-i), or in a file (cp, --copy-in)"));
        }
        self.send(Kind::Request, &payload).await
    }

    /// The reply to a request that is not a conversation, which may take `limit`.
    pub(crate) async fn reply(&mut self, limit: Duration) -> Result<Reply> {
        let deadline = Instant::now() + limit;
        loop {
            let name = self.name.clone();
            let late = move |_| {
                Error::qemu(format!(
                    "the guest of {name} did not answer within {} s",
                    limit.as_secs()
                ))
            };
            let next = timeout_at(deadline, self.next());
            if let (Kind::Reply, payload) = next.await.map_err(late)?? {
                return parse(&payload);
            }
        }
    }
}

/// A reply as it was sent.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T> {
    serde_json::from_slice(payload)
        .map_err(|error| Error::qemu("what the guest answers cannot be read").because(error))
}
