//! A log in two files: `NAME`, to which its writers append, and `NAME.1`, which has the output
//! before it.
//!
//! ```text
//! position   0 ........ begin ............... base ............ end
//!            (dropped)  |------ NAME.1 ------||---- NAME ------|
//! ```
//! A *position* counts the bytes of the log since its beginning, so that a reader finds its place
//! again after a rotation. The position of the first byte of `NAME.1` is in an extended attribute
//! of that file; on a file system without such attributes a reader that waits during a rotation may
//! miss or repeat output.
//!
//! A rotation copies the end of `NAME` to `NAME.1` and truncates `NAME`: its writers keep their
//! descriptors (`O_APPEND`). Readers take a shared flock(2) on the directory while they read one
//! piece, a rotation takes it exclusively. Neither waits for it longer than [`PATIENCE`], so that
//! no process can block the other one for ever.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, XattrFlags, fgetxattr, flock, fsetxattr, openat,
    unlinkat,
};

/// The attribute with the position of the first byte of the older file, in decimal digits.
const BEGIN: &str = "user.cowhand.begin";
/// How long to wait for the lock.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_millis(2);
/// What was written during the copy is copied, too, so many times, and each time at most so many
/// parts of what is kept: the older file has at most a quarter more than that.
const ROUNDS: u32 = 4;
const PART_OF_A_ROUND: u64 = 16;

/// A log that is open.
#[derive(Debug)]
pub(crate) struct Rotated {
    directory: File,
    older: OsString,
    current: File,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// How many bytes are in the buffer; 0 at the end of the log.
    pub bytes: usize,
    /// The position behind these bytes.
    pub next: u64,
    /// How many bytes before these were dropped by a rotation before they were read.
    pub lost: u64,
}

/// The older file.
struct Older {
    file: File,
    begin: u64,
    bytes: u64,
}

