//! The form of `vm.json`. The fixture is what version 0.1 wrote; it must be readable for ever, and is written back the same.

use cowhand::model::{Bus, Cdrom, NicModel, PciSlot};
use cowhand::store::schema::{parse_record, parse_written, render_record};

const V1: &str = include_str!("fixtures/vm-v1.json");

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
    assert_eq!((record.config.disks[0].bus, record.config.nics[0].model), (Bus::Virtio, NicModel::Virtio));
    assert!(record.config.cdroms.is_empty());
    record.config.disks[0].bus = Bus::Sata;
    record.config.disks[0].serial = Some("WD-1".into());
    record.config.nics[0].model = NicModel::E1000;
    record.config.nics[0].place = Some(PciSlot { bus: 1, slot: 0 });
    record.config.cdroms.push(Cdrom { target: "sdb".into(), bus: Bus::Sata, iso: Some("/srv/a.iso".into()) });
    let text = render_record(&record, None, None).unwrap();
    assert_eq!(parse_record(&text).unwrap(), record);
    let text = String::from_utf8(text).unwrap();
    for (from, to, words) in [
        ("\"bus\": \"sata\"", "\"bus\": \"mca\"", "\"mca\" is not a disk bus that this version knows"),
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
        ("\"parent\": \"s1\"", "\"parent\": \"gone\"", "snapshot s2 stands on gone, which is not there"),
        ("\"head\": \"s2\"", "\"head\": \"gone\"", "the head stands on snapshot gone"),
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
