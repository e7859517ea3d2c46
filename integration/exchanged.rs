//! Layers of one VM in the place of another's, by name or by file: nothing is taken from the other,
//! and the one that is wrong is named.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::damage::{File, has_attributes, store_of};
use crate::lab::{Lab, files_in, tool};
use crate::tier;

fn layer(lab: &Lab, id: &str) -> PathBuf {
    lab.store().join("layers").join(format!("{id}.qcow2"))
}

pub fn head(lab: &Lab, vm: &str) -> String {
    lab.chain(vm)[0].clone()
}

/// Writes a mark into the disk of a VM that does not run.
pub fn mark(lab: &Lab, vm: &str, mark: u8) {
    let command = format!("write -P {mark} 1M 64k");
    tool("qemu-io", &["-f", "qcow2", "-c", &command, layer(lab, &head(lab, vm)).to_str().unwrap()]);
}

pub fn has_mark(lab: &Lab, vm: &str, mark: u8) -> bool {
    let command = format!("read -P {mark} 1M 64k");
    let mut read = Command::new("qemu-io");
    let output = read
        .args(["-r", "-f", "qcow2", "-c", &command])
        .arg(layer(lab, &head(lab, vm)))
        .output()
        .unwrap();
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

pub fn replace(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

fn swap(a: &Path, b: &Path) {
    let beside = a.with_extension("beside");
    std::fs::rename(a, &beside).unwrap();
    std::fs::rename(b, a).unwrap();
    std::fs::rename(&beside, b).unwrap();
}

/// The directory of the trash that ends like this.
fn trashed(lab: &Lab, end: &str) -> PathBuf {
    let trash = lab.store().join("trash");
    trash.join(files_in(&trash).into_iter().find(|name| name.ends_with(end)).unwrap())
}

#[test]
fn undo_takes_no_layer_that_another_vm_has() {
    let lab = store_of(3);
    mark(&lab, "vm1", 7);
    let taken = head(&lab, "vm1");
    // An entry that names it, with a file of that name.
    let entry = File::TrashEntry.path(&lab, "vm0");
    let layers = entry.parent().unwrap().join("layers");
    let own = files_in(&layers)[0].trim_end_matches(".qcow2").to_owned();
    std::fs::copy(layer(&lab, &head(&lab, "vm2")), layers.join(format!("{taken}.qcow2"))).unwrap();
    replace(&entry, &own, &taken);
    lab.run(&["undo", "vm0"]).fails(5, &[&taken, "belongs to vm1"]);
    lab.ok(&["undo", "--list"]);
    assert!(has_mark(&lab, "vm1", 7));
    // While nobody can say whose it is, the file that is there is not replaced, either.
    let record = File::Record.path(&lab, "vm1");
    let good = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    assert_ne!(lab.run(&["undo", "vm0"]).code, 0);
    std::fs::write(&record, good).unwrap();
    assert!(has_mark(&lab, "vm1", 7) && layers.join(format!("{taken}.qcow2")).exists());
    replace(&entry, &taken, &own);
    lab.ok(&["undo", "vm0"]);
    // A removed VM whose record names it.
    lab.ok(&["clone", "vm2@s", "copy"]);
    let own = head(&lab, "copy");
    lab.ok(&["rm", "copy"]);
    let removed = trashed(&lab, "-rm-copy").join("vm");
    for file in ["vm.json", "vm.json.spare"] {
        replace(&removed.join(file), &own, &taken);
    }
    lab.run(&["undo", "copy"]).fails(5, &[&taken, "belongs to vm1"]);
    lab.ok(&["start", "vm1", "--paused"]);
    lab.ok(&["stop", "vm1", "--force"]);
    assert!(has_mark(&lab, "vm1", 7));
    lab.ok(&["doctor"]);
}

#[test]
fn gc_keeps_a_layer_in_the_trash_that_a_vm_lacks() {
    let lab = store_of(2);
    mark(&lab, "vm1", 7);
    let chain = lab.chain("vm1");
    // A removed VM whose directory was put back by hand.
    lab.ok(&["clone", "vm0@s", "copy"]);
    mark(&lab, "copy", 9);
    lab.ok(&["rm", "copy"]);
    lab.copy_tree(&trashed(&lab, "-rm-copy").join("vm"), &lab.store().join("vms/copy"));
    let place = File::TrashEntry.path(&lab, "vm0").parent().unwrap().join("layers");
    // A snapshot's layer in the trash of another VM.
    let file = place.join(format!("{}.qcow2", chain[1]));
    std::fs::rename(layer(&lab, &chain[1]), &file).unwrap();
    for args in [&["gc", "--older-than", "0", "--dry-run"][..], &["gc", "--older-than", "0"]] {
        let kept = lab.run(args);
        assert_eq!(kept.code, 0, "{kept:?}");
        for words in [
            "stays in the trash: vm1 lacks layer", "stays in the trash: copy lacks layer",
            "cowhand doctor vm1",
        ] {
            assert!(kept.err.contains(words), "{kept:?}");
        }
    }
    assert!(file.exists());
    lab.ok(&["doctor", "--repair"]);
    lab.ok(&["doctor", "vm1"]);
    lab.ok(&["doctor", "copy"]);
    assert!(has_mark(&lab, "vm1", 7) && has_mark(&lab, "copy", 9));
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(files_in(&lab.store().join("trash")).iter().all(|name| !name.contains("-revert-")));
    lab.check_images();
}

#[test]
fn files_of_layers_that_were_exchanged_start_no_vm_and_stop_no_other() {
    let lab = store_of(3);
    if !has_attributes(&lab, "files_of_layers_that_were_exchanged_start_no_vm_and_stop_no_other") {
        return;
    }
    mark(&lab, "vm0", 5);
    mark(&lab, "vm1", 7);
    let (one, other) = (layer(&lab, &head(&lab, "vm0")), layer(&lab, &head(&lab, "vm1")));
    let aside = lab.path().join("aside");
    let whole = |vm: &str| {
        for args in [
            &["start", vm, "--paused"][..],
            &["stop", vm, "--force"],
            &["clone", vm, "copy"],
            &["rm", "copy"],
        ] {
            lab.ok(args);
        }
    };
    let broken = |what: &str, vm: &str, words: &str| {
        for args in [&["start", vm][..], &["clone", vm, "copy"], &["snapshot", "create", vm, "t"]] {
            let done = lab.run(args);
            assert!(done.code == 8 && done.err.contains(words), "{what}: {args:?}: {done:?}");
        }
        let layers = lab.layer_files();
        for args in [&["doctor"][..], &["doctor", "--repair"]] {
            let looked = lab.run(args);
            let is_told = looked
                .out
                .lines()
                .any(|line| line.starts_with("fail") && line.contains(&format!("{vm}: ")));
            assert!(
                looked.code == 1 && is_told && looked.out.contains(words),
                "{what}: {looked:?}"
            );
        }
        lab.ok(&["gc", "--older-than", "1h"]);
        assert_eq!(lab.layer_files(), layers, "{what}");
    };
    // By name.
    swap(&one, &other);
    broken("exchanged", "vm0", "its file is that of layer");
    broken("exchanged", "vm1", "its file is that of layer");
    whole("vm2");
    swap(&one, &other);
    // One file under both names: it is that of vm1.
    std::fs::rename(&one, &aside).unwrap();
    std::fs::hard_link(&other, &one).unwrap();
    broken("a hard link", "vm0", "its file is that of layer");
    whole("vm1");
    std::fs::remove_file(&one).unwrap();
    for target in [other.clone(), other.file_name().unwrap().into()] {
        std::os::unix::fs::symlink(&target, &one).unwrap();
        broken("a link", "vm0", "damaged");
        whole("vm1");
        std::fs::remove_file(&one).unwrap();
    }
    // The header of another VM's layer.
    std::fs::rename(&aside, &one).unwrap();
    let below = lab.chain("vm1")[1].clone();
    let name = one.file_name().unwrap().to_str().unwrap();
    tool(
        "qemu-img",
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            name,
            layer(&lab, &below).to_str().unwrap(),
        ],
    );
    whole("vm0");
    let looked = lab.run(&["doctor"]);
    assert!(
        looked.out.lines().all(|line| !line.starts_with("fail") || line.contains("vm1: ")),
        "{looked:?}"
    );
    lab.ok(&["doctor", "--repair"]);
    for (vm, is) in [("vm0", 5), ("vm1", 7)] {
        whole(vm);
        assert!(has_mark(&lab, vm, is), "{vm}");
    }
    lab.check_images();
}

#[test]
fn a_vm_whose_record_names_the_disk_of_another_one_takes_no_snapshot_of_it() {
    let lab = store_of(2);
    lab.ok(&["start", "vm1", "--paused"]);
    let (own, taken) = (head(&lab, "vm0"), head(&lab, "vm1"));
    let (record, spare) = (File::Record.path(&lab, "vm0"), File::Spare.path(&lab, "vm0"));
    for file in [&record, &spare] {
        replace(file, &own, &taken);
    }
    let layers = lab.layer_files();
    lab.run(&["start", "vm0"]).fails(8, &["belongs to vm1"]);
    lab.run(&["snapshot", "create", "vm0", "t"])
        .fails(5, &["vda of vm0", "a QEMU that is not that of vm0", &taken]);
    assert_eq!(lab.layer_files(), layers);
    assert_eq!(lab.state("vm1"), "paused");
    lab.ok(&["stop", "vm1", "--force"]);
    for file in [&record, &spare] {
        replace(file, &taken, &own);
    }
    lab.ok(&["doctor"]);
}

/// Writes into the header of a layer that it depends on another one.
fn put_on(lab: &Lab, id: &str, backing: &str) {
    let backing = format!("{backing}.qcow2");
    tool(
        "qemu-img",
        &[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            &backing,
            layer(lab, id).to_str().unwrap(),
        ],
    );
}

pub fn starts(lab: &Lab, vm: &str) {
    lab.ok(&["start", vm, "--paused"]);
    lab.ok(&["stop", vm, "--force"]);
}

/// `doctor` finds fault with this VM alone.
pub fn only_this_fails(lab: &Lab, vm: &str) {
    let looked = lab.run(&["doctor"]);
    let mut fails = looked.out.lines().filter(|line| line.starts_with("fail")).peekable();
    assert!(looked.code == 1 && fails.peek().is_some(), "{looked:?}");
    assert!(fails.all(|line| line.contains(&format!("{vm}: "))), "{looked:?}");
}

#[test]
fn what_does_not_depend_on_what_it_was_made_on_is_neither_merged_nor_copied() {
    let lab = store_of(2);
    if !has_attributes(
        &lab,
        "what_does_not_depend_on_what_it_was_made_on_is_neither_merged_nor_copied",
    ) {
        return;
    }
    mark(&lab, "vm1", 7);
    lab.ok(&["snapshot", "create", "vm1", "t"]);
    mark(&lab, "vm0", 5);
    let (a, b) = (lab.chain("vm0"), lab.chain("vm1"));
    // Its mark lies below.
    put_on(&lab, &b[0], &a[1]);
    let layers = lab.layer_files();
    let image = lab.path().join("image.qcow2");
    for args in [
        &["start", "vm1"][..],
        &["snapshot", "rm", "vm1@t"],
        &["snapshot", "rm", "vm1@s"],
        &["snapshot", "create", "vm1", "u"],
        &["flatten", "vm1"],
        &["clone", "vm1", "copy"],
        &["clone", "--full", "vm1", "copy"],
        &["image", "export", "vm1", image.to_str().unwrap()],
        &["disk", "stream", "vm1", "vda"],
    ] {
        let done = lab.run(args);
        assert!(done.code == 8 && done.err.contains(&b[0]), "{args:?}: {done:?}");
        assert_eq!(lab.layer_files(), layers, "{args:?}");
    }
    lab.run(&["disk", "commit", "vm1", "vda"]).fails(5, &["belongs to vm0@s"]);
    assert!(!image.exists());
    starts(&lab, "vm0");
    let refused = lab.run(&["rm", "vm0"]);
    assert!(refused.code == 5 && !refused.err.contains("cowhand flatten"), "{refused:?}");
    assert!(refused.err.contains("cowhand doctor vm1 --repair"), "{refused:?}");
    only_this_fails(&lab, "vm1");
    lab.ok(&["doctor", "vm1", "--repair"]);
    lab.ok(&["snapshot", "rm", "vm1@t"]);
    assert!(has_mark(&lab, "vm0", 5) && has_mark(&lab, "vm1", 7));
    lab.ok(&["rm", "vm0"]);
    lab.check_images();
}

#[test]
fn what_was_made_on_nothing_and_is_put_on_another_vms_disk_stops_only_its_own_vm() {
    let lab = store_of(2);
    if !has_attributes(
        &lab,
        "what_was_made_on_nothing_and_is_put_on_another_vms_disk_stops_only_its_own_vm",
    ) {
        return;
    }
    mark(&lab, "vm0", 5);
    mark(&lab, "vm1", 7);
    let (a, b) = (lab.chain("vm0"), lab.chain("vm1"));
    put_on(&lab, &b[1], &a[0]);
    starts(&lab, "vm0");
    lab.run(&["start", "vm1"]).fails(8, &[&b[1], "made on no other layer", "cowhand doctor vm1"]);
    // It may stand there after all.
    lab.run(&["rm", "vm0"]).fails(5, &["cowhand doctor vm1 --repair"]);
    only_this_fails(&lab, "vm1");
    lab.ok(&["doctor", "--repair"]);
    for vm in ["vm0", "vm1"] {
        starts(&lab, vm);
    }
    assert!(has_mark(&lab, "vm0", 5) && has_mark(&lab, "vm1", 7));
    lab.ok(&["doctor"]);
}

/// A layer that no name points at any more, and that was a head while its VM ran.
#[test]
fn a_hidden_layer_that_is_put_on_another_vms_disk_stops_only_its_own_vm() {
    let lab = store_of(2);
    let test = "a_hidden_layer_that_is_put_on_another_vms_disk_stops_only_its_own_vm";
    if !has_attributes(&lab, test) {
        return;
    }
    lab.ok(&["clone", "vm1@s", "copy"]);
    let (a, b) = (lab.chain("vm0"), lab.chain("vm1"));
    lab.ok(&["snapshot", "rm", "vm1@s"]);
    put_on(&lab, &b[1], &a[0]);
    starts(&lab, "vm0");
    for vm in ["vm1", "copy"] {
        lab.run(&["start", vm]).fails(8, &[&b[1], "made on no other layer"]);
    }
    lab.ok(&["doctor", "--repair"]);
    for vm in ["vm0", "vm1", "copy"] {
        starts(&lab, vm);
    }
}

/// A QEMU that somebody has taken over may write a header, and end, while a merge is under way.
#[test]
fn a_merge_that_was_cut_short_is_not_carried_on_along_the_disk_of_another_vm() {
    let test = "a_merge_that_was_cut_short_is_not_carried_on_along_the_disk_of_another_vm";
    let stride: usize = tier::first_or(4, 1);
    for number in (stride.div_ceil(2)..).step_by(stride) {
        let lab = store_of(2);
        if !has_attributes(&lab, test) {
            return;
        }
        mark(&lab, "vm0", 5);
        mark(&lab, "vm1", 7);
        let (a, b) = (lab.chain("vm0"), lab.chain("vm1"));
        let mut remove = lab.command(&["snapshot", "rm", "vm1@s"]);
        let died = remove.env("COWHAND_FAULT", format!("{number}:die")).output().unwrap();
        if died.status.success() {
            assert!(number > 20, "it has {number} fault points");
            break;
        }
        put_on(&lab, &b[0], &a[0]);
        let refused = lab.run(&["start", "vm1", "--paused"]);
        assert!(refused.code != 0 && refused.err.contains(&b[0]), "{number}: {refused:?}");
        starts(&lab, "vm0");
        lab.ok(&["doctor", "vm1", "--repair"]);
        starts(&lab, "vm1");
        assert!(has_mark(&lab, "vm0", 5) && has_mark(&lab, "vm1", 7), "{number}");
        assert_eq!(lab.chain("vm0"), a);
        lab.ok(&["doctor"]);
    }
}

/// A store that was restored without extended attributes has no notes.
#[test]
fn what_a_layer_depends_on_is_noted_before_a_guest_writes_to_it() {
    let lab = store_of(2);
    if !has_attributes(&lab, "what_a_layer_depends_on_is_noted_before_a_guest_writes_to_it") {
        return;
    }
    let (a, b) = (lab.chain("vm0"), lab.chain("vm1"));
    let head = layer(&lab, &b[0]);
    rustix::fs::removexattr(&head, "user.cowhand.backing").unwrap();
    starts(&lab, "vm1");
    put_on(&lab, &b[0], &a[1]);
    lab.run(&["start", "vm1"]).fails(8, &[&b[0], "it was made on", &b[1]]);
    lab.ok(&["doctor", "vm1", "--repair"]);
    starts(&lab, "vm1");
}

#[test]
fn a_copy_in_the_trash_of_a_layer_that_is_damaged_stays_there() {
    let lab = store_of(2);
    if !has_attributes(&lab, "a_copy_in_the_trash_of_a_layer_that_is_damaged_stays_there") {
        return;
    }
    mark(&lab, "vm1", 7);
    let chain = lab.chain("vm1");
    let entry = File::TrashEntry.path(&lab, "vm0").parent().unwrap().to_owned();
    for (id, place) in [(&chain[0], "layers"), (&chain[1], "layers"), (&chain[0], "vm")] {
        let kept = entry.join(place).join(format!("{id}.qcow2"));
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        std::fs::copy(layer(&lab, id), &kept).unwrap();
        let whole = std::fs::read(layer(&lab, id)).unwrap();
        std::fs::write(layer(&lab, id), &whole[..1000]).unwrap();
        let done = lab.run(&["gc", "--older-than", "0"]);
        assert!(
            done.code == 0 && done.err.contains("stays in the trash: layer"),
            "{place}: {done:?}"
        );
        assert_eq!(std::fs::read(&kept).unwrap(), whole);
        let looked = lab.run(&["doctor", "--repair"]);
        assert!(looked.out.contains(kept.to_str().unwrap()), "{looked:?}");
        assert!(kept.exists());
        std::fs::write(layer(&lab, id), whole).unwrap();
        std::fs::remove_file(&kept).unwrap();
    }
    // Nobody needs one of a layer that is whole.
    std::fs::copy(layer(&lab, &chain[0]), entry.join("layers").join(format!("{}.qcow2", chain[0])))
        .unwrap();
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(!entry.exists() && has_mark(&lab, "vm1", 7));
}

#[test]
fn no_other_file_is_taken_out_of_the_trash_for_a_layer_that_is_missing() {
    let lab = store_of(2);
    if !has_attributes(&lab, "no_other_file_is_taken_out_of_the_trash_for_a_layer_that_is_missing")
    {
        return;
    }
    mark(&lab, "vm1", 7);
    let chain = lab.chain("vm1");
    let aside = lab.path().join("aside");
    std::fs::rename(layer(&lab, &chain[0]), &aside).unwrap();
    let place = File::TrashEntry.path(&lab, "vm0").parent().unwrap().join("layers");
    let file = place.join(format!("{}.qcow2", chain[0]));
    let (path, below) = (file.to_str().unwrap(), layer(&lab, &chain[1]));
    let empty =
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below.to_str().unwrap(), path, "16M"];
    tool("qemu-img", &empty);
    for _ in 0..2 {
        let looked = lab.run(&["doctor", "--repair"]);
        assert!(
            looked.code == 1 && looked.out.contains(path) && looked.out.contains("may not be it"),
            "{looked:?}"
        );
        assert!(file.exists() && !layer(&lab, &chain[0]).exists());
        // That of another layer.
        std::fs::copy(layer(&lab, &head(&lab, "vm0")), &file).unwrap();
        let note = rustix::fs::setxattr(
            &file,
            "user.cowhand.backing",
            b" jihgfedcba",
            rustix::fs::XattrFlags::empty(),
        );
        note.unwrap();
    }
    // Its own.
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    lab.ok(&["doctor", "--repair"]);
    assert!(has_mark(&lab, "vm1", 7));
    lab.ok(&["doctor"]);
}

