//! The mark of a directory: an extended attribute (`user.cowhand.mark`, see `xattr(7)`) with a
//! token, which `store.json` names, too. It tells a directory of the store from the one that is in
//! its place while its disk is not mounted.
//!
//! While the token is renewed, the attribute has two, with a space between them: the earlier one,
//! which `store.json` may name still, and the new one.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, setxattr};
use uuid::Uuid;

use crate::sys::files;

const NAME: &str = "user.cowhand.mark";
/// Two tokens are shorter.
const LONGEST: usize = 128;

/// The tokens on `directory`; none where there are no such attributes.
fn tokens(directory: &Path) -> Vec<Uuid> {
    let mut bytes = [0_u8; LONGEST];
    // The directory may be a link to one on another disk.
    let Ok(length) = getxattr(directory, NAME, &mut bytes[..]) else { return Vec::new() };
    let text = String::from_utf8_lossy(&bytes[..length]);
    text.split(' ').filter_map(|token| token.parse().ok()).collect()
}

/// Is the token `mark` on `directory`?
pub(crate) fn is_on(directory: &Path, mark: Uuid) -> bool {
    tokens(directory).contains(&mark)
}

/// The newest token on `directory`.
pub(crate) fn newest(directory: &Path) -> Option<Uuid> {
    tokens(directory).last().copied()
}

/// Puts the token `mark` on `directory`, and leaves `before` there. An error where there are no
/// such attributes, or the directory cannot be changed. Until [`sync`] a power cut may undo it.
pub(crate) fn add(directory: &Path, before: Option<Uuid>, mark: Uuid) -> io::Result<()> {
    let text = before.map_or_else(|| mark.to_string(), |before| format!("{before} {mark}"));
    Ok(setxattr(directory, NAME, text.as_bytes(), XattrFlags::empty())?)
}

/// Makes the tokens on `directory` survive a power cut.
pub(crate) fn sync(directory: &Path) -> io::Result<()> {
    files::open_directory(directory)?.sync_all()
}

/// Leaves no token but `mark` on `directory`. If that fails, an earlier one stays beside it.
pub(crate) fn keep(directory: &Path, mark: Uuid) {
    let text = mark.to_string();
    if let Err(error) = setxattr(directory, NAME, text.as_bytes(), XattrFlags::empty()) {
        tracing::debug!("{} keeps an earlier mark: {error}", directory.display());
    }
}

/// Can the entry `name` be in a directory that nobody has put anything into?
pub(crate) fn is_of_file_system(name: &OsStr) -> bool {
    name == "lost+found"
}

/// Is there nothing in `directory` but what its file system has put there?
pub(crate) fn is_empty(directory: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        if !is_of_file_system(&entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_token_counts_until_the_new_one_is_kept() {
        let room = tempfile::tempdir().expect("a directory");
        let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
        if add(room.path(), None, one).is_err() {
            return;
        }
        assert!(is_on(room.path(), one) && !is_on(room.path(), two));
        add(room.path(), Some(one), two).expect("it can have marks");
        assert!(is_on(room.path(), one) && newest(room.path()) == Some(two));
        keep(room.path(), two);
        assert!(!is_on(room.path(), one) && is_on(room.path(), two));
    }

    #[test]
    fn what_a_file_system_makes_leaves_a_directory_empty() {
        let room = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(room.path().join("lost+found")).expect("a directory");
        assert!(is_empty(room.path()).expect("it is there"));
        std::fs::write(room.path().join(".cowhand"), "").expect("a file");
        assert!(!is_empty(room.path()).expect("it is there"));
    }
}
