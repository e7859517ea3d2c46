use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;

use super::super::{Piece, read, to_letters};
use super::bounds::LONGEST_PATH;
use super::*;

fn entry(path: &str, what: What) -> Entry {
    Entry { path: path.into(), what, mode: 0o755, modified_ns: 0 }
}

fn file() -> What {
    What::File { bytes: 1 }
}

fn link(to: &str) -> What {
    What::Link { to: to.into() }
}

/// A directory with a place for a tree, and what lies outside it.
fn room() -> (tempfile::TempDir, PathBuf) {
    let room = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(room.path().join("outside")).expect("a directory");
    std::fs::write(room.path().join("outside/secret"), "mine").expect("a file");
    let tree = room.path().join("tree");
    (room, tree)
}

fn writer(tree: &Path) -> Writer {
    Writer::untrusted(Target::at(tree).expect("a target"), Budget::default())
}

fn begun(tree: &Path) -> Writer {
    let mut writer = writer(tree);
    writer.entry(&entry("", What::Directory)).expect("a directory");
    writer
}

fn refusal(result: io::Result<()>) -> Refusal {
    let error = result.expect_err("it was taken");
    Refusal::of(&error).unwrap_or_else(|| panic!("{error} is no refusal")).clone()
}

#[track_caller]
fn outside_is_untouched(room: &Path) {
    let names: Vec<_> =
        std::fs::read_dir(room.join("outside")).expect("outside").flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(std::fs::read(room.join("outside/secret")).expect("a file"), b"mine");
    let all: Vec<_> =
        std::fs::read_dir(room).expect("a room").flatten().map(|entry| entry.file_name()).collect();
    assert!(all.iter().all(|name| name == "outside" || name == "tree"), "{all:?}");
}

#[test]
fn names_that_mean_another_place_are_refused() {
    let (room, tree) = room();
    let (long, longer) = ("x".repeat(256), "x/".repeat(2048) + "x");
    let odd = [
        "../x", "/etc/x", "a/../../x", ".", "..", "a/.", "./a", "a//b", "a/", "/", "a\0b",
        "\u{100}",
    ];
    for path in odd.into_iter().chain([long.as_str(), longer.as_str()]) {
        for what in [file(), What::Directory, link("/etc")] {
            let mut writer = begun(&tree);
            assert!(
                matches!(refusal(writer.entry(&entry(path, what))), Refusal::Path(_)),
                "{path:?}"
            );
        }
    }
    for to in ["", "a\0b", "x".repeat(4096).as_str()] {
        assert!(
            matches!(refusal(begun(&tree).entry(&entry("way", link(to)))), Refusal::Path(_)),
            "{to:?}"
        );
    }
    outside_is_untouched(room.path());
}

#[test]
fn no_link_is_followed_whoever_made_it() {
    let (room, tree) = room();
    // The tree itself.
    assert_eq!(refusal(writer(&tree).entry(&entry("", link("outside")))), Refusal::Link);
    assert!(tree.symlink_metadata().is_err(), "a link was left for the next copy");
    // A link that is in the place of the tree already.
    symlink("outside", &tree).expect("a link");
    assert!(writer(&tree).entry(&entry("", What::Directory)).is_err());
    // A file replaces it.
    let mut one = writer(&tree);
    one.entry(&entry("", file())).expect("a file");
    one.data(0, b"x").expect("a byte");
    one.finish().expect("a file");
    assert!(tree.symlink_metadata().expect("a file").is_file());
    std::fs::remove_file(&tree).expect("removed");
    // One that came before, as another entry.
    let mut one = begun(&tree);
    one.entry(&entry("way", link("../outside"))).expect("a link");
    assert!(matches!(refusal(one.entry(&entry("way/x", file()))), Refusal::Order(_)));
    let mut one = begun(&tree);
    assert!(one.entry(&entry("way", What::Directory)).is_err(), "a directory that is a link");
    // One that takes the place of a directory while it is filled.
    let mut one = begun(&tree);
    one.entry(&entry("a", What::Directory)).expect("a directory");
    one.entry(&entry("a/b", What::Directory)).expect("a directory");
    assert!(
        one.entry(&entry("a", link("../outside"))).is_err(),
        "a link in the place of a directory"
    );
    let mut one = begun(&tree);
    one.entry(&entry("a", What::Directory)).expect("a directory");
    one.entry(&entry("a/b", What::Directory)).expect("a directory");
    std::fs::rename(tree.join("a"), tree.join("moved")).expect("moved");
    symlink("../outside", tree.join("a")).expect("a link");
    assert!(one.entry(&entry("a/secret", file())).is_err(), "through a link that was just made");
    outside_is_untouched(room.path());
}

