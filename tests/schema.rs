//! The saved forms: `vm.json`, entries of the trash, the version of a journal. The fixtures are
//! what version 0.1 wrote; they must be readable for ever, and are written back the same.

use std::path::Path;

use cowhand::change::Planned;
use cowhand::error::{Error, Kind};
use cowhand::model::{Bus, Cdrom, Name, NicModel, PciSlot};
use cowhand::registry;
use cowhand::store::Store;
use cowhand::store::journal::Journal;
use cowhand::store::schema::{
    parse_entry, parse_record, parse_written, render_entry, render_record,
};
use cowhand::store::trash;
use serde_json::Value;

const V1: &str = include_str!("fixtures/vm-v1.json");
const WARM: &str = include_str!("fixtures/vm-warm-v1.json");
const EPHEMERAL: &str = include_str!("fixtures/vm-ephemeral-v1.json");
const ENTRY: &str = include_str!("fixtures/trash/revert.json");
const JOURNAL: &str = include_str!("fixtures/journals/reset.json");

#[test]
fn what_the_first_version_wrote_is_read_and_written_back_unchanged() {
    let record = parse_record(V1.as_bytes()).unwrap();
    assert_eq!(record.snapshots.len(), 2);
    assert_eq!(String::from_utf8(render_record(&record, None, None).unwrap()).unwrap(), V1);
}

/// The name and the store came later. A record without them is read as before.
#[test]
fn a_record_says_whose_it_is() {
    let name = "web".parse().unwrap();
    let store = "0c6be1a5-5a1c-4b8e-9f0b-6f1f6f2b7a11";
    let later = format!("\n  \"name\": \"web\",\n  \"store\": \"{store}\",\n  \"created\"");
    let text = V1.replacen("\n  \"created\"", &later, 1);
    let written = parse_written(text.as_bytes()).unwrap();
    assert_eq!((written.name.as_ref(), written.store), (Some(&name), store.parse().ok()));
    assert_eq!(written.record, parse_record(V1.as_bytes()).unwrap());
    let again = render_record(&written.record, Some(&name), written.store).unwrap();
    assert_eq!(String::from_utf8(again).unwrap(), text);
    let earlier = parse_written(V1.as_bytes()).unwrap();
    assert_eq!((earlier.name, earlier.store), (None, None));
}

/// Whether it starts with the host came later, too.
#[test]
fn a_record_without_autostart_is_read_as_one_that_has_it_off() {
    assert!(!parse_record(V1.as_bytes()).unwrap().autostart);
    let mut record = parse_record(V1.as_bytes()).unwrap();
    record.autostart = true;
    let text = render_record(&record, None, None).unwrap();
    assert!(String::from_utf8(text.clone()).unwrap().contains("\"autostart\": true"));
    assert_eq!(parse_record(&text).unwrap(), record);
}

