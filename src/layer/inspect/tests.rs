use proptest::prelude::*;

use super::*;

fn seen(bytes: &[u8]) -> Content {
    content(&bytes).expect("content")
}

fn said(bytes: &[u8], format: Format) -> Inspection {
    inspect(&bytes, format).expect("an inspection")
}

/// A source of any length whose bytes come from `bytes`, over and over; counts what is read.
struct Endless<'a> {
    bytes: &'a [u8],
    length: u64,
    read: Cell<u64>,
}

impl Source for Endless<'_> {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let period = self.bytes.len().max(1) as u64;
        for (index, byte) in buffer.iter_mut().enumerate() {
            let place = (at.wrapping_add(index as u64) % period) as usize;
            *byte = self.bytes.get(place).copied().unwrap_or(0);
        }
        self.read.set(self.read.get() + buffer.len() as u64);
        Ok(buffer.len())
    }
}

const MAGICS: [&[u8]; 8] = [
    b"QFI\xfb\0\0\0\x03", b"KDMV\x01\0\0\0", b"COWD", b"# Disk DescriptorFile\n", b"vhdxfile",
    b"conectix", b"\x1f\x8b", b"",
];

proptest! {
    #[test]
    fn a_hostile_file_is_read_within_the_budget_and_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..4096),
        length in any::<u64>(),
        magic in 0usize..8,
    ) {
        let bytes = [MAGICS[magic], &bytes].concat();
        for format in Format::ALL {
            let source = Endless { bytes: &bytes, length, read: Cell::new(0) };
            let _ = inspect(&source, format);
            prop_assert!(source.read.get() <= BUDGET, "{} bytes", source.read.get());
        }
        let source = Endless { bytes: &bytes, length, read: Cell::new(0) };
        let _ = content(&source);
        prop_assert!(source.read.get() <= BUDGET);
    }

    #[test]
    fn a_file_that_is_no_sparse_vmdk_always_names_something_to_the_vmdk_driver(
        bytes in proptest::collection::vec(any::<u8>(), 4..2048),
    ) {
        prop_assume!(!bytes.starts_with(b"KDMV") && !bytes.starts_with(b"COWD"));
        prop_assert!(!said(&bytes, Format::Vmdk).names.is_empty());
    }

    #[test]
    fn a_parent_is_found_wherever_the_descriptor_names_it(
        before in 0usize..9000,
        capacity in any::<u64>(),
    ) {
        let mut bytes = vec![0; 512];
        bytes[..4].copy_from_slice(b"KDMV");
        bytes[12..20].copy_from_slice(&capacity.to_le_bytes());
        bytes.resize(512 + before, b'#');
        bytes.extend(b"\nparentFileNameHint=\"/etc/shadow\"\n");
        let names = said(&bytes, Format::Vmdk).names;
        prop_assert!(!names.is_empty());
        if capacity != 0 {
            prop_assert_eq!(names[0].name.as_deref(), Some("/etc/shadow"));
        }
    }
}

#[test]
fn a_vmdk_of_five_lines_names_the_file_of_the_host() {
    let text = b"# Disk DescriptorFile\n\
                 version=1\n\
                 createType=\"monolithicFlat\"\n\
                 RW 2048 FLAT \"/etc/secret\" 0\n";
    assert_eq!(seen(text), Content::Image(Format::Vmdk));
    let said = said(text, Format::Vmdk);
    assert_eq!(
        said.names,
        [Reference { role: Role::Extent, name: Some("/etc/secret".to_owned()) }]
    );
    assert_eq!((said.variant.as_deref(), said.virtual_bytes), (Some("monolithicFlat"), 1 << 20));
}

#[test]
fn an_embedded_descriptor_behind_a_capacity_of_zero_names_its_extents() {
    let mut bytes = vec![0; 1024];
    bytes[..4].copy_from_slice(b"KDMV");
    bytes[28..36].copy_from_slice(&1u64.to_le_bytes());
    let line = b"RW\t2048 \t FLAT  \"/etc/secret\" 0";
    bytes[512..512 + line.len()].copy_from_slice(line);
    assert_eq!(said(&bytes, Format::Vmdk).names[0].name.as_deref(), Some("/etc/secret"));
}

#[test]
fn what_is_no_image_is_called_by_its_name() {
    for (bytes, name) in [
        (&b"\x1f\x8b\x08"[..], "gzip data"),
        (b"\xfd7zXZ\0\0", "xz data"),
        (b"<domain type='kvm'>", "XML text"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>", "XML text"),
        (b"QFI\xfb\0\0\0\x01", "qcow (version 1)"),
        (b"LUKS\xba\xbe\0\x01", "an encrypted LUKS volume"),
        (b"", "raw"),
        (b"\xeb\x63\x90", "raw"),
    ] {
        assert_eq!(seen(bytes).to_string(), name);
    }
}

#[test]
fn a_backing_file_and_a_data_file_are_found_in_a_qcow2() {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    bytes[20..24].copy_from_slice(&16u32.to_be_bytes());
    bytes[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
    bytes[100..104].copy_from_slice(&104u32.to_be_bytes());
    assert_eq!(said(&bytes, Format::Qcow2).names, []);
    let mut overlay = bytes.clone();
    overlay[8..16].copy_from_slice(&2048u64.to_be_bytes());
    overlay[16..20].copy_from_slice(&11u32.to_be_bytes());
    overlay[2048..2059].copy_from_slice(b"json:{\"a\":1");
    assert_eq!(
        said(&overlay, Format::Qcow2).names[0].to_string(),
        r#"backing file "json:{\"a\":1""#
    );
    // The bit alone, without a name.
    bytes[79] = 4;
    assert_eq!(
        said(&bytes, Format::Qcow2).names[0].to_string(),
        "external data file whose name cannot be read"
    );
}