#[test]
fn a_link_or_a_device_in_the_place_of_a_file_is_replaced_and_not_written_to() {
    let (room, tree) = room();
    let mut one = begun(&tree);
    one.entry(&entry("x", link("../outside/secret"))).expect("a link");
    one.entry(&entry("x", file())).expect("a file");
    one.data(0, b"z").expect("a byte");
    one.entry(&entry("y", file())).expect("a file");
    one.data(0, b"z").expect("a byte");
    one.entry(&entry("y", link("../outside/secret"))).expect("a link");
    std::fs::hard_link(room.path().join("outside/secret"), tree.join("hard")).expect("a link");
    one.entry(&entry("hard", file())).expect("a file");
    one.data(0, b"z").expect("a byte");
    one.finish().expect("a tree");
    assert_eq!(std::fs::read(tree.join("x")).expect("a file"), b"z");
    assert!(tree.join("y").is_symlink());
    outside_is_untouched(room.path());
}

#[test]
fn what_is_not_a_tree_is_refused() {
    let (_room, tree) = room();
    assert!(
        matches!(refusal(writer(&tree).entry(&entry("x", file()))), Refusal::Order(_)),
        "no root"
    );
    let mut one = begun(&tree);
    assert!(
        matches!(refusal(one.entry(&entry("", What::Directory))), Refusal::Order(_)),
        "two roots"
    );
    assert!(matches!(refusal(one.entry(&entry("a/b", file()))), Refusal::Order(_)), "no directory");
    let mut one = writer(&tree.with_file_name("tree2"));
    one.entry(&entry("", file())).expect("a file");
    assert!(
        matches!(refusal(one.entry(&entry("x", file()))), Refusal::Order(_)),
        "a file in a file"
    );
    // Data: more than was announced, twice the same, none at all, before there is a file.
    let mut one = begun(&tree);
    assert_eq!(refusal(one.data(0, b"z")), Refusal::Data);
    one.entry(&entry("y", What::File { bytes: 4 })).expect("a file");
    for (offset, bytes) in [(4, &b"z"[..]), (3, b"zz"), (u64::MAX, b"z"), (0, b"")] {
        assert_eq!(refusal(one.data(offset, bytes)), Refusal::Data, "{offset}");
    }
    one.data(1, b"ab").expect("bytes");
    assert_eq!(refusal(one.data(2, b"z")), Refusal::Data, "over what came before");
    drop(one);
    let left: Vec<_> = std::fs::read_dir(&tree).expect("a directory").flatten().collect();
    assert!(left.is_empty(), "half a file: {left:?}");
}

