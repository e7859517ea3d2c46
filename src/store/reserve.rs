//! A little room kept back for those who make room. On a full file system a removal could otherwise
//! not write down what it removes, nor QEMU what it merges. It is given up where little is left,
//! and taken back by the next command that finds ample room.

use std::os::unix::fs::MetadataExt;

use super::Store;
use crate::sys::space;

/// Enough for journals, records, directories, and what a small merge writes.
const BYTES: u64 = 2 << 20;
/// With less than this left, those who make room get the reserve.
const LITTLE: u64 = 8 << 20;
/// With less than this left, it is not taken back.
const AMPLE: u64 = 32 << 20;

impl Store {
    /// To be called before something is removed.
    pub fn give_up_reserve(&self) {
        if space::free(self.layout.root()).is_ok_and(|free| free < LITTLE) {
            // Where there is none, the removal has to do without.
            let _ = std::fs::remove_file(self.layout.reserve());
        }
    }

    /// Makes the reserve where it is missing. Doing without is no error.
    pub(super) fn make_reserve(&self) {
        let path = self.layout.reserve();
        let is_there = path.metadata().is_ok_and(|about| about.blocks() > 0);
        if !is_there && space::free(self.layout.root()).is_ok_and(|free| free >= AMPLE) {
            let _ = space::allocate(&path, BYTES);
        }
    }
}
