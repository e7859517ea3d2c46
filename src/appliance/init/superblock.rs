//! What is on a block device, by the first bytes of it. Sources: the kernel's
//! `Documentation/filesystems/ext4/super.rst`, `fs/xfs/libxfs/xfs_format.h`, `btrfs-dev-docs`,
//! Microsoft's FAT specification, LVM2's `lib/format_text/layout.h`, the LUKS specifications.

/// How much of a device has to be read.
pub(super) const BYTES: usize = 72 * 1024;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// What it is.
    pub kind: Kind,
    /// As `/etc/fstab` would write it.
    pub uuid: String,
    /// Its label, if it has one.
    pub label: String,
}

/// What it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT.
    Vfat,
    /// A physical volume of LVM's.
    Lvm,
    /// Encrypted.
    Luks,
    /// Swap space.
    Swap,
    /// Something we cannot work on.
    Other(&'static str),
}

impl Kind {
    /// The name `mount(8)` and the module groups know it by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
            Self::Lvm => "LVM",
            Self::Luks => "LUKS",
            Self::Swap => "swap",
            Self::Other(name) => name,
        }
    }
}

/// Looks at the first [`BYTES`] of a device; a short device has fewer.
pub(super) fn identify(bytes: &[u8]) -> Option<Superblock> {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    let slice =
        |offset: usize, length: usize| bytes.get(offset..offset + length).unwrap_or_default();
    let found =
        |kind, uuid: String, label: &[u8]| Some(Superblock { kind, uuid, label: text(label) });
    let nothing = |kind| found(kind, String::new(), b"");
    if (0..4).any(|sector| at(sector * 512, b"LABELONE") && at(sector * 512 + 24, b"LVM2 001")) {
        return nothing(Kind::Lvm);
    }
    if at(0, b"LUKS\xba\xbe") {
        return nothing(Kind::Luks);
    }
    if at(0, b"XFSB") {
        return found(Kind::Xfs, uuid(slice(32, 16)), slice(108, 12));
    }
    if at(0x10040, b"_BHRfS_M") {
        return found(Kind::Btrfs, uuid(slice(0x10020, 16)), slice(0x1012b, 256));
    }
    if at(1024 + 56, &[0x53, 0xef]) {
        return found(Kind::Ext4, uuid(slice(1024 + 104, 16)), slice(1024 + 120, 16));
    }
    if at(4086, b"SWAPSPACE2") || at(4086, b"SWAP-SPACE") {
        return found(Kind::Swap, uuid(slice(1024 + 12, 16)), slice(1024 + 28, 16));
    }
    if at(3, b"NTFS    ") {
        return nothing(Kind::Other("NTFS"));
    }
    if at(3, b"-FVE-FS-") {
        return nothing(Kind::Other("BitLocker"));
    }
    if at(510, &[0x55, 0xaa]) && at(82, b"FAT") {
        return found(Kind::Vfat, serial(slice(67, 4)), slice(71, 11));
    }
    if at(510, &[0x55, 0xaa]) && at(54, b"FAT") {
        return found(Kind::Vfat, serial(slice(39, 4)), slice(43, 11));
    }
    if at(0x8001, b"CD001") {
        return nothing(Kind::Other("ISO 9660"));
    }
    if at(4096, &[0xfc, 0x4e, 0x2b, 0xa9]) {
        return nothing(Kind::Other("Linux software RAID"));
    }
    if at(0x400, &[0x10, 0x20, 0xf5, 0xf2]) {
        return nothing(Kind::Other("F2FS"));
    }
    if at(4096 + 24, &[0xc6, 0x85, 0x73, 0xf6]) {
        return nothing(Kind::Other("bcachefs"));
    }
    None
}

fn uuid(bytes: &[u8]) -> String {
    uuid::Uuid::from_slice(bytes).map(|uuid| uuid.to_string()).unwrap_or_default()
}

/// FAT's `ABCD-1234`.
fn serial(bytes: &[u8]) -> String {
    match bytes {
        [a, b, c, d] => format!("{d:02X}{c:02X}-{b:02X}{a:02X}"),
        _ => String::new(),
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        for (at, part) in parts {
            bytes[*at..*at + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn file_systems_are_told_apart() {
        let id: Vec<u8> = (1..=16).collect();
        let cases = [
            (
                image(&[(1080, b"\x53\xef"), (1128, &id), (1144, b"root")]),
                Kind::Ext4,
                "01020304-0506-0708-090a-0b0c0d0e0f10",
                "root",
            ),
            (
                image(&[(0, b"XFSB"), (32, &id)]),
                Kind::Xfs,
                "01020304-0506-0708-090a-0b0c0d0e0f10",
                "",
            ),
            (
                image(&[(0x10040, b"_BHRfS_M"), (0x10020, &id), (0x1012b, b"pool")]),
                Kind::Btrfs,
                "01020304-0506-0708-090a-0b0c0d0e0f10",
                "pool",
            ),
            (
                image(&[
                    (510, b"\x55\xaa"),
                    (82, b"FAT32"),
                    (67, &[1, 2, 3, 0xab]),
                    (71, b"ESP        "),
                ]),
                Kind::Vfat,
                "AB03-0201",
                "ESP",
            ),
            (image(&[(512, b"LABELONE"), (536, b"LVM2 001")]), Kind::Lvm, "", ""),
            (image(&[(0, b"LUKS\xba\xbe")]), Kind::Luks, "", ""),
            (image(&[(3, b"NTFS    "), (510, b"\x55\xaa")]), Kind::Other("NTFS"), "", ""),
        ];
        for (bytes, kind, uuid, label) in cases {
            let found = identify(&bytes).expect("found");
            assert_eq!(
                (found.kind, found.uuid.as_str(), found.label.as_str()),
                (kind, uuid, label)
            );
        }
    }

    #[test]
    fn nothing_is_nothing_and_short_is_no_panic() {
        assert_eq!(identify(&vec![0; BYTES]), None);
        for length in [0, 1, 511, 512, 1079, 5000, 0x10040] {
            identify(&vec![0xff; length]);
        }
    }
}
