//! `vm.json`: whatever is in it, it is read or refused; what was read is written, and read again as
//! the same.
#![no_main]

use cowhand::store::schema::{parse_record, render_record};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = parse_record(bytes) {
        let written = render_record(&record, None, None).expect("what was read can be written");
        assert_eq!(parse_record(&written).expect("what was written can be read"), record);
    }
});
