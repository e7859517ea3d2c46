//! Files that people take for disk images, and formats that are not supported.

use super::Other;

/// What the first 64 KiB of a file say, where they are no image that is supported.
pub(super) fn recognise(start: &[u8]) -> Option<Other> {
    const COMPRESSED: [(&[u8], Other); 5] = [
        (b"\x1f\x8b", Other::Compressed("gzip", "gunzip -k")),
        (b"\xfd7zXZ\0", Other::Compressed("xz", "unxz -k")),
        (b"\x28\xb5\x2f\xfd", Other::Compressed("zstd", "unzstd")),
        (b"BZh", Other::Compressed("bzip2", "bunzip2 -k")),
        (b"LZIP\x01", Other::Compressed("lzip", "lzip -dk")),
    ];
    const ARCHIVES: [(&[u8], Other); 2] = [
        (b"PK\x03\x04", Other::Archive("zip", "unzip")),
        (b"7z\xbc\xaf\x27\x1c", Other::Archive("7z", "7z x")),
    ];
    const FORMATS: [(&[u8], Other); 5] = [
        (b"QED\0", Other::Format("qed")),
        (b"LUKS\xba\xbe", Other::Format("an encrypted LUKS volume")),
        (b"WithoutFreeSpace", Other::Format("parallels")),
        (b"WithouFreSpacExt", Other::Format("parallels")),
        (b"Bochs Virtual HD Image", Other::Format("bochs")),
    ];
    let begins = |table: &[(&'static [u8], Other)]| {
        table.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, other)| *other)
    };
    if let Some(other) =
        begins(&COMPRESSED).or_else(|| begins(&ARCHIVES)).or_else(|| begins(&FORMATS))
    {
        return Some(other);
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some(Other::Archive("tar", "tar -xf"));
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins_with = |tags: &[&[u8]]| {
        tags.iter()
            .any(|tag| text.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag)))
    };
    if begins_with(&[b"<!doctype html", b"<html"]) {
        return Some(Other::Html);
    }
    begins_with(&[b"<?xml", b"<domain", b"<!--"]).then_some(Other::Xml)
}
