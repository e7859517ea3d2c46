//! The guest's operating system: found on its disks, and mounted as it would mount itself.

mod surroundings;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
pub(super) use surroundings::Surroundings;

use super::devices::{self, Device};
use super::superblock::{Kind, Superblock};
use super::{Host, fstab, lvm, modules};
use crate::error::{Error, IoContext, Result};

/// Where the guest's tree is mounted.
const ROOT: &str = "/sysroot";
/// Where distributions keep their root in btrfs: Ubuntu, Fedora, Debian, openSUSE.
const SUBVOLUMES: [&str; 5] = ["", "@", "root", "@rootfs", "@/.snapshots/1/snapshot"];

/// A system, and what of it is mounted.
pub(super) struct System {
    /// Its own words for itself.
    pub name: String,
    /// What GRUB reads is on a logical volume.
    pub boots_from_lvm: bool,
    /// The volume groups of LVM's.
    pub volume_groups: Vec<String>,
    devices: Vec<Device>,
    root: Root,
    mounted: Vec<Mounted>,
}

/// Where a root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    device: Device,
    subvolume: &'static str,
}

struct Mounted {
    name: String,
    device: String,
    place: PathBuf,
    what: String,
}

/// The one system on these disks.
pub(super) fn find(host: &mut Host, disks: &[Device]) -> Result<System> {
    let mut devices = disks.to_vec();
    let mut volume_groups = Vec::new();
    if devices::any(&devices, Kind::Lvm) {
        lvm::activate()?;
        devices.extend(devices::mapped());
        volume_groups = lvm::groups()?;
    }
    let mut roots: Vec<(Root, String)> = Vec::new();
    let mut damaged = None;
    for device in &devices {
        let Some(kind @ (Kind::Ext4 | Kind::Xfs | Kind::Btrfs)) =
            device.content.as_ref().map(|block| block.kind)
        else {
            continue;
        };
        let subvolumes = if kind == Kind::Btrfs { &SUBVOLUMES[..] } else { &SUBVOLUMES[..1] };
        for subvolume in subvolumes {
            match attach(device, ROOT, &subvolume_option(subvolume)) {
                Err(error) if subvolume.is_empty() => {
                    damaged = damaged.or(Some(error));
                    break;
                }
                Err(_) => continue,
                Ok(()) => {}
            }
            let seen = look();
            unmount(ROOT, UnmountFlags::empty()).on("unmount", Path::new(ROOT))?;
            if let Some(name) = seen {
                roots.push((Root { device: device.clone(), subvolume }, name));
                break;
            }
        }
    }
    if let (Some(error), true) = (&damaged, !roots.is_empty()) {
        host.warn(format!("left alone: {}", error.full_message()))?;
    }
    match roots.len() {
        1 => {
            let (root, name) = roots.remove(0);
            Ok(System {
                name,
                boots_from_lvm: false,
                volume_groups,
                devices,
                root,
                mounted: Vec::new(),
            })
        }
        0 => Err(damaged.unwrap_or_else(|| nothing(&devices))),
        _ => {
            let names: Vec<String> = roots
                .iter()
                .map(|(root, name)| format!("{name} on {}", root.device.name))
                .collect();
            Err(Error::refused(format!(
                "there are {} operating systems on these disks: {}",
                names.len(),
                names.join("; ")
            ))
            .hint("seal them one at a time, each with only its own disks"))
        }
    }
}

/// Why there is nothing to be found.
fn nothing(devices: &[Device]) -> Error {
    let what = devices::describe(devices);
    if devices::any(devices, Kind::Luks) {
        return Error::refused(format!("the guest's disk is encrypted: {what}")).hint(
            "cowhand cannot open LUKS; seal such a guest from the inside, then: cowhand template \
             create VM --no-seal",
        );
    }
    let unknown = devices.iter().filter_map(|device| match device.content.as_ref()?.kind {
        Kind::Other(name) => Some(name),
        _ => None,
    });
    let unknown: Vec<&str> = unknown.collect();
    let error = Error::refused(format!("no operating system was found; on the disks: {what}"));
    match unknown.is_empty() {
        true => error.hint(
            "a root file system on ext4, xfs or btrfs, with /etc in it, is what is looked for",
        ),
        false => error.hint(format!(
            "{} cannot be sealed; for Windows: cowhand template create --windows",
            unknown.join(", ")
        )),
    }
}

