//! What belongs to the store and cannot be seen where it should be: a directory on a disk that is
//! not mounted, a VM under a name that none has.
//!
//! `vms/` and `layers/` may lie on a disk of their own. While that is not mounted, an empty
//! directory can be in their place, and looks like a store without VMs. So both have a mark
//! (`store/mark.rs`), the same one, which `store.json` names. A directory is the store's if it has
//! that mark, or if there is anything in it.
//!
//! The first command that changes something gives a store its mark. It is renewed when a directory
//! is there without it: the VMs were moved to another disk, say. The directory below the place
//! where that disk is mounted has the earlier mark, which does not count any more.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{Store, layout, mark, plain};
use crate::error::{Error, IoContext, Result};
use crate::model::Name;

/// A name for a file that makes a directory one that is not empty, until it has its mark.
const ANYTHING: &str = ".cowhand";

impl Store {
    /// Refuses a directory of the store that is not there, though the store is: what is in it may
    /// need anything.
    pub fn refuse_unreachable(&self, directory: &Path) -> Result<()> {
        if !plain::is_there(&self.layout.store_json())
            || (directory == self.layout.trash() && !plain::is_there(directory))
        {
            return Ok(());
        }
        let shown = directory.display();
        let touch = match self.mark().is_some() && directory != self.layout.trash() {
            true => format!(" && touch {}", directory.join(ANYTHING).display()),
            false => String::new(),
        };
        Err(Error::damaged(format!("{shown} of the store is not there"))
            .hint("is the file system mounted that it lies on?")
            .hint(format!("if there is nothing to recover: mkdir -m 700 {shown}{touch}")))
    }

    /// Refuses the store while one of the directories that may lie on a disk of their own is not
    /// there, or another one is in its place.
    pub fn refuse_unmounted(&self) -> Result<()> {
        self.may_be_mounted().iter().try_for_each(|directory| self.refuse_unmarked(directory))
    }

    /// The same for one of them.
    pub fn refuse_unmarked(&self, directory: &Path) -> Result<()> {
        let mark = self.mark();
        if mark.is_some_and(|mark| mark::is_on(directory, mark)) {
            return Ok(());
        }
        if matches!(directory.try_exists(), Ok(false)) {
            return self.refuse_unreachable(directory);
        }
        // Another command may have renewed it since it was read.
        if mark.and_then(|_| self.mark_now()).is_none_or(|mark| is_in_place(directory, mark))
            || self.is_copy() && self.are_balanced()
        {
            return Ok(());
        }
        mark::is_empty(directory).on("list", directory)?;
        let shown = directory.display();
        Err(Error::damaged(format!(
            "{shown} is not the directory of the store: it is empty and without its mark"
        ))
        .hint(format!(
            "the file system that belongs there is probably not mounted: mount it on {shown}"
        ))
        .hint(format!(
            "if it is the right one, or there is nothing to recover: touch {}",
            directory.join(ANYTHING).display()
        )))
    }

    /// The directories that have a mark.
    pub fn may_be_mounted(&self) -> [PathBuf; 2] {
        [self.layout.layers(), self.layout.vms()]
    }

    /// Is `mark` on all directories that should have it, and no newer one, of a renewal that was
    /// cut short?
    pub(super) fn has_mark(&self, mark: Option<Uuid>) -> bool {
        let is_newest = |path: &PathBuf| mark::newest(path) == mark;
        mark.is_some() && self.may_be_mounted().iter().all(is_newest)
    }

    /// The mark that is on all directories, whatever `store.json` says.
    pub(super) fn mark_of_directories(&self) -> Option<Uuid> {
        let mark = mark::newest(&self.layout.layers());
        mark.filter(|_| self.has_mark(mark))
    }

    /// Renews the mark where a directory is without `before`, and gives the directories of a copy
    /// one of their own. The mark that `store.json` is to name; `None`: the file system has no such
    /// attributes, or one directory may not be mounted, in a store without a mark.
    ///
    /// `before` stays beside a new one, for the case that `store.json` cannot be written.
    pub(super) fn renew_mark(&self, before: Option<Uuid>, is_copy: bool) -> Option<Uuid> {
        let kept = before.filter(|_| !is_copy);
        let may_have_one = match kept {
            Some(_) if self.has_mark(kept) => return kept,
            Some(mark) => self.are_in_place(mark),
            None => self.are_balanced() || before.is_some_and(|mark| self.are_in_place(mark)),
        };
        if !may_have_one {
            return before;
        }
        let (mark, directories) = (Uuid::new_v4(), self.may_be_mounted());
        let mut added = directories.iter().try_for_each(|path| mark::add(path, before, mark));
        added = added.and_then(|()| directories.iter().try_for_each(|path| mark::sync(path)));
        match added {
            Ok(()) => Some(mark),
            Err(error) if error.kind() == ErrorKind::Unsupported => None,
            Err(error) => {
                tracing::debug!("the store gets no new mark: {error}");
                before
            }
        }
    }

    /// Forgets the marks before `mark`.
    pub(super) fn keep_mark(&self, mark: Option<Uuid>) {
        for directory in self.may_be_mounted() {
            mark.into_iter().for_each(|mark| mark::keep(&directory, mark));
            // It would make the directory below a mount point one that is not empty.
            let told = directory.join(ANYTHING);
            if told.symlink_metadata().is_ok_and(|about| about.is_file() && about.len() == 0) {
                let _ = std::fs::remove_file(told);
            }
        }
    }

    fn are_in_place(&self, mark: Uuid) -> bool {
        self.may_be_mounted().iter().all(|directory| is_in_place(directory, mark))
    }

    /// Are all directories empty, or none? If only one is, its disk may not be mounted.
    fn are_balanced(&self) -> bool {
        let [layers, vms] = self.may_be_mounted().map(|directory| mark::is_empty(&directory).ok());
        // Memory is of VMs and templates that are not to be seen.
        let has_memory = match mark::is_empty(&self.layout.rams()) {
            Ok(is_empty) => !is_empty,
            Err(error) => error.kind() != ErrorKind::NotFound,
        };
        let is_odd = layers == Some(true) && has_memory;
        layers.is_some() && layers == vms && !is_odd
    }

    /// A directory beside those of VMs, with a name that no VM can have, and a record in it: a VM
    /// that a user has set aside.
    pub fn set_aside(&self) -> Result<Option<String>> {
        let Ok(entries) = std::fs::read_dir(self.layout.vms()) else { return Ok(None) };
        let is_set_aside = |entry: &std::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = name.parse::<Name>().is_ok() || name.starts_with(layout::GONE);
            !is_ours
                && ["vm.json", "vm.json.spare"]
                    .iter()
                    .any(|file| plain::is_there(&entry.path().join(file)))
        };
        let found = entries.flatten().find(is_set_aside);
        Ok(found.map(|entry| entry.path().display().to_string()))
    }
}

/// Is `directory` the store's, whose mark is `mark`?
fn is_in_place(directory: &Path, mark: Uuid) -> bool {
    mark::is_on(directory, mark) || mark::is_empty(directory).is_ok_and(|is_empty| !is_empty)
}