/// So did buses, models of network cards and CD-ROM drives.
#[test]
fn disks_and_cards_of_which_nothing_is_said_are_virtio() {
    let mut record = parse_record(V1.as_bytes()).unwrap();
    assert_eq!(
        (record.config.disks[0].bus, record.config.nics[0].model),
        (Bus::Virtio, NicModel::Virtio)
    );
    assert!(record.config.cdroms.is_empty());
    record.config.disks[0].bus = Bus::Sata;
    record.config.disks[0].serial = Some("WD-1".into());
    record.config.nics[0].model = NicModel::E1000;
    assert_eq!(record.config.nics[0].network.to_string(), "user");
    record.config.nics[0].network = "user,allow=10.0.0.1".parse().unwrap();
    record.config.nics[0].place = Some(PciSlot { bus: 1, slot: 0 });
    record.config.cdroms.push(Cdrom {
        target: "sdb".into(),
        bus: Bus::Sata,
        iso: Some("/srv/a.iso".into()),
    });
    let text = render_record(&record, None, None).unwrap();
    assert_eq!(parse_record(&text).unwrap(), record);
    let text = String::from_utf8(text).unwrap();
    for (from, to, words) in [
        (
            "\"bus\": \"sata\"",
            "\"bus\": \"mca\"",
            "\"mca\" is not a disk bus that this version knows",
        ),
        ("user,allow=10.0.0.1", "user,allow=x", "\"user,allow=x\" is not a network that this"),
        ("\"e1000\"", "\"ne2k\"", "\"ne2k\" is not a network card that this version knows"),
        ("\"01:00\"", "\"1\"", "is not a PCI bus and slot"),
    ] {
        assert!(text.contains(from), "{from}: {text}");
        let error = parse_record(text.replacen(from, to, 1).as_bytes()).unwrap_err().full_message();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn damage_is_named_by_line_and_reason() {
    for (from, to, words) in [
        ("\"cpus\"", "\"cpuz\"", "line 13: unknown field \"cpuz\""),
        ("\"schema\": 1", "\"schema\": 2", "newer version of cowhand (schema 2"),
        (
            "\"parent\": \"s1\"",
            "\"parent\": \"gone\"",
            "the parent of snapshot s2, gone, does not exist",
        ),
        ("\"head\": \"s2\"", "\"head\": \"gone\"", "the current snapshot gone does not exist"),
        ("\"name\": \"s2\"", "\"name\": \"../s2\"", "is not a name"),
        ("\"id\": \"head000000\"", "\"id\": \"../etc\"", "is not the id of a layer"),
    ] {
        assert!(V1.contains(from), "{from}");
        let error = parse_record(V1.replacen(from, to, 1).as_bytes()).unwrap_err().full_message();
        assert!(error.contains(words), "{from} → {to}: {error}");
    }
    for end in [0, 1, V1.len() / 3, V1.len() - 3] {
        assert!(parse_record(&V1.as_bytes()[..end]).is_err());
    }
}

#[test]
fn warm_templates_memory_and_vms_that_are_not_to_stay_are_written_back_unchanged() {
    for text in [WARM, EPHEMERAL] {
        let written = parse_written(text.as_bytes()).unwrap();
        let again = render_record(&written.record, written.name.as_ref(), written.store).unwrap();
        assert_eq!(String::from_utf8(again).unwrap(), text);
    }
    let warm = parse_record(WARM.as_bytes()).unwrap().warm.unwrap();
    assert_eq!(
        (warm.image.memory(), warm.pool, warm.leased),
        ("warm000000.mem".to_owned(), 2, vec![0])
    );
    let record = parse_record(EPHEMERAL.as_bytes()).unwrap();
    assert!(
        record
            .ephemeral
            .is_some_and(|ephemeral| ephemeral.standby && ephemeral.owner.unwrap().pid == 4242)
    );
    let images =
        record.snapshots.iter().map(|snapshot| snapshot.ram_image().map(|image| image.file_name()));
    assert_eq!(images.collect::<Vec<_>>(), [Some("ram0000000.zst".to_owned()), None]);
}

#[test]
fn a_field_that_is_not_known_is_refused_at_each_place_of_a_record() {
    let places: [(&str, &[&str]); 3] = [
        (WARM, &["", "/warm", "/warm/image", "/warm/writer", "/warm/config", "/template"]),
        (EPHEMERAL, &["/ephemeral", "/ephemeral/owner", "/origin", "/snapshots/0", "/snapshots/1"]),
        (
            EPHEMERAL,
            &["/snapshots/0/memory", "/snapshots/0/memory/image", "/snapshots/1/memory/writer"],
        ),
    ];
    for (text, places) in places {
        for place in places {
            let error =
                parse_record(&with(text, place, "more", 1.into())).unwrap_err().full_message();
            assert!(error.contains("unknown field \"more\""), "{place}: {error}");
        }
    }
}

/// Version 1 said neither its version nor whose it was, and at first no layers.
#[test]
fn entries_of_the_trash_are_read_and_written_back_unchanged() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/trash");
    let mut kinds = Vec::new();
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let mut text = std::fs::read_to_string(&path).unwrap();
        let entry = parse_entry(text.as_bytes())
            .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        if !text.contains("\"schema\"") {
            text = text.replacen('{', "{\"schema\":1,", 1);
        }
        if !text.contains("\"operation\"") {
            text = text.replacen("Z\"}", "Z\",\"operation\":\"\",\"layers\":[],\"below\":[]}", 1);
        }
        assert_eq!(
            String::from_utf8(render_entry(&entry).unwrap()).unwrap(),
            text,
            "{}",
            path.display()
        );
        kinds.push(entry.what);
    }
    let missing = trash::Kind::ALL.into_iter().find(|kind| !kinds.contains(kind));
    assert!(missing.is_none(), "there is no file of {missing:?}");
    assert!(kinds.contains(&trash::Kind::Other("dance".into())));
}