/// Is there a system under [`ROOT`]? Its name.
fn look() -> Option<String> {
    let root = Path::new(ROOT);
    if !root.join("etc").is_dir() {
        return None;
    }
    let read = |name: &str| {
        let path = root.join(name);
        // A link to an absolute path would leave the tree.
        let path = match std::fs::read_link(&path) {
            Ok(target) if target.is_absolute() => {
                root.join(target.strip_prefix("/").unwrap_or(&target))
            }
            _ => path,
        };
        std::fs::read_to_string(path).ok()
    };
    if let Some(text) = read("etc/os-release").or_else(|| read("usr/lib/os-release")) {
        let field = |name: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default();
            value.trim().trim_matches(['"', '\'']).to_owned()
        };
        let name =
            [field("PRETTY_NAME"), field("NAME"), field("ID"), "an unnamed system".to_owned()];
        return name.into_iter().find(|name| !name.is_empty());
    }
    let old = [
        ("etc/redhat-release", "Red Hat"),
        ("etc/debian_version", "Debian"),
        ("etc/alpine-release", "Alpine"),
    ];
    old.iter().find_map(|(file, name)| {
        Some(format!("{name} ({})", read(file)?.lines().next().unwrap_or_default()))
    })
}

/// A directory of the guest's tree, wherever its links lead, and never outside of it.
fn inside(place: &str) -> Option<PathBuf> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
    use std::os::fd::AsRawFd;
    let root = openat(CWD, ROOT, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let relative = place.trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let found = openat2(
        &root,
        relative,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
    (path.starts_with(ROOT) && path != Path::new(ROOT)).then_some(path)
}

fn subvolume_option(subvolume: &str) -> String {
    if subvolume.is_empty() { String::new() } else { format!("subvol={subvolume}") }
}

/// Mounts a device. What is freed is discarded, so that it is gone from the image, too.
fn attach(device: &Device, place: &str, options: &str) -> Result<()> {
    let kind = device.content.as_ref().map_or(Kind::Other("unknown"), |block| block.kind);
    let groups: &[&str] = match kind {
        Kind::Ext4 => &["ext4"],
        Kind::Xfs => &["xfs"],
        Kind::Btrfs => &["btrfs"],
        Kind::Vfat => &["vfat", "vfat-ascii", "vfat-utf8"],
        _ => &[],
    };
    if groups.is_empty() || !modules::load(groups[0])? {
        return Err(Error::refused(format!(
            "the appliance's kernel cannot work on {} ({})",
            kind.name(),
            device.name
        )));
    }
    for group in &groups[1..] {
        modules::load(group)?;
    }
    let before = kernel_messages();
    let data = if options.is_empty() { "discard".to_owned() } else { format!("discard,{options}") };
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(device.path.as_str(), place, kind.name(), MountFlags::NOATIME, data.as_c_str()).map_err(
        |errno| {
            let words: Vec<String> = kernel_messages().split_off(before.len());
            let error = Error::refused(format!(
                "the file system on {} ({}) cannot be mounted",
                device.name,
                kind.name()
            ));
            let error = error.hint(
                "it may be damaged: boot the guest and let it check its disks, or see: \
                 cowhand disk check VM",
            );
            match words.is_empty() {
                true => error.because(std::io::Error::from(errno)),
                false => error.because(format!("\"{}\"", words.join("\n"))),
            }
        },
    )
}

/// What the kernel has complained of so far.
fn kernel_messages() -> Vec<String> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let Ok(mut log) = File::options().read(true).custom_flags(flags).open("/dev/kmsg") else {
        return Vec::new();
    };
    let (mut words, mut record) = (Vec::new(), [0; 8192]);
    while let Ok(length @ 1..) = log.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..length]).into_owned();
        let Some((prefix, message)) = text.split_once(';') else { continue };
        let level =
            prefix.split(',').next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(7) & 7;
        if level <= 4 {
            words.push(message.lines().next().unwrap_or_default().to_owned());
        }
    }
    words
}

