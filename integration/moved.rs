//! Layers, VMs and directories of the trash that an administrator has moved to another file system,
//! with a link in their place: whatever can be done with them, nothing of theirs is lost.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::exchanged::{has_mark, head, mark};
use crate::lab::{Lab, files_in};

/// A VM with a snapshot that a clone depends on.
pub fn store() -> Lab {
    let lab = Lab::new();
    lab.ok(&["create", "a", "--size", "16M", "--memory", "64M", "--net", "none"]);
    mark(&lab, "a", 5);
    lab.ok(&["snapshot", "create", "a", "s1"]);
    lab.ok(&["clone", "a@s1", "c"]);
    lab.ok(&["snapshot", "create", "a", "s2"]);
    lab
}

pub fn elsewhere(lab: &Lab) -> PathBuf {
    let elsewhere = lab.path().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    elsewhere
}

/// Moves what lies at `path` away, and leaves a link to it.
fn move_away(lab: &Lab, path: &Path) -> PathBuf {
    let to = elsewhere(lab).join(path.file_name().unwrap());
    std::fs::rename(path, &to).unwrap();
    symlink(&to, path).unwrap();
    to
}

fn move_back(from: &Path, path: &Path) {
    std::fs::remove_file(path).unwrap();
    std::fs::rename(from, path).unwrap();
}

#[test]
fn what_a_layer_that_was_moved_depends_on_stays() {
    for leads_nowhere in [false, true] {
        let lab = store();
        let path = lab.store().join("layers").join(format!("{}.qcow2", head(&lab, "c")));
        let mut moved = move_away(&lab, &path);
        if leads_nowhere {
            let unmounted = moved.with_extension("unmounted");
            std::fs::rename(&moved, &unmounted).unwrap();
            moved = unmounted;
        }
        lab.run(&["disk", "chain", "c"]).fails(8, &["is a link", "was moved to", "move it back"]);
        lab.ok(&["snapshot", "rm", "a@s1"]);
        lab.ok(&["flatten", "a"]);
        lab.ok(&["rm", "a"]);
        lab.run(&["doctor", "--repair"]);
        for _ in 0..2 {
            lab.ok(&["gc", "--older-than", "0"]);
        }
        move_back(&moved, &path);
        assert!(has_mark(&lab, "c", 5), "leads nowhere: {leads_nowhere}");
        lab.ok(&["disk", "check", "c"]);
    }
}

#[test]
fn a_file_in_its_place_that_is_not_there_keeps_nobody_waiting() {
    let lab = store();
    let file = elsewhere(&lab).join("own.qcow2");
    crate::lab::qemu_img(&["create", "-q", "-f", "qcow2", file.to_str().unwrap(), "16M"]);
    lab.ok(&["create", "own", "--disk", &format!("{},use", file.display())]);
    lab.ok(&["disk", "chain", "own"]);
    std::fs::remove_file(&file).unwrap();
    let failed = lab.run(&["disk", "chain", "own"]).fails(8, &[file.to_str().unwrap()]);
    assert!(!failed.err.contains("move it back"), "{failed:?}");
    let layers = lab.layer_files().len();
    lab.ok(&["snapshot", "rm", "a@s2"]);
    assert_eq!(lab.layer_files().len(), layers - 1);
}

#[test]
fn a_vm_whose_directory_was_moved_keeps_its_layers_and_its_memory() {
    let lab = store();
    lab.ok(&["start", "a", "--paused"]);
    lab.ok(&["snapshot", "create", "a", "m", "--memory"]);
    lab.ok(&["stop", "a", "--force"]);
    let path = lab.store().join("vms/a");
    let moved = move_away(&lab, &path);
    let both = || (lab.layer_files(), files_in(&lab.store().join("ram")));
    let before = both();
    assert!(!before.1.is_empty());
    for unmounted in [false, true] {
        let aside = moved.with_extension("unmounted");
        if unmounted {
            std::fs::rename(&moved, &aside).unwrap();
        }
        lab.run(&["doctor", "--repair"]);
        lab.ok(&["gc", "--older-than", "0"]);
        assert_eq!(both(), before, "unmounted: {unmounted}");
        if unmounted {
            std::fs::rename(&aside, &moved).unwrap();
        }
    }
    assert!(has_mark(&lab, "a", 5));
    lab.ok(&["disk", "check", "a"]);
}

