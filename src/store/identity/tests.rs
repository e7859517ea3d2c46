//! Tests of which store this is.

use super::*;
use crate::store::trash::{Entry, Kind};
use crate::store::{make_directory, mark};

fn store(root: &Path) -> Store {
    let store = Store::at(root).expect("a store");
    for directory in store.may_be_mounted() {
        make_directory(&directory).expect("a directory");
    }
    store
}

/// A copy, made at another time than `from` by the clock of the file system. `None`: that keeps
/// no such time.
fn copy(from: &Path, to: &Path) -> Option<Store> {
    let first = born(from)?;
    std::fs::create_dir(to).expect("a directory");
    while born(to) == Some(first) {
        std::fs::remove_dir(to).expect("it is empty");
        std::fs::create_dir(to).expect("a directory");
    }
    std::fs::copy(from.join("store.json"), to.join("store.json")).expect("a file");
    Some(store(to))
}

#[test]
fn a_copy_is_another_store_and_accepts_what_was_written_before() {
    let room = tempfile::tempdir().expect("a directory");
    let original = store(&room.path().join("first"));
    original.prepare().expect("a store");
    let id = original.id();
    assert!(id.is_some() && !original.settle_identity().expect("it is a store"));
    let Some(copied) = copy(&room.path().join("first"), &room.path().join("second")) else {
        return;
    };
    assert_eq!(copied.id(), id, "who only reads finds what is written there");
    assert!(copied.settle_identity().expect("it is a store"));
    assert!(!copied.settle_identity().expect("it is a store"), "once");
    assert!(copied.id() != id && copied.is_own(id) && copied.is_own(None));
    // What is written in the copy from now on is not the original's.
    assert!(original.is_own(id) && !original.is_own(copied.id()));
    // What is moved within its file system stays what it is.
    let third = room.path().join("third");
    std::fs::rename(room.path().join("second"), &third).expect("it is moved");
    let moved = store(&third);
    assert!(!moved.settle_identity().expect("it is a store"));
    assert_eq!(moved.id(), copied.id());
}

#[test]
fn a_command_that_has_read_the_old_identity_accepts_what_was_written_under_the_new_one() {
    let room = tempfile::tempdir().expect("a directory");
    store(&room.path().join("first")).prepare().expect("a store");
    let Some(early) = copy(&room.path().join("first"), &room.path().join("second")) else {
        return;
    };
    let before = early.id();
    let late = store(&room.path().join("second"));
    assert!(late.settle_identity().expect("it is a store"));
    assert!(late.id() != before && early.is_own(late.id()));
}

#[test]
fn what_lies_in_a_store_that_has_lost_its_identity_is_its_own() {
    let room = tempfile::tempdir().expect("a directory");
    let first = store(room.path());
    first.prepare().expect("a store");
    let entry = Entry::new(Kind::Rm, &"vm".parse().expect("a name"), "rm vm");
    first.open_trash("20260101T000000000Z-rm-vm", &entry).expect("trash");
    let id = first.id();
    for left in [None, Some("{\"schema\":1}")] {
        std::fs::remove_file(first.layout.store_json()).expect("it is there");
        if let Some(text) = left {
            std::fs::write(first.layout.store_json(), text).expect("a file");
        }
        let again = store(room.path());
        assert!(!again.prepare().expect("a store"));
        assert!(again.id() != id && again.is_own(id), "{left:?}");
        assert!(!again.is_own(Some(Uuid::new_v4())));
    }
}

/// Both find none, and write one.
#[test]
fn the_first_of_two_who_make_a_store_gives_it_its_identity() {
    let room = tempfile::tempdir().expect("a directory");
    let (one, other) = (store(room.path()), store(room.path()));
    one.prepare().expect("a store");
    other.write_identity().expect("it is there");
    other.settle_identity().expect("it is a store");
    assert_eq!(other.id(), one.id());
}

#[test]
fn a_store_of_an_earlier_version_gets_an_identity_and_is_no_copy() {
    let room = tempfile::tempdir().expect("a directory");
    let store = store(room.path());
    std::fs::write(store.layout.store_json(), "{\"schema\":1}\n").expect("a file");
    assert!(store.is_own(Some(Uuid::new_v4())));
    assert!(!store.settle_identity().expect("it is a store"));
    assert!(
        store.id().is_some() && store.is_own(store.id()) && !store.is_own(Some(Uuid::new_v4()))
    );
}

