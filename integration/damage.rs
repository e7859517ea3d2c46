//! Files of the store that are cut short, or lie in the place of another VM's: each stops its own
//! VM, which is named, and no other.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Done, Lab, files_in, skip};
use crate::tier;

/// The victim is `vm0`. Each VM has a snapshot, and a revert that can be taken back.
pub fn store_of(count: usize) -> Lab {
    let lab = Lab::new();
    for vm in names(count) {
        lab.ok(&["create", &vm, "--size", "16M", "--net", "none"]);
        lab.ok(&["snapshot", "create", &vm, "s"]);
        lab.ok(&["snapshot", "revert", &format!("{vm}@s")]);
    }
    lab
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("vm{at}")).collect()
}

/// What a VM has in the store, apart from its layers.
#[derive(Debug, Clone, Copy)]
pub enum File {
    Record,
    Spare,
    Journal,
    TrashEntry,
}

impl File {
    const ALL: [Self; 4] = [Self::Record, Self::Spare, Self::Journal, Self::TrashEntry];

    pub fn path(self, lab: &Lab, vm: &str) -> PathBuf {
        self.path_in(&lab.store(), vm)
    }

    fn path_in(self, store: &Path, vm: &str) -> PathBuf {
        let directory = store.join("vms").join(vm);
        match self {
            Self::Record => directory.join("vm.json"),
            Self::Spare => directory.join("vm.json.spare"),
            Self::Journal => directory.join("journal.json"),
            Self::TrashEntry => {
                let trash = store.join("trash");
                let is_its = |name: &String| name.ends_with(&format!("-revert-{vm}"));
                trash
                    .join(files_in(&trash).into_iter().filter(is_its).max().unwrap())
                    .join("entry.json")
            }
        }
    }

    /// What it says while the VM is whole; of a journal, what it says in the middle of a change.
    fn text(self, lab: &Lab, vm: &str) -> Vec<u8> {
        let path = self.path(lab, vm);
        if !matches!(self, Self::Journal) {
            return std::fs::read(path).unwrap();
        }
        let change = ["snapshot", "create", vm, "t"];
        let died = lab
            .command(&change)
            .env("COWHAND_FAULT", "journal.json, in its place:die")
            .output()
            .unwrap();
        assert!(!died.status.success());
        let text = std::fs::read(path).unwrap();
        lab.ok(&["set", vm, "tag.t="]);
        text
    }
}

/// What may not change: the records of the others.
fn others(store: &Path, count: usize) -> Vec<Vec<u8>> {
    let records = names(count)
        .into_iter()
        .skip(1)
        .map(|vm| std::fs::read(store.join("vms").join(vm).join("vm.json")).unwrap());
    records.collect()
}

/// Every file of a VM, cut short and exchanged for those of others. With `COWHAND_FAULTS=all`: at
/// each length, in a store of 50 VMs (an hour).
#[test]
fn a_file_that_is_cut_short_or_another_vms_stops_its_own_vm_and_no_other() {
    // Each in its own store. Most of it is waiting for `doctor`, which looks twice.
    let workers = if tier::is_all() { 6 } else { 1 };
    let tried: usize = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..workers).map(|at| scope.spawn(move || damage_files(at, workers))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    eprintln!("{tried} damages");
}

