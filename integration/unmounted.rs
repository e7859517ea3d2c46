//! Directories of the store on disks of their own that are not mounted: an empty directory in their
//! place is not the store's.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::exchanged::has_mark;
use crate::lab::{Lab, files_in, skip};
use crate::moved::{elsewhere, has_memory, store, take_memory};

/// Nothing is mounted on `directory` while `test` runs: an empty directory is in its place.
fn empty_in_place_of(lab: &Lab, directory: &str, test: impl FnOnce()) {
    let path = lab.store().join(directory);
    let mounted = elsewhere(lab).join(directory);
    std::fs::rename(&path, &mounted).unwrap();
    std::fs::create_dir(&path).unwrap();
    test();
    // Nothing was put into it.
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&mounted, &path).unwrap();
}

/// The mark that the attribute of a directory of the store has.
fn mark_of(directory: &Path) -> Option<String> {
    let mut bytes = [0_u8; 128];
    let length = rustix::fs::getxattr(directory, "user.cowhand.mark", &mut bytes[..]).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

fn store_json(store: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(store.join("store.json")).unwrap()).unwrap()
}

/// The mark of a store, if both its directories have it.
fn mark_of_store(store: &Path) -> Option<String> {
    let noted = store_json(store)["mark"].as_str()?.to_owned();
    let has_it = |directory| mark_of(&store.join(directory)).as_ref() == Some(&noted);
    ["vms", "layers"].into_iter().all(has_it).then_some(noted)
}

/// [`store`], where the file system has marks.
fn marked_store(test: &str) -> Option<Lab> {
    let lab = store();
    let probe = elsewhere(&lab);
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(&probe, "user.cowhand.mark", b"", flags).is_err() {
        skip(test, "the file system of the store has no extended attributes of users");
        return None;
    }
    assert!(mark_of_store(&lab.store()).is_some());
    Some(lab)
}

#[test]
fn an_empty_place_of_a_disk_that_is_not_mounted_is_no_empty_store() {
    let test = "an_empty_place_of_a_disk_that_is_not_mounted_is_no_empty_store";
    let Some(lab) = marked_store(test) else { return };
    take_memory(&lab);
    lab.ok(&["rm", "c"]);
    let before = lab.fingerprint();
    for directory in ["vms", "layers"] {
        empty_in_place_of(&lab, directory, || {
            let path = lab.store().join(directory);
            // What a file system has in it from the start does not count.
            std::fs::create_dir(path.join("lost+found")).unwrap();
            let words = [
                &format!("{directory} is not the directory of the store"),
                "not mounted",
                &format!("touch {}", path.join(".cowhand").display()),
            ];
            let create = ["create", "new", "--size", "16M", "--net", "none"];
            for args in [
                &["gc", "--older-than", "0"][..],
                &create,
                &["undo", "c"],
                &["rm", "a"],
                &["start", "a", "--paused"],
                &["snapshot", "create", "a", "s3"],
                &["clone", "a@s2", "d"],
                &["rename", "a", "d"],
                &["doctor", "a"],
            ] {
                lab.run(args).fails(8, &words);
            }
            let examined = lab.run(&["doctor", "--repair"]);
            assert_eq!(examined.code, 1, "{examined:?}");
            assert!(words.iter().all(|word| examined.out.contains(*word)), "{examined:?}");
            if directory == "vms" {
                lab.run(&["ls", "-a"]).fails(8, &words);
                lab.run(&["show", "a"]).fails(8, &words);
            }
            std::fs::remove_dir(path.join("lost+found")).unwrap();
        });
    }
    assert_eq!(lab.fingerprint(), before);
    lab.ok(&["undo", "c"]);
    lab.ok(&["disk", "check", "c"]);
    has_memory(&lab);
    lab.ok(&["doctor"]);
}

