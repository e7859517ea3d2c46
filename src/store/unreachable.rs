//! What belongs to the store and cannot be seen where it should be: a directory on a disk that is
//! not mounted, a VM under a name that none has.

use std::path::Path;

use super::{Store, layout, plain};
use crate::error::{Error, Result};
use crate::model::Name;

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
        Err(Error::damaged(format!("{shown} of the store is not there"))
            .hint("is the file system mounted that it lies on?")
            .hint(format!("if there is nothing to have back: mkdir -m 700 {shown}")))
    }

    /// A directory beside those of VMs, with a name that no VM can have, and a record in it: a VM
    /// that somebody has set aside.
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