#[test]
fn a_removed_vm_whose_trash_was_moved_can_be_had_back() {
    let lab = store();
    lab.ok(&["rm", "c"]);
    let trash = lab.store().join("trash");
    let path =
        trash.join(files_in(&trash).into_iter().find(|name| name.ends_with("rm-c")).unwrap());
    move_away(&lab, &path);
    // Merged, c would not have what it depends on.
    lab.ok(&["snapshot", "rm", "a@s1", "--keep-undo"]);
    lab.ok(&["gc"]);
    lab.ok(&["undo", "c"]);
    assert!(has_mark(&lab, "c", 5));
    lab.ok(&["disk", "check", "c"]);
}

fn head_file(lab: &Lab, vm: &str) -> PathBuf {
    lab.store().join("layers").join(format!("{}.qcow2", head(lab, vm)))
}

fn trash_of(lab: &Lab, end: &str) -> PathBuf {
    let trash = lab.store().join("trash");
    trash.join(files_in(&trash).into_iter().find(|name| name.ends_with(end)).unwrap())
}

/// Nothing is mounted where `moved` lies while `test` runs.
fn unmounted(moved: &Path, test: impl FnOnce()) {
    let aside = moved.with_extension("unmounted");
    std::fs::rename(moved, &aside).unwrap();
    test();
    std::fs::rename(&aside, moved).unwrap();
}

pub fn take_memory(lab: &Lab) {
    lab.ok(&["start", "a", "--paused"]);
    lab.ok(&["snapshot", "create", "a", "m", "--memory"]);
    lab.ok(&["stop", "a", "--force"]);
}

/// Is all of `a` there, its guest's memory, too?
pub fn has_memory(lab: &Lab) {
    assert!(has_mark(lab, "a", 5));
    lab.ok(&["snapshot", "revert", "a@m"]);
    assert_eq!(lab.state("a"), "paused");
    lab.ok(&["stop", "a", "--force"]);
}

#[test]
fn a_store_whose_vms_are_not_mounted_is_not_collected() {
    let lab = store();
    take_memory(&lab);
    let moved = move_away(&lab, &lab.store().join("vms"));
    let before = (lab.layer_files(), files_in(&lab.store().join("ram")));
    unmounted(&moved, || {
        lab.run(&["gc", "--older-than", "0"])
            .fails(8, &["vms of the store is not there", "mounted"]);
        lab.run(&["doctor", "--repair"]);
        assert_eq!((lab.layer_files(), files_in(&lab.store().join("ram"))), before);
    });
    lab.ok(&["gc", "--older-than", "0"]);
    has_memory(&lab);
}

#[test]
fn what_a_directory_of_the_trash_needs_that_is_not_mounted_is_kept() {
    let lab = store();
    lab.ok(&["rm", "c"]);
    let moved = move_away(&lab, &trash_of(&lab, "-rm-c"));
    unmounted(&moved, || {
        lab.ok(&["snapshot", "rm", "a@s1", "--keep-undo"]);
        lab.ok(&["flatten", "a"]);
        lab.ok(&["gc"]);
    });
    lab.ok(&["undo", "c"]);
    assert!(has_mark(&lab, "c", 5));
    lab.ok(&["disk", "check", "c"]);
}

#[test]
fn a_vm_that_was_removed_while_its_base_was_away_can_be_had_back() {
    for leaves_a_link in [false, true] {
        let lab = store();
        let base = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("c")[1]));
        let moved = move_away(&lab, &base);
        if !leaves_a_link {
            std::fs::remove_file(&base).unwrap();
        }
        unmounted(&moved, || {
            let removed = lab.run(&["rm", "c"]);
            assert!(removed.err.contains("stay in the pool"), "{removed:?}");
        });
        let _ = std::fs::remove_file(&base);
        std::fs::rename(&moved, &base).unwrap();
        lab.ok(&["gc"]);
        lab.ok(&["undo", "c"]);
        assert!(has_mark(&lab, "c", 5));
        lab.ok(&["disk", "check", "c"]);
    }
}

