//! What is done with the bytes of a file, on a thread of its own: they are written, summed up and
//! decompressed as they come.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::Receiver;

use super::digest::{Hasher, Sums};
use super::room::Room;
use super::unpack::{self, Packing};
use crate::sys::sparse::Stop;
use crate::ui::Counter;

/// Reads all of `input`, and decompresses it into the file that is named. Returns that, and the
/// checksums of `input`.
pub(super) fn take(
    input: impl Read,
    hasher: Hasher,
    packed: Option<(Packing, PathBuf)>,
    stop: &Stop,
) -> io::Result<(Option<PathBuf>, Sums)> {
    let mut input = Summed { inner: input, hasher };
    let unpacked = match packed {
        Some((packing, path)) => {
            let output = File::create_new(&path)?;
            unpack::unpack(packing, &mut input, &output, unpack::LONGEST, stop)?;
            Some(path)
        }
        None => None,
    };
    io::copy(&mut input, &mut io::sink())?;
    Ok((unpacked, input.hasher.finish()))
}

/// What is read, is summed up.
struct Summed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// A download: first what is in the file already, then what comes, which is written to it.
pub(super) struct Arriving {
    file: File,
    /// Up to here it is in the file.
    there: u64,
    /// So much of that has been read.
    read: u64,
    receiver: Receiver<Vec<u8>>,
    /// What came last, and how much of that has been read.
    piece: (Vec<u8>, usize),
    is_over: bool,
    room: Room,
    stop: Stop,
    /// The lock of the directory: nobody else writes there while this thread may.
    _lock: File,
}

impl Arriving {
    /// The file has `there` bytes. An empty piece says that no more come.
    pub(super) fn new(
        file: File,
        there: u64,
        receiver: Receiver<Vec<u8>>,
        stop: Stop,
        lock: File,
    ) -> io::Result<Self> {
        let room = Room::new(&file)?;
        let piece = (Vec::new(), 0);
        Ok(Self { file, there, read: 0, receiver, piece, is_over: false, room, stop, _lock: lock })
    }
}

impl Arriving {
    /// Writes what came to the file.
    fn keep(&mut self, piece: &[u8]) -> io::Result<()> {
        self.room.take(piece.len() as u64)?;
        self.file.write_all_at(piece, self.there)?;
        self.there += piece.len() as u64;
        Ok(())
    }
}

/// What has come is not lost when nobody reads on: the next command goes on behind it.
impl Drop for Arriving {
    fn drop(&mut self) {
        self.receiver.close();
        while let Ok(piece) = self.receiver.try_recv() {
            if self.keep(&piece).is_err() {
                break;
            }
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read < self.there {
            let left =
                usize::try_from(self.there - self.read).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.file.read_at(&mut buffer[..left], self.read)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.read += read as u64;
            return Ok(read);
        }
        if self.piece.1 == self.piece.0.len() && !self.is_over {
            let piece = self.receiver.blocking_recv().ok_or_else(cut_off)?;
            self.keep(&piece)?;
            self.read = self.there;
            if self.stop.load(Ordering::Relaxed) {
                return Err(cut_off());
            }
            self.is_over = piece.is_empty();
            if self.is_over && self.file.metadata()?.len() != self.there {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "another program writes to the file, too",
                ));
            }
            self.piece = (piece, 0);
        }
        let (piece, at) = &mut self.piece;
        let read = (piece.len() - *at).min(buffer.len());
        buffer[..read].copy_from_slice(&piece[*at..*at + read]);
        *at += read;
        Ok(read)
    }
}

/// A file of the host, which is copied if there is somewhere to.
pub(super) struct Copied {
    pub(super) file: File,
    pub(super) copy: Option<(File, Room)>,
    pub(super) counter: Counter,
    pub(super) stop: Stop,
}

impl Read for Copied {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(cut_off());
        }
        let read = self.file.read(buffer)?;
        if let Some((copy, room)) = &mut self.copy {
            room.take(read as u64)?;
            copy.write_all(&buffer[..read])?;
        }
        self.counter.add(read as u64);
        Ok(read)
    }
}

/// Nobody waits for it any more. (After an interruption, readers would try again.)
fn cut_off() -> io::Error {
    ErrorKind::ConnectionAborted.into()
}