/// What is not known of an entry is passed over: it has always been.
#[test]
fn an_entry_of_the_trash_with_a_field_that_is_not_known_is_read() {
    let entry = parse_entry(&with(ENTRY, "", "more", 1.into())).unwrap();
    assert_eq!(entry, parse_entry(ENTRY.as_bytes()).unwrap());
}

#[test]
fn an_entry_of_a_newer_version_is_no_damage_and_what_it_depends_on_is_kept() {
    let newer = with(ENTRY, "", "schema", 3.into());
    is_newer(&parse_entry(&newer).unwrap_err(), "(schema 3, this one knows 2)");
    let (_room, store) = store();
    let directory = store.layout.trash().join("20261129T173020744Z-revert-web");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(
        directory.join("entry.json"),
        with(&String::from_utf8(newer).unwrap(), "", "what", "dance".into()),
    )
    .unwrap();
    assert!(store.list_trash().unwrap().iter().all(trash::Found::is_newer));
    let below = store.below_trash().unwrap();
    assert_eq!(
        below.iter().map(|id| id.as_str()).collect::<Vec<_>>(),
        ["tjq4ayozfn", "0base00000"]
    );
}

#[test]
fn a_journal_of_a_newer_version_is_no_damage_and_older_ones_are_read() {
    registry::install_steps();
    let (_room, store) = store();
    let name: Name = "k".parse().unwrap();
    std::fs::create_dir_all(store.layout.vm(&name)).unwrap();
    let load = |text: Vec<u8>| {
        std::fs::write(store.layout.journal(&name), text).unwrap();
        Journal::<Planned>::load(&store, &name).map(Option::unwrap)
    };
    for version in 1..=3 {
        assert_eq!(load(with(JOURNAL, "", "schema", version.into())).unwrap().schema, version);
    }
    is_newer(
        &load(with(JOURNAL, "", "schema", 4.into())).unwrap_err(),
        "(schema 4, this one knows 3)",
    );
    // A newer one may have a field that this version does not know.
    let newer = String::from_utf8(with(JOURNAL, "", "schema", 4.into())).unwrap();
    is_newer(
        &load(with(&newer, "", "more", 1.into())).unwrap_err(),
        "(schema 4, this one knows 3)",
    );
    for place in ["", "/vm", "/steps/0", "/steps/2"] {
        let error = load(with(JOURNAL, place, "more", 1.into())).unwrap_err();
        assert!(
            !error.is_newer() && error.full_message().contains("unknown field"),
            "{place}: {error:?}"
        );
    }
}

#[test]
fn a_record_of_a_newer_version_is_no_damage() {
    is_newer(
        &parse_record(&with(V1, "", "schema", 2.into())).unwrap_err(),
        "(schema 2, this one knows 1)",
    );
    let (_room, store) = store();
    let name: Name = "web".parse().unwrap();
    std::fs::create_dir_all(store.layout.vm(&name)).unwrap();
    std::fs::write(store.layout.vm_json(&name), with(V1, "", "schema", 2.into())).unwrap();
    let error = store.load(&name).unwrap_err();
    is_newer(&error, "(schema 2, this one knows 1)");
    assert_eq!(error.file(), Some(store.layout.vm_json(&name).as_path()));
}

/// A store in a directory of its own, which goes with the first value.
fn store() -> (tempfile::TempDir, Store) {
    let room = tempfile::tempdir().unwrap();
    let store = Store::at(room.path()).unwrap();
    (room, store)
}

/// `text` with a field at the place that a JSON pointer names.
fn with(text: &str, place: &str, field: &str, value: Value) -> Vec<u8> {
    let mut json: Value = serde_json::from_str(text).unwrap();
    json.pointer_mut(place).unwrap()[field] = value;
    serde_json::to_vec(&json).unwrap()
}

fn is_newer(error: &Error, versions: &str) {
    let words = error.full_message();
    assert!(
        error.is_newer()
            && words.contains(&format!("written by a newer version of cowhand {versions}")),
        "{words}"
    );
    assert_eq!(error.kind(), Kind::Damaged);
}
