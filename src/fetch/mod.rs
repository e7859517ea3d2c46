//! Files from the web, whole and verified: downloaded with what was there before, summed up and
//! decompressed while they come.
//!
//! ```text
//! server ─▶ body: one stream, however often the connection is lost ─▶ channel
//!        ─▶ a thread: file, checksum, decompression
//! ```
//! A download lives in a directory of its own: the file as the server has it, what it holds if it
//! is compressed, and `.download.json`, which says what it is of. A download that was cut short
//! goes on there. Nothing is used before its checksum is right.

pub(crate) mod body;
pub mod digest;
pub mod http;
pub(crate) mod partial;
mod room;
pub(crate) mod unpack;
mod work;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

pub use reqwest::Url;
use tokio::sync::mpsc::{Sender, channel};

use crate::error::{Error, IoContext, MAKE_ROOM, Result};
use crate::layer::blocking::{self, StopOnDrop};
use crate::model::human;
use crate::sys::space;
use crate::sys::sparse::Stop;
use crate::ui::{Counter, Task, Ui};
use body::{Body, Piece};
use digest::{Digest, Hasher, Sums};
use http::Client;
use partial::Partial;
use room::Room;
use unpack::Packing;
use work::{Arriving, Copied};

/// The longest text that is read from a server, in bytes.
pub const TEXT: u64 = 1 << 20;
/// How often a download is begun anew because the file was replaced on the server meanwhile.
const BEGINNINGS: u32 = 3;
/// How many pieces may wait for the thread that writes them.
const WAITING: usize = 16;
/// What is left free on the file system, in bytes.
const SPARE: u64 = 64 << 20;

/// A file to be downloaded.
#[derive(Debug)]
pub struct Job<'a> {
    /// From where.
    pub url: &'a Url,
    /// Into this directory, which nobody else uses.
    pub directory: &'a Path,
    /// The lock of the directory.
    pub lock: &'a File,
    /// Under this name.
    pub name: &'a str,
    /// It has to have this checksum.
    pub expected: Option<&'a Digest>,
}

/// A file that was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The file, decompressed.
    pub path: PathBuf,
    /// The checksums of the file as the server has it.
    pub sums: Sums,
}

/// Reads a short text.
pub async fn text(client: &Client, ui: &dyn Ui, url: &Url) -> Result<String> {
    let shown = http::shown(url);
    let body = Body::open(client, ui, url, None).await?;
    let mut body = body.ok_or_else(|| Error::failed(format!("cannot download {shown}")))?;
    let mut text = Vec::new();
    loop {
        match body.next().await? {
            Piece::Bytes(bytes) => text.extend(bytes),
            Piece::End => break,
            Piece::Changed => {
                return Err(Error::failed(format!("{shown} changes while it is read"))
                    .hint("run the command again"));
            }
        }
        if text.len() as u64 > TEXT {
            return Err(Error::refused(format!(
                "{shown} is too long for a text: more than {} MiB",
                TEXT >> 20
            )));
        }
    }
    String::from_utf8(text).map_err(|_| Error::refused(format!("{shown} is no text")))
}

/// Downloads a file, or the rest of it, checks its checksum, and decompresses it if its name says
/// that it is compressed.
pub async fn download(client: &Client, ui: &dyn Ui, job: &Job<'_>) -> Result<Fetched> {
    for _ in 0..BEGINNINGS {
        if let Some(fetched) = begin(client, ui, job).await? {
            return Ok(fetched);
        }
        ui.note(&format!(
            "the download of {} cannot go on where it was: beginning anew",
            http::shown(job.url)
        ));
        partial::forget(job.directory)?;
    }
    Err(Error::failed(format!(
        "cannot download {}: the connection is lost again and again, or the file replaced",
        http::shown(job.url)
    ))
    .hint("run the command again later"))
}

/// `None`: the server has another version by now.
async fn begin(client: &Client, ui: &dyn Ui, job: &Job<'_>) -> Result<Option<Fetched>> {
    let path = job.directory.join(job.name);
    let before = Partial::load(job.directory, job.url).and_then(|partial| {
        let length = path.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
        (length > 0).then(|| (length, partial.version()))
    });
    if before.is_none() {
        partial::forget(job.directory)?;
    }
    let at = before.as_ref().map_or(0, |(at, _)| *at);
    let Some(mut body) = Body::open(client, ui, job.url, before).await? else { return Ok(None) };
    if !body.is_framed() && job.expected.is_none() {
        return Err(endless(job));
    }
    let total = body.version.total;
    refuse_without_room(job, total.unwrap_or(0).saturating_sub(at))?;
    if at == 0 {
        Partial::new(job.url, &body.version).save(job.directory)?;
    }
    let (sender, receiver) = channel(WAITING);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(&path)
        .on("open", &path)?;
    let packed = packed(job.directory, job.name);
    if let Some((_, unpacked)) = &packed {
        partial::remove(unpacked)?;
    }
    let hasher = Hasher::new(job.expected);
    let stop = StopOnDrop::default();
    let lock = job.lock.try_clone().on("open the lock of", job.directory)?;
    let arriving = Arriving::new(file, at, receiver, stop.0.clone(), lock).on("open", &path)?;
    let worker = tokio::task::spawn_blocking({
        let stop = stop.0.clone();
        move || work::take(arriving, hasher, packed, &stop)
    });
    let label = format!("downloading {}", job.name);
    let task = ui.task(&label, total.unwrap_or(0));
    let sent = send(&mut body, sender, &*task, at).await;
    if !matches!(sent, Ok(Sent::All | Sent::Stopped)) {
        // What it has left to do is of no use.
        stop.0.store(true, Ordering::Relaxed);
    }
    let worked = worker.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
    drop(task);
    match (sent, worked) {
        (Ok(Sent::Changed), _) => Ok(None),
        // What came is kept for the next time.
        (Err(error), _) => {
            let came = path.metadata().map_or(0, |about| about.len());
            Err(if came > 0 && body.version.validator.is_some() {
                error.hint(format!(
                    "{} were downloaded; the same command resumes the download",
                    human(came)
                ))
            } else {
                error
            })
        }
        (Ok(_), Err(error)) => {
            partial::forget(job.directory)?;
            Err(unusable(&http::shown(job.url), job.name, error))
        }
        // The last of several answers may have been without an end.
        (Ok(_), Ok(_)) if !body.is_framed() && job.expected.is_none() => {
            partial::forget(job.directory)?;
            Err(endless(job))
        }
        (Ok(_), Ok((path, sums))) => {
            if let Some(expected) = job.expected
                && let Err(error) = sums.check(&http::shown(job.url), expected)
            {
                partial::forget(job.directory)?;
                return Err(error);
            }
            Ok(Some(Fetched { path: path.unwrap_or_else(|| job.directory.join(job.name)), sums }))
        }
    }
}

