//! What lies in the place of a file of the store and is none: it keeps nobody waiting, stops its
//! own VM, and no other.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::damage::{File, store_of};
use crate::lab::{Lab, files_in};
use crate::tier;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Fifo,
    Directory,
    Socket,
    Loop,
    /// A file that no memory has room for.
    Endless,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Fifo, Self::Directory, Self::Socket, Self::Loop, Self::Endless];

    fn put(self, path: &Path) {
        match self {
            Self::Fifo => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            Self::Directory => {
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("inside"), "").unwrap();
            }
            Self::Socket => drop(UnixListener::bind(path).unwrap()),
            Self::Loop => std::os::unix::fs::symlink(path, path).unwrap(),
            Self::Endless => std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
        }
    }
}

/// Removes whatever is there.
fn clear(path: &Path) {
    match path.symlink_metadata() {
        Ok(about) if about.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// In which place it is put.
fn places(lab: &Lab) -> Vec<(&'static str, PathBuf)> {
    let directory = lab.store().join("vms/vm0");
    let head = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("vm0")[0]));
    let mut places: Vec<_> = [
        ("record", File::Record),
        ("spare", File::Spare),
        ("journal", File::Journal),
        ("entry", File::TrashEntry),
    ]
    .map(|(name, file)| (name, file.path(lab, "vm0")))
    .into();
    places.extend(
        ["lock", "run.lock", "agent.lock", "qemu.log"].map(|name| (name, directory.join(name))),
    );
    places.push(("layer", head));
    places
}

#[test]
fn what_is_no_file_in_the_place_of_one_keeps_nobody_waiting_and_stops_no_other_vm() {
    let lab = store_of(3);
    let layers = lab.layer_files();
    for (at, (place, path)) in places(&lab).into_iter().enumerate() {
        let kinds = Kind::ALL.into_iter().enumerate();
        // A file of any length is a log or a lock.
        let fits = |kind: Kind| {
            kind != Kind::Endless
                || !["lock", "run.lock", "agent.lock", "qemu.log"].contains(&place)
        };
        let kinds = kinds.filter(|(number, kind)| {
            fits(*kind) && (*number == at % 5 || tier::first_or(false, true) || *kind == Kind::Fifo)
        });
        for (_, kind) in kinds {
            let what = format!("{kind:?} in the place of the {place}");
            let good = std::fs::read(&path).ok();
            clear(&path);
            kind.put(&path);
            for args in [
                &["ls"][..],
                &["plan", "vm1"],
                &["set", "vm1", "tag.a=b"],
                &["clone", "vm1@s", "copy"],
                &["rm", "copy"],
                &["snapshot", "revert", "vm1@s"],
                &["undo", "vm1"],
                &["gc", "--dry-run", "--older-than", "0"],
                &["gc"],
            ] {
                let done = lab.run(args);
                assert_eq!(done.code, 0, "{what}: {args:?}: {done:?}");
            }
            // While nobody can say which layers are vm0's, copy may have one of them.
            let undone = lab.run(&["undo", "copy"]);
            match undone.code {
                0 => drop(lab.ok(&["rm", "copy"])),
                _ => drop(undone.fails(8, &["vm0", "cowhand doctor vm0"])),
            }
            let looked = lab.run(&["doctor"]);
            assert!(looked.out.contains(path.to_str().unwrap()), "{what}: {looked:?}");
            for words in ["seem to be unused", "unused layers", "no record names"] {
                assert!(!looked.out.contains(words), "{what}: {looked:?}");
            }
            assert!(!looked.out.contains("can be read or written by others"), "{what}: {looked:?}");
            // It, too, has an end.
            for args in [&["start", "vm0", "--paused"][..], &["stop", "--force", "vm0"]] {
                lab.run(args);
            }
            let mended = lab.run(&["doctor", "--repair"]);
            assert!(!mended.err.contains("error:"), "{what}: {mended:?}");
            let again = lab.run(&["doctor", "vm0"]);
            if place == "layer" {
                assert!(
                    again.code == 1 && again.out.contains("layer"),
                    "{what}: {mended:?} {again:?}"
                );
            } else if place != "entry" {
                assert_eq!(again.code, 0, "{what}: {mended:?} {again:?}");
                lab.ok(&["set", "vm0", "tag.a=b"]);
            }
            if let (Some(good), "layer" | "entry") = (&good, place) {
                clear(&path);
                std::fs::write(&path, good).unwrap();
            }
        }
    }
    let kept = lab.layer_files();
    assert!(layers.iter().all(|layer| kept.contains(layer)), "{layers:?} {kept:?}");
    assert!(files_in(&lab.store().join("trash")).len() > 9);
    lab.ok(&["undo", "vm0", "--list"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["start", "vm0", "--paused"]);
    lab.ok(&["stop", "--force", "vm0"]);
    lab.ok(&["doctor"]);
    lab.check_images();
}

/// The store's own: commands that need them fail at once, and `doctor --repair` moves what is there
/// away.
#[test]
fn what_is_no_file_in_the_place_of_one_of_the_stores_own_is_an_error_at_once() {
    let lab = store_of(1);
    for (name, is_needed) in [
        ("store.json", true),
        ("store.lock", true),
        ("clock.json", false),
        ("qemu-probe.json", false),
        ("reserve", false),
        ("sealing", false),
        ("ram", false),
        ("slots", false),
        ("slots/queue.lock", false),
    ] {
        let is_directory = ["sealing", "ram", "slots"].contains(&name);
        for kind in Kind::ALL[..4].iter().filter(|kind| **kind != Kind::Directory || !is_directory)
        {
            let path = lab.store().join(name);
            std::fs::create_dir_all(lab.store().join("slots")).unwrap();
            clear(&path);
            kind.put(&path);
            let made = lab.run(&["clone", "vm0@s", "copy"]);
            match is_needed {
                true => drop(made.fails(8, &[path.to_str().unwrap(), "not a file"])),
                false => {
                    assert_eq!(made.code, 0, "{made:?}");
                    lab.ok(&["rm", "copy"]);
                    lab.ok(&["plan", "vm0"]);
                    lab.ok(&["gc", "--older-than", "0"]);
                }
            }
            lab.ok(&["ls"]);
            let looked = lab.run(&["doctor"]);
            // What is known of QEMU may have been written anew.
            let is_told = looked.code == 1 && looked.out.contains(path.to_str().unwrap());
            assert!(is_told || path.is_file(), "{kind:?}: {looked:?}");
            lab.run(&["doctor", "--repair"]);
            let again = lab.run(&["doctor"]);
            assert_eq!(again.code, 0, "{kind:?} in the place of {name}: {again:?}");
            lab.ok(&["set", "vm0", "tag.a=b"]);
        }
    }
}