#[test]
fn a_moved_vm_whose_removal_is_cut_short_keeps_all_it_has() {
    let lab = store();
    take_memory(&lab);
    let moved = move_away(&lab, &lab.store().join("vms/a"));
    lab.ok(&["rm", "c"]);
    let mut removal = lab.command(&["rm", "a"]);
    let died = removal.env("COWHAND_FAULT", "a VM, in the trash:die").output().unwrap();
    assert_eq!(died.status.code(), None, "{died:?}");
    unmounted(&moved, || {
        lab.ok(&["gc"]);
        lab.run(&["doctor", "--repair"]);
    });
    lab.ok(&["gc"]);
    lab.ok(&["undo", "a"]);
    has_memory(&lab);
}

#[test]
fn names_that_links_have_and_links_that_lead_elsewhere_are_refused() {
    let lab = store();
    let vms = lab.store().join("vms");
    symlink("/nowhere", vms.join("taken")).unwrap();
    lab.run(&["rename", "c", "taken"]).fails(4, &["taken"]);
    lab.ok(&["disk", "check", "c"]);
    std::fs::remove_file(vms.join("taken")).unwrap();
    lab.ok(&["rename", "c", "taken"]);
    // From the trash it would lead elsewhere.
    let moved = elsewhere(&lab).join("taken");
    std::fs::rename(vms.join("taken"), &moved).unwrap();
    symlink("../../elsewhere/taken", vms.join("taken")).unwrap();
    lab.run(&["rm", "taken"]).fails(5, &["leads elsewhere", "absolute"]);
    lab.ok(&["disk", "check", "taken"]);
}

#[test]
fn a_vm_that_was_set_aside_under_another_name_keeps_its_layers() {
    let lab = store();
    take_memory(&lab);
    lab.ok(&["clone", "a@s2", "d"]);
    let (vm, aside) = (lab.store().join("vms/a"), lab.store().join("vms/a (old)"));
    std::fs::rename(&vm, &aside).unwrap();
    let before = (lab.layer_files(), files_in(&lab.store().join("ram")));
    let collected = lab.run(&["gc"]);
    assert!(collected.err.contains("a (old) is no VM by its name"), "{collected:?}");
    let examined = lab.run(&["doctor", "--repair"]);
    assert!(examined.out.contains("a (old) is no VM by its name"), "{examined:?}");
    lab.ok(&["flatten", "d"]);
    lab.ok(&["rm", "c"]);
    assert_eq!((lab.layer_files(), files_in(&lab.store().join("ram"))), before);
    std::fs::rename(&aside, &vm).unwrap();
    has_memory(&lab);
}

#[test]
fn the_memory_of_a_vm_outlives_a_copy_of_its_directory() {
    let lab = store();
    take_memory(&lab);
    let (vm, copy) = (lab.store().join("vms/a"), lab.store().join("vms/a.bak"));
    lab.copy_tree(&vm, &copy);
    lab.ok(&["rm", "--force", "a.bak"]);
    lab.ok(&["gc"]);
    lab.ok(&["gc", "--older-than", "0"]);
    has_memory(&lab);
    // Put back by hand, while what the trash says of it is still there.
    lab.ok(&["rm", "c"]);
    lab.ok(&["rm", "a"]);
    let trash = trash_of(&lab, "-rm-a");
    lab.copy_tree(&trash.join("vm"), &vm);
    for kind in ["layers", "ram"] {
        for file in files_in(&trash.join(kind)) {
            std::fs::rename(trash.join(kind).join(&file), lab.store().join(kind).join(&file))
                .unwrap();
        }
    }
    lab.ok(&["gc"]);
    has_memory(&lab);
}

#[test]
fn a_directory_of_the_trash_on_another_disk_stops_nobody() {
    let lab = store();
    take_memory(&lab);
    lab.ok(&["rm", "c"]);
    lab.ok(&["rm", "a"]);
    let disk =
        tempfile::Builder::new().prefix("cw").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&path.metadata().unwrap());
    if device(disk.path()) == device(lab.path()) {
        return crate::lab::skip(
            "a_directory_of_the_trash_on_another_disk_stops_nobody",
            "there is no second file system",
        );
    }
    let path = trash_of(&lab, "-rm-a");
    let moved = disk.path().join("moved");
    lab.copy_tree(&path, &moved);
    std::fs::remove_dir_all(&path).unwrap();
    symlink(&moved, &path).unwrap();
    lab.run(&["undo", "a"]).fails(5, &["another disk", "move it back"]);
    lab.ok(&["gc"]);
    std::fs::remove_file(&path).unwrap();
    lab.copy_tree(&moved, &path);
    lab.ok(&["undo", "a"]);
    has_memory(&lab);
}

