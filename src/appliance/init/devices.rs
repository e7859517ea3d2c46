//! The block devices: the guest's disks, their partitions, logical volumes; with the names a
//! guest's `/etc/fstab` may have for them.
//!
//! The kernel has read the partition tables; from them we take only the names (UEFI specification,
//! 5.3; the signature of an MBR).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::OnceLock;

use super::superblock::{self, Kind, Superblock};
use crate::error::{Error, IoContext, Result};

/// The type of an EFI system partition.
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// How much of a disk holds its partition table: 128 entries of 128 bytes behind two sectors.
const TABLE: usize = 34 * 512;

/// A device that may carry a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    /// `/dev/vda1`.
    pub path: String,
    /// `vda1` in the VM's own words, or the name of a logical volume.
    pub name: String,
    /// Which disk it is on, counted from 0; logical volumes are on none.
    pub disk: Option<usize>,
    /// Which partition, counted from 1.
    pub partition: Option<u32>,
    /// The partition's UUID and label.
    pub part_uuid: String,
    /// The partition's name in a GPT.
    pub part_label: String,
    /// It is an EFI system partition.
    pub is_esp: bool,
    /// What is on it.
    pub content: Option<Superblock>,
}

impl Device {
    /// Does `/etc/fstab` mean this device by `source`?
    pub(super) fn is(&self, source: &str) -> bool {
        let same = |ours: &str, theirs: &str| !ours.is_empty() && ours.eq_ignore_ascii_case(theirs);
        let content =
            |field: fn(&Superblock) -> &str| self.content.as_ref().map(field).unwrap_or_default();
        match source.split_once('=') {
            Some(("UUID", uuid)) => same(content(|block| &block.uuid), uuid),
            Some(("LABEL", label)) => content(|block| &block.label) == label && !label.is_empty(),
            Some(("PARTUUID", uuid)) => same(&self.part_uuid, uuid),
            Some(("PARTLABEL", label)) => self.part_label == label && !label.is_empty(),
            _ => self.is_path(source),
        }
    }

