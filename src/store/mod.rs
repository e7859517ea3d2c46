//! The store on disk: where everything lies, how it is written so that a crash finds it whole, who
//! may change it.
//!
//! Invariants:
//! - `vms/<name>/vm.json` *is* the VM: it comes into being, changes and goes by one `rename(2)`.
//! - A change to a VM, and every QMP connection to it, happens under the flock of
//!   `vms/<name>/lock`. Readers take no lock.
//! - `store.lock` is held briefly to create or delete a name and to scan references. Order: store,
//!   then VMs by name.
//! - Nothing that may hold a guest's writes is unlinked: it is renamed into `trash/`.

pub(crate) mod atomic;
mod claim;
pub(crate) mod clock;
pub(crate) mod identity;
pub mod journal;
mod layout;
pub(crate) mod lock;
pub(crate) mod mark;
pub(crate) mod plain;
mod ram;
mod records;
mod reserve;
pub mod schema;
mod spare;
pub(crate) mod sums;
pub mod trash;
mod unreachable;

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock};

use identity::Identity;
pub use layout::Layout;
pub use lock::{PoolLock, StoreLock, VmLock, open_lock};
pub use records::how_to_mend;

use crate::error::{Error, IoContext, Result};
use crate::model::{Format, Layer, LayerId, Name};

/// A store. Opening one reads nothing and creates nothing.
#[derive(Debug, Clone)]
pub struct Store {
    /// Where everything lies.
    pub layout: Layout,
    /// Which store this is, once that was read.
    identity: Arc<RwLock<Option<Identity>>>,
    /// Its directories were found to be in their places.
    is_mounted: Arc<OnceLock<()>>,
}