#[test]
fn a_vm_that_has_lost_its_record_and_the_spare_copy_keeps_its_layers() {
    let lab = store_of(2);
    mark(&lab, "vm1", 7);
    let records = [File::Record, File::Spare].map(|file| file.path(&lab, "vm1"));
    let text = std::fs::read(&records[0]).unwrap();
    for record in &records {
        std::fs::remove_file(record).unwrap();
    }
    let layers = lab.layer_files();
    for _ in 0..2 {
        only_this_fails(&lab, "vm1");
        lab.run(&["doctor", "--repair"]).fails(1, &[]);
        lab.ok(&["clone", "vm0", "copy"]);
        lab.ok(&["rm", "copy"]);
        lab.ok(&["gc", "--older-than", "0"]);
        starts(&lab, "vm0");
        assert_ne!(lab.run(&["create", "vm1", "--size", "1M"]).code, 0);
        let now = lab.layer_files();
        assert!(layers.iter().all(|layer| now.contains(layer)), "{layers:?}: {now:?}");
    }
    std::fs::write(&records[0], text).unwrap();
    starts(&lab, "vm1");
    assert!(has_mark(&lab, "vm1", 7));
    lab.ok(&["doctor", "--repair"]);
    lab.ok(&["doctor"]);
    // It is given up.
    lab.ok(&["set", "vm1", "tag.t=1"]);
    for record in &records {
        std::fs::remove_file(record).unwrap();
    }
    lab.ok(&["rm", "--force", "vm1"]);
    lab.ok(&["doctor"]);
    // What never came to be goes as before: there are no layers that might be its.
    lab.ok(&["gc"]);
    let mut create = lab.command(&["create", "new", "--size", "1M"]);
    assert!(
        !create
            .env("COWHAND_FAULT", "journal.json, written:die")
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(lab.store().join("vms/new/lock").exists());
    lab.ok(&["gc"]);
    assert!(!lab.store().join("vms/new").exists());
}

/// Whatever it names: a layer of another VM or template, one that is hidden, or too little.
#[test]
fn a_record_that_somebody_else_has_changed_stops_its_own_vm_alone_until_it_is_mended() {
    let lab = store_of(2);
    lab.ok(&["create", "base", "--size", "16M", "--net", "none"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    lab.ok(&["clone", "vm1@s", "above"]);
    lab.ok(&["snapshot", "create", "vm1", "t"]);
    // Nobody names it, and the clone depends on it.
    let hidden = lab.chain("vm1")[2].clone();
    lab.ok(&["snapshot", "rm", "vm1@s"]);
    mark(&lab, "vm0", 5);
    mark(&lab, "vm1", 7);
    let (own, other) = (lab.chain("vm0"), lab.chain("vm1"));
    let record = File::Record.path(&lab, "vm0");
    let good = std::fs::read_to_string(&record).unwrap();
    let image = lab.path().join("image.qcow2");
    let fewer = {
        let mut fewer: serde_json::Value = serde_json::from_str(&good).unwrap();
        let fields = fewer.as_object_mut().unwrap();
        fields.remove("snapshots").and(fields.remove("head")).unwrap();
        fewer.to_string()
    };
    let mut wrong: Vec<String> = vec![fewer];
    for taken in [&other[0], &other[1], &hidden, &head(&lab, "base")] {
        wrong.extend(own.iter().map(|own| good.replace(own, taken)));
    }
    for wrong in wrong {
        assert_ne!(wrong, good);
        std::fs::write(&record, &wrong).unwrap();
        let layers = lab.layer_files();
        for args in [
            &["start", "vm0"][..],
            &["plan", "vm0"],
            &["set", "vm0", "memory=512M"],
            &["rename", "vm0", "other"],
            &["disk", "resize", "vm0", "vda", "32M"],
            &["disk", "commit", "vm0", "vda"],
            &["snapshot", "create", "vm0", "u"],
            &["snapshot", "rm", "vm0@s"],
            &["snapshot", "revert", "vm0@s"],
            &["flatten", "vm0"],
            &["clone", "vm0", "copy"],
            &["clone", "--full", "vm0", "copy"],
            &["clone", "vm0@s", "copy"],
            &["template", "create", "vm0", "--no-seal"],
            &["image", "export", "vm0", image.to_str().unwrap()],
            &["rm", "vm0"],
        ] {
            let done = lab.run(args);
            // Of a snapshot that it does not name there is nothing to be said.
            let is_unknown = done.code == 3 && args.contains(&"vm0@s");
            assert!(is_unknown || done.code == 8, "{args:?}: {done:?}");
            assert!(
                is_unknown || done.err.contains("the record of vm0 may be out of date"),
                "{args:?}: {done:?}"
            );
        }
        for vm in ["vm1", "above"] {
            starts(&lab, vm);
            lab.ok(&["clone", vm, "copy", "--full"]);
            lab.ok(&["rm", "copy"]);
        }
        only_this_fails(&lab, "vm0");
        for _ in 0..2 {
            lab.ok(&["gc", "--older-than", "0"]);
        }
        assert_eq!(lab.layer_files(), layers);
        assert_eq!(std::fs::read_to_string(&record).unwrap(), wrong);
        lab.ok(&["doctor", "--repair"]);
        assert_eq!(std::fs::read_to_string(&record).unwrap(), good);
        lab.ok(&["doctor"]);
    }
    // The user says that the record is right.
    std::fs::write(&record, good.replace(&own[1], &hidden)).unwrap();
    std::fs::remove_file(File::Spare.path(&lab, "vm0")).unwrap();
    lab.ok(&["set", "vm0", "tag.a=b"]);
    for (vm, is) in [("vm0", 5), ("vm1", 7)] {
        starts(&lab, vm);
        assert!(has_mark(&lab, vm, is), "{vm}");
    }
}

#[test]
fn undo_leaves_the_file_of_another_vms_layer_in_the_trash() {
    for undone in ["rm", "set", "revert"] {
        let lab = store_of(2);
        if !has_attributes(&lab, "undo_leaves_the_file_of_another_vms_layer_in_the_trash") {
            return;
        }
        mark(&lab, "vm1", 7);
        match undone {
            "rm" => drop(lab.ok(&["rm", "vm0"])),
            "set" => drop(lab.ok(&["set", "vm0", "memory=512M"])),
            _ => {}
        }
        let place = trashed(&lab, &format!("-{undone}-vm0"));
        let lacking = head(&lab, "vm1");
        std::fs::create_dir_all(place.join("layers")).unwrap();
        let file = place.join("layers").join(format!("{lacking}.qcow2"));
        std::fs::rename(layer(&lab, &lacking), &file).unwrap();
        lab.ok(&["undo", "vm0"]);
        assert!(file.exists(), "{undone}");
        lab.ok(&["gc", "--older-than", "0"]);
        lab.ok(&["doctor", "vm1", "--repair"]);
        assert!(has_mark(&lab, "vm1", 7), "{undone}");
        starts(&lab, "vm0");
        lab.ok(&["doctor"]);
    }
}

#[test]
fn a_template_that_has_lost_its_record_and_the_spare_copy_keeps_its_layers() {
    let lab = store_of(1);
    lab.ok(&["create", "base", "--size", "16M", "--net", "none"]);
    mark(&lab, "base", 3);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    lab.ok(&["clone", "base", "web"]);
    let record = File::Record.path(&lab, "base");
    let text = std::fs::read(&record).unwrap();
    for file in [&record, &File::Spare.path(&lab, "base")] {
        std::fs::remove_file(file).unwrap();
    }
    let layers = lab.layer_files();
    for _ in 0..2 {
        only_this_fails(&lab, "base");
        lab.ok(&["gc", "--older-than", "0"]);
        starts(&lab, "web");
        assert_eq!(lab.layer_files(), layers);
    }
    std::fs::write(&record, text).unwrap();
    lab.ok(&["clone", "base", "db"]);
    assert!(has_mark(&lab, "db", 3));
}

#[test]
fn entries_of_the_trash_that_are_not_what_they_should_be_are_told() {
    let lab = store_of(2);
    let entry = File::TrashEntry.path(&lab, "vm0");
    let own =
        files_in(&entry.parent().unwrap().join("layers"))[0].trim_end_matches(".qcow2").to_owned();
    let taken = head(&lab, "vm1");
    replace(&entry, &own, &taken);
    let looked = lab.run(&["doctor"]);
    assert!(
        looked.out.contains(&format!("names layer {taken}.qcow2, which belongs to vm1")),
        "{looked:?}"
    );
    replace(&entry, &taken, &own);
    std::fs::remove_file(&entry).unwrap();
    std::fs::create_dir(&entry).unwrap();
    let done = lab.run(&["gc", "--older-than", "0"]);
    assert!(
        done.err.contains("cowhand doctor") && !done.err.contains("--older-than 0"),
        "{done:?}"
    );
    // A directory among the files of memory is nobody's.
    std::fs::create_dir_all(lab.store().join("ram/x")).unwrap();
    lab.ok(&["gc"]);
    let looked = lab.run(&["doctor"]);
    assert!(looked.out.contains("ram/x is a directory"), "{looked:?}");
}

#[test]
fn a_guest_is_stopped_while_the_store_has_no_file_of_its_own() {
    let lab = store_of(1);
    lab.ok(&["start", "vm0", "--paused"]);
    let file = lab.store().join("store.json");
    std::fs::rename(&file, lab.path().join("store.json")).unwrap();
    std::fs::create_dir(&file).unwrap();
    lab.ok(&["stop", "vm0", "--force"]);
    lab.ok(&["doctor", "--repair"]);
    assert_eq!(lab.state("vm0"), "stopped");
}
