//! What a file holds, as one number: SHA-256 over its length and every block of 64 KiB that is not
//! all zeros, with its place. Holes and written zeros count the same, so a copy that has other
//! holes has the same sum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use crate::sys::sparse::{Stop, next_data};
use crate::ui::Counter;

/// The blocks that count or do not, in bytes.
const BLOCK: u64 = 64 << 10;
/// How much is read at once, in bytes: whole blocks.
const CHUNK: u64 = 1 << 20;

/// The sum of `file`, in hexadecimal digits. It takes as long as its data takes to be read;
/// `counter` has the bytes read so far.
pub(crate) fn sum(file: &File, counter: &Counter, stop: &Stop) -> io::Result<String> {
    let length = file.metadata()?.len();
    let (mut hash, mut buffer) =
        (Sha256::new(), vec![0; usize::try_from(CHUNK).unwrap_or_default()]);
    hash.update(length.to_le_bytes());
    let mut at = 0;
    while let Some((start, end)) = next_data(file, at, length)? {
        // What was read with the stretch before is not read again.
        at = at.max(start / BLOCK * BLOCK);
        while at < end {
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let upto = end.div_ceil(BLOCK).saturating_mul(BLOCK).min(length).min(at + CHUNK);
            let chunk = &mut buffer[..usize::try_from(upto - at).unwrap_or_default()];
            file.read_exact_at(chunk, at)?;
            for (block, place) in
                chunk.chunks(usize::try_from(BLOCK).unwrap_or_default()).zip((at..).step_by(65536))
            {
                if block.iter().any(|byte| *byte != 0) {
                    hash.update(place.to_le_bytes());
                    hash.update(block);
                }
            }
            counter.add(upto - at);
            at = upto;
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use proptest::prelude::*;

    fn of(file: &File) -> String {
        sum(file, &Counter::default(), &Stop::default()).expect("it can be read")
    }

    /// A file of `length` bytes with `data` at their places; what lies between is holes, or zeros
    /// if `filled`.
    fn file(length: u64, data: &[(u64, Vec<u8>)], filled: bool) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        if filled {
            file.write_all(&vec![0; usize::try_from(length).expect("it is small")])
                .expect("it is written");
        }
        file.set_len(length).expect("it grows");
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).expect("it is written");
        }
        file
    }

    #[test]
    fn a_hole_is_as_good_as_zeros_and_any_other_byte_counts() {
        let data = [(70_000, vec![1; 10]), (5 << 20, vec![2; 70_000])];
        let length = (6 << 20) + 17;
        let first = of(&file(length, &data, false));
        assert_eq!(first, of(&file(length, &data, true)));
        assert_ne!(first, of(&file(length + 1, &data, false)));
        let moved = [(70_001, vec![1; 10]), data[1].clone()];
        assert_ne!(first, of(&file(length, &moved, false)));
        assert_eq!(of(&file(0, &[], false)).len(), 64);
    }

    #[test]
    fn it_can_be_stopped() {
        let stop = Stop::default();
        stop.store(true, Ordering::Relaxed);
        let file = file(100, &[(0, vec![1])], false);
        assert_eq!(
            sum(&file, &Counter::default(), &stop).expect_err("stopped").kind(),
            io::ErrorKind::Interrupted
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_changed_byte_is_another_sum(
            length in 1_u64..400_000,
            places in proptest::collection::vec((0_u64..400_000, 1_u8..), 0..6),
            at in 0_u64..400_000,
        ) {
            let within = places.into_iter().filter(|(at, _)| *at < length);
            let data: Vec<(u64, Vec<u8>)> = within.map(|(at, byte)| (at, vec![byte])).collect();
            let (sparse, filled) = (file(length, &data, false), file(length, &data, true));
            prop_assert_eq!(of(&sparse), of(&filled));
            let before = of(&sparse);
            let mut byte = [0];
            sparse.read_exact_at(&mut byte, at % length).expect("it is there");
            sparse.write_all_at(&[byte[0] ^ 0x10], at % length).expect("it is written");
            prop_assert_ne!(of(&sparse), before);
        }
    }
}
