use super::*;
use proptest::prelude::*;

fn bytes_of(image: &Empty) -> Vec<u8> {
    let mut bytes = vec![0; image.length as usize];
    for (at, piece) in &image.pieces {
        bytes[*at as usize..*at as usize + piece.len()].copy_from_slice(piece);
    }
    bytes
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        megabytes in 1u64..(64 << 20),
        name in "[a-z0-9]{10}",
        raw in any::<bool>(),
    ) {
        let format = if raw { Format::Raw } else { Format::Qcow2 };
        let image = empty(megabytes << 20, Some((&name, format))).expect("an image");
        let bytes = bytes_of(&image);
        let header = parse(&bytes[..HEADER_BYTES]).expect("a header").expect("qcow2");
        prop_assert_eq!(header.virtual_bytes, megabytes << 20);
        prop_assert_eq!(header.backing_file.as_deref(), Some(name.as_str()));
        prop_assert_eq!(header.backing_format.as_deref(), Some(format.as_str()));
        prop_assert_eq!(header.snapshots, 0);
        prop_assert!(!header.encrypted && !header.data_file);
        prop_assert_eq!(problem(&bytes[..HEADER_BYTES], image.length), None);
        let cut = (image.length - 1).min(3 * CLUSTER);
        prop_assert!(problem(&bytes[..HEADER_BYTES], cut).is_some());
    }

    #[test]
    fn a_hostile_header_is_an_error_and_never_a_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
        magic in any::<bool>(),
    ) {
        if magic && bytes.len() >= 8 {
            bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        }
        let _ = parse(&bytes);
        let _ = problem(&bytes, u64::MAX);
    }
}

#[test]
fn a_field_that_no_image_has_is_told() {
    let image = empty(1 << 30, None).expect("an image");
    let start = &bytes_of(&image)[..HEADER_BYTES];
    assert_eq!(problem(start, image.length), None);
    let with = |at: usize, bytes: &[u8]| {
        let mut start = start.to_vec();
        start[at..at + bytes.len()].copy_from_slice(bytes);
        problem(&start, image.length).unwrap_or_default()
    };
    assert!(with(20, &99_u32.to_be_bytes()).contains("2^99"));
    assert!(with(20, &8_u32.to_be_bytes()).contains("cluster size"));
    assert!(with(24, &u64::MAX.to_be_bytes()).contains("L1 table has 2 entries"));
    assert!(with(36, &u32::MAX.to_be_bytes()).contains("entries"));
    assert!(with(40, &(1_u64 << 40).to_be_bytes()).contains("cut short"));
    assert!(with(40, &513_u64.to_be_bytes()).contains("said to be at 513"));
    assert!(with(48, &u64::MAX.to_be_bytes()).contains("refcount table"));
    assert!(with(56, &u32::MAX.to_be_bytes()).contains("refcount table has"));
    assert!(with(72, &(1_u64 << 63).to_be_bytes()).contains("bit 63"));
    assert!(with(96, &7_u32.to_be_bytes()).contains("2^7 bits"));
    assert!(with(100, &72_u32.to_be_bytes()).contains("72 bytes"));
    assert!(with(60, &[0, 0, 0, 1]).contains("snapshot table is said to be at 0"));
    assert!(problem(start, 1000).is_some_and(|why| why.contains("the file ends at 1000")));
}

#[test]
fn a_table_behind_the_end_of_the_file_is_told() {
    let image = whole(&[1; 100_000]).expect("an image");
    let bytes = bytes_of(&image);
    let (at, length) = l1_table(&bytes);
    let l1 = &bytes[at as usize..][..length];
    let l2_at = be64(l1, 0).expect("an entry") & L1_OFFSET;
    assert_eq!(lost_l2_table(&bytes, l1, image.length), None);
    assert_eq!(lost_l2_table(&bytes, l1, l2_at + CLUSTER), None);
    let cut = lost_l2_table(&bytes, l1, l2_at + CLUSTER - 1).unwrap_or_default();
    assert!(cut.contains(&format!("at {l2_at}, and the file ends at")), "{cut}");
    assert!(
        lost_l2_table(&bytes, &513_u64.to_be_bytes(), u64::MAX)
            .is_some_and(|why| why.contains("at 512"))
    );
    assert_eq!(lost_l2_table(&bytes, &[0; 16], 0), None);
}

#[test]
fn memory_lies_behind_the_disk_in_the_table() {
    let start =
        |bytes: u64| bytes_of(&empty(bytes, None).expect("an image"))[..HEADER_BYTES].to_vec();
    assert_eq!(memory_entries(&start(1 << 30), &[0; 16]), 16..16);
    assert_eq!(memory_entries(&start(1 << 30), &[0; 32]), 16..32);
    assert_eq!(memory_entries(&start((1 << 30) + 1), &[0; 32]), 24..32);
    assert_eq!(memory_entries(&[], &[0; 32]), 32..32);
    let mut extended = start(1 << 30);
    extended[79] |= 1 << 4;
    assert_eq!(memory_entries(&extended, &[0; 40]), 32..40);
}

#[test]
fn other_files_are_not_taken_for_qcow2() {
    assert_eq!(parse(b"").expect("no error"), None);
    assert_eq!(parse(&[0; 512]).expect("no error"), None);
}

#[test]
fn a_disk_beyond_the_format_is_refused() {
    assert!(empty(u64::MAX / 2, None).is_err());
}