#[test]
fn budgets_count_entries_and_the_lengths_of_files_with_their_holes() {
    let (_room, tree) = room();
    let with = |bytes, entries| {
        let mut one =
            Writer::untrusted(Target::at(&tree).expect("a target"), Budget { bytes, entries });
        one.entry(&entry("", What::Directory)).expect("a directory");
        one
    };
    let mut one = with(100, 3);
    one.entry(&entry("a", link("x"))).expect("a link");
    one.entry(&entry("b", What::Directory)).expect("a directory");
    assert_eq!(refusal(one.entry(&entry("c", file()))), Refusal::TooManyEntries(3));
    let mut one = with(100, 100);
    one.entry(&entry("a", What::File { bytes: 60 })).expect("a file");
    assert_eq!(
        refusal(one.entry(&entry("n", What::File { bytes: 41 }))),
        Refusal::TooManyBytes(100)
    );
    // What came before is whole, and there is nothing else.
    drop(one);
    assert_eq!(tree.join("a").metadata().expect("a file").len(), 60);
    assert!(!tree.join("n").exists());
    let mut one = with(u64::MAX - 1, 100);
    assert_eq!(
        refusal(one.entry(&entry("c", What::File { bytes: u64::MAX }))),
        Refusal::TooManyBytes(u64::MAX - 1)
    );
    assert_eq!(std::fs::read_dir(&tree).expect("a directory").count(), 2);
}

#[test]
fn no_set_uid_bit_comes_out_of_a_guest() {
    let (_room, tree) = room();
    let mut one = begun(&tree);
    for (path, what) in [("d", What::Directory), ("d/f", file())] {
        one.entry(&Entry { mode: 0o7777, ..entry(path, what) }).expect("an entry");
    }
    // Bits that are no permissions, times that no clock has.
    for (index, modified_ns) in [i64::MIN, i64::MAX].into_iter().enumerate() {
        one.entry(&Entry { mode: u32::MAX, modified_ns, ..entry(&format!("e{index}"), file()) })
            .expect("an entry");
    }
    one.finish().expect("a tree");
    for path in ["d", "d/f", "e0", "e1"] {
        assert_eq!(tree.join(path).metadata().expect("an entry").mode() & 0o7777, 0o777, "{path}");
    }
}

#[test]
fn memory_is_that_of_the_longest_path_whatever_the_number_of_entries() {
    let (_room, tree) = room();
    let mut one = begun(&tree);
    for number in 0..2000 {
        one.entry(&entry(&format!("d{number}"), What::Directory)).expect("a directory");
        one.entry(&entry(&format!("d{number}/l"), link(&"x".repeat(1000)))).expect("a link");
        assert!(one.open.len() <= 1 && one.open.capacity() < 100 && one.path.capacity() < 4096);
    }
    let mut path = String::new();
    while path.len() + 2 <= LONGEST_PATH {
        path.push_str(if path.is_empty() { "d" } else { "/d" });
        one.entry(&entry(&path, What::Directory)).expect("a directory");
    }
    let open = std::fs::read_dir("/proc/self/fd").expect("descriptors").count();
    assert!(open < 100, "{open} descriptors are open");
    one.finish().expect("a tree");
    assert_eq!(tree.join("d1999/l").symlink_metadata().expect("a link").len(), 1000);
}

fn names() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec!["a", "b", "c", "..", ".", "", "out"]);
    prop::collection::vec(part, 0..4).prop_map(|parts| parts.join("/"))
}

fn whats() -> impl Strategy<Value = What> {
    let to = prop::sample::select(vec![
        "../outside", "../outside/secret", "/", "a", ".", "..", "../tree",
    ]);
    prop_oneof![
        (0u64..3).prop_map(|bytes| What::File { bytes }),
        Just(What::Directory),
        Just(What::Directory),
        to.prop_map(|to| What::Link { to: to.into() }),
    ]
}

/// A tree of the host, by paths: a directory, or a file of so many bytes, or a link.
fn grow(root: &Path, plan: &[(Vec<u8>, u8)]) {
    std::fs::create_dir(root).expect("a directory");
    for (index, (steps, kind)) in plan.iter().enumerate() {
        let directory = steps.iter().fold(root.to_owned(), |at, step| at.join(format!("d{step}")));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory
            .join(OsStr::from_bytes(&[b"n\xff".as_slice(), index.to_string().as_bytes()].concat()));
        match kind % 3 {
            0 => std::fs::write(&path, vec![*kind; usize::from(*kind) * 300]).expect("a file"),
            1 => symlink("../somewhere", &path).expect("a link"),
            _ => std::fs::create_dir(&path).expect("a directory"),
        }
        if kind % 3 != 1 {
            let mode = 0o400 + u32::from(*kind);
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("a mode");
        }
    }
}

