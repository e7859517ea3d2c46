//! `journal.json`: the steps of a change, and the records inside them.
#![no_main]

use cowhand::change::Planned;
use cowhand::model::Record;
use cowhand::store::journal::Journal;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cowhand::registry::install_steps();
    let Ok(journal) = serde_json::from_slice::<Journal<Planned>>(bytes) else { return };
    for step in &journal.steps {
        let touches = step.touches();
        if let Some(record) = touches.record {
            let _ = Record::try_from(*record);
        }
    }
    let written = serde_json::to_vec(&journal).expect("what was read can be written");
    let read: Journal<Planned> =
        serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(read, journal);
});
