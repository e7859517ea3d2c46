//! Files and trees, into a guest and out of it, through its helper (`helper/tree.rs`).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::port::{self, Client};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::helper::frame::{Kind, Reply, Request, Why};
use crate::helper::tree::{self, Budget, Piece, Refusal, Target, Writer};
use crate::sys::files;

/// How long a guest may take to write everything down once all of it was sent.
const FINISH: Duration = Duration::from_secs(600);

/// Copies the file or directory `from` of the host to `to` in the guest, whatever is there.
pub(crate) async fn put_as(
    context: &Context,
    client: &mut Client,
    from: &Path,
    to: &str,
) -> Result<u64> {
    let (parent, name) = to
        .rsplit_once('/')
        .filter(|(_, name)| !name.is_empty())
        .ok_or_else(|| Error::usage(format!("{to:?} is not an absolute path in the guest")))?;
    send(context, client, from, &format!("{parent}/"), name.to_owned()).await
}

/// Copies the file or directory `from` of the host to `to` in the guest: into it, where it is a
/// directory. Returns the bytes of data.
pub(crate) async fn put(
    context: &Context,
    client: &mut Client,
    from: &Path,
    to: &str,
) -> Result<u64> {
    let name = std::fs::canonicalize(from).on("read", from)?;
    let name = from
        .file_name()
        .or(name.file_name())
        .unwrap_or(OsStr::new("files"))
        .to_string_lossy()
        .into_owned();
    send(context, client, from, to, name).await
}

async fn send(
    context: &Context,
    client: &mut Client,
    from: &Path,
    to: &str,
    name: String,
) -> Result<u64> {
    client.ask(&Request::Put { path: to.to_owned(), name }).await?;
    let task = context.ui.task(&format!("copying {}", from.display()), 0);
    // A thread reads, so that nothing waits for a slow disk; few frames at a time.
    let (send, mut receive) = tokio::sync::mpsc::channel::<(Kind, Vec<u8>)>(16);
    let root = from.to_owned();
    let reading = tokio::task::spawn_blocking(move || {
        // The user may name a link to what is meant.
        tree::read(&root, true, &mut |piece| {
            let frame = match piece {
                Piece::Entry(entry) => (Kind::Entry, serde_json::to_vec(entry)?),
                Piece::Data(offset, bytes) => {
                    (Kind::Data, [&offset.to_le_bytes()[..], bytes].concat())
                }
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
        context
            .ui
            .warn(&format!("{} is no file, directory or link, and was left out", path.display()));
    }
    finished(reply)
}

/// How a tree comes out of a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// If what was named is a symbolic link: copy what it points to in the guest. Without it, a
    /// link is refused.
    pub follow: bool,
    /// How much the guest may send.
    pub budget: Budget,
}

/// Refuses to put a file in the place of a device, a FIFO or a socket, or of a link to one.
pub(crate) fn refuse_special(place: &Path) -> Result<()> {
    match files::special_at(place) {
        None => Ok(()),
        Some(what) => {
            Err(Error::refused(format!("{} is {what}, not an ordinary file", place.display()))
                .hint("to write a file of the guest to standard output: cowhand cp VM:FILE -"))
        }
    }
}

/// The place on the host for what is called `from` in the guest: in `to`, where that is a
/// directory, else `to` itself. It is opened now; what a guest makes later of the path changes
/// nothing.
pub(crate) fn target(from: &str, to: &Path) -> Result<Target> {
    let name = Path::new(from).file_name().unwrap_or(OsStr::new("files"));
    let place = tree::destination(to, name);
    refuse_special(&place)?;
    Target::at(&place).on("write", &place)
}

/// Frames that belong to no copy and may still be on their way from what was said before.
const STRAY: usize = 64;

/// Copies the file or directory `from` of the guest to `target` on the host. Returns the bytes of
/// data.
pub(crate) async fn get(
    context: &Context,
    client: &mut Client,
    from: &str,
    target: Target,
    rules: &Rules,
) -> Result<u64> {
    client.ask(&Request::Get { path: from.to_owned(), follow: rules.follow }).await?;
    let task = context.ui.task(&format!("copying {from}"), 0);
    let mut writer = Writer::untrusted(target, rules.budget);
    let (mut bytes, mut begun, mut ended, mut stray) = (0, false, false, 0);
    loop {
        let (kind, payload) = moving(client.next()).await?;
        let result = match kind {
            Kind::Entry if !ended => match serde_json::from_slice(&payload) {
                Ok(entry) => {
                    begun = true;
                    writer.entry(&entry)
                }
                Err(source) => return Err(no_tree(from).because(source)),
            },
            Kind::Data if !ended => match payload.split_first_chunk() {
                Some((offset, data)) => {
                    bytes += data.len() as u64;
                    task.update(bytes, 0);
                    writer.data(u64::from_le_bytes(*offset), data)
                }
                None => Err(Refusal::Data.into()),
            },
            Kind::End if !ended => {
                ended = true;
                Ok(())
            }
            Kind::Reply => {
                finished(port::parse(&payload)?)?;
                // A reply alone is no tree.
                if !begun || !ended {
                    return Err(no_tree(from));
                }
                let path = writer.path().to_owned();
                return writer.finish().map_err(|error| failed(error, from, &path));
            }
            _ => {
                stray += 1;
                if stray > STRAY {
                    return Err(no_tree(from));
                }
                Ok(())
            }
        };
        if let Err(error) = result {
            return Err(failed(error, from, writer.path()));
        }
    }
}

fn no_tree(from: &str) -> Error {
    Error::qemu(format!("what the guest sends for {from} is no file or directory"))
}

/// What could not be taken over, in the words of the command that asked for it.
fn failed(error: io::Error, from: &str, target: &Path) -> Error {
    match Refusal::of(&error) {
        Some(Refusal::Link) => Error::refused(format!("{from} is a symbolic link in the guest"))
            .hint("copy what it points to in the guest: --follow"),
        Some(refusal) => refused(refusal, from),
        None => {
            Err::<(), _>(error).on("write", target).map_or_else(|error| error, |()| no_tree(from))
        }
    }
}

/// A copy that a guest may not make.
pub(super) fn refused(refusal: &Refusal, from: &str) -> Error {
    let refused = || Error::refused(format!("{from} is not copied: {refusal}"));
    match refusal {
        Refusal::TooManyBytes(_) => {
            refused().hint("holes count, too; to copy more: --max-bytes SIZE")
        }
        Refusal::TooManyEntries(_) => refused().hint("to copy more: --max-entries COUNT"),
        refusal => no_tree(from).because(refusal.clone()),
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
        Reply::Failed { why: Why::NotFound, message } => {
            Err(Error::not_found(format!("in the guest: {message}")))
        }
        Reply::Failed { message, .. } => Err(Error::failed(format!("in the guest: {message}"))),
        _ => Err(Error::qemu("what the guest answers is no answer to a copy")),
    }
}