#[test]
fn a_removed_vm_that_lacks_the_layer_of_a_snapshot_alone_comes_back() {
    let lab = store();
    lab.ok(&["flatten", "c"]);
    lab.ok(&["snapshot", "create", "c", "s"]);
    let lost = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("c")[1]));
    lab.ok(&["flatten", "c"]);
    std::fs::remove_file(lost).unwrap();
    lab.ok(&["rm", "c"]);
    lab.ok(&["undo", "c"]);
    assert!(has_mark(&lab, "c", 5));
    assert!(head_file(&lab, "c").exists());
}

#[test]
fn a_vm_that_was_removed_without_its_disk_is_not_given_another_ones() {
    let lab = store();
    let path = head_file(&lab, "c");
    let moved = move_away(&lab, &path);
    std::fs::remove_file(&path).unwrap();
    lab.ok(&["rm", "c"]);
    lab.ok(&["snapshot", "rm", "a@s1"]);
    std::fs::rename(&moved, &path).unwrap();
    assert!(lab.ok(&["undo", "--list"]).contains("was not recorded when the VM was removed"));
    lab.run(&["undo", "c"]).fails(5, &["was not recorded when the VM was removed"]);
    // What it wrote is there as long as its record.
    lab.ok(&["gc"]);
    assert!(path.exists());
}

#[test]
fn a_head_that_was_away_during_a_revert_comes_back_by_an_undo() {
    let lab = store();
    mark(&lab, "a", 7);
    let path = head_file(&lab, "a");
    let moved = move_away(&lab, &path);
    std::fs::remove_file(&path).unwrap();
    lab.ok(&["snapshot", "revert", "a@s2"]);
    std::fs::rename(&moved, &path).unwrap();
    lab.ok(&["gc"]);
    lab.ok(&["undo", "a"]);
    assert!(has_mark(&lab, "a", 7));
    lab.ok(&["disk", "check", "a"]);
}

/// Takes the directory of a VM out of the store.
fn take_out(lab: &Lab, vm: &str) {
    std::fs::rename(lab.store().join("vms").join(vm), elsewhere(lab).join(vm)).unwrap();
}

fn bring_in(lab: &Lab, vm: &str) {
    std::fs::rename(elsewhere(lab).join(vm), lab.store().join("vms").join(vm)).unwrap();
}

/// Two VMs `a` and `b`, and `c` and `d` on a snapshot of each, with a snapshot of their own.
fn two_with_clones() -> Lab {
    let lab = Lab::new();
    for (vm, clone) in [("a", "c"), ("b", "d")] {
        lab.ok(&["create", vm, "--size", "16M", "--memory", "64M", "--net", "none"]);
        mark(&lab, vm, 5);
        lab.ok(&["snapshot", "create", vm, "s1"]);
        lab.ok(&["clone", &format!("{vm}@s1"), clone]);
        lab.ok(&["snapshot", "create", clone, "own"]);
        mark(&lab, vm, 7);
        lab.ok(&["snapshot", "create", vm, "s2"]);
    }
    lab
}

/// The files of the two layers that a clone of [`two_with_clones`] has of its own.
fn own_layers(lab: &Lab, clone: &str) -> Vec<String> {
    lab.chain(clone)[..2].iter().map(|id| format!("{id}.qcow2")).collect()
}

fn lie_in(directory: &Path, layers: &[String]) -> bool {
    layers.iter().all(|layer| directory.join(layer).exists())
}

