//! Reading the small files of the store. What lies in the place of one may be anything: opening a
//! FIFO would wait for a writer, and a file may be longer than memory.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Error, IoContext, Result};
use crate::sys::files;

/// No file of the store is as long as this, in bytes. A record with 10,000 snapshots has some 10
/// MiB.
const MOST: u64 = 256 << 20;
/// Room is made beforehand for files up to this length, in bytes.
const USUAL: usize = 1 << 20;

/// Reads all of the file at `path`; `None` when there is none. What is no file, or too long to be
/// one of ours, is damage.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    // One that is too long is not read up to that.
    let length = file.metadata().on("read", path)?.len();
    // With room for the byte that is not there, the second read says that this is the end.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0).min(USUAL) + 1);
    if length <= MOST {
        file.take(MOST + 1).read_to_end(&mut bytes).on("read", path)?;
        if u64::try_from(bytes.len()).is_ok_and(|length| length <= MOST) {
            return Ok(Some(bytes));
        }
    }
    Err(Error::damaged(format!(
        "{} is too long: no file of a store has more than {} MiB",
        path.display(),
        MOST >> 20
    )))
}

/// The same where it makes no difference why it cannot be read.
pub(crate) fn read_if_possible(path: &Path) -> Option<Vec<u8>> {
    read(path).ok().flatten()
}

/// Opens the file at `path` for reading, however long it is; `None` when there is none.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    // Opening a terminal does not make it ours.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return match damage(path) {
                Some(damage) => Err(damage),
                None => Err(error).on("read", path),
            };
        }
    };
    let kind = file.metadata().on("read", path)?.file_type();
    match kind.is_file() {
        true => Ok(Some(file)),
        false => Err(is_no_file(path, files::special(kind).unwrap_or("a directory"))),
    }
}

/// The same of one that has to be there.
pub(crate) fn open_existing(path: &Path) -> Result<File> {
    open(path)?.ok_or_else(|| Error::not_found(format!("{} is not there", path.display())))
}

/// Is there anything at `path`, be it a link that leads nowhere?
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// What lies at `path` and is no file, in words; `None` where there is nothing, or a file.
pub(crate) fn no_file_at(path: &Path) -> Option<&'static str> {
    let is_link = path.symlink_metadata().ok()?.is_symlink();
    match path.metadata() {
        Ok(about) if about.is_file() => None,
        Ok(about) => Some(files::special(about.file_type()).unwrap_or("a directory")),
        Err(error)
            if is_link
                && [Some(Errno::NOENT), Some(Errno::LOOP)]
                    .contains(&Errno::from_io_error(&error)) =>
        {
            Some("a link that leads nowhere")
        }
        Err(_) => None,
    }
}

/// That as an error.
pub(crate) fn damage(path: &Path) -> Option<Error> {
    no_file_at(path).map(|is| is_no_file(path, is))
}

fn is_no_file(path: &Path, is: &str) -> Error {
    Error::damaged(format!("{} is {is}, not a file", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_files_of_a_sane_length_are_read() {
        let room = tempfile::tempdir().expect("a directory");
        let at = |name: &str| room.path().join(name);
        std::fs::write(at("file"), "text").expect("a file");
        std::os::unix::fs::symlink(at("file"), at("link")).expect("a link");
        for whole in ["file", "link"] {
            assert_eq!(read(&at(whole)).expect("it can be read").as_deref(), Some(&b"text"[..]));
            assert_eq!(no_file_at(&at(whole)), None);
        }
        assert!(read(&at("nothing")).expect("it is not there").is_none());
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        std::fs::create_dir(at("directory")).expect("a directory");
        let _listener = UnixListener::bind(at("socket")).expect("a socket");
        std::os::unix::fs::symlink(at("loop"), at("loop")).expect("a link");
        std::os::unix::fs::symlink("/dev/null", at("device")).expect("a link");
        for (name, is) in [
            ("fifo", "a FIFO"),
            ("directory", "a directory"),
            ("socket", "a socket"),
            ("loop", "a link that leads nowhere"),
            ("device", "a character device"),
        ] {
            let error = read(&at(name)).expect_err("it is no file");
            assert_eq!(error.kind(), crate::error::Kind::Damaged, "{error:?}");
            assert!(
                error.full_message().ends_with(&format!("{name} is {is}, not a file")),
                "{error:?}"
            );
            assert_eq!(no_file_at(&at(name)), Some(is));
        }
        File::create(at("long")).and_then(|file| file.set_len(1 << 40)).expect("a file");
        let error = read(&at("long")).expect_err("it is too long");
        assert!(error.full_message().contains("long is too long"), "{error:?}");
    }
}
