//! What `gc` keeps, since something that cannot be read just now may need it: each test mends that
//! afterwards, and has everything back.

use std::path::PathBuf;

use crate::damage::File;
use crate::exchanged::{has_mark, mark, replace};
use crate::lab::{Lab, files_in};

/// A VM with a snapshot of its disk, and the memory of a guest that stands still at another one.
fn store() -> Lab {
    let lab = Lab::new();
    lab.ok(&["create", "a", "--size", "16M", "--memory", "64M", "--net", "none"]);
    mark(&lab, "a", 5);
    lab.ok(&["snapshot", "create", "a", "s"]);
    lab
}

fn take_memory(lab: &Lab) {
    lab.ok(&["start", "a", "--paused"]);
    lab.ok(&["snapshot", "create", "a", "m", "--memory"]);
    lab.ok(&["stop", "a", "--force"]);
    assert_eq!(memory(lab).len(), 1);
}

/// The files of memory.
fn memory(lab: &Lab) -> Vec<String> {
    files_in(&lab.store().join("ram"))
}

/// The layers, and the files of memory.
fn kept(lab: &Lab) -> (Vec<String>, Vec<String>) {
    (lab.layer_files(), memory(lab))
}

/// Empties the trash, and again of what the first time put into it.
fn collect(lab: &Lab) {
    for _ in 0..2 {
        lab.ok(&["gc", "--older-than", "0"]);
    }
}

/// Is the VM `a` whole, with the state of its guest?
fn is_whole(lab: &Lab) {
    assert!(has_mark(lab, "a", 5));
    lab.ok(&["disk", "check", "a"]);
    lab.ok(&["snapshot", "revert", "a@m"]);
    assert_eq!(lab.state("a"), "paused");
}

/// The directory of the trash that ends like this.
fn trashed(lab: &Lab, end: &str) -> Option<PathBuf> {
    let trash = lab.store().join("trash");
    let name = files_in(&trash).into_iter().filter(|name| name.ends_with(end)).max()?;
    Some(trash.join(name))
}

#[test]
fn memory_that_only_the_spare_copy_of_a_record_names_stays() {
    let lab = store();
    let (record, spare) = (File::Record.path(&lab, "a"), File::Spare.path(&lab, "a"));
    let backup = std::fs::read(&record).unwrap();
    take_memory(&lab);
    std::fs::write(&record, backup).unwrap();
    let before = kept(&lab);
    collect(&lab);
    assert_eq!(kept(&lab), before);
    std::fs::copy(spare, record).unwrap();
    is_whole(&lab);
}

#[test]
fn what_a_removal_that_was_cut_short_has_to_take_along_stays_while_its_entry_cannot_be_read() {
    let lab = store();
    take_memory(&lab);
    let before = kept(&lab);
    let mut removal = lab.command(&["rm", "a"]);
    let died = removal.env("COWHAND_FAULT", "a VM, in the trash:die").output().unwrap();
    assert_eq!(died.status.code(), None, "{died:?}");
    let entry = trashed(&lab, "-rm-a").unwrap().join("entry.json");
    let good = std::fs::read_to_string(&entry).unwrap();
    let uuid = &good[good.find("\"uuid\":\"").unwrap()..][..20];
    let wrong = [("\"schema\":2", "\"schema\":99"), (uuid, "\"uuid\":\"00000000-000")];
    for (from, to) in wrong {
        replace(&entry, from, to);
        let collected = lab.run(&["gc"]);
        assert!(collected.err.contains("-rm-a in the trash"), "{from}: {collected:?}");
        assert_eq!(kept(&lab), before, "{from}");
        std::fs::write(&entry, &good).unwrap();
    }
    lab.ok(&["gc"]);
    assert_eq!(kept(&lab), Default::default());
    lab.ok(&["undo", "a"]);
    is_whole(&lab);
}

#[test]
fn what_a_record_named_that_was_removed_unread_goes_into_the_trash_first() {
    let lab = store();
    take_memory(&lab);
    let (record, spare) = (File::Record.path(&lab, "a"), File::Spare.path(&lab, "a"));
    let good = std::fs::read(&record).unwrap();
    let (layers, memory) = kept(&lab);
    // Of a newer version: it is not damaged, and that version knows what belongs to it.
    for file in [&record, &spare] {
        let text = std::fs::read_to_string(file).unwrap();
        let schema = text.find("\"schema\":").unwrap();
        std::fs::write(file, text[..schema].to_owned() + "\"schema\":99" + &text[schema + 10..])
            .unwrap();
    }
    let plain = lab.run(&["rm", "a"]).fails(8, &["newer version"]);
    assert!(!plain.err.contains("--force"), "{plain:?}");
    lab.run(&["rm", "--force", "a"]).fails(8, &["newer version"]);
    for file in [&record, &spare] {
        std::fs::write(file, "{").unwrap();
    }
    lab.ok(&["rm", "--force", "a"]);
    lab.ok(&["gc"]);
    let orphans = trashed(&lab, "-gc-orphans").unwrap();
    assert_eq!(files_in(&orphans.join("layers")), layers);
    // The record is mended, and what it names lies somewhere else.
    let removed = trashed(&lab, "-rm-a").unwrap();
    std::fs::write(removed.join("vm/vm.json"), &good).unwrap();
    lab.run(&["undo", "a"]).fails(5, &["is not there any more"]);
    for layer in &layers {
        std::fs::rename(orphans.join("layers").join(layer), lab.store().join("layers").join(layer))
            .unwrap();
    }
    std::fs::remove_dir_all(&orphans).unwrap();
    lab.run(&["undo", "a"]).fails(5, &["was not recorded when the VM was removed", "mv "]);
    std::fs::rename(removed.join("vm"), lab.store().join("vms/a")).unwrap();
    is_whole(&lab);
    lab.ok(&["stop", "a", "--force"]);
    // Without a record that could be mended, its memory goes the same way as its layers.
    for file in [&record, &spare] {
        std::fs::write(file, "{").unwrap();
    }
    lab.ok(&["rm", "--force", "a"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(files_in(&trashed(&lab, "-gc-orphans").unwrap().join("ram")), memory);
}

#[test]
fn a_file_in_the_directory_of_memory_that_is_not_ours_stays() {
    let lab = store();
    take_memory(&lab);
    let ram = lab.store().join("ram");
    let ours = ["abcdefghij.part", "abcdefghij.zst.part", "abcdefghij.mem"];
    let others = ["abcdefghij.img", "guestinfos.txt", "abcdefghij.zst.bak", "notes"];
    for name in ours.iter().chain(&others) {
        std::fs::write(ram.join(name), "data").unwrap();
    }
    collect(&lab);
    let left = memory(&lab);
    assert!(others.iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
    assert!(!ours.iter().any(|name| left.contains(&(*name).to_owned())), "{left:?}");
    is_whole(&lab);
}
