//! Decompressing an image while it is read: gzip, bzip2, xz and zstd. A stranger may have made the
//! file, so all four are decoders written in Rust, what they may allocate has a bound, and so has
//! what they write.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use super::room::Room;
use crate::sys::sparse::Stop;

/// The longest image that is written, in bytes.
pub(crate) const LONGEST: u64 = 2 << 40;
/// What a decoder of xz may allocate for its dictionary, in KiB. `xz -9` takes 64 MiB, and
/// `--lzma2=dict=` at most 1.5 GiB.
const DICTIONARY_KIB: u32 = 512 << 10;
/// What a decoder of zstd may allocate for its window, in bytes: as much as `zstd -d` does by
/// itself.
const WINDOW: u64 = 128 << 20;
/// Blocks of zeros of this length become holes.
const BLOCK: usize = 64 << 10;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// `.gz`, RFC 1952.
    Gzip,
    /// `.bz2`.
    Bzip2,
    /// `.xz`, <https://tukaani.org/xz/xz-file-format.txt>.
    Xz,
    /// `.zst`, RFC 8878.
    Zstd,
}

impl Packing {
    const ALL: [Self; 4] = [Self::Gzip, Self::Bzip2, Self::Xz, Self::Zstd];

    /// How a file of this name is compressed, and its name without that.
    pub(crate) fn by_name(name: &str) -> Option<(Self, &str)> {
        Self::ALL.into_iter().find_map(|packing| {
            let at = name.len().checked_sub(packing.extension().len())?;
            let (stem, extension) = name.split_at_checked(at)?;
            (extension.eq_ignore_ascii_case(packing.extension()) && !stem.is_empty())
                .then_some((packing, stem))
        })
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Gzip => ".gz",
            Self::Bzip2 => ".bz2",
            Self::Xz => ".xz",
            Self::Zstd => ".zst",
        }
    }
}

/// Writes what `input` holds to the empty file `output`, with holes where there are only zeros.
/// Returns its length in bytes. When `stop` is set, it ends with an error.
pub(crate) fn unpack(
    packing: Packing,
    input: impl Read,
    output: &File,
    longest: u64,
    stop: &Stop,
) -> io::Result<u64> {
    let mut input = BufReader::with_capacity(BLOCK, input);
    let mut output = Sparse { file: output, at: 0, longest, stop, room: Room::new(output)? };
    match packing {
        Packing::Gzip => output.take(&mut flate2::bufread::MultiGzDecoder::new(&mut input))?,
        Packing::Bzip2 => output.take(&mut bzip2::bufread::MultiBzDecoder::new(&mut input))?,
        Packing::Xz => output
            .take(&mut lzma_rust2::XzReader::new_mem_limit(&mut input, true, DICTIONARY_KIB))?,
        Packing::Zstd => frames(&mut input, &mut output)?,
    }
    output.finish()
}

/// A zstd file has one frame or several, and some that are to be skipped.
fn frames<R: io::BufRead>(input: &mut R, output: &mut Sparse<'_>) -> io::Result<()> {
    let mut count = 0;
    while !input.fill_buf()?.is_empty() {
        match StreamingDecoder::new_with_max_window_size(&mut *input, WINDOW) {
            Ok(mut frame) => {
                output.take(&mut frame)?;
                // The decoder leaves this to its caller (RFC 8878, 3.1.1: Content_Checksum).
                let said = frame.decoder.get_checksum_from_data();
                if said.is_some() && said != frame.decoder.get_calculated_checksum() {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        "its checksum does not match",
                    ));
                }
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let skipped = io::copy(&mut (&mut *input).take(length.into()), &mut io::sink())?;
                if skipped < length.into() {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
        }
        count += 1;
    }
    if count == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// A file that is written from its beginning to its end.
struct Sparse<'a> {
    file: &'a File,
    at: u64,
    longest: u64,
    stop: &'a Stop,
    room: Room,
}

