//! What a root directory is planned to show.

use super::*;

/// The plan, a line for each step; `at` stands for what is in `room`.
fn planned(room: &Path, paths: &[(&str, Use)]) -> Vec<String> {
    let paths = paths.iter().map(|(path, how)| (room.join(path), *how));
    let inside = room.strip_prefix("/").expect("a path").to_str().expect("a path");
    let shorter = |path: &CString| {
        let path = path.to_str().expect("a path");
        path.strip_prefix(inside).unwrap_or(path).trim_start_matches('/').to_owned()
    };
    let told = |step: &Step| match step {
        Step::Directory(at) if inside.starts_with(at.to_str().expect("a path")) => None,
        Step::Directory(at) => Some(format!("directory {}", shorter(at))),
        Step::File(at) => Some(format!("file {}", shorter(at))),
        Step::Link { at, to } => {
            Some(format!("link {} to {}", shorter(at), to.to_str().expect("a path")))
        }
        Step::Memory(at) => Some(format!("memory {}", shorter(at))),
        Step::Close(at) => Some(format!("close {}", shorter(at))),
        Step::Show { at, attributes, .. } => {
            let is = |flag| attributes.contains(flag);
            let write = if is(MountAttrFlags::MOUNT_ATTR_RDONLY) { "" } else { " write" };
            let run = if is(MountAttrFlags::MOUNT_ATTR_NOEXEC) { "" } else { " run" };
            let device = if is(MountAttrFlags::MOUNT_ATTR_NODEV) { "" } else { " device" };
            Some(format!("show {}{write}{run}{device}", shorter(at)))
        }
    };
    plan(paths, None).expect("a plan").iter().filter_map(told).collect()
}

fn room() -> (tempfile::TempDir, PathBuf) {
    let room = tempfile::tempdir().expect("a directory");
    let path = room.path().canonicalize().expect("a path");
    for directory in ["system/bin", "store/layers", "store/run"] {
        std::fs::create_dir_all(path.join(directory)).expect("a directory");
    }
    for file in ["system/bin/qemu", "system/disk", "store/layers/base", "store/log", "iso"] {
        std::fs::write(path.join(file), file).expect("a file");
    }
    (room, path)
}

#[test]
fn files_are_shown_at_their_paths_and_no_other_directory_has_anything_in_it() {
    let (_kept, room) = room();
    assert_eq!(
        planned(
            &room,
            &[("store/layers", Use::WRITE), ("store/log", Use::WRITE), ("iso", Use::READ)]
        ),
        [
            "file iso", "show iso", "directory store", "directory store/layers",
            "show store/layers write", "file store/log", "show store/log write",
        ]
    );
}

#[test]
fn what_is_shown_already_is_mounted_again_only_for_more() {
    let (_kept, room) = room();
    assert_eq!(
        planned(
            &room,
            &[
                ("system/bin/qemu", Use::RUN),
                ("system", Use::RUN),
                ("store/layers/base", Use::READ),
                ("store/layers", Use::WRITE),
                ("system/disk", Use::WRITE),
                ("system/disk", Use::READ),
            ]
        ),
        [
            "directory store", "directory store/layers", "show store/layers write",
            "directory system", "show system run", "show system/disk write run",
        ]
    );
}

#[test]
fn links_on_the_way_are_there_too_and_their_targets_are_shown_once() {
    let (_kept, room) = room();
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, room.join(at)).expect("a link");
    link("system/bin", "bin");
    link("../iso", "store/cd");
    link("cd", "store/cd2");
    link("circle", "circle");
    link("nothing", "dangling");
    assert_eq!(
        planned(
            &room,
            &[
                ("bin/qemu", Use::RUN),
                ("store/./cd2", Use::READ),
                ("iso", Use::READ),
                ("missing", Use::READ),
                ("circle", Use::READ),
            ]
        ),
        [
            "file iso", "show iso", "directory system", "directory system/bin",
            "file system/bin/qemu", "show system/bin/qemu run", "directory store",
            "link bin to system/bin", "link circle to circle", "link store/cd to ../iso",
            "link store/cd2 to cd",
        ]
    );
}

#[test]
fn a_device_stays_one_and_the_root_directory_of_the_host_is_never_shown() {
    let paths = [(PathBuf::from("/dev/null"), Use::WRITE), ("/".into(), Use::WRITE)];
    let steps = plan(paths.into_iter(), None).expect("a plan");
    let shown: Vec<MountAttrFlags> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Show { attributes, .. } => Some(*attributes),
            _ => None,
        })
        .collect();
    // Its permissions cannot be changed.
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    assert_eq!(shown, [attributes]);
}

#[test]
fn of_the_layers_those_of_the_guest_are_shown_and_all_of_them_lie_where_nobody_may_enter() {
    let (_kept, room) = room();
    let layer = room.join("store/layers/base");
    std::os::unix::fs::symlink(room.join("iso"), room.join("store/layers/used")).expect("a link");
    let used = room.join("store/layers/used");
    let paths = [(layer, Use::READ), (used, Use::WRITE)];
    let pool = room.join("store/layers");
    let steps = plan(paths.into_iter(), Some(&pool)).expect("a plan");
    let inside = |path: &str| super::inside(&room.join(path)).expect("a path");
    let at = |wanted: &Step| steps.iter().position(|step| step == wanted).expect("it is planned");
    let (memory, file) =
        (at(&Step::Memory(inside("store/layers"))), at(&Step::File(inside("store/layers/base"))));
    assert!(memory < file, "{steps:?}");
    let closed = at(&Step::Close(CLOSED.to_owned()));
    assert!(at(&Step::Directory(ALL.to_owned())) < closed, "{steps:?}");
    at(&Step::Link {
        at: inside("store/layers/used"),
        to: c_string(&room.join("iso")).expect("a path"),
    });
    let shown: Vec<&CString> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Show { at, .. } => Some(at),
            _ => None,
        })
        .collect();
    assert_eq!(shown, [&ALL.to_owned(), &inside("iso"), &inside("store/layers/base")]);
}

#[test]
fn a_store_below_a_directory_that_is_shown_is_empty_but_for_what_is_shown_of_it() {
    let (_kept, room) = room();
    let layer = room.join("store/layers/base");
    let paths =
        [(room.clone(), Use::RUN), (layer, Use::READ), (room.join("store/log"), Use::WRITE)];
    let steps = plan(paths.into_iter(), Some(&room.join("store/layers"))).expect("a plan");
    let inside = |path: &str| inside(&room.join(path)).expect("a path");
    let at = |wanted: &Step| steps.iter().position(|step| step == wanted).expect("it is planned");
    let (store, layers) =
        (at(&Step::Memory(inside("store"))), at(&Step::Memory(inside("store/layers"))));
    assert!(store < at(&Step::Directory(inside("store/layers"))), "{steps:?}");
    assert!(store < at(&Step::File(inside("store/log"))), "{steps:?}");
    assert!(layers < at(&Step::File(inside("store/layers/base"))), "{steps:?}");
    assert!(!steps.contains(&Step::Directory(inside("store"))), "{steps:?}");
}

#[test]
fn a_directory_that_a_path_leaves_again_is_there() {
    let (_kept, room) = room();
    assert_eq!(
        planned(&room, &[("store/run/../log", Use::WRITE), ("system/bin/../../iso", Use::READ)]),
        [
            "file iso", "show iso", "directory store", "file store/log", "show store/log write",
            "directory store/run", "directory system", "directory system/bin",
        ]
    );
}
