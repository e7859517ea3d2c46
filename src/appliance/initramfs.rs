//! The initramfs: a cpio archive (`newc`, as in the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`) with our own binary as `/init`,
//! the modules, and what LVM needs where the host has it. Kept in the store until the kernel or the
//! binary changes.

use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, trailer};
use serde::{Deserialize, Serialize};

use super::kernel::Kernel;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::store::atomic;
use crate::sys::command;

/// Where the list of modules is, inside.
pub(super) const MODULES: &str = "/modules.json";

/// A set of modules that are needed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    /// `base`, or what needs them: `ext4`, `xfs`, `lvm`, `network`, …
    pub name: String,
    /// Paths inside, in the order in which they are loaded.
    pub files: Vec<String>,
}

/// What is loaded for what. Without the first, nothing works; of the others, what the kernel has.
const GROUPS: [(&str, &[&str]); 9] = [
    ("base", &["virtio_pci", "virtio_blk", "virtio_console"]),
    ("ext4", &["crc32c_generic", "ext4"]),
    ("xfs", &["crc32c_generic", "xfs"]),
    ("btrfs", &["crc32c_generic", "btrfs"]),
    ("vfat", &["vfat", "nls_cp437", "nls_iso8859_1"]),
    ("vfat-ascii", &["nls_ascii"]),
    ("vfat-utf8", &["nls_utf8"]),
    ("lvm", &["dm_mod"]),
    ("network", &["virtio_net", "af_packet"]),
];

/// An initramfs in a file.
#[derive(Debug)]
pub(super) struct Initramfs {
    /// The file.
    pub path: PathBuf,
    /// It is in no cache and goes with us.
    _temporary: Option<tempfile::NamedTempFile>,
}

/// The initramfs for `kernel`, from the cache or made now.
pub(super) fn get(context: &Context, kernel: &Kernel) -> Result<Initramfs> {
    let binary = std::env::current_exe().map_err(|source| {
        Error::failed("where the cowhand program lies is not known").because(source)
    })?;
    let stamp = |path: &Path| {
        path.metadata()
            .map(|about| format!("{}-{}.{}", about.len(), about.mtime(), about.mtime_nsec()))
            .on("read", path)
    };
    let lvm = command::find(Path::new("lvm"), &context.settings.search_path).or_else(sbin_lvm);
    let mut hasher = std::hash::DefaultHasher::new();
    (&kernel.modules, stamp(&kernel.modules.join("modules.dep"))?, stamp(&binary)?, &lvm)
        .hash(&mut hasher);
    let layout = &context.store.layout;
    let path = layout.appliance(hasher.finish());
    if path.exists() {
        return Ok(Initramfs { path, _temporary: None });
    }
    let archive = build(kernel, &binary, lvm.as_deref())?;
    if layout.root().is_dir() && atomic::write(&path, &archive).is_ok() {
        forget_others(layout.root(), &path);
        return Ok(Initramfs { path, _temporary: None });
    }
    // Only a cache: without it the next command makes it again.
    let cannot = |source: std::io::Error| {
        Error::failed("cannot write the appliance's initramfs").because(source)
    };
    let mut file = tempfile::NamedTempFile::new().map_err(cannot)?;
    std::io::Write::write_all(&mut file, &archive).map_err(cannot)?;
    Ok(Initramfs { path: file.path().to_owned(), _temporary: Some(file) })
}