impl Store {
    /// The store at `root`, which is made absolute so that QEMU, started in `/`, finds it.
    pub fn at(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root).on("find the store", root)?;
        Ok(Self { layout: Layout::new(root), identity: Arc::default(), is_mounted: Arc::default() })
    }

    /// Makes the store's directories where there is no store yet and checks that this version may
    /// change it, and that its disks are mounted. `true`: it was found to be a copy, and is another
    /// store from now on.
    pub fn prepare(&self) -> Result<bool> {
        let layout = &self.layout;
        if !plain::is_there(&layout.store_json()) {
            self.refuse_foreign_directory()?;
            for directory in [layout.root(), &layout.layers(), &layout.vms(), &layout.trash()] {
                make_directory(directory)?;
            }
            self.write_identity()?;
        }
        let was_copied = self.settle_identity()?;
        self.make_reserve();
        if self.is_mounted.get().is_none() {
            self.refuse_unmounted()?;
            let _ = self.is_mounted.set(());
        }
        Ok(was_copied)
    }

    /// A directory with other things in it is not made a store by a slip of the fingers.
    fn refuse_foreign_directory(&self) -> Result<()> {
        let ours = [
            "layers", "vms", "trash", "store.lock", "reserve", "clock.json", "qemu-probe.json",
            "catalogue.toml", "downloads", "lost+found", "ram", "sealing", "slots",
        ];
        let Ok(mut entries) = std::fs::read_dir(self.layout.root()) else { return Ok(()) };
        let foreign = entries.find_map(|entry| {
            let name = entry.ok()?.file_name().to_string_lossy().into_owned();
            let is_ours = ours.contains(&name.as_str())
                || name.ends_with(".tmp")
                || name.starts_with("appliance-");
            (!is_ours).then_some(name)
        });
        match foreign {
            Some(name) => Err(Error::refused(format!(
                "{} is no store: it contains {name}",
                self.layout.root().display()
            ))
            .hint(
                "name an empty directory, or one that does not exist yet: --store DIR, \
                 COWHAND_STORE",
            )),
            None => Ok(()),
        }
    }

    /// The names of all VMs and templates, sorted. A directory without a `vm.json` is not one (yet,
    /// or any more).
    pub fn names(&self) -> Result<Vec<Name>> {
        let mut names: Vec<Name> =
            self.directories()?.into_iter().filter(|name| self.exists(name)).collect();
        names.sort();
        Ok(names)
    }

    /// Every directory below `vms/` with a proper name, a VM or not. A link counts, wherever it
    /// leads: the VM may lie on a file system that is not mounted just now.
    pub fn directories(&self) -> Result<Vec<Name>> {
        let vms = self.layout.vms();
        let entries = match std::fs::read_dir(&vms) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.refuse_unreachable(&vms)?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(error).on("list", &vms),
        };
        let (mut names, mut is_empty) = (Vec::new(), true);
        for entry in entries {
            let entry = entry.on("list", &vms)?;
            is_empty &= mark::is_of_file_system(&entry.file_name());
            if !entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink()) {
                continue;
            }
            names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        if is_empty {
            self.refuse_unmarked(&vms)?;
        }
        Ok(names)
    }

    /// What is left of VMs that are gone.
    pub fn gone(&self) -> Result<Vec<PathBuf>> {
        let Ok(entries) = std::fs::read_dir(self.layout.vms()) else { return Ok(Vec::new()) };
        let is_gone = |entry: &std::fs::DirEntry| {
            entry.file_name().to_string_lossy().starts_with(layout::GONE)
        };
        Ok(entries.flatten().filter(is_gone).map(|entry| entry.path()).collect())
    }

    /// Is there a VM or template of this name?
    pub fn exists(&self, name: &Name) -> bool {
        // One that has lost its record is there, and broken: what it depends on must not be taken
        // for unused.
        let layout = &self.layout;
        [layout.vm_json(name), layout.run_lock(name), layout.spare_json(name)]
            .iter()
            .any(|path| plain::is_there(path))
            || layout.vm(name).is_symlink()
    }

    /// Lets the directory of `name` be that of a VM which has lost its record.
    pub fn mark_lost(&self, name: &Name) -> Result<()> {
        let path = self.layout.run_lock(name);
        open_lock(&path).map(drop)
    }

    /// What to say where no store is (yet).
    pub fn absence(&self) -> Option<String> {
        let hint = || {
            format!(
                "there is no store at {}; another one: --store DIR, COWHAND_STORE",
                self.layout.root().display()
            )
        };
        (!plain::is_there(&self.layout.store_json())).then(hint)
    }

    /// The error for a name nobody bears, with the nearest ones that somebody does; or that nobody
    /// can see who bears it.
    pub fn unknown(&self, name: &Name) -> Error {
        if let Err(unmounted) = self.refuse_unmarked(&self.layout.vms()) {
            return unmounted;
        }
        let error = Error::not_found(format!("there is no VM or template {name}"));
        let names = self.names().unwrap_or_default();
        let near = |other: &&Name| {
            let (a, b) = (name.as_str().to_ascii_lowercase(), other.as_str().to_ascii_lowercase());
            let differing = a.bytes().zip(b.bytes()).filter(|(a, b)| a != b).count()
                + a.len().abs_diff(b.len());
            a.len().min(b.len()) >= 3 && (differing <= 2 || a.starts_with(&b) || b.starts_with(&a))
        };
        if let Some(hint) = self.absence() {
            return error.hint(hint);
        }
        match names.iter().find(near) {
            Some(other) => error.hint(format!("did you mean {other}?")),
            None => error.hint("cowhand ls -a    lists all there are"),
        }
    }

    /// The layer with this identity, if its file is in the pool.
    pub fn find_layer(&self, id: &LayerId) -> Option<Layer> {
        let layers = Format::ALL.into_iter().map(|format| Layer { id: id.clone(), format });
        layers.into_iter().find(|layer| self.layout.layer(layer).exists())
    }

    /// The same where it is a link to a file of the user's, which may be gone.
    pub fn find_link(&self, id: &LayerId) -> Option<Layer> {
        let layers = Format::ALL.into_iter().map(|format| Layer { id: id.clone(), format });
        layers.into_iter().find(|layer| self.layout.layer(layer).is_symlink())
    }

    /// What tells this store from a copy of it until the host boots again, as a part of a file
    /// name: the device and the inode of its directory. A store that is moved within its file
    /// system keeps both.
    pub fn place(&self) -> String {
        let (device, inode) = std::fs::metadata(self.layout.root())
            .map(|about| (about.dev(), about.ino()))
            .unwrap_or_default();
        place(device, inode)
    }

    /// Is there a change of `name` that is under way, or was cut short? Whatever lies in the place
    /// of its journal counts as one.
    pub fn has_journal(&self, name: &Name) -> bool {
        plain::is_there(&self.layout.journal(name))
    }

    /// The directory of the sockets of `name`, as it was noted at its last start. In a copy of a
    /// store it is that of the original: see [`crate::vm::sockets::of`].
    pub fn run_directory(&self, name: &Name) -> Option<PathBuf> {
        std::fs::read_link(self.layout.run_link(name)).ok()
    }
}

/// Both numbers are small and consecutive, so each is spread over all bits before they are put
/// together.
fn place(device: u64, inode: u64) -> String {
    let mixed =
        device.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ inode.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    format!("{:08x}", (mixed >> 32) ^ (mixed & 0xffff_ffff))
}

/// Makes a directory (0700) and its parents; one that is there already is fine.
pub fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => crate::error::MAKE_ROOM,
            _ => "choose another place with --store DIR or COWHAND_STORE",
        };
        Error::failed(format!("cannot create the directory {}", path.display()))
            .hint(hint)
            .because(source)
    })
}

#[cfg(test)]
mod tests;
