//! Journals that earlier versions wrote are read for ever: a command of theirs may have been killed
//! before the update.
//!
//! The files were written by the version before the steps became types of their own, each by a
//! command that was killed when its journal was in place. `guest.json` is put together from such
//! steps, because they need a guest with an agent.

use std::collections::BTreeSet;
use std::path::Path;

use cowhand::change::Planned;
use cowhand::change::claims::Claims;
use cowhand::registry;
use cowhand::store::journal::Journal;
use serde_json::Value;

/// Every tag that was ever written.
const TAGS: [&str; 30] = [
    "add-nodes", "begin-memory", "copy-chain", "copy-file", "copy-internal", "drop-trash",
    "freeze", "internal-delete", "internal-revert", "internal-save", "link-file", "load-memory",
    "make-layer", "merge", "pause", "remove-memory", "remove-merged", "resize", "restore-layers",
    "resume", "save", "save-memory", "seal", "set-mode", "stop-qemu", "switch", "thaw", "trash",
    "wake", "wrap-file",
];

#[test]
fn journals_of_earlier_versions_are_read_and_written_as_they_were() {
    registry::install_steps();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journals");
    let mut tags = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let journal: Journal<Planned> = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (before, now): (Value, Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::to_value(&journal).unwrap());
        assert_eq!(now, before, "{}", path.display());
        // A layer that is made is pinned, or `gc` would take it for nobody's.
        for touches in journal.steps.iter().map(Planned::touches) {
            assert!(
                touches
                    .makes
                    .iter()
                    .chain(&touches.consumes)
                    .all(|layer| journal.pins.contains(layer)),
                "{journal:?}"
            );
        }
        tags.extend(journal.steps.iter().map(Planned::tag));
    }
    assert_eq!(tags, BTreeSet::from(TAGS), "each tag is in one of the files");
    assert_eq!(tags, registry::tags().collect(), "and each kind of step there is");
}

#[test]
fn a_step_with_a_field_that_is_not_known_is_refused() {
    registry::install_steps();
    let read = |text: &str| {
        serde_json::from_str::<Planned>(text)
            .map(|step| step.tag())
            .map_err(|error| error.to_string())
    };
    assert_eq!(read(r#"{"step":"thaw"}"#), Ok("thaw"));
    assert_eq!(read(r#"{"step":"drop-trash","directory":"x"}"#), Ok("drop-trash"));
    for bad in [
        r#"{"step":"drop-trash","directory":"x","more":1}"#,
        r#"{"step":"drop-trash"}"#,
        r#"{"directory":"x"}"#,
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    assert!(read(r#"{"step":"dance"}"#).is_err_and(|error| error.contains("dance")));
}

/// Whatever names a directory of the trash or a file of memory claims it, so that `gc` leaves it
/// alone.
#[test]
fn what_a_journal_names_in_the_trash_and_in_memory_is_claimed() {
    registry::install_steps();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journals");
    let mut seen = (0, 0);
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let journal: Journal<Planned> = serde_json::from_str(&text).unwrap();
        let mut claims = Claims::default();
        journal.steps.iter().for_each(|step| claims.add(step.touches()).unwrap());
        let images: BTreeSet<String> = claims.images.iter().map(ToString::to_string).collect();
        let (mut trash, mut memory) = (BTreeSet::new(), BTreeSet::new());
        named(&serde_json::from_str(&text).unwrap(), &mut trash, &mut memory);
        assert!(trash.is_subset(&claims.trash), "{}: {trash:?} {claims:?}", path.display());
        assert!(memory.is_subset(&images), "{}: {memory:?} {claims:?}", path.display());
        seen = (seen.0 + trash.len(), seen.1 + memory.len());
    }
    assert!(seen.0 > 5 && seen.1 > 2, "the journals name some: {seen:?}");
}

/// The directories of the trash and the files of memory that are named somewhere in `value`.
fn named(value: &Value, trash: &mut BTreeSet<String>, memory: &mut BTreeSet<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| named(value, trash, memory)),
        Value::Object(fields) => {
            trash.extend(fields.get("directory").and_then(Value::as_str).map(str::to_owned));
            let is_memory = fields.contains_key("compressed");
            memory.extend(
                fields.get("id").filter(|_| is_memory).and_then(Value::as_str).map(str::to_owned),
            );
            fields.values().for_each(|value| named(value, trash, memory));
        }
        _ => {}
    }
}