fn endless(job: &Job<'_>) -> Error {
    let shown = http::shown(job.url);
    Error::refused(format!(
        "the server does not say how long {shown} is, so an incomplete download could not \
         be detected"
    ))
    .hint("say which checksum it has: --sha256 HEX, or --sums URL")
}

/// A file of the host that is checked or decompressed.
#[derive(Debug)]
pub struct Local<'a> {
    /// How it is called where it is told of.
    pub shown: &'a str,
    /// Into this directory, which nobody else uses.
    pub directory: &'a Path,
    /// Under this name.
    pub name: &'a str,
    /// It has to have this checksum.
    pub expected: Option<&'a Digest>,
}

/// Checks and decompresses a file of the host, as a download is: it is copied if its name does not
/// say that it is compressed. So what was checked is what is used.
pub async fn local(ui: &dyn Ui, file: File, job: &Local<'_>) -> Result<Fetched> {
    let shown = job.shown;
    let total = file
        .metadata()
        .map_err(|error| Error::failed(format!("cannot read {shown}")).because(error))?
        .len();
    let packed = packed(job.directory, job.name);
    let path = job.directory.join(job.name);
    let copy = match packed {
        Some(_) => None,
        None => {
            let file = File::create_new(&path).on("create", &path)?;
            let room = Room::new(&file).on("open", &path)?;
            Some((file, room))
        }
    };
    let hasher = Hasher::new(job.expected);
    let task = ui.task(&format!("reading {}", job.name), total);
    let work = move |counter: &Counter, stop: &Stop| {
        let input = Copied { file, copy, counter: counter.clone(), stop: stop.clone() };
        work::take(input, hasher, packed, stop)
    };
    let taken = blocking::run(&*task, total, work).await;
    drop(task);
    let checked =
        taken.map_err(|error| unusable(shown, job.name, error)).and_then(|(unpacked, sums)| {
            job.expected.map_or(Ok(()), |expected| sums.check(shown, expected))?;
            Ok((unpacked, sums))
        });
    if checked.is_err() {
        partial::forget(job.directory)?;
    }
    let (unpacked, sums) = checked?;
    Ok(Fetched { path: unpacked.unwrap_or(path), sums })
}

/// How a file of this name is compressed, and where what it holds is written.
fn packed(directory: &Path, name: &str) -> Option<(Packing, PathBuf)> {
    Packing::by_name(name).map(|(packing, stem)| (packing, directory.join(stem)))
}

/// What became of the sending.
enum Sent {
    /// All is there.
    All,
    /// The thread takes no more.
    Stopped,
    /// The file is another one by now.
    Changed,
}

async fn send(
    body: &mut Body<'_>,
    sender: Sender<Vec<u8>>,
    task: &dyn Task,
    at: u64,
) -> Result<Sent> {
    let mut done = at;
    loop {
        let piece = match body.next().await? {
            Piece::Bytes(bytes) => bytes,
            // An empty piece is the end; a channel that is closed without one is not.
            Piece::End => Vec::new(),
            Piece::Changed => return Ok(Sent::Changed),
        };
        let is_end = piece.is_empty();
        done += piece.len() as u64;
        if sender.send(piece).await.is_err() {
            return Ok(Sent::Stopped);
        }
        if is_end {
            return Ok(Sent::All);
        }
        task.update(done, body.version.total.unwrap_or(0));
    }
}

fn refuse_without_room(job: &Job<'_>, missing: u64) -> Result<()> {
    let free = space::free(job.directory).on("look at the file system of", job.directory)?;
    if free >= missing.saturating_add(SPARE) {
        return Ok(());
    }
    let (directory, shown) = (job.directory.display(), http::shown(job.url));
    Err(Error::refused(format!(
        "{directory} has {} free, and of {shown} there are {} to download",
        human(free),
        human(missing)
    ))
    .hint(MAKE_ROOM))
}

/// Why the content of a file cannot be used, or not be written.
fn unusable(shown: &str, name: &str, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::failed(format!("cannot write what {shown} holds")).hint(MAKE_ROOM)
        }
        ErrorKind::FileTooLarge | ErrorKind::OutOfMemory => {
            Error::refused(format!("{shown} cannot be decompressed"))
        }
        _ if Packing::by_name(name).is_none() || error.raw_os_error().is_some() => {
            Error::failed(format!("cannot read {shown}, or write what it holds"))
        }
        _ => Error::failed(format!("cannot decompress {shown}"))
            .hint("it is damaged, or not compressed as its name says; compare its checksum"),
    }
    .because(error)
}
