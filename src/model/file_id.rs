//! Which file it is.

/// A file on this host, whatever path leads to it: its file system and its number there (`st_dev`
/// and `st_ino` of stat(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The file system.
    pub device: u64,
    /// The file's number in it.
    pub inode: u64,
}
