//! Files and trees, into a guest and out of it, through its helper (`helper/tree.rs`).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::port::{self, Client};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::helper::frame::{Kind, Reply, Request, Why};
use crate::helper::tree::{self, Piece, Writer};

/// How long a guest may take to write everything down once all of it was sent.
const FINISH: Duration = Duration::from_secs(600);

/// Copies the file or directory `from` of the host to `to` in the guest, whatever is there.
pub async fn put_as(context: &Context, client: &mut Client, from: &Path, to: &str) -> Result<u64> {
    let (parent, name) = to
        .rsplit_once('/')
        .filter(|(_, name)| !name.is_empty())
        .ok_or_else(|| Error::usage(format!("{to:?} is not an absolute path in the guest")))?;
    send(context, client, from, &format!("{parent}/"), name.to_owned()).await
}

/// Copies the file or directory `from` of the host to `to` in the guest: into it, where it is a directory. Returns the bytes of data.
pub async fn put(context: &Context, client: &mut Client, from: &Path, to: &str) -> Result<u64> {
    let name = std::fs::canonicalize(from).on("read", from)?;
    let name = from.file_name().or(name.file_name()).unwrap_or(OsStr::new("files")).to_string_lossy().into_owned();
    send(context, client, from, to, name).await
}

async fn send(context: &Context, client: &mut Client, from: &Path, to: &str, name: String) -> Result<u64> {
    client.ask(&Request::Put { path: to.to_owned(), name }).await?;
    let task = context.ui.task(&format!("copying {}", from.display()), 0);
    // A thread reads, so that nothing waits for a slow disk; few frames at a time.
    let (send, mut receive) = tokio::sync::mpsc::channel::<(Kind, Vec<u8>)>(16);
    let root = from.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        tree::read(&root, &mut |piece| {
            let frame = match piece {
                Piece::Entry(entry) => (Kind::Entry, serde_json::to_vec(entry)?),
                Piece::Data(offset, bytes) => (Kind::Data, [&offset.to_le_bytes()[..], bytes].concat()),
            };
            send.blocking_send(frame).map_err(|_| io::ErrorKind::BrokenPipe.into())
        })
    });
    let mut sent = 0;
    while let Some((kind, payload)) = receive.recv().await {
        if kind == Kind::Data {
            sent += payload.len() as u64 - 8;
            task.update(sent, 0);
        }
        moving(client.send(kind, &payload)).await?;
    }
    let read = reading.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    client.send(Kind::End, &[]).await?;
    let reply = client.reply(FINISH).await?;
    for path in read.on("read", from)? {
        context.ui.warn(&format!("{} is no file, directory or link, and was left out", path.display()));
    }
    finished(reply)
}

/// Copies the file or directory `from` of the guest to `to` on the host: into it, where it is a directory. Returns the bytes of data.
pub async fn get(context: &Context, client: &mut Client, from: &str, to: &Path) -> Result<u64> {
    let name = Path::new(from).file_name().unwrap_or(OsStr::new("files"));
    get_as(context, client, from, &tree::destination(to, name)).await
}

/// Copies the file or directory `from` of the guest to `target` on the host, whatever is there.
pub async fn get_as(context: &Context, client: &mut Client, from: &str, target: &Path) -> Result<u64> {
    let mut writer = None;
    client.ask(&Request::Get { path: from.to_owned() }).await?;
    let task = context.ui.task(&format!("copying {from}"), 0);
    let mut bytes = 0;
    let mut failed: Option<io::Error> = None;
    loop {
        let (kind, payload) = moving(client.next()).await?;
        let result = match kind {
            Kind::Entry => serde_json::from_slice(&payload).map_err(io::Error::from).and_then(|entry| {
                if writer.is_none() {
                    writer = Some(Writer::new(target, false)?);
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.entry(entry))
            }),
            Kind::Data => match (payload.split_first_chunk(), writer.as_mut()) {
                (Some((offset, data)), Some(writer)) => {
                    bytes += data.len() as u64;
                    task.update(bytes, 0);
                    writer.data(u64::from_le_bytes(*offset), data)
                }
                _ => Err(io::ErrorKind::InvalidData.into()),
            },
            Kind::End => continue,
            Kind::Reply => {
                finished(port::parse(&payload)?)?;
                break;
            }
            _ => continue,
        };
        if let Err(error) = result {
            failed = Some(error);
            break;
        }
    }
    match (failed, writer) {
        (Some(error), _) => Err(error).on("write", target),
        (None, Some(writer)) => writer.finish().on("write", target),
        (None, None) => Ok(0),
    }
}

/// A copy that stands still for so long will not move again.
const STILL: Duration = Duration::from_secs(120);

async fn moving<T>(step: impl Future<Output = Result<T>>) -> Result<T> {
    let still = |_| Error::qemu(format!("the copy has not moved for {} s", STILL.as_secs()));
    tokio::time::timeout(STILL, step).await.map_err(still)?
}

fn finished(reply: Reply) -> Result<u64> {
    match reply {
        Reply::Done { bytes } => Ok(bytes),
        Reply::Failed { why: Why::NotFound, message } => Err(Error::not_found(format!("in the guest: {message}"))),
        Reply::Failed { message, .. } => Err(Error::failed(format!("in the guest: {message}"))),
        _ => Err(Error::qemu("what the guest answers is no answer to a copy")),
    }
}