#[test]
fn a_directory_that_is_empty_for_good_is_the_stores_when_its_user_says_so() {
    let test = "a_directory_that_is_empty_for_good_is_the_stores_when_its_user_says_so";
    let Some(lab) = marked_store(test) else { return };
    let before = mark_of_store(&lab.store());
    std::fs::remove_dir_all(lab.store().join("vms")).unwrap();
    std::fs::create_dir(lab.store().join("vms")).unwrap();
    private(&lab.store().join("vms"));
    lab.run(&["gc"]).fails(8, &["touch"]);
    let file = lab.store().join("vms/.cowhand");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files(), Vec::<String>::new());
    lab.ok(&["create", "a", "--size", "16M", "--net", "none"]);
    let marked = mark_of_store(&lab.store());
    assert!(marked.is_some() && marked != before, "it is a new one");
    let examined = lab.ok(&["doctor"]);
    assert!(!examined.contains(".cowhand"), "{examined}");
    // It has served its purpose, and would make a place that is not mounted one that is not empty.
    assert!(!file.exists());
    lab.ok(&["rm", "a"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["ls"]);
}

fn private(directory: &Path) {
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).unwrap();
}

/// What a copy without extended attributes leaves.
fn take_marks_away(store: &Path) {
    for directory in ["vms", "layers"] {
        let _ = rustix::fs::removexattr(store.join(directory), "user.cowhand.mark");
    }
}

/// Makes the store one of an earlier version, which knew no marks.
fn without_marks(lab: &Lab) {
    let mut json = store_json(&lab.store());
    assert!(json.as_object_mut().unwrap().remove("mark").is_some());
    std::fs::write(lab.store().join("store.json"), json.to_string()).unwrap();
    take_marks_away(&lab.store());
}

#[test]
fn a_store_of_an_earlier_version_gets_its_mark_by_a_change() {
    let test = "a_store_of_an_earlier_version_gets_its_mark_by_a_change";
    let Some(lab) = marked_store(test) else { return };
    without_marks(&lab);
    for args in [&["ls", "-a"][..], &["show", "a"], &["undo", "--list"]] {
        lab.ok(args);
    }
    assert_eq!(store_json(&lab.store()).get("mark"), None, "who looks changes nothing");
    // What looks like a disk that is not mounted is not marked.
    empty_in_place_of(&lab, "vms", || {
        lab.ok(&["gc", "--dry-run"]);
        assert_eq!(store_json(&lab.store()).get("mark"), None);
    });
    // Killed between the marks and the record.
    let set = ["set", "a", "tag.a=b"];
    let died = lab.command(&set).env("COWHAND_FAULT", "store.json, written:die").output().unwrap();
    assert!(!died.status.success(), "{died:?}");
    assert!(mark_of(&lab.store().join("vms")).is_some());
    assert_eq!(mark_of_store(&lab.store()), None);
    lab.ok(&["ls"]);
    lab.ok(&set);
    assert!(mark_of_store(&lab.store()).is_some());
    assert!(has_mark(&lab, "a", 5));
    lab.ok(&["doctor"]);
}

/// The VMs are moved to another disk, which has no marks yet.
#[test]
fn the_directory_below_a_new_disk_is_not_taken_for_the_stores() {
    let test = "the_directory_below_a_new_disk_is_not_taken_for_the_stores";
    let Some(lab) = marked_store(test) else { return };
    let (vms, before) = (lab.store().join("vms"), mark_of_store(&lab.store()));
    let (below, disk) = (elsewhere(&lab).join("below"), elsewhere(&lab).join("disk"));
    std::fs::create_dir(&disk).unwrap();
    private(&disk);
    for name in files_in(&vms) {
        std::fs::rename(vms.join(&name), disk.join(&name)).unwrap();
    }
    std::fs::rename(&vms, &below).unwrap();
    std::fs::rename(&disk, &vms).unwrap();
    lab.ok(&["ls"]);
    assert_eq!(mark_of(&vms), None, "who looks changes nothing");
    // Killed while the mark was renewed: both count.
    let set = ["set", "a", "tag.a=b"];
    let died = lab.command(&set).env("COWHAND_FAULT", "store.json, written:die").output().unwrap();
    assert!(!died.status.success(), "{died:?}");
    assert!(mark_of(&vms).is_some_and(|mark| mark.starts_with(before.as_ref().unwrap())));
    lab.ok(&set);
    lab.ok(&["set", "a", "tag.a=c"]);
    // Not mounted.
    std::fs::rename(&vms, &disk).unwrap();
    std::fs::rename(&below, &vms).unwrap();
    assert!(mark_of(&disk) != before && mark_of(&vms) == before);
    for args in [&["gc", "--older-than", "0"][..], &["ls", "-a"], &["rm", "a"]] {
        lab.run(args).fails(8, &["is not the directory of the store"]);
    }
    std::fs::rename(&vms, &below).unwrap();
    std::fs::rename(&disk, &vms).unwrap();
    assert!(has_mark(&lab, "a", 5));
    lab.ok(&["doctor"]);
}

