//! The relay: a process that reads a stream from a pipe and writes it to a file, until the stream
//! ends. It is this same program under a verb of its own, in a session of its own, so that it
//! outlives whoever started it.
//!
//! ```text
//! waits for its orders ──1 byte──▶ writes ──end of stream──▶ fsync, rename to its final name
//!          └──hung up──▶ throws away  ◀──write error──┘
//! ```
//! Whatever happens, it reads to the end: whoever writes to the pipe never waits for ever and never
//! sees it break.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use super::pipe;

/// This program, whatever has become of its file.
pub(crate) const PROGRAM: &str = "/proc/self/exe";
/// The verb under which it is the relay.
pub(crate) const VERB: &str = "relay-memory";
/// The order to begin.
pub(crate) const OPEN: u8 = b'o';
/// zstd's own default.
const LEVEL: i32 = 3;
const CHUNK: usize = 1 << 20;

/// What the relay was told: descriptors of the stream and of the (locked) file, how many bytes of
/// the stream to skip, whether to compress, the file's name and its final name.
#[derive(Debug)]
pub(crate) struct Orders {
    stream: RawFd,
    file: RawFd,
    skip: u64,
    compress: bool,
    partial: PathBuf,
    whole: PathBuf,
}

impl Orders {
    /// From the words behind [`VERB`].
    pub(crate) fn parse(words: &[String]) -> Option<Self> {
        let [stream, file, skip, how, partial, whole] = words else { return None };
        Some(Self {
            stream: stream.parse().ok()?,
            file: file.parse().ok()?,
            skip: skip.parse().ok()?,
            compress: how == "zstd",
            partial: partial.into(),
            whole: whole.into(),
        })
    }
}

/// Is the relay, to the end of the stream.
pub(crate) fn run(orders: &Orders) -> io::Result<()> {
    let (mut stream, file) = (own(orders.stream), own(orders.file));
    let mut order = [0];
    let opened = matches!(io::stdin().read(&mut order), Ok(1)) && order[0] == OPEN;
    let written = if opened {
        take_down(&mut stream, &file, orders)
    } else {
        Err(io::ErrorKind::Interrupted.into())
    };
    if written.is_err() {
        let _ = std::fs::remove_file(&orders.partial);
        copy(&mut stream, &mut io::sink())?;
    }
    written
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> File {
    // SAFETY: whoever started us handed this descriptor over for good, and nobody else in this
    // process knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

fn take_down(stream: &mut File, mut file: &File, orders: &Orders) -> io::Result<()> {
    pipe::widen(stream);
    io::copy(&mut stream.take(orders.skip), &mut io::sink())?;
    if orders.compress {
        let mut encoder = zstd::Encoder::new(&mut file, LEVEL)?;
        copy(stream, &mut encoder)?;
        encoder.finish()?;
    } else {
        copy(stream, &mut file)?;
    }
    file.sync_all()?;
    std::fs::rename(&orders.partial, &orders.whole)?;
    File::open(orders.whole.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Copies to the end.
pub(crate) fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