/// Tries every `workers`th damage, from the one `at` on; how many that were.
fn damage_files(at: usize, workers: usize) -> usize {
    let count = if tier::is_all() { 50 } else { tier::first_or(4, 8) };
    let lab = store_of(count);
    let layers = lab.layer_files();
    let mut tried = 0;
    let mut wrong = Vec::new();
    for file in File::ALL {
        let good = file.text(&lab, "vm0");
        let path = file.path(&lab, "vm0");
        let strangers = names(count)
            .into_iter()
            .skip(1)
            .map(|vm| (format!("that of {vm}"), file.text(&lab, &vm)));
        let strangers: Vec<_> = strangers.take(tier::first_or(1, count)).collect();
        let stride = if tier::is_all() { 1 } else { tier::first_or(good.len().div_ceil(2), 211) };
        let cut = (0..good.len() - 1)
            .step_by(stride)
            .map(|end| (format!("the first {end} bytes"), good[..end].to_vec()));
        for (what, bad) in cut.chain(strangers).skip(at).step_by(workers) {
            tried += 1;
            if tried % 100 == 0 {
                eprintln!("worker {at}: {tried} damages, the last one of {file:?}");
            }
            let what = format!("{file:?}: {what}");
            std::fs::write(&path, &bad).unwrap();
            let mut must = |done: Done| {
                if done.code != 0 {
                    eprintln!("{what}: {done:?}");
                    wrong.push(format!("{what}: {done:?}"));
                }
                done
            };
            let rows: serde_json::Value =
                serde_json::from_str(&must(lab.run(&["--format", "json", "ls"])).out).unwrap();
            let stopped =
                rows.as_array().unwrap().iter().filter(|row| row["state"] == "stopped").count();
            assert!(stopped >= count - 1, "{what}: {rows}");
            if tried % 8 == 1 {
                must(lab.run(&["start", "--paused", "vm1"]));
                must(lab.run(&["snapshot", "create", "vm1", "more"]));
                must(lab.run(&["stop", "--force", "vm1"]));
                must(lab.run(&["snapshot", "rm", "vm1@more"]));
            }
            must(lab.run(&["plan", "vm1"]));
            must(lab.run(&["clone", "vm1@s", "copy"]));
            must(lab.run(&["rm", "copy"]));
            // The store is to stay as large as it was.
            for entry in files_in(&lab.store().join("trash"))
                .iter()
                .filter(|entry| entry.ends_with("-rm-copy"))
            {
                std::fs::remove_dir_all(lab.store().join("trash").join(entry)).unwrap();
            }
            must(lab.run(&["gc", "--dry-run", "--older-than", "0"]));
            // It is named, by its VM and where it lies.
            let looked = lab.run(&["doctor"]);
            let place = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
            assert!(looked.out.contains("vm0") && looked.out.contains(place), "{what}: {looked:?}");
            assert!(
                looked.out.contains("that of") || !what.contains("that of"),
                "{what}: {looked:?}"
            );
            assert!(!looked.err.contains("error:"), "{what}: {looked:?}");
            assert_eq!(std::fs::read(&path).unwrap(), bad, "{what}: something has written to it");
            // What mends it, in a copy of the store.
            let copy = lab.path().join("copy");
            let _ = std::fs::remove_dir_all(&copy);
            lab.copy_tree(&lab.store(), &copy);
            let mended = lab.run(&["--store", copy.to_str().unwrap(), "doctor", "--repair"]);
            assert!(!mended.err.contains("error:"), "{what}: {mended:?}");
            assert_eq!(others(&copy, count), others(&lab.store(), count), "{what}: {mended:?}");
            let kept = files_in(&copy.join("layers"));
            assert!(layers.iter().all(|layer| kept.contains(layer)), "{what}: {mended:?}");
            if !matches!(file, File::TrashEntry) {
                let again = lab.run(&["--store", copy.to_str().unwrap(), "doctor", "vm0"]);
                assert_eq!(again.code, 0, "{what}: {mended:?} {again:?}");
            }
            let whole: serde_json::Value = {
                let rows =
                    lab.run(&["--store", copy.to_str().unwrap(), "--format", "json", "ls"]).ok();
                serde_json::from_str(&rows).unwrap()
            };
            assert!(
                whole.as_array().unwrap().iter().all(|row| row["state"] == "stopped"),
                "{what}: {whole}"
            );
            match file {
                File::Journal => std::fs::remove_file(&path).unwrap(),
                _ => std::fs::write(&path, &good).unwrap(),
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    let kept = lab.layer_files();
    assert!(layers.iter().all(|layer| kept.contains(layer)));
    lab.ok(&["undo", "vm0"]);
    lab.check_images();
    eprintln!("{tried} damages in a store of {count} VMs, by worker {at}");
    tried
}

/// A change of another VM, completed here, would make this VM the other's double, and take the
/// other's layers.
#[test]
fn a_journal_is_executed_for_the_vm_that_wrote_it_and_by_a_version_that_knows_it() {
    let lab = store_of(2);
    let before = lab.fingerprint();
    let journal = File::Journal.path(&lab, "vm0");
    let own = String::from_utf8(File::Journal.text(&lab, "vm0")).unwrap();
    let other = String::from_utf8(File::Journal.text(&lab, "vm1")).unwrap();
    let changed = |text: &str, change: fn(&mut serde_json::Value)| {
        let mut journal = serde_json::from_str(text).unwrap();
        change(&mut journal);
        journal.to_string()
    };
    let unsigned = |text: &str| {
        changed(text, |journal| {
            journal["schema"] = 1.into();
            journal.as_object_mut().unwrap().remove("vm");
        })
    };
    let predecessors =
        changed(&own, |journal| journal["vm"]["uuid"] = uuid::Uuid::nil().to_string().into());
    let newer = changed(&own, |journal| journal["schema"] = 4.into());
    for (text, words) in [
        (&other, "the journal of vm0 is that of vm1"),
        // An earlier version did not write down whose it is; the record inside tells.
        (&unsigned(&other), "the journal of vm0 is that of another VM"),
        (&predecessors, "the journal of vm0 is that of another VM"),
        (&newer, "written by a newer version of cowhand (schema 4"),
    ] {
        std::fs::write(&journal, text).unwrap();
        for change in
            [&["set", "vm0", "tag.a=b"][..], &["start", "vm0"], &["snapshot", "rm", "vm0@s"]]
        {
            lab.run(change).fails(8, &[words, "journal.json"]);
        }
        let looked = lab.run(&["doctor", "vm0"]);
        assert!(looked.code == 1 && looked.out.contains(words), "{looked:?}");
        assert_eq!(&std::fs::read_to_string(&journal).unwrap(), text);
        let repaired = lab.run(&["doctor", "--repair"]);
        assert_eq!(journal.exists(), *text == newer, "{repaired:?}");
        let _ = std::fs::remove_file(&journal);
    }
    // The VM's own, of the version before, is carried out.
    std::fs::write(&journal, unsigned(&own)).unwrap();
    lab.ok(&["set", "vm0", "tag.t="]);
    assert!(!journal.exists());
    let mut now = lab.fingerprint();
    let is_trash = |path: &Path| path.starts_with(lab.store().join("trash"));
    now.retain(|path, _| !is_trash(path));
    assert_eq!(now, before.into_iter().filter(|(path, _)| !is_trash(path)).collect());
}

/// What a record says of its VM counts where two directories claim it, and nowhere else: who
/// renames a directory by hand loses nothing.
#[test]
fn a_record_that_was_copied_is_the_copys_damage_and_one_that_was_moved_is_none() {
    let lab = store_of(2);
    let vms = lab.store().join("vms");
    std::fs::rename(vms.join("vm0"), vms.join("moved")).unwrap();
    lab.ok(&["snapshot", "create", "moved", "t"]);
    lab.ok(&["create", "vm0", "--size", "16M"]);
    lab.ok(&["rename", "moved", "web"]);
    lab.ok(&["template", "create", "vm0", "--no-seal", "--as", "base"]);
    lab.ok(&["doctor"]);
    lab.ok(&["start", "--paused", "web"]);
    // A copy of the directory is no VM, and takes nothing from the one that is, nor its guest.
    let before = lab.fingerprint();
    lab.copy_tree(&vms.join("web"), &vms.join("copy"));
    lab.run(&["start", "copy"])
        .fails(8, &["the record of copy is that of web", "vms/copy/vm.json"]);
    lab.run(&["plan", "copy"]).fails(8, &["that of web"]);
    lab.ok(&["plan", "web"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.run(&["doctor", "--repair"]).fails(1, &[]);
    lab.ok(&["stop", "--force", "copy"]);
    lab.ok(&["rm", "--force", "copy"]);
    assert_eq!(lab.state("web"), "paused");
    lab.ok(&["doctor"]);
    let mut now = lab.fingerprint();
    now.retain(|path, _| !path.starts_with(lab.store().join("trash")));
    assert_eq!(
        now,
        before
            .into_iter()
            .filter(|(path, _)| !path.starts_with(lab.store().join("trash")))
            .collect()
    );
}

/// Undoing a change whose record was saved removes the layer that the guest writes to. Here the
/// record is there and reading it fails with EIO, as a bad disk lets it; or it is no file.
#[test]
fn a_change_is_not_undone_because_its_record_cannot_be_read_just_now() {
    let lab = store_of(1);
    let revert = ["snapshot", "revert", "vm0@s"];
    let died = lab.command(&revert).env("COWHAND_FAULT", "save, done:die").output().unwrap();
    assert!(!died.status.success());
    let record = File::Record.path(&lab, "vm0");
    let aside = lab.path().join("vm.json");
    std::fs::rename(&record, &aside).unwrap();
    let layers = lab.layer_files();
    let changes = [&["set", "vm0", "tag.a=b"][..], &["start", "vm0"]];
    std::fs::create_dir(&record).unwrap();
    for change in changes {
        lab.run(change)
            .fails(8, &["how far it got cannot be seen", "vm.json", "cowhand doctor vm0 --repair"]);
    }
    // Its spare copy was written with it, and says that the change has happened.
    let copy = lab.path().join("copy");
    lab.copy_tree(&lab.store(), &copy);
    let mended = lab.run(&["--store", copy.to_str().unwrap(), "doctor", "--repair"]);
    assert!(mended.code == 0 && mended.out.contains("completed"), "{mended:?}");
    lab.ok(&["--store", copy.to_str().unwrap(), "plan", "vm0"]);
    std::fs::remove_dir(&record).unwrap();
    // Nothing is at the address 0 of a process.
    std::os::unix::fs::symlink("/proc/self/mem", &record).unwrap();
    for change in changes {
        lab.run(change).fails(
            1,
            &[
                "how far it got cannot be seen", "nothing was undone", "vm.json",
                "Input/output error",
            ],
        );
    }
    lab.run(&["doctor", "--repair"]).fails(1, &[]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files(), layers);
    std::fs::remove_file(&record).unwrap();
    std::fs::rename(&aside, &record).unwrap();
    lab.run(&["set", "vm0", "tag.a=b"]).ok();
    lab.ok(&["plan", "vm0"]);
    lab.ok(&["doctor"]);
    lab.check_images();
}

/// Whose layers are whose is not known then: they stay where they are, and its entry in the trash
/// says which they are.
#[test]
fn what_is_removed_while_another_record_cannot_be_read_comes_back_whole() {
    let lab = store_of(1);
    lab.ok(&["create", "base", "--size", "16M", "--net", "none"]);
    lab.ok(&["template", "create", "base", "--no-seal", "--as", "t"]);
    lab.ok(&["clone", "t", "tx"]);
    lab.ok(&["snapshot", "create", "tx", "s"]);
    let head = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("tx")[0]));
    let qemu_io = |command: &str| {
        let done = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", command])
            .arg(&head)
            .output()
            .unwrap();
        done.status.success() && !String::from_utf8_lossy(&done.stdout).contains("failed")
    };
    assert!(qemu_io("write -P 7 1M 64k"));
    std::fs::write(File::Record.path(&lab, "vm0"), "{").unwrap();
    let removed = lab.run(&["rm", "tx", "--force"]);
    assert!(
        removed.code == 0 && removed.err.contains("the layers of tx stay in the pool"),
        "{removed:?}"
    );
    lab.ok(&["gc"]);
    assert!(head.exists());
    // Is one of them what vm0 writes to? Nobody knows.
    lab.run(&["undo", "tx"]).fails(8, &["the record of vm0 cannot be read", "cowhand doctor vm0"]);
    let repaired = lab.run(&["doctor", "--repair"]);
    assert!(repaired.code == 0 && !repaired.out.contains("unused"), "{repaired:?}");
    lab.ok(&["gc"]);
    lab.ok(&["undo", "tx"]);
    lab.ok(&["doctor"]);
    assert!(qemu_io("read -P 7 1M 64k"));
    lab.ok(&["rm", "tx"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(!head.exists());
    lab.check_images();
}

/// A removal that was cut short is completed by `gc`. Meanwhile something may have come back out of
/// the trash that depends on what was removed, and a layer that shows it may be missing just then.
#[test]
fn a_removal_is_not_completed_while_a_layer_is_missing_that_may_depend_on_what_it_takes_away() {
    let lab = store_of(1);
    lab.ok(&["create", "base", "--size", "16M", "--net", "none"]);
    lab.ok(&["clone", "base", "c"]);
    lab.ok(&["clone", "c", "y"]);
    lab.ok(&["rm", "y"]);
    let died =
        lab.command(&["rm", "c"]).env("COWHAND_FAULT", "a VM, in the trash:die").output().unwrap();
    assert!(!died.status.success());
    lab.ok(&["undo", "y"]);
    let chain = lab.chain("y");
    let (layers, aside) = (lab.store().join("layers"), lab.path().join("aside"));
    let head = layers.join(format!("{}.qcow2", chain[0]));
    std::fs::rename(&head, &aside).unwrap();
    for _ in 0..2 {
        lab.ok(&["gc", "--older-than", "0"]);
    }
    assert!(chain[1..].iter().all(|layer| layers.join(format!("{layer}.qcow2")).exists()));
    std::fs::rename(&aside, &head).unwrap();
    assert_eq!(lab.chain("y"), chain);
    lab.ok(&["plan", "y"]);
    lab.check_images();
}

/// What is in the trash of a VM may be what its journal takes out of there. A journal that is no
/// journal tells nothing.
#[test]
fn the_trash_of_a_vm_stays_while_its_journal_cannot_be_read() {
    let lab = store_of(1);
    lab.ok(&["snapshot", "revert", "vm0@s"]);
    let died = lab
        .command(&["undo", "vm0"])
        .env("COWHAND_FAULT", "restore-layers, done:die")
        .output()
        .unwrap();
    assert!(!died.status.success());
    let (journal, trash) = (lab.store().join("vms/vm0/journal.json"), lab.store().join("trash"));
    let good = std::fs::read(&journal).unwrap();
    for bad in [&b"garbage"[..], b"", &good[..good.len() / 2]] {
        std::fs::write(&journal, bad).unwrap();
        let before = std::fs::read_dir(&trash).unwrap().count();
        let collected = lab.run(&["gc", "--older-than", "0"]);
        assert!(
            collected.code == 0 && collected.err.contains("the journal of vm0 cannot be read"),
            "{collected:?}"
        );
        assert_eq!(std::fs::read_dir(&trash).unwrap().count(), before);
    }
    std::fs::write(&journal, good).unwrap();
    lab.ok(&["set", "vm0", "tag.a=b"]);
    lab.ok(&["undo", "vm0"]);
    lab.ok(&["doctor"]);
    lab.check_images();
}

/// What is left of a VM that never came to be is in nobody's way, and is no lost journal of another
/// one.
#[test]
fn a_journal_that_cannot_be_read_in_a_directory_without_a_vm_keeps_its_name_until_it_is_set_aside()
{
    let lab = store_of(1);
    let text = File::Journal.text(&lab, "vm0");
    let directory = lab.store().join("vms/new");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("journal.json"), &text).unwrap();
    for make in [&["create", "new", "--size", "16M"][..], &["clone", "vm0@s", "new"]] {
        lab.run(make).fails(8, &["new", "not cleared up", "cowhand doctor new"]);
    }
    assert_eq!(std::fs::read(directory.join("journal.json")).unwrap(), text);
    lab.ok(&["doctor", "--repair"]);
    assert!(!directory.exists());
    lab.ok(&["create", "new", "--size", "16M"]);
    lab.ok(&["plan", "vm0"]);
    lab.ok(&["doctor"]);
}

/// A snapshot inside an image that only an entry knows which cannot be read.
#[test]
fn gc_keeps_what_an_entry_of_the_trash_may_need_that_cannot_be_read() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    lab.ok(&["snapshot", "create", "web", "i", "--internal"]);
    lab.ok(&["snapshot", "revert", "web@i"]);
    let entry = File::TrashEntry.path(&lab, "web");
    let good = std::fs::read_to_string(&entry).unwrap();
    let newer = good.replacen("\"schema\":2", "\"schema\":3", 1);
    assert_ne!(newer, good);
    for bad in [&good[..good.len() / 2], &newer] {
        std::fs::write(&entry, bad).unwrap();
        lab.run(&["undo", "web"]).fails(3, &[]);
        let collected = lab.run(&["gc", "--older-than", if *bad == newer { "0" } else { "1d" }]);
        assert_eq!(collected.code, 0, "{collected:?}");
        assert!(*bad != newer || collected.err.contains("newer version"), "{collected:?}");
        assert!(lab.run(&["doctor"]).out.contains("cannot be taken back"));
    }
    std::fs::write(&entry, &good).unwrap();
    lab.ok(&["undo", "web"]);
    lab.check_images();
}

type Harm = (&'static str, fn(&mut Vec<u8>));

/// What may have happened to the file of a sealed layer.
const HARMS: [Harm; 7] = [
    ("cut to 1000 bytes", |bytes| bytes.truncate(1000)),
    ("cut by a byte", |bytes| bytes.truncate(bytes.len() - 1)),
    ("a feature that nobody knows", |bytes| bytes[72] = 0x80),
    ("cut in the middle", |bytes| bytes.truncate(bytes.len() / 2)),
    ("longer", |bytes| bytes.extend([0; 512])),
    ("clusters of 2^99 bytes", |bytes| bytes[23] = 99),
    ("a disk of 2^64 - 1 bytes", |bytes| bytes[24..32].fill(0xff)),
];

/// A sealed layer that has lost something: whoever needs it is not started, cloned or merged, the
/// layer and its VM are named, and others go on. Then the file is put back, and everything goes on.
#[test]
fn a_sealed_layer_that_is_not_what_it_was_starts_merges_and_clones_nothing() {
    let lab = Lab::new();
    if !has_attributes(
        &lab,
        "a_sealed_layer_that_is_not_what_it_was_starts_merges_and_clones_nothing",
    ) {
        return;
    }
    for vm in ["web", "other"] {
        lab.ok(&["create", vm, "--size", "64M", "--memory", "64M", "--net", "none"]);
        for (at, snapshot) in ["a", "b", "c"].into_iter().enumerate() {
            let head = lab.store().join("layers").join(format!("{}.qcow2", lab.chain(vm)[0]));
            let command = format!("write -P {} {}M 1M", at + 1, at * 8);
            let done = std::process::Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", &command])
                .arg(head)
                .output();
            assert!(done.unwrap().status.success());
            lab.ok(&["snapshot", "create", vm, snapshot]);
        }
    }
    let layers = lab.store().join("layers");
    // The layer of snapshot b: something is above it, and something below.
    let chain = lab.chain("web");
    let file = layers.join(format!("{}.qcow2", chain[2]));
    // With its time, which is noted, too, and with what is noted.
    let kept = lab.path().join("kept");
    let copy = |from: &Path, to: &Path| {
        let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    copy(&file, &kept);
    let refused = |what: &str, named: &[&str]| {
        let is_named = |text: &str| named.iter().any(|layer| text.contains(layer));
        let lost = |args: &[&str]| {
            let done = lab.run(args);
            assert!(done.code == 8 && is_named(&done.err), "{what}: {args:?}: {done:?}");
        };
        lost(&["start", "web"]);
        lost(&["clone", "web", "copy"]);
        lost(&["clone", "web@b", "copy", "--full"]);
        lost(&["image", "export", "web@c", lab.path().join("x.raw").to_str().unwrap()]);
        // In a copy, because the name may go; no layer does. (That of c is not concerned: it and
        // the one above it would be merged.)
        let other = lab.path().join("copy");
        let _ = std::fs::remove_dir_all(&other);
        lab.copy_tree(&lab.store(), &other);
        for snapshot in ["a", "b"] {
            let done = lab.run(&[
                "--store",
                other.to_str().unwrap(),
                "snapshot",
                "rm",
                &format!("web@{snapshot}"),
            ]);
            assert!(
                done.code == 8 || (done.code == 0 && done.out.contains("is kept")),
                "{what}: {snapshot}: {done:?}"
            );
        }
        assert_eq!(files_in(&other.join("layers")), lab.layer_files(), "{what}");
        let looked = lab.run(&["doctor"]);
        assert!(
            looked.code != 0 && is_named(&looked.out) && looked.out.contains("web"),
            "{what}: {looked:?}"
        );
        let repaired = lab.run(&["doctor", "--repair"]);
        assert!(is_named(&repaired.out), "{what}: {repaired:?}");
        lab.ok(&["ls"]);
        lab.ok(&["gc", "--dry-run"]);
        lab.ok(&["plan", "other"]);
        lab.ok(&["clone", "other", "copy"]);
        lab.ok(&["rm", "copy"]);
    };
    for (what, harm) in HARMS.into_iter().take(tier::first_or(3, HARMS.len())) {
        let mut bytes = std::fs::read(&file).unwrap();
        harm(&mut bytes);
        std::fs::write(&file, bytes).unwrap();
        refused(what, &[&chain[2]]);
        copy(&kept, &file);
    }
    // The files of two layers, exchanged.
    let above = layers.join(format!("{}.qcow2", chain[1]));
    let beside = lab.path().join("beside");
    std::fs::rename(&file, &beside).unwrap();
    std::fs::rename(&above, &file).unwrap();
    std::fs::rename(&beside, &above).unwrap();
    refused("exchanged", &[&chain[1], &chain[2]]);
    std::fs::rename(&above, &beside).unwrap();
    std::fs::rename(&file, &above).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    // Nothing was lost meanwhile, and whole again it can be used as before.
    let found = lab.run(&["doctor"]);
    assert!(!found.out.contains("damaged"), "{found:?}");
    lab.ok(&["start", "--paused", "web"]);
    lab.ok(&["stop", "--force", "web"]);
    for snapshot in lab.json(&["snapshot", "ls", "web"]).as_array().unwrap() {
        lab.ok(&["snapshot", "rm", &format!("web@{}", snapshot["name"].as_str().unwrap())]);
    }
    lab.ok(&["gc"]);
    lab.check_images();
}

/// Can what a layer was be noted beside the store? Otherwise says that the test is skipped.
pub fn has_attributes(lab: &Lab, test: &str) -> bool {
    let set =
        rustix::fs::setxattr(lab.path(), "user.cowhand", b"", rustix::fs::XattrFlags::empty());
    if set.is_err() {
        skip(test, "the file system has no extended attributes");
    }
    set.is_ok()
}

/// A layer that was written to and is as long as before is told, and does not stop anybody: its
/// owner may have repaired it.
#[test]
fn a_sealed_layer_that_was_written_to_is_told() {
    let lab = Lab::new();
    if !has_attributes(&lab, "a_sealed_layer_that_was_written_to_is_told") {
        return;
    }
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    let layer = &lab.chain("web")[1];
    let file = std::fs::File::options()
        .write(true)
        .open(lab.store().join("layers").join(format!("{layer}.qcow2")));
    let file = file.unwrap();
    let length = file.metadata().unwrap().len();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0], length - 1).unwrap();
    drop(file);
    let found = lab.run(&["doctor", "web"]);
    assert!(found.out.contains(layer) && found.out.contains("was written to"), "{found:?}");
    lab.ok(&["start", "--paused", "web"]);
}

/// A template that was not made leaves nothing noted of a layer that is written to again.
#[test]
fn a_change_that_was_undone_leaves_no_note_of_a_layer_that_is_written_to() {
    let lab = Lab::new();
    for (vm, change) in
        [("web", "disk resize web vda 80M"), ("other", "snapshot create other inside --internal")]
    {
        lab.ok(&["create", vm, "--size", "64M", "--memory", "64M", "--net", "none"]);
        let mut killed = lab.command(&["template", "create", vm, "--no-seal"]);
        assert!(
            !killed.env("COWHAND_FAULT", "set-mode, done:die").output().unwrap().status.success()
        );
        lab.ok(&change.split(' ').collect::<Vec<_>>());
        lab.ok(&["start", "--paused", vm]);
        lab.ok(&["stop", "--force", vm]);
        assert!(!lab.run(&["doctor", vm]).out.contains("damaged"));
    }
}

/// A file that can be opened, and not read (`EIO`): that of a process's memory, bound over it.
struct Unreadable<'a>(&'a Path);

impl<'a> Unreadable<'a> {
    fn new(path: &'a Path) -> Option<Self> {
        let memory = format!("/proc/{}/mem", std::process::id());
        let bound = Command::new("mount").arg("--bind").arg(memory).arg(path).output().unwrap();
        bound.status.success().then_some(Self(path))
    }
}

impl Drop for Unreadable<'_> {
    fn drop(&mut self) {
        // Not while it is open; whoever still has it open is about to end. A panic here would hide
        // the one before.
        for _ in 0..3000 {
            if Command::new("umount")
                .arg(self.0)
                .output()
                .is_ok_and(|output| output.status.success())
            {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// What was written in a copy of the store, and put into the original by a restore that went wrong:
/// of the same VM, by name and by UUID.
#[test]
fn what_another_store_has_written_is_not_taken_for_this_ones() {
    let lab = store_of(2);
    let copy = lab.path().join("copy");
    lab.copy_tree(&lab.store(), &copy);
    if lab.store().metadata().unwrap().created().is_err() {
        return skip(
            "what_another_store_has_written_is_not_taken_for_this_ones",
            "no time of birth is kept here",
        );
    }
    let said = lab.run(&["--store", copy.to_str().unwrap(), "snapshot", "create", "vm0", "theirs"]);
    assert!(said.code == 0 && said.err.contains("copied"), "{said:?}");
    let in_copy = |args: &[&str]| lab.run(&[&["--store", copy.to_str().unwrap()], args].concat());
    assert!(!in_copy(&["snapshot", "revert", "vm0@s"]).ok().contains("copied"));
    let theirs = |path: &Path| copy.join(path.strip_prefix(lab.store()).unwrap());
    let layers = lab.layer_files();
    // The record: the spare copy comes back.
    let record = File::Record.path(&lab, "vm0");
    let own = std::fs::read(&record).unwrap();
    std::fs::copy(theirs(&record), &record).unwrap();
    for args in [
        &["start", "vm0"][..],
        &["set", "vm0", "tag.a=b"],
        &["snapshot", "rm", "vm0@s"],
        &["clone", "vm0", "c"],
    ] {
        lab.run(args).fails(
            8,
            &["the record of vm0 is that of another store", "vm.json", "cowhand doctor vm0"],
        );
    }
    lab.ok(&["start", "--paused", "vm1"]);
    lab.ok(&["stop", "--force", "vm1"]);
    let looked = lab.run(&["doctor"]);
    assert!(looked.code == 1 && looked.out.contains("that of another store"), "{looked:?}");
    lab.ok(&["doctor", "vm0", "--repair"]);
    assert_eq!(std::fs::read(&record).unwrap(), own);
    // The journal.
    let journal = File::Journal.path(&lab, "vm0");
    let change = ["--store", copy.to_str().unwrap(), "snapshot", "create", "vm0", "t"];
    let died = lab
        .command(&change)
        .env("COWHAND_FAULT", "journal.json, in its place:die")
        .output()
        .unwrap();
    assert!(!died.status.success());
    std::fs::copy(theirs(&journal), &journal).unwrap();
    lab.run(&["set", "vm0", "tag.a=b"])
        .fails(8, &["the journal of vm0 is that of another store", "journal.json"]);
    lab.ok(&["doctor", "vm0", "--repair"]);
    assert!(!journal.exists());
    // An entry of the trash.
    let entry = File::TrashEntry.path(&lab, "vm0");
    let good = std::fs::read(&entry).unwrap();
    std::fs::copy(File::TrashEntry.path_in(&copy, "vm0"), &entry).unwrap();
    let looked = lab.run(&["doctor"]);
    assert!(looked.out.contains("written in another store"), "{looked:?}");
    lab.run(&["undo", "vm0"]).fails(3, &["revert-vm0", "written in another store"]);
    std::fs::write(&entry, good).unwrap();
    assert_eq!(lab.layer_files(), layers);
    // Who means it: the VM is whole here.
    lab.ok(&["undo", "vm0"]);
    let text = String::from_utf8(std::fs::read(&record).unwrap()).unwrap();
    let id = serde_json::from_str::<serde_json::Value>(&text).unwrap()["store"]
        .as_str()
        .unwrap()
        .to_owned();
    let foreign = text.replace(&id, &uuid::Uuid::new_v4().to_string());
    for file in [File::Record, File::Spare] {
        std::fs::write(file.path(&lab, "vm0"), &foreign).unwrap();
    }
    lab.run(&["plan", "vm0"]).fails(8, &["that of another store"]);
    lab.ok(&["doctor", "vm0", "--repair"]);
    lab.ok(&["plan", "vm0"]);
    assert_eq!(std::fs::read_to_string(&record).unwrap(), text);
    // A store that has lost what says which one it is takes what lies in it for its own, whoever
    // comes first.
    for first in [&["doctor", "--repair"][..], &["set", "vm0", "tag.a=b"]] {
        std::fs::remove_file(lab.store().join("store.json")).unwrap();
        lab.ok(first);
        lab.ok(&["snapshot", "revert", "vm0@s"]);
        lab.ok(&["undo", "vm0"]);
    }
    lab.ok(&["start", "vm1", "--paused"]);
    lab.ok(&["stop", "--force", "vm1"]);
    lab.ok(&["doctor"]);
}

/// The tables that lead to what the guest wrote lie behind it: where the file is cut off before
/// them, QEMU reads zeros, and says nothing.
#[test]
fn an_active_layer_that_was_cut_off_before_a_table_starts_nothing() {
    let lab = store_of(2);
    let file = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("vm0")[0]));
    let done = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 1M 64k"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    lab.ok(&["start", "--paused", "vm0"]);
    lab.ok(&["stop", "--force", "vm0"]);
    let whole = std::fs::read(&file).unwrap();
    let number = |at: usize| {
        usize::try_from(u64::from_be_bytes(whole[at..at + 8].try_into().unwrap())).unwrap()
    };
    let table = number(number(40)) & !(1 << 63);
    assert!(table > 0 && whole.len() >= table + (64 << 10), "{table} of {}", whole.len());
    let cut = std::fs::File::options().write(true).open(&file).unwrap();
    cut.set_len(u64::try_from(table).unwrap() + 4096).unwrap();
    let words = [file.to_str().unwrap(), "L2 tables", "cut short"];
    for args in [
        &["start", "vm0"][..],
        &["snapshot", "create", "vm0", "t"],
        &["clone", "vm0", "c"],
        &["plan", "vm0"],
    ] {
        lab.run(args).fails(8, &words);
    }
    for args in [
        &["clone", "vm1@s", "copy"][..],
        &["start", "copy", "--paused"],
        &["stop", "--force", "copy"],
        &["rm", "copy"],
        &["gc", "--older-than", "0"],
    ] {
        lab.ok(args);
    }
    let looked = lab.run(&["doctor"]);
    assert!(
        looked.code == 1 && looked.out.contains("vm0") && looked.out.contains("cut short"),
        "{looked:?}"
    );
    std::fs::write(&file, &whole).unwrap();
    lab.ok(&["start", "--paused", "vm0"]);
    lab.ok(&["stop", "--force", "vm0"]);
    lab.ok(&["doctor"]);
    lab.check_images();
}

#[test]
fn a_layer_that_cannot_be_read_stops_its_own_vm_and_no_other() {
    let lab = store_of(2);
    let chain = lab.json(&["disk", "chain", "vm0"]);
    let files: Vec<PathBuf> = chain[0]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["file"].as_str().unwrap().into())
        .collect();
    assert_eq!(files.len(), 2);
    for file in &files {
        let Some(unreadable) = Unreadable::new(file) else {
            return skip(
                "a_layer_that_cannot_be_read_stops_its_own_vm_and_no_other",
                "nothing can be mounted",
            );
        };
        let before = lab.layer_files();
        for args in
            [&["start", "vm0"][..], &["snapshot", "create", "vm0", "t"], &["clone", "vm0@s", "c"]]
        {
            // A clone of the snapshot does not need the head.
            if args[0] == "clone" && file == &files[0] {
                continue;
            }
            lab.run(args).fails(1, &[file.to_str().unwrap(), "Input/output error"]);
        }
        for args in [
            &["ls", "-a"][..],
            &["show", "vm1"],
            &["clone", "vm1@s", "copy"],
            &["start", "copy", "--paused"],
            &["snapshot", "create", "vm1", "t"],
            &["snapshot", "revert", "vm1@s"],
            &["undo", "vm1"],
            &["snapshot", "rm", "vm1@t"],
            &["stop", "--force", "copy"],
            &["rm", "copy"],
            &["undo", "copy"],
            &["rm", "copy"],
            &["gc", "--dry-run"],
            &["gc", "--older-than", "0"],
        ] {
            lab.ok(args);
        }
        let id = file.file_stem().unwrap().to_str().unwrap();
        for args in [&["doctor"][..], &["doctor", "--repair"]] {
            let doctor = lab.run(args);
            let said = format!("{}{}", doctor.out, doctor.err);
            assert!(
                doctor.code == 1 && said.contains(id) && said.contains("vm0"),
                "{args:?}: {doctor:?}"
            );
            assert!(
                said.lines().all(|line| !line.contains("vm1") || line.starts_with("ok")),
                "{said}"
            );
        }
        for layer in before {
            assert!(lab.layer_files().contains(&layer), "{layer} is gone");
        }
        drop(unreadable);
    }
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["start", "vm0", "--paused"]);
    lab.ok(&["stop", "--force", "vm0"]);
    assert!(lab.run(&["doctor"]).code == 0);
    lab.check_images();
}
