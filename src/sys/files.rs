//! How many files this process may still open.

use std::fs::File;
use std::io;

/// Can `count` more files be open at once? The kernel's reason when they cannot.
pub fn can_open(count: usize) -> io::Result<()> {
    (0..count).map(|_| File::open("/dev/null")).collect::<io::Result<Vec<_>>>().map(drop)
}