impl Rotated {
    /// Opens the log whose newer file is `path`, for reading.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            directory: File::open(directory)?,
            older: older_name(name),
            current: File::open(path)?,
        })
    }

    /// The same from descriptors; `name` is the name of the newer file in `directory`. To rotate
    /// it, `current` has to be open for reading and writing.
    pub(crate) fn of(directory: File, name: &str, current: File) -> Self {
        Self { directory, older: older_name(name.as_ref()), current }
    }

    /// The length of the newer file, in bytes.
    pub(crate) fn current_bytes(&self) -> io::Result<u64> {
        Ok(self.current.metadata()?.len())
    }

    /// The position of the first byte that is still there.
    pub(crate) fn begin(&self) -> io::Result<u64> {
        let _lock = self.lock(FlockOperation::NonBlockingLockShared);
        Ok(self.older()?.map_or(0, |older| older.begin))
    }

    /// The position behind the last byte.
    pub(crate) fn end(&self) -> io::Result<u64> {
        let _lock = self.lock(FlockOperation::NonBlockingLockShared);
        Ok(base(self.older()?.as_ref()).saturating_add(self.current_bytes()?))
    }

    /// Reads what is at `position`, as far as it fits into `buffer`.
    pub(crate) fn read(&self, position: u64, buffer: &mut [u8]) -> io::Result<Piece> {
        let _lock = self.lock(FlockOperation::NonBlockingLockShared);
        let older = self.older()?;
        let (base, mut at) = (base(older.as_ref()), position);
        if at > base.saturating_add(self.current_bytes()?) {
            // The log was begun anew.
            at = base;
        }
        let begin = older.as_ref().map_or(base, |older| older.begin);
        let lost = begin.saturating_sub(at);
        at += lost;
        let bytes = match &older {
            Some(older) if at < base => {
                let rest = usize::try_from(base - at).unwrap_or(usize::MAX).min(buffer.len());
                older.file.read_at(&mut buffer[..rest], at - older.begin)?
            }
            _ => self.current.read_at(buffer, at - base)?,
        };
        Ok(Piece { bytes, next: at + bytes as u64, lost })
    }

    /// The last bytes from `position` on, at most `limit` of them.
    pub(crate) fn tail(&self, position: u64, limit: u64) -> io::Result<Vec<u8>> {
        let (mut at, mut all) = (position.max(self.end()?.saturating_sub(limit)), Vec::new());
        let mut buffer = vec![0; 16 << 10];
        while let rest @ 1.. = limit.saturating_sub(all.len() as u64) {
            let most = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
            let piece = self.read(at, &mut buffer[..most])?;
            if piece.bytes == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..piece.bytes]);
            at = piece.next;
        }
        Ok(all)
    }

    /// Moves the last `keep` bytes of the newer file to the older one, whose content is dropped.
    /// When the disk has no room for that they are dropped, too: the limit counts more than the
    /// log.
    pub(crate) fn rotate(&mut self, keep: u64) -> io::Result<()> {
        let _lock = self.lock(FlockOperation::NonBlockingLockExclusive);
        // Whatever is in the place of the older file, the newer one must not grow.
        let base = base(self.older().ok().flatten().as_ref());
        let bytes = self.current_bytes()?;
        let from = bytes.saturating_sub(keep);
        self.remove_older();
        if self.copy(from, bytes, keep, base.saturating_add(from)).is_err() {
            self.remove_older();
        }
        self.current.set_len(0)
    }

    fn copy(&mut self, from: u64, mut to: u64, keep: u64, position: u64) -> io::Result<()> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut older =
            File::from(openat(&self.directory, &self.older, flags, Mode::RUSR | Mode::WUSR)?);
        let _ = fsetxattr(&older, BEGIN, position.to_string().as_bytes(), XattrFlags::empty());
        self.current.seek(SeekFrom::Start(from))?;
        io::copy(&mut (&self.current).take(to - from), &mut older)?;
        let round = keep / PART_OF_A_ROUND;
        for _ in 0..ROUNDS {
            let now = self.current_bytes()?;
            if now <= to {
                break;
            }
            to += io::copy(&mut (&self.current).take((now - to).min(round)), &mut older)?;
        }
        Ok(())
    }

    fn remove_older(&self) {
        // What cannot be removed is in the way of the copy, which says so.
        let _ = unlinkat(&self.directory, &self.older, AtFlags::empty());
    }

    fn older(&self) -> io::Result<Option<Older>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(&self.directory, &self.older, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the older part of the log is not a file",
            ));
        }
        let mut digits = [0_u8; 20];
        let begin = fgetxattr(&file, BEGIN, &mut digits[..]).ok();
        let begin = begin
            .and_then(|length| std::str::from_utf8(&digits[..length]).ok()?.parse().ok())
            .unwrap_or(0);
        Ok(Some(Older { begin, bytes: about.len(), file }))
    }

    /// `None` when it times out: the caller reads or rotates without the lock.
    fn lock(&self, how: FlockOperation) -> Option<Locked> {
        let deadline = Instant::now() + PATIENCE;
        // Opened anew, so that the lock is not shared with whoever has inherited this directory.
        let directory = File::from(
            openat(&self.directory, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?,
        );
        loop {
            match flock(&directory, how) {
                Ok(()) => return Some(Locked { _directory: directory }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE)
                }
                Err(_) => return None,
            }
        }
    }
}

/// The lock, until it is dropped.
struct Locked {
    _directory: File,
}

/// The name of the older file.
pub(crate) fn older_name(name: &std::ffi::OsStr) -> OsString {
    let mut older = name.to_owned();
    older.push(".1");
    older
}