/// Those of other kernels and older versions of ours. A QEMU that is just starting with one has it
/// open.
fn forget_others(root: &Path, kept: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("appliance-") && name.ends_with(".cpio") && entry.path() != kept {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn build(kernel: &Kernel, binary: &Path, lvm: Option<&Path>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "sysroot", "modules", "etc", "etc/lvm", "tmp"] {
        archive.directory(directory)?;
    }
    archive.file("init", &read(binary)?, 0o755)?;
    let mut groups = Vec::new();
    let mut packed: Vec<String> = Vec::new();
    for (name, modules) in GROUPS {
        // crc32c_generic went away in Linux 6.14, where it is built in.
        let files = match kernel.closure(modules)? {
            Some(files) => Some(files),
            None => kernel.closure(
                &modules
                    .iter()
                    .copied()
                    .filter(|module| *module != "crc32c_generic")
                    .collect::<Vec<_>>(),
            )?,
        };
        let Some(files) = files else {
            if name == "base" {
                return Err(Error::refused(format!(
                    "kernel {} has no virtio modules for the appliance ({})",
                    kernel.version,
                    modules.join(", ")
                ))
                .hint("name another kernel: --appliance-kernel FILE --appliance-modules DIR"));
            }
            continue;
        };
        let mut inside = Vec::new();
        for file in files {
            let name =
                format!("modules/{}", file.file_name().unwrap_or_default().to_string_lossy());
            if !packed.contains(&name) {
                archive.file(&name, &read(&file)?, 0o644)?;
                packed.push(name.clone());
            }
            inside.push(format!("/{name}"));
        }
        groups.push(Group { name: name.to_owned(), files: inside });
    }
    let list = serde_json::to_vec(&groups)
        .map_err(|error| Error::failed("cannot list modules").because(error))?;
    archive.file(&MODULES[1..], &list, 0o644)?;
    if let Some(lvm) = lvm {
        archive.program("sbin/lvm", lvm)?;
    }
    archive.finish()
}

/// A user's PATH need not have it.
fn sbin_lvm() -> Option<PathBuf> {
    ["/sbin/lvm", "/usr/sbin/lvm"].map(PathBuf::from).into_iter().find(|path| path.exists())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).on("read", path)
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Archive {
    fn entry(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        if self.names.iter().any(|other| other == name) {
            return Ok(());
        }
        let cannot = |source: std::io::Error| {
            Error::failed("cannot make the appliance's initramfs").because(source)
        };
        let size = u32::try_from(content.len())
            .map_err(|error| Error::failed(format!("{name} is too large")).because(error))?;
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX) + 1;
        let mut writer =
            Builder::new(name).ino(number).mode(mode).nlink(1).write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, content).map_err(cannot)?;
        writer.finish().map_err(cannot)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, &[], 0o040_755)
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.entry(name, content, 0o100_000 | mode)
    }

    /// A program of the host's, with the libraries that the dynamic loader would give it.
    fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        self.directories_of(name)?;
        self.file(name, &read(path)?, 0o755)?;
        let ldd = Path::new("/usr/bin/ldd");
        let listed = command::output(ldd, [path]).unwrap_or_default();
        for library in libraries(&String::from_utf8_lossy(&listed)) {
            let inside = library.trim_start_matches('/');
            self.directories_of(inside)?;
            self.file(inside, &read(Path::new(library))?, 0o755)?;
        }
        Ok(())
    }

    fn directories_of(&mut self, name: &str) -> Result<()> {
        let parents: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
        parents.into_iter().try_for_each(|parent| self.directory(parent))
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes).map_err(|source| {
            Error::failed("cannot make the appliance's initramfs").because(source)
        })?;
        Ok(self.bytes)
    }
}

/// The files `ldd` names: `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2
/// (0x…)`.
pub(super) fn libraries(listed: &str) -> Vec<&str> {
    let after = |line| str::split_once(line, "=> ").map_or(line, |(_, path)| path);
    let words = listed.lines().filter_map(|line| after(line.trim()).split_whitespace().next());
    words.filter(|path| path.starts_with('/')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ldd_names_is_packed() {
        let listed = "\tlinux-vdso.so.1 (0x0000)\n\
                      \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x01)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x02)\n\
                      \tlost => not found\n";
        assert_eq!(
            libraries(listed),
            ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }

    #[test]
    fn an_archive_reads_back() {
        let mut archive = Archive::default();
        archive.directory("etc").expect("directory");
        archive.file("etc/a", b"hello", 0o644).expect("file");
        archive.file("etc/a", b"again", 0o644).expect("the first one stays");
        let bytes = archive.finish().expect("trailer");
        let reader = cpio::NewcReader::new(&bytes[..]).expect("readable");
        assert_eq!((reader.entry().name(), reader.entry().mode()), ("etc", 0o040_755));
        let reader = cpio::NewcReader::new(reader.finish().expect("next")).expect("readable");
        assert_eq!((reader.entry().name(), reader.entry().file_size()), ("etc/a", 5));
    }
}