impl Sparse<'_> {
    /// All that `from` holds.
    fn take(&mut self, from: &mut dyn Read) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        loop {
            // A few bytes can hold terabytes of zeros.
            if self.stop.load(Ordering::Relaxed) {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            // Whole blocks, so that their zeros are seen.
            let mut filled = 0;
            while filled < BLOCK {
                match from.read(&mut block[filled..]) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if filled == 0 {
                return Ok(());
            }
            let bytes = &block[..filled];
            if self.at + filled as u64 > self.longest {
                let most = self.longest >> 30;
                return Err(io::Error::new(
                    ErrorKind::FileTooLarge,
                    format!("it holds more than {most} GiB"),
                ));
            }
            if bytes.iter().any(|byte| *byte != 0) {
                self.room.take(bytes.len() as u64)?;
                self.file.write_all_at(bytes, self.at)?;
            }
            self.at += filled as u64;
        }
    }

    fn finish(self) -> io::Result<u64> {
        self.file.set_len(self.at)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Two mebibytes of zeros around some words.
    fn content() -> Vec<u8> {
        let mut bytes = vec![0; 2 << 20];
        bytes[1_000_000..1_000_005].copy_from_slice(b"words");
        bytes.extend(b"end");
        bytes
    }

    fn packed(packing: Packing, bytes: &[u8]) -> Vec<u8> {
        match packing {
            Packing::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("gzip")
            }
            Packing::Bzip2 => {
                let mut encoder =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("bzip2")
            }
            // Nothing here writes this format.
            Packing::Xz if bytes == content() => {
                let digit =
                    |at: usize| u8::from_str_radix(&XZ[at..at + 2], 16).expect("two digits");
                (0..XZ.len()).step_by(2).map(digit).collect()
            }
            Packing::Xz => unreachable!("only the content is at hand"),
            Packing::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("zstd");
                encoder.include_checksum(true).expect("zstd");
                encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("zstd")
            }
        }
    }

    /// `xz -9e --check=crc32` of [`content`].
    const XZ: &str = concat!(
        "fd377a585a0000016922de36020021011c00000010cf58ccffff1601755d00006ffdffffa3b7ff473e48",
        "1572396151b89228e6a38607f9eee41e82d32fc53a3c014bb17ec98a8a4d2fa30dd97fa6e38c231153e0",
        "5918c5758ae277f8b6947f0c6ac0de744964e2e95c53b204d8f7440cab5f0d6d46e9e5c37688b79657ac",
        "b64de1691d6ffb4b88106c42cb883f5c008fd04eaf262894711f3d8f24e1709ea7235fec28cb85d19598",
        "8a7e2a91f22775f719c006984d98fdd8afd5900fc42553f8f591363105a5b0ee6fc1704d470cd19111aa",
        "ad601dbaceb127185c5986e9665258bee976ac59e4e55b0508f9942905c064fa2e204f17aeb6a7a38af6",
        "f1e2ef71663eb6329ae7442bb95c467299da003ead26c040008fb5195a5539e1bda23e56657e48f4d074",
        "56839c046eccbdd9e88aad972dff2eeb9a1dbaceb127185c5986e9665258bee976ac59e4e55b0508f9c7",
        "daadfcfb522b74cd1e5b2042f9dd533df82964093b80cb2a6cdfb53bf0c4bd2e5faa0f3e4b664290130e",
        "ff1093f8717859f80bcdff9528460fa9fc7cdefb9a302c45fa848000eb0009001c1d1cb06c2686e20000",
        "e2d2558000019c0383808001bdd20cbc3e300d8b020000000001595a",
    );

    fn unpacked(packing: Packing, bytes: &[u8]) -> io::Result<(Vec<u8>, u64)> {
        let file = tempfile::tempfile()?;
        let length = unpack(packing, bytes, &file, 1 << 30, &Stop::default())?;
        let mut content = vec![0; usize::try_from(length).expect("it is short")];
        file.read_exact_at(&mut content, 0)?;
        Ok((content, file.metadata()?.blocks() * 512))
    }

    #[test]
    fn each_format_gives_back_what_was_packed_with_holes_and_in_several_parts() {
        for packing in Packing::ALL {
            let whole = packed(packing, &content());
            let (bytes, on_disk) = unpacked(packing, &whole).expect("it can be unpacked");
            assert_eq!(bytes, content());
            assert!(on_disk < 1 << 20, "{packing:?}: {on_disk} bytes on disk");
            let twice = [&whole[..], &whole[..]].concat();
            assert_eq!(
                unpacked(packing, &twice).expect("two parts").0,
                [content(), content()].concat()
            );
        }
    }

    #[test]
    fn what_is_cut_short_damaged_or_too_long_is_an_error() {
        for packing in Packing::ALL {
            let whole = packed(packing, &content());
            for length in [0, 1, 4, whole.len() / 2, whole.len() - 1] {
                unpacked(packing, &whole[..length]).expect_err("it is cut short");
            }
            // What is damaged anywhere is an error, unless it comes to the same.
            for at in (0..whole.len()).step_by(29) {
                let mut wrong = whole.clone();
                wrong[at] ^= 0xff;
                if let Ok((bytes, _)) = unpacked(packing, &wrong) {
                    assert!(
                        at > 0 && bytes == content(),
                        "{packing:?}, byte {at} of {}",
                        whole.len()
                    );
                }
            }
            let file = tempfile::tempfile().expect("a file");
            let error = unpack(packing, &whole[..], &file, 1 << 20, &Stop::default())
                .expect_err("it is too long");
            assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{error:?}");
        }
    }

    #[test]
    fn nobody_waits_for_the_end_of_what_is_not_wanted_any_more() {
        let (whole, file) =
            (packed(Packing::Xz, &content()), tempfile::tempfile().expect("a file"));
        let stop = Stop::default();
        stop.store(true, Ordering::Relaxed);
        unpack(Packing::Xz, &whole[..], &file, 1 << 30, &stop).expect_err("it was stopped");
    }

    #[test]
    fn a_name_says_how_a_file_is_packed() {
        assert_eq!(Packing::by_name("x.qcow2.XZ"), Some((Packing::Xz, "x.qcow2")));
        assert_eq!(Packing::by_name("x.raw.gz"), Some((Packing::Gzip, "x.raw")));
        for name in ["x.qcow2", ".gz", "", "é", "gz", "x.zip"] {
            assert_eq!(Packing::by_name(name), None, "{name}");
        }
    }
}