#[test]
fn what_gc_took_from_a_vm_that_was_away_comes_back_unless_what_it_depended_on_has_changed() {
    let lab = two_with_clones();
    let (of_c, of_d) = (own_layers(&lab, "c"), own_layers(&lab, "d"));
    let pool = lab.store().join("layers");
    ["c", "d"].iter().for_each(|vm| take_out(&lab, vm));
    lab.ok(&["gc"]);
    let orphans = trash_of(&lab, "-gc-orphans").join("layers");
    assert!(lie_in(&orphans, &of_c) && lie_in(&orphans, &of_d));
    lab.ok(&["snapshot", "rm", "a@s1"]);
    ["c", "d"].iter().for_each(|vm| bring_in(&lab, vm));
    for _ in 0..2 {
        let repaired = lab.run(&["doctor", "--repair"]).fails(1, &[]);
        assert!(repaired.out.contains("merged or removed since then"), "{repaired:?}");
        assert!(lie_in(&orphans, &of_c) && lie_in(&pool, &of_d), "{repaired:?}");
        assert!(!of_c.iter().any(|layer| pool.join(layer).exists()), "{repaired:?}");
    }
    assert!(has_mark(&lab, "d", 5));
    lab.ok(&["disk", "check", "d"]);
}

#[test]
fn what_gc_took_before_it_noted_what_layers_depend_on_comes_back() {
    let lab = two_with_clones();
    let of_c = own_layers(&lab, "c");
    take_out(&lab, "c");
    lab.ok(&["gc"]);
    let entry = trash_of(&lab, "-gc-orphans").join("entry.json");
    let mut old: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&entry).unwrap()).unwrap();
    let noted = old["below"].as_array_mut().unwrap();
    assert!(!noted.is_empty());
    noted.clear();
    std::fs::write(&entry, old.to_string()).unwrap();
    bring_in(&lab, "c");
    lab.ok(&["doctor", "--repair"]);
    assert!(lie_in(&lab.store().join("layers"), &of_c));
    assert!(has_mark(&lab, "c", 5));
}

#[test]
fn memory_that_gc_took_from_a_vm_that_was_away_comes_back() {
    for has_its_layers in [false, true] {
        let lab = store();
        take_memory(&lab);
        let memory = files_in(&lab.store().join("ram"));
        assert_eq!(memory.len(), 1);
        take_out(&lab, "a");
        lab.ok(&["gc"]);
        let orphans = trash_of(&lab, "-gc-orphans");
        assert_eq!(files_in(&orphans.join("ram")), memory);
        bring_in(&lab, "a");
        if has_its_layers {
            for file in files_in(&orphans.join("layers")) {
                let layer = lab.store().join("layers").join(&file);
                std::fs::rename(orphans.join("layers").join(&file), layer).unwrap();
            }
        }
        let looked = lab.run(&["doctor", "a"]).fails(1, &[]);
        let says = "the memory of a@m is missing; it is in the trash";
        assert!(looked.out.contains(says), "{looked:?}");
        // What a VM lacks is kept, however old it is.
        lab.ok(&["gc", "--older-than", "0"]);
        lab.ok(&["doctor", "a", "--repair"]);
        assert_eq!(files_in(&lab.store().join("ram")), memory);
        has_memory(&lab);
    }
}

#[test]
fn what_a_removed_vm_left_in_the_pool_stays_while_its_record_cannot_be_read() {
    let lab = store();
    let base = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("c")[1]));
    let away = elsewhere(&lab).join("base");
    std::fs::rename(&base, &away).unwrap();
    let removed = lab.run(&["rm", "c"]);
    assert!(removed.err.contains("stay in the pool"), "{removed:?}");
    std::fs::rename(&away, &base).unwrap();
    let record = trash_of(&lab, "-rm-c").join("vm/vm.json");
    let aside = record.with_extension("aside");
    std::fs::rename(&record, &aside).unwrap();
    std::fs::create_dir(&record).unwrap();
    let before = lab.layer_files();
    let collected = lab.run(&["gc"]);
    assert!(collected.err.contains("-rm-c in the trash"), "{collected:?}");
    assert_eq!(lab.layer_files(), before);
    std::fs::remove_dir(&record).unwrap();
    std::fs::rename(&aside, &record).unwrap();
    lab.ok(&["undo", "c"]);
    assert!(has_mark(&lab, "c", 5));
    lab.ok(&["disk", "check", "c"]);
}
