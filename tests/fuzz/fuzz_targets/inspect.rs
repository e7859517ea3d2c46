//! A file of a stranger's: what it is, and which files it names. The verdict "names nothing" is the
//! one that must never be wrong.
#![no_main]

use std::cell::Cell;

use cowhand::layer::inspect::{self, BUDGET, Source};
use cowhand::model::Format;

/// Bytes that count how many of them are read.
struct Counted<'a>(&'a [u8], Cell<u64>);

impl Source for Counted<'_> {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read_at(at, buffer)?;
        self.1.set(self.1.get() + read as u64);
        Ok(read)
    }
}

/// What QEMU's drivers follow, written down once more in the shortest way, and on the safe side.
fn may_name(bytes: &[u8], format: Format) -> bool {
    let has = |word: &[u8], within: &[u8]| within.windows(word.len()).any(|window| window == word);
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 8).unwrap_or_default();
        u64::from_be_bytes(bytes.try_into().unwrap_or_default())
    };
    let has_parent = || {
        let text = bytes.get(512..10752.min(bytes.len()));
        text.is_some_and(|text| has(b"parentFileNameHint", text))
    };
    match format {
        Format::Qcow2 => {
            let has_data_file = || bytes.get(7) == Some(&3) && number(72) & 4 != 0;
            bytes.starts_with(b"QFI\xfb") && (number(8) != 0 || has_data_file())
        }
        Format::Vmdk if bytes.starts_with(b"KDMV") => {
            bytes.len() >= 20 && number(12) == 0 || has_parent()
        }
        Format::Vmdk if bytes.starts_with(b"COWD") => has_parent(),
        Format::Vmdk => bytes.len() >= 4,
        _ => false,
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let source = Counted(bytes, Cell::new(0));
    let _ = inspect::content(&source);
    assert!(source.1.get() <= BUDGET);
    for format in Format::ALL {
        let source = Counted(bytes, Cell::new(0));
        let Ok(inspection) = inspect::inspect(&source, format) else { continue };
        assert!(source.1.get() <= BUDGET);
        let harmless = inspection.names.is_empty() && inspection.unusable.is_none();
        assert!(!(harmless && may_name(bytes, format)), "taken for harmless as {format}");
        let names = inspection.names.iter().filter_map(|name| name.name.as_ref());
        let length: usize = names.map(String::len).sum();
        // A byte that is no UTF-8 becomes three, and a parent may be named inside the name of an
        // extent.
        assert!(length <= 6 * bytes.len() + 64, "more names than bytes");
    }
});