#[test]
fn one_of_a_newer_version_is_left_alone() {
    let room = tempfile::tempdir().expect("a directory");
    let store = store(room.path());
    std::fs::write(store.layout.store_json(), "{\"schema\":2,\"id\":7}\n").expect("a file");
    let error = store.settle_identity().expect_err("it is newer");
    assert!(error.is_newer());
    std::fs::write(store.layout.store_json(), "{\"schema\":1,\"id\":7}\n").expect("a file");
    let error = store.settle_identity().expect_err("it is damaged");
    assert!(!error.is_newer() && error.full_message().contains("store.json"), "{error:?}");
}

/// `None`: its file system has no marks.
fn marked(root: &Path) -> Option<Store> {
    let first = store(root);
    first.prepare().expect("a store");
    first.mark().is_some().then_some(first)
}

#[test]
fn a_mark_stays_while_it_is_on_both_directories_and_is_renewed_where_it_is_missing() {
    let room = tempfile::tempdir().expect("a directory");
    let Some(first) = marked(room.path()) else { return };
    let before = first.mark();
    let again = store(room.path());
    again.prepare().expect("a store");
    assert!(again.mark() == before && again.has_mark(before));
    let [layers, vms] = again.may_be_mounted();
    std::fs::rename(&vms, room.path().join("below")).expect("it is moved");
    make_directory(&vms).expect("a directory");
    let unmounted = store(room.path());
    let error = unmounted.prepare().expect_err("it is empty");
    assert!(error.hints().join(" ").contains("touch"), "{error:?}");
    assert!(unmounted.names().is_err() && unmounted.mark() == before);
    std::fs::write(vms.join(".cowhand"), "").expect("a file");
    let renewed = store(room.path());
    renewed.prepare().expect("it is not empty");
    assert!(renewed.mark() != before && renewed.has_mark(renewed.mark()));
    assert!(mark::newest(&layers) == renewed.mark());
    // Who has read the earlier one reads again.
    assert!(first.mark() == before);
    first.refuse_unmounted().expect("they are in place");
}

#[test]
fn a_store_of_an_earlier_version_of_which_one_directory_is_empty_gets_no_mark() {
    let room = tempfile::tempdir().expect("a directory");
    let first = store(room.path());
    std::fs::write(first.layout.store_json(), "{\"schema\":1}\n").expect("a file");
    let file = first.layout.layers().join("abcdefghij.qcow2");
    std::fs::write(&file, "").expect("a file");
    first.prepare().expect("nothing is refused");
    assert_eq!(first.mark(), None);
}

#[test]
fn a_store_whose_memory_cannot_be_listed_gets_no_mark() {
    let room = tempfile::tempdir().expect("a directory");
    let first = store(room.path());
    std::fs::write(first.layout.store_json(), "{\"schema\":1}\n").expect("a file");
    // Nothing is listed through a link that leads to itself.
    std::os::unix::fs::symlink("ram", first.layout.rams()).expect("a link");
    first.settle_identity().expect("it is a store");
    assert_eq!(first.mark(), None);
}

/// Takes all the room for extended attributes of `directory`. False: there is no end to it.
fn fill(directory: &Path) -> bool {
    use rustix::fs::{XattrFlags, setxattr};
    let add = |name: String, length| {
        setxattr(directory, name, &vec![b'x'; length], XattrFlags::empty()).is_ok()
    };
    [1000, 100, 10, 1]
        .into_iter()
        .all(|length| (0..1000).any(|number| !add(format!("user.fill-{length}-{number}"), length)))
}

#[test]
fn a_copy_that_can_have_no_mark_of_its_own_keeps_the_one_it_was_copied_with() {
    let room = tempfile::tempdir().expect("a directory");
    let (first, second) = (room.path().join("first"), room.path().join("second"));
    let Some(original) = marked(&first) else { return };
    let Some(copied) = copy(&first, &second) else { return };
    if !fill(&copied.layout.vms()) {
        return;
    }
    assert!(copied.settle_identity().expect("it is a store"));
    assert!(copied.id() != original.id() && copied.mark() == original.mark());
}
