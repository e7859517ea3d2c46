//! New UUIDs for file systems. The guest's own tools do it, once its tree is not mounted any more:
//! they are taken along. What refers to the old ones (`/etc/fstab`, boot loaders) is changed first,
//! so that the guest still boots.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Host;
use super::program;
use super::superblock::Kind;
use super::system::System;
use super::tree::Tree;
use crate::appliance::initramfs::libraries;
use crate::error::{IoContext, Result};
use crate::seal::PathChange;

/// Where file systems are named by their UUIDs.
const REFERENCES: [&str; 11] = [
    "/etc/fstab", "/etc/crypttab", "/etc/default/grub", "/etc/kernel/cmdline",
    "/etc/initramfs-tools/conf.d/resume", "/boot/grub/grub.cfg", "/boot/grub2/grub.cfg",
    "/boot/grub2/grubenv", "/boot/loader/entries/*.conf", "/boot/efi/EFI/*/grub.cfg",
    "/boot/extlinux/extlinux.conf",
];
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
/// Where the tools lie while they are used, outside the guest's tree.
const TOOLS: &str = "/tools";

/// What is to be done to one file system.
pub(super) struct Change {
    device: String,
    kind: Kind,
    uuid: String,
}

/// Everything that is to be done, and the tools for it.
#[derive(Default)]
pub(super) struct Changes {
    changes: Vec<Change>,
    files: Vec<(String, Vec<u8>)>,
}

/// Inside the guest's tree: decides, changes what refers to the old UUIDs, and takes the tools
/// along.
pub(super) fn prepare(host: &mut Host, tree: &mut Tree, system: &System) -> Result<Changes> {
    let mut all = Changes::default();
    for (device, content) in system.file_systems() {
        let tools: &[&str] = match content.kind {
            Kind::Ext4 => &["e2fsck", "tune2fs"],
            Kind::Xfs => &["xfs_db"],
            Kind::Btrfs => &["btrfstune"],
            _ => continue,
        };
        let found: Option<Vec<PathBuf>> = tools.iter().map(|tool| find(tool)).collect();
        let Some(found) = found.filter(|_| Path::new(LOADER).exists()) else {
            host.warn(format!(
                "fs-uuids: {} ({}) keeps its UUID: the guest has no {}",
                device.name,
                content.kind.name(),
                tools.join(" and ")
            ))?;
            continue;
        };
        let uuid = random_uuid()?;
        for pattern in REFERENCES {
            for path in tree.glob(pattern)? {
                tree.edit_lines(&path, |line| Some(line.replace(&content.uuid, &uuid)))?;
            }
        }
        tree.touch(Path::new(&format!("/dev/disk/by-uuid/{}", content.uuid)), PathChange::Changed);
        if !tree.dry_run {
            found.iter().try_for_each(|tool| all.take(tool))?;
        }
        all.changes.push(Change { device: device.path.clone(), kind: content.kind, uuid });
    }
    Ok(all)
}

/// From the kernel itself: the devices it would else be read from are outside the guest's tree.
fn random_uuid() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .on("read", Path::new("random bytes"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

fn find(tool: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .map(|directory| Path::new(directory).join(tool))
        .into_iter()
        .find(|path| path.exists())
}

impl Changes {
    /// Takes a program of the guest's along, with its libraries.
    fn take(&mut self, tool: &Path) -> Result<()> {
        let listed = program::output(LOADER, &["--list", &tool.to_string_lossy()])?;
        let paths = libraries(&listed)
            .into_iter()
            .map(PathBuf::from)
            .chain([tool.to_owned(), LOADER.into()]);
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !self.files.iter().any(|(other, _)| *other == name) {
                let bytes = std::fs::read(&path).on("read", &path)?;
                self.files.push((name, bytes));
            }
        }
        Ok(())
    }

    /// Outside the tree, which is not mounted any more: does it.
    pub(super) fn carry_out(self) -> Result<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(TOOLS).on("create", Path::new(TOOLS))?;
        for (name, bytes) in &self.files {
            let path = Path::new(TOOLS).join(name);
            std::fs::write(&path, bytes).on("write", &path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .on("set the mode of", &path)?;
        }
        for Change { device, kind, uuid } in &self.changes {
            match kind {
                Kind::Ext4 => {
                    // Checksums depend on the UUID, so it wants to have been checked. 1: it has
                    // mended something.
                    tool("e2fsck", &["-f", "-y", device], &[0, 1])?;
                    tool("tune2fs", &["-U", uuid, device], &[0])?;
                }
                Kind::Xfs => tool(
                    "xfs_db",
                    &["-x", "-p", "xfs_admin", "-c", &format!("uuid {uuid}"), device],
                    &[0],
                )?,
                _ => tool("btrfstune", &["-f", "-U", uuid, device], &[0])?,
            }
        }
        Ok(())
    }
}

fn tool(name: &str, args: &[&str], fine: &[i32]) -> Result<()> {
    let (loader, program) = (format!("{TOOLS}/ld-linux-x86-64.so.2"), format!("{TOOLS}/{name}"));
    program::output_with(
        &loader,
        &[&["--library-path", TOOLS, program.as_str()], args].concat(),
        fine,
    )
    .map(drop)
}