    fn is_path(&self, path: &str) -> bool {
        let Some(name) = path.strip_prefix("/dev/") else { return false };
        if let Some(uuid) = name.strip_prefix("disk/by-uuid/") {
            return self.is(&format!("UUID={uuid}"));
        }
        if let Some(label) = name.strip_prefix("disk/by-label/") {
            return self.is(&format!("LABEL={label}"));
        }
        match self.disk {
            // `/dev/vg/lv` and `/dev/mapper/vg-lv` are the same.
            None => {
                let mapped = name.strip_prefix("mapper/").map(str::to_owned).or_else(|| {
                    let (group, volume) = name.split_once('/')?;
                    Some(format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--")))
                });
                mapped.as_deref() == Some(self.name.as_str())
            }
            Some(disk) => kernel_name(name) == Some((disk, self.partition)),
        }
    }
}

/// The disk and partition behind `sda1`, `vdb`, `xvda2`, `hda1`, `nvme0n1p3`, `mmcblk0p1`.
fn kernel_name(name: &str) -> Option<(usize, Option<u32>)> {
    if let Some(rest) =
        name.strip_prefix("nvme").and_then(|rest| rest.split_once("n1")).or_else(|| {
            Some((
                name.strip_prefix("mmcblk")?.split('p').next()?,
                name.find('p').map_or("", |at| &name[at..]),
            ))
        })
    {
        let partition = rest.1.strip_prefix('p').map(str::parse).transpose().ok()?;
        return Some((rest.0.parse().ok()?, partition));
    }
    let rest = ["sd", "vd", "xvd", "hd"].iter().find_map(|start| name.strip_prefix(start))?;
    let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    let (letters, number) = rest.split_at(digits);
    let [letter @ b'a'..=b'z'] = letters.as_bytes() else { return None };
    let partition = if number.is_empty() { None } else { Some(number.parse().ok()?) };
    Some((usize::from(letter - b'a'), partition))
}

/// The disks called `names`, and their partitions; `None`: not all of them are there yet.
pub(super) fn disks(names: &[String]) -> Option<Vec<Device>> {
    let mut devices = Vec::new();
    for (index, target) in names.iter().enumerate() {
        let disk = disk_with_serial(target)?;
        let whole = format!("/dev/{disk}");
        let table = read_start(&whole, TABLE).ok()?;
        let mut partitions = partitions(&disk);
        partitions.sort();
        if partitions.is_empty() {
            devices.push(device(whole.clone(), target.clone(), index, None, &table));
        }
        for (number, name) in partitions {
            devices.push(device(
                format!("/dev/{name}"),
                format!("{target}{number}"),
                index,
                Some(number),
                &table,
            ));
        }
    }
    devices.iter().all(|device| Path::new(&device.path).exists()).then_some(devices)
}

fn device(path: String, name: String, disk: usize, partition: Option<u32>, table: &[u8]) -> Device {
    let (part_uuid, part_label, kind) =
        partition.map(|number| table_entry(table, number)).unwrap_or_default();
    let content = look(&path);
    Device {
        path,
        name,
        disk: Some(disk),
        partition,
        part_uuid,
        part_label,
        is_esp: kind == ESP,
        content,
    }
}

/// What is on a device.
pub(super) fn look(path: &str) -> Option<Superblock> {
    superblock::identify(&read_start(path, superblock::BYTES).ok()?)
}

/// The logical volumes that are active.
pub(super) fn mapped() -> Vec<Device> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else { return Vec::new() };
    let mapped = entries.flatten().filter_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("dm/name")).ok()?.trim().to_owned();
        let path = format!("/dev/{}", entry.file_name().to_string_lossy());
        let content = look(&path);
        let (part_uuid, part_label) = Default::default();
        Some(Device {
            path,
            name,
            disk: None,
            partition: None,
            part_uuid,
            part_label,
            is_esp: false,
            content,
        })
    });
    mapped.collect()
}