#[test]
fn a_store_whose_making_is_cut_short_before_its_record_is_made_later() {
    let lab = Lab::new();
    let create = ["create", "a", "--size", "16M", "--net", "none"];
    let died =
        lab.command(&create).env("COWHAND_FAULT", "store.json, written:die").output().unwrap();
    assert!(!died.status.success(), "{died:?}");
    assert!(!lab.store().join("store.json").exists());
    lab.ok(&create);
    lab.ok(&["doctor"]);
}

#[test]
fn a_copy_of_a_store_is_marked_and_so_is_one_that_has_lost_its_record() {
    let test = "a_copy_of_a_store_is_marked_and_so_is_one_that_has_lost_its_record";
    let Some(lab) = marked_store(test) else { return };
    let before = mark_of_store(&lab.store());
    let copy = lab.path().join("copy");
    lab.copy_tree(&lab.store(), &copy);
    for _ in 0..2 {
        lab.ok(&["--store", copy.to_str().unwrap(), "set", "a", "tag.a=b"]);
        assert!(mark_of_store(&copy).is_some());
    }
    assert_eq!(mark_of_store(&lab.store()), before);
    std::fs::remove_file(lab.store().join("store.json")).unwrap();
    lab.ok(&["doctor", "--repair"]);
    assert_eq!(mark_of_store(&lab.store()), before);
}

#[test]
fn a_copy_without_attributes_of_a_store_without_vms_is_a_store() {
    let test = "a_copy_without_attributes_of_a_store_without_vms_is_a_store";
    let Some(lab) = marked_store(test) else { return };
    lab.ok(&["rm", "c"]);
    lab.ok(&["rm", "a"]);
    lab.ok(&["gc", "--older-than", "0"]);
    let before = mark_of_store(&lab.store());
    assert!(before.is_some());
    if std::fs::metadata(lab.store()).unwrap().created().is_err() {
        return skip(test, "the file system does not tell when a directory was made");
    }
    let copy = lab.path().join("copy");
    lab.copy_tree(&lab.store(), &copy);
    take_marks_away(&copy);
    let store = ["--store", copy.to_str().unwrap()];
    lab.ok(&[&store[..], &["ls"]].concat());
    lab.ok(&[&store[..], &["create", "b", "--size", "16M", "--net", "none"]].concat());
    let marked = mark_of_store(&copy);
    assert!(marked.is_some() && marked != before);
}

#[test]
fn a_directory_of_the_store_that_is_missing_is_named() {
    for directory in ["vms", "layers"] {
        let lab = store();
        let path = lab.store().join(directory);
        std::fs::rename(&path, elsewhere(&lab).join(directory)).unwrap();
        let create = ["create", "b", "--size", "16M", "--net", "none"];
        for args in [&create[..], &["rm", "b"], &["start", "a", "--paused"]] {
            // Where the VMs can be seen, there is none of this name.
            if directory == "layers" && args[0] == "rm" {
                continue;
            }
            lab.run(args).fails(
                8,
                &[
                    &format!("{} of the store is not there", path.display()),
                    "mounted",
                    &format!("mkdir -m 700 {}", path.display()),
                ],
            );
        }
        let examined = lab.run(&["doctor"]);
        assert!(examined.code == 1 && examined.out.contains("is not there"), "{examined:?}");
        std::fs::rename(elsewhere(&lab).join(directory), &path).unwrap();
        lab.ok(&["doctor"]);
    }
}