impl System {
    /// Mounts the root, and everything its `/etc/fstab` puts below it.
    pub(super) fn mount_all(&mut self, host: &mut Host) -> Result<()> {
        let root = self.root.clone();
        attach(&root.device, ROOT, &subvolume_option(root.subvolume))?;
        self.note("/", &root.device);
        let text = std::fs::read_to_string(format!("{ROOT}/etc/fstab")).unwrap_or_default();
        for entry in fstab::parse(&text).into_iter().filter(fstab::Entry::is_on_disk) {
            let Some(device) = self.devices.iter().find(|device| device.is(&entry.source)).cloned()
            else {
                if !entry.options.iter().any(|option| option == "nofail" || option == "noauto") {
                    host.warn(format!(
                        "{} for {} is on none of the disks, and is not mounted",
                        entry.source, entry.place
                    ))?;
                }
                continue;
            };
            let Some(place) = inside(&entry.place) else { continue };
            let subvolume = ["subvol", "subvolid"]
                .iter()
                .find_map(|name| Some(format!("{name}={}", entry.option(name)?)));
            attach(&device, &place.to_string_lossy(), &subvolume.unwrap_or_default())?;
            self.note_at(place.clone(), &entry.place, &device);
        }
        let boot =
            self.mounted.iter().rfind(|mounted| ["/", "/boot"].contains(&mounted.name.as_str()));
        let is_volume = |mounted: &Mounted| {
            self.devices.iter().any(|device| device.path == mounted.device && device.disk.is_none())
        };
        self.boots_from_lvm = boot.is_some_and(is_volume);
        self.mount_esp()
    }

    /// systemd finds the EFI system partition by its type, without an entry in `/etc/fstab`.
    fn mount_esp(&mut self) -> Result<()> {
        let mounted = |device: &Device| {
            self.mounted
                .iter()
                .any(|mounted| mounted.what.starts_with(&format!("{} ", device.name)))
        };
        let Some(esp) =
            self.devices.iter().find(|device| device.is_esp && !mounted(device)).cloned()
        else {
            return Ok(());
        };
        let is_empty = |place: &&str| {
            std::fs::read_dir(format!("{ROOT}{place}"))
                .is_ok_and(|mut entries| entries.next().is_none())
        };
        let Some(place) = ["/boot/efi", "/efi", "/boot"].into_iter().find(is_empty) else {
            return Ok(());
        };
        // It is a courtesy: one that cannot be mounted has no seed.
        if attach(&esp, &format!("{ROOT}{place}"), "").is_ok() {
            self.note(place, &esp);
        }
        Ok(())
    }

    fn note(&mut self, place: &str, device: &Device) {
        self.note_at(PathBuf::from(format!("{ROOT}{place}")), place, device);
    }

    fn note_at(&mut self, at: PathBuf, place: &str, device: &Device) {
        let kind = device.content.as_ref().map_or("", |block| block.kind.name());
        let what = format!("{} on {place} ({kind})", device.name);
        self.mounted.push(Mounted {
            name: place.to_owned(),
            device: device.path.clone(),
            place: at,
            what,
        });
    }

    /// The file systems that are mounted, each once.
    pub(super) fn file_systems(&self) -> impl Iterator<Item = (&Device, &Superblock)> {
        let is_mounted =
            |device: &&Device| self.mounted.iter().any(|mounted| mounted.device == device.path);
        self.devices
            .iter()
            .filter(is_mounted)
            .filter_map(|device| Some((device, device.content.as_ref()?)))
    }

    /// `vda2 on / (ext4)`, …
    pub(super) fn mounts(&self) -> Vec<String> {
        self.mounted.iter().map(|mounted| mounted.what.clone()).collect()
    }

    /// Makes the guest's tree our root.
    pub(super) fn enter(&self) -> Result<Outside> {
        let fd = File::open("/").on("open", Path::new("/"))?;
        rustix::process::chroot(ROOT).on("enter", Path::new(ROOT))?;
        rustix::process::chdir("/").on("enter", Path::new(ROOT))?;
        Ok(Outside { fd: fd.into() })
    }

    /// Takes everything off again, which writes it.
    pub(super) fn leave(&mut self) -> Result<()> {
        rustix::fs::sync();
        for mounted in &self.mounted {
            // A disk that is full, or broken, shows here.
            let root = File::open(&mounted.place).on("open", &mounted.place)?;
            rustix::fs::syncfs(&root).map_err(|errno| {
                Error::failed(format!("{} cannot be written", mounted.what))
                    .because(std::io::Error::from(errno))
                    .hint("is there room where the disk lies? Nothing was changed")
            })?;
        }
        for mounted in self.mounted.iter().rev() {
            unmount(&mounted.place, UnmountFlags::empty()).on("unmount", &mounted.place)?;
        }
        self.mounted.clear();
        if devices::any(&self.devices, Kind::Lvm) {
            lvm::deactivate()?;
        }
        rustix::fs::sync();
        Ok(())
    }
}

/// The way back out of the guest's tree.
pub(super) struct Outside {
    fd: OwnedFd,
}

impl Outside {
    /// Takes it.
    pub(super) fn back(self) -> Result<()> {
        rustix::process::fchdir(&self.fd).on("leave", Path::new(ROOT))?;
        rustix::process::chroot(".").on("leave", Path::new(ROOT))
    }
}