/// `vda2 (ext4), vda3 (swap)`.
pub(super) fn describe(devices: &[Device]) -> String {
    let one = |device: &Device| {
        format!(
            "{} ({})",
            device.name,
            device.content.as_ref().map_or("nothing known", |block| block.kind.name())
        )
    };
    devices.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Is there any of this kind?
pub(super) fn any(devices: &[Device], kind: Kind) -> bool {
    devices.iter().any(|device| device.content.as_ref().is_some_and(|block| block.kind == kind))
}

fn disk_with_serial(serial: &str) -> Option<String> {
    std::fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let found = std::fs::read_to_string(entry.path().join("serial")).ok()?;
        (found.trim() == serial).then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// The disk with the files the job carries along. Opened while its device can be seen, which from
/// inside the guest's tree it cannot.
static PAYLOAD: OnceLock<File> = OnceLock::new();

/// Opens the disk with the files the job carries along, if there is one.
pub(super) fn open_payload() -> Result<()> {
    if let Some(disk) = disk_with_serial(crate::appliance::protocol::PAYLOAD) {
        let path = format!("/dev/{disk}");
        let file = File::open(&path).on("open", Path::new(&path))?;
        PAYLOAD.get_or_init(|| file);
    }
    Ok(())
}

/// The disk with the files the job carries along.
pub(super) fn payload() -> Result<&'static File> {
    PAYLOAD.get().ok_or_else(|| Error::failed("the job came without its files"))
}

fn partitions(disk: &str) -> Vec<(u32, String)> {
    let Ok(entries) = std::fs::read_dir(format!("/sys/block/{disk}")) else { return Vec::new() };
    let number = |entry: std::fs::DirEntry| {
        let number =
            std::fs::read_to_string(entry.path().join("partition")).ok()?.trim().parse().ok()?;
        Some((number, entry.file_name().to_string_lossy().into_owned()))
    };
    entries.flatten().filter_map(number).collect()
}

fn read_start(path: &str, length: usize) -> Result<Vec<u8>> {
    let path = Path::new(path);
    let mut file = File::open(path).on("open", path)?;
    file.seek(SeekFrom::Start(0)).on("read", path)?;
    let mut bytes = Vec::new();
    file.take(length as u64).read_to_end(&mut bytes).on("read", path)?;
    Ok(bytes)
}

/// UUID, label and type of a partition, from the table at the beginning of its disk.
fn table_entry(table: &[u8], number: u32) -> (String, String, String) {
    let slice = |at: usize, length: usize| table.get(at..at + length);
    if slice(512, 8) == Some(b"EFI PART") {
        let entry = 1024 + (number as usize).saturating_sub(1) * 128;
        let guid = |at| {
            slice(at, 16)
                .and_then(|bytes| uuid::Uuid::from_slice_le(bytes).ok())
                .unwrap_or_default()
        };
        let name: Vec<u16> = slice(entry + 56, 72)
            .unwrap_or_default()
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .take_while(|unit| *unit != 0)
            .collect();
        return (
            guid(entry + 16).to_string(),
            String::from_utf16_lossy(&name),
            guid(entry).to_string(),
        );
    }
    match slice(440, 4) {
        Some([a, b, c, d]) if slice(510, 2) == Some(&[0x55, 0xaa]) => {
            (format!("{d:02x}{c:02x}{b:02x}{a:02x}-{number:02x}"), String::new(), String::new())
        }
        _ => Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(disk: Option<usize>, partition: Option<u32>, name: &str) -> Device {
        let content = Superblock { kind: Kind::Ext4, uuid: "aa-bb".into(), label: "root".into() };
        Device {
            path: String::new(),
            name: name.into(),
            disk,
            partition,
            part_uuid: "1234abcd-02".into(),
            part_label: "my root".into(),
            is_esp: false,
            content: Some(content),
        }
    }

    #[test]
    fn every_way_to_name_a_device_is_understood() {
        let device = sample(Some(1), Some(2), "vdb2");
        for name in [
            "UUID=AA-BB", "LABEL=root", "PARTUUID=1234ABCD-02", "PARTLABEL=my root", "/dev/sdb2",
            "/dev/vdb2", "/dev/xvdb2", "/dev/nvme1n1p2", "/dev/mmcblk1p2",
            "/dev/disk/by-uuid/aa-bb",
        ] {
            assert!(device.is(name), "{name}");
        }
        for name in [
            "UUID=", "LABEL=", "/dev/sda2", "/dev/sdb", "/dev/sdb22", "/dev/nvme1n1",
            "/dev/mapper/vdb2", "root",
        ] {
            assert!(!device.is(name), "{name}");
        }
        let volume = sample(None, None, "my--vg-var_log");
        assert!(volume.is("/dev/mapper/my--vg-var_log") && volume.is("/dev/my-vg/var_log"));
        assert!(sample(Some(0), None, "vda").is("/dev/sda"));
    }

    #[test]
    fn names_are_read_from_both_kinds_of_table() {
        let mut gpt = vec![0; TABLE];
        gpt[512..520].copy_from_slice(b"EFI PART");
        gpt[1024..1040].copy_from_slice(&[
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9,
            0x3b,
        ]);
        gpt[1080..1086].copy_from_slice(b"E\0S\0P\0");
        let (_, label, kind) = table_entry(&gpt, 1);
        assert_eq!((label.as_str(), kind.as_str()), ("ESP", ESP));
        let mut mbr = vec![0; TABLE];
        mbr[440..444].copy_from_slice(&[0xcd, 0xab, 0x34, 0x12]);
        mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(table_entry(&mbr, 2).0, "1234abcd-02");
        assert_eq!(table_entry(&[], 1).0, "");
    }
}
