use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::model::{Config, Credentials, Disk, Firmware, Limits, LogLimit, Record, Role};

fn record(layer: &Layer) -> Record {
    Record {
        role: Role::Vm,
        uuid: Uuid::from_u128(7),
        created: Timestamp::UNIX_EPOCH,
        origin: None,
        config: Config {
            machine: "q35".to_owned(),
            cpu: None,
            memory_bytes: 1 << 30,
            cpus: 1,
            firmware: Firmware::Bios,
            kernel: None,
            nics: Vec::new(),
            generation: Uuid::nil(),
            disks: vec![Disk::new("vda", layer.clone(), 512)],
            nvram: None,
            cdroms: Vec::new(),
            limits: Limits::default(),
            log_limit: LogLimit::default(),
            seed: None,
            credentials: Credentials::default(),
            tags: BTreeMap::new(),
        },
        current: None,
        snapshots: Vec::new(),
        warm: None,
        ephemeral: None,
        autostart: false,
    }
}

/// A command may write a record, and its spare copy, between the two looks of another one.
#[test]
fn a_record_that_was_written_anew_since_it_was_read_is_not_overruled_by_its_spare_copy() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::at(directory.path()).expect("a store");
    store.prepare().expect("a store");
    let name: Name = "web".parse().expect("a name");
    make_directory(&store.layout.vm(&name)).expect("a directory");
    let [one, two] = [(); 2].map(|()| Layer::new(Format::Qcow2));
    store.save(&name, &record(&one)).expect("a record");
    let read = store.load(&name).expect("a record");
    store.save(&name, &record(&two)).expect("a record");
    assert_eq!(store.overruling(&name, &read).expect("it can be read"), Some(record(&two)));
    assert_eq!(store.overruling_still(&name, &read).expect("it can be read"), None);
    // An older record was put back by hand.
    let spare = store.layout.spare_json(&name);
    let kept = std::fs::read(&spare).expect("a spare copy");
    store.save(&name, &record(&one)).expect("a record");
    std::fs::write(&spare, kept).expect("a spare copy");
    let read = store.load(&name).expect("a record");
    assert_eq!(store.overruling_still(&name, &read).expect("it can be read"), Some(record(&two)));
}

/// A copy lies on the next file system, or has the next inode, or both.
#[test]
fn stores_that_lie_near_each_other_have_places_of_their_own() {
    let numbers = || {
        (0..64_u64)
            .flat_map(|device| (0..64_u64).map(move |inode| (0x801 + device, 0x2_0001 + inode)))
    };
    let places: BTreeSet<String> = numbers().map(|(device, inode)| place(device, inode)).collect();
    assert_eq!(places.len(), numbers().count());
}