/// The position of the first byte of the newer file.
fn base(older: Option<&Older>) -> u64 {
    older.map_or(0, |older| older.begin.saturating_add(older.bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    struct Log {
        _room: tempfile::TempDir,
        path: PathBuf,
        writer: File,
    }

    fn log() -> Log {
        let room = tempfile::tempdir().expect("a directory");
        let path = room.path().join("serial.log");
        let writer = File::options().create(true).append(true).open(&path).expect("a log");
        Log { _room: room, path, writer }
    }

    fn limiter(log: &Log) -> Rotated {
        let directory = File::open(log.path.parent().expect("a directory")).expect("a directory");
        let current = File::options().read(true).write(true).open(&log.path).expect("a log");
        Rotated::of(directory, "serial.log", current)
    }

    fn read_from(reader: &Rotated, position: &mut u64) -> (Vec<u8>, u64) {
        let (mut all, mut lost, mut buffer) = (Vec::new(), 0, [0; 7]);
        loop {
            let piece = reader.read(*position, &mut buffer).expect("a piece");
            *position = piece.next;
            lost += piece.lost;
            if piece.bytes == 0 {
                return (all, lost);
            }
            all.extend_from_slice(&buffer[..piece.bytes]);
        }
    }

    #[test]
    fn a_planted_link_or_fifo_in_the_place_of_the_older_file_is_not_followed() {
        let mut log = log();
        let victim = log.path.with_file_name("victim");
        std::fs::write(&victim, "precious").expect("a file");
        let older = log.path.with_file_name("serial.log.1");
        std::os::unix::fs::symlink(&victim, &older).expect("a link");
        log.writer.write_all(b"what a guest prints").expect("room");
        assert!(Rotated::open(&log.path).expect("a log").begin().is_err(), "the link was followed");
        // A rotation removes what is in its way.
        limiter(&log).rotate(4).expect("a rotation");
        assert!(older.symlink_metadata().expect("a file").is_file());
        assert_eq!(std::fs::read(&older).expect("a file"), b"ints");
        std::fs::remove_file(&older).expect("a file");
        nix::unistd::mkfifo(&older, nix::sys::stat::Mode::S_IRUSR).expect("a FIFO");
        assert!(Rotated::open(&log.path).expect("a log").begin().is_err(), "the FIFO was read");
        std::fs::remove_file(&older).expect("a FIFO");
        // A directory cannot be removed; the log is limited all the same.
        std::fs::create_dir(&older).expect("a directory");
        log.writer.write_all(b"more").expect("room");
        limiter(&log).rotate(4).expect("a rotation");
        assert_eq!(log.writer.metadata().expect("a file").len(), 0);
        assert_eq!(std::fs::read(&victim).expect("a file"), b"precious");
    }

    #[test]
    fn a_log_that_is_begun_anew_is_read_from_its_beginning() {
        let mut log = log();
        let reader = Rotated::open(&log.path).expect("a log");
        log.writer.write_all(b"0123456789").expect("room");
        let mut position = 0;
        assert_eq!(read_from(&reader, &mut position).0, b"0123456789");
        log.writer.set_len(0).expect("a file");
        log.writer.write_all(b"new").expect("room");
        assert_eq!(read_from(&reader, &mut position), (b"new".to_vec(), 0));
    }

    proptest! {
        /// Whatever is written, rotated and read in whatever order: a reader gets every byte once
        /// and in order, or is told how many it has missed; and the older file never has more than
        /// was to be kept.
        #[test]
        fn a_reader_gets_each_byte_once_or_learns_how_many_are_lost(
            steps in proptest::collection::vec((0_usize..40, any::<bool>(), any::<bool>()), 1..20),
            keep in 1_u64..50,
        ) {
            let mut log = log();
            let probe = fsetxattr(&log.writer, BEGIN, b"0", XattrFlags::empty());
            prop_assume!(probe.is_ok());
            let (mut limiter, reader) = (limiter(&log), Rotated::open(&log.path).expect("a log"));
            let (mut written, mut position, mut expected) = (0_u64, 0, 0_u64);
            let byte = |at: u64| u8::try_from(at % 251).expect("below 251");
            for (bytes, rotates, reads) in steps {
                let text: Vec<u8> = (0..bytes as u64).map(|more| byte(written + more)).collect();
                log.writer.write_all(&text).expect("room");
                written += bytes as u64;
                if rotates {
                    limiter.rotate(keep).expect("a rotation");
                    let older = log.path.with_file_name("serial.log.1").metadata();
                    prop_assert!(older.expect("a file").len() <= keep);
                    prop_assert_eq!(limiter.current_bytes().expect("a file"), 0);
                }
                prop_assert_eq!(reader.end().expect("a log"), written);
                if reads {
                    let (text, lost) = read_from(&reader, &mut position);
                    expected += lost;
                    for got in text {
                        prop_assert_eq!(got, byte(expected));
                        expected += 1;
                    }
                    prop_assert_eq!(expected, written);
                }
            }
            let tail = reader.tail(0, 10).expect("a tail");
            prop_assert!(tail.len() <= 10);
            for (got, at) in tail.iter().rev().zip((0..written).rev()) {
                prop_assert_eq!(*got, byte(at));
            }
        }
    }
}
