//! `journal.json`: the steps of a change, and the records inside them.
#![no_main]

use cowhand::change::Step;
use cowhand::model::Record;
use cowhand::store::journal::Journal;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(journal) = serde_json::from_slice::<Journal<Step>>(bytes) else { return };
    for step in &journal.steps {
        let _ = (step.name(), step.layers(), step.makes());
        if let Step::Save { record, .. } = step {
            let _ = Record::try_from((**record).clone());
        }
    }
    let written = serde_json::to_vec(&journal).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<Journal<Step>>(&written).expect("what was written can be read"), journal);
});