/// Everything about a tree that a copy keeps.
fn described(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let about = path.symlink_metadata().expect("an entry");
        let content =
            if about.is_file() { std::fs::read(&path).expect("a file") } else { Vec::new() };
        let to = std::fs::read_link(&path).unwrap_or_default();
        let times = if about.is_symlink() { (0, 0) } else { (about.mtime(), about.mtime_nsec()) };
        let inside = path.strip_prefix(root).expect("below the root");
        lines.push(format!("{inside:?} {:o} {times:?} {to:?} {content:?}", about.mode()));
        if about.is_dir() {
            left.extend(
                std::fs::read_dir(&path)
                    .expect("a directory")
                    .map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    lines.sort();
    lines
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_outside_the_target_changes_whatever_a_guest_sends(
        sent in prop::collection::vec((names(), whats(), any::<u32>(), any::<i64>()), 0..30),
    ) {
        let (room, tree) = room();
        let mut one = writer(&tree);
        let mut taken = 0;
        let whole = [(String::new(), What::Directory, 0o755, 0)].into_iter().chain(sent);
        for (path, what, mode, modified_ns) in whole {
            taken += u64::from(one.entry(&Entry { path, what, mode, modified_ns }).is_ok());
            let _ = one.data(0, b"z");
        }
        prop_assert_eq!(Budget::default().entries - one.left.entries >= taken, true);
        let _ = one.finish();
        outside_is_untouched(room.path());
    }

    #[test]
    fn a_tree_that_is_copied_has_everything_the_first_one_has(
        plan in prop::collection::vec((prop::collection::vec(0u8..3, 0..5), any::<u8>()), 0..25),
    ) {
        let (room, tree) = room();
        let from = room.path().join("outside/from");
        grow(&from, &plan);
        let mut one = Writer::trusted(Target::at(&tree).expect("a target"));
        read(&from, false, &mut |piece| match piece {
            Piece::Entry(entry) => one.entry(entry),
            Piece::Data(offset, bytes) => one.data(offset, bytes),
        }).expect("a copy");
        one.finish().expect("a copy");
        prop_assert_eq!(described(&from), described(&tree));
    }

    #[test]
    fn a_directory_is_found_step_by_step_where_the_kernel_finds_it_at_once(
        path in prop::collection::vec(prop::sample::select(vec!["a", "b", "way", "x"]), 1..4),
    ) {
        let (room, _) = room();
        std::fs::create_dir_all(room.path().join("a/b/a")).expect("directories");
        std::fs::create_dir_all(room.path().join("b/a")).expect("directories");
        symlink("a", room.path().join("way")).expect("a link");
        symlink("../../outside", room.path().join("a/b/way")).expect("a link");
        std::fs::write(room.path().join("a/x"), "").expect("a file");
        let root = Target::at(&room.path().join("tree")).expect("a target").parent;
        let path = path.join("/");
        let one = beneath(root.as_fd(), path.as_bytes());
        let other = beneath_by_steps(root.as_fd(), path.as_bytes());
        let inode = |found: &io::Result<OwnedFd>| {
            found.as_ref().ok().map(|fd| rustix::fs::fstat(fd).expect("a directory").st_ino)
        };
        prop_assert_eq!(inode(&one), inode(&other));
    }

    #[test]
    fn any_name_is_a_text_and_comes_back(bytes in prop::collection::vec(1u8.., 0..40)) {
        prop_assert_eq!(from_letters(&to_letters(OsStr::from_bytes(&bytes))), Some(bytes));
    }
}
