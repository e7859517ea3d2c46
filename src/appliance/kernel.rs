//! A kernel for the appliance, and the modules it needs for the guest's disks. Sources:
//! `modules.dep(5)`, `modules.builtin`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

/// The kernel a user wants; nothing: one of the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its image.
    pub image: Option<PathBuf>,
    /// The directory of its modules.
    pub modules: Option<PathBuf>,
}

/// A kernel image and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The image.
    pub image: PathBuf,
    /// The directory with `modules.dep`.
    pub modules: PathBuf,
    /// `6.1.0-51-cloud-amd64`.
    pub version: String,
}

impl Kernel {
    /// The one that was named, else one of the host's: the running one first, then the newest.
    pub(crate) fn find(wanted: &Wanted) -> Result<Self> {
        match (&wanted.image, &wanted.modules) {
            (Some(image), Some(modules)) => Self::named(image, modules),
            (None, None) => Self::of_host(),
            _ => Err(Error::usage("an appliance kernel and its modules belong together")
                .hint("name both: --appliance-kernel FILE --appliance-modules DIR")),
        }
    }

    fn named(image: &Path, modules: &Path) -> Result<Self> {
        File::open(image).on("read the appliance's kernel", image)?;
        let modules = std::path::absolute(modules).on("find", modules)?;
        if !modules.join("modules.dep").is_file() {
            return Err(Error::not_found(format!(
                "there is no modules.dep in {}",
                modules.display()
            ))
            .hint(
                "name the directory of that kernel's modules: --appliance-modules \
                 /lib/modules/VERSION",
            ));
        }
        let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { image: std::path::absolute(image).on("find", image)?, modules, version })
    }

    fn of_host() -> Result<Self> {
        let running = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut versions: Vec<String> = std::fs::read_dir("/lib/modules")
            .map(|entries| {
                entries
                    .flatten()
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .collect()
            })
            .unwrap_or_default();
        versions.sort_by_key(|version| (*version == running, numbers(version)));
        let mut unreadable = None;
        for version in versions.into_iter().rev() {
            let modules = Path::new("/lib/modules").join(&version);
            if !modules.join("modules.dep").is_file() {
                continue;
            }
            for image in
                [format!("/boot/vmlinuz-{version}"), format!("/lib/modules/{version}/vmlinuz")]
            {
                match File::open(&image) {
                    Ok(_) => return Ok(Self { image: image.into(), modules, version }),
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                        unreadable = unreadable.or(Some(image))
                    }
                    Err(_) => {}
                }
            }
        }
        let elsewhere = "or name another one: --appliance-kernel FILE --appliance-modules DIR";
        Err(match unreadable {
            Some(image) => Error::failed(format!("the kernel {image} may not be read by you"))
                .hint(format!(
                    "let it be read: chmod +r {image} (Ubuntu keeps kernels from its users)"
                ))
                .hint(elsewhere),
            None => Error::not_found(
                "no kernel with its modules is on this host (/boot/vmlinuz-VERSION with \
                 /lib/modules/VERSION): sealing boots one",
            )
            .hint("install one (Debian: apt-get install linux-image-cloud-amd64)")
            .hint(elsewhere),
        })
    }

    /// The files of `modules` and all they need, in the order in which they are loaded. `None`:
    /// this kernel has not all of them. What is built in needs no file.
    pub(crate) fn closure(&self, modules: &[&str]) -> Result<Option<Vec<PathBuf>>> {
        let read = |name: &str| {
            let path = self.modules.join(name);
            std::fs::read_to_string(&path).on("read", &path)
        };
        let files = load_order(
            &read("modules.dep")?,
            &read("modules.builtin").unwrap_or_default(),
            modules,
        );
        Ok(files.map(|files| files.into_iter().map(|file| self.modules.join(file)).collect()))
    }
}

/// The numbers in a version, for comparing: `6.10` is newer than `6.9`.
pub(crate) fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// The name of the module in a file; `-` and `_` are the same in it.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// `modules.dep` has a line per module: its file, a colon, the files it needs, the ones to be
/// loaded last first.
fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Option<Vec<String>> {
    let builtin: BTreeSet<String> = builtin.lines().map(module_name).collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        if builtin.contains(*module) {
            continue;
        }
        let (file, needs) = dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| module_name(file) == *module)?;
        for file in needs.split_whitespace().rev().chain([file]) {
            if !order.iter().any(|other| other == file) {
                order.push(file.to_owned());
            }
        }
    }
    Some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz \
                       kernel/fs/jbd2/jbd2.ko.xz\n\
                       kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\n\
                       kernel/drivers/block/virtio-blk.ko: kernel/drivers/virtio/virtio_ring.ko \
                       kernel/drivers/virtio/virtio.ko\n";

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let order = load_order(
            DEP,
            "kernel/drivers/virtio/virtio_pci.ko\n",
            &["virtio_pci", "virtio_blk", "ext4", "ext4"],
        );
        let names: Vec<String> =
            order.expect("all are there").iter().map(|file| module_name(file)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_blk", "jbd2", "crc16", "ext4"]);
    }

    #[test]
    fn a_module_the_kernel_has_not_is_told_from_one_that_is_built_in() {
        assert_eq!(load_order(DEP, "", &["xfs"]), None);
        assert_eq!(load_order(DEP, "kernel/fs/xfs/xfs.ko\n", &["xfs"]), Some(Vec::new()));
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(numbers("6.10.1-amd64") > numbers("6.9.12-amd64"));
    }
}
