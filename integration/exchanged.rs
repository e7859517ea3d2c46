//! Layers of one VM in the place of another's, by name or by file: nothing is taken from the other, and the one that is wrong is named.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::damage::{File, has_attributes, store_of};
use crate::lab::{Lab, files_in, tool};

fn layer(lab: &Lab, id: &str) -> PathBuf {
    lab.store().join("layers").join(format!("{id}.qcow2"))
}

fn head(lab: &Lab, vm: &str) -> String {
    lab.chain(vm)[0].clone()
}

/// Writes a mark into the disk of a VM that does not run.
fn mark(lab: &Lab, vm: &str, mark: u8) {
    let command = format!("write -P {mark} 1M 64k");
    tool("qemu-io", &["-f", "qcow2", "-c", &command, layer(lab, &head(lab, vm)).to_str().unwrap()]);
}

fn has_mark(lab: &Lab, vm: &str, mark: u8) -> bool {
    let command = format!("read -P {mark} 1M 64k");
    let mut read = Command::new("qemu-io");
    let output = read.args(["-r", "-f", "qcow2", "-c", &command]).arg(layer(lab, &head(lab, vm))).output().unwrap();
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

fn replace(file: &Path, from: &str, to: &str) {
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
        for words in
            ["stays in the trash: vm1 lacks layer", "stays in the trash: copy lacks layer", "cowhand doctor vm1"]
        {
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
        for args in [&["start", vm, "--paused"][..], &["stop", vm, "--force"], &["clone", vm, "copy"], &["rm", "copy"]]
        {
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
            let is_told = looked.out.lines().any(|line| line.starts_with("fail") && line.contains(&format!("{vm}: ")));
            assert!(looked.code == 1 && is_told && looked.out.contains(words), "{what}: {looked:?}");
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
        &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", name, layer(&lab, &below).to_str().unwrap()],
    );
    whole("vm0");
    let looked = lab.run(&["doctor"]);
    assert!(looked.out.lines().all(|line| !line.starts_with("fail") || line.contains("vm1: ")), "{looked:?}");
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
    lab.run(&["snapshot", "create", "vm0", "t"]).fails(5, &["vda of vm0", "a QEMU that is not that of vm0", &taken]);
    assert_eq!(lab.layer_files(), layers);
    assert_eq!(lab.state("vm1"), "paused");
    lab.ok(&["stop", "vm1", "--force"]);
    for file in [&record, &spare] {
        replace(file, &taken, &own);
    }
    lab.ok(&["doctor"]);
}
