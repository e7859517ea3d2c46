//! A store that was copied, or restored from a backup: its VMs have the UUIDs of the original's,
//! and are others.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::lab::{Lab, qemu_img, tool};

/// A copy of the lab's store, and a command line on it.
struct Copy<'a> {
    lab: &'a Lab,
    root: PathBuf,
}

impl Copy<'_> {
    fn of(lab: &Lab) -> Copy<'_> {
        let root = lab.path().join("copy");
        lab.copy_tree(&lab.store(), &root);
        Copy { lab, root }
    }

    fn with<'b>(&'b self, args: &[&'b str]) -> Vec<&'b str> {
        [&["--store", self.root.to_str().unwrap()], args].concat()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.lab.ok(&self.with(args))
    }

    fn state(&self, vm: &str) -> String {
        let shown: serde_json::Value =
            serde_json::from_str(&self.ok(&["--format", "json", "show", vm])).unwrap();
        shown["state"].as_str().unwrap().to_owned()
    }
}

/// Which files of these stores QEMU has open to write.
fn files_of(pid: i32) -> Vec<PathBuf> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|file| file.extension().is_some())
        .collect()
}

/// The original's QEMU and that of the copy run at once, and what is typed on one store reaches the
/// guest of that store.
#[test]
fn the_guests_of_a_copied_store_are_not_those_of_the_original() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["snapshot", "create", "web", "up", "--memory"]);
    let pid = lab.pid("web");
    let copy = Copy::of(&lab);
    // Nobody runs in the copy, and putting it right takes nothing from those who run in the
    // original.
    assert_eq!(copy.state("web"), "stopped");
    copy.ok(&["doctor", "--repair"]);
    copy.ok(&["stop", "--force", "web"]);
    copy.lab.run(&copy.with(&["exec", "web", "--", "true"])).fails(125, &["not running"]);
    copy.lab.run(&copy.with(&["console", "web"])).fails(5, &["not running"]);
    assert_eq!((lab.state("web"), lab.pid("web")), ("running".to_owned(), pid));
    lab.sh("web", "echo original > /root/whose; sync");
    // Both run.
    copy.ok(&["snapshot", "revert", "web@up"]);
    let theirs =
        |args: &[&str]| copy.ok(&[&["exec", "--agent-only", "web", "--"][..], args].concat());
    theirs(&["sh", "-c", "[ ! -e /root/whose ] && echo copy > /root/whose && sync"]);
    assert_eq!(lab.sh("web", "cat /root/whose"), "original\n");
    assert_eq!(theirs(&["cat", "/root/whose"]), "copy\n");
    let other: serde_json::Value =
        serde_json::from_str(&copy.ok(&["--format", "json", "show", "web"])).unwrap();
    let other = i32::try_from(other["pid"].as_i64().unwrap()).unwrap();
    assert_ne!(other, pid);
    assert_eq!(lab.pid("web"), pid);
    let inside = |pid: i32, root: &Path| files_of(pid).iter().any(|file| file.starts_with(root));
    assert!(inside(pid, &lab.store()) && !inside(pid, &copy.root), "{:?}", files_of(pid));
    assert!(inside(other, &copy.root) && !inside(other, &lab.store()), "{:?}", files_of(other));
    // Every verb that speaks to a QEMU, on either.
    lab.ok(&["snapshot", "create", "web", "b"]);
    copy.ok(&["snapshot", "create", "web", "c", "--memory"]);
    lab.ok(&["pause", "web"]);
    assert_eq!(copy.state("web"), "running");
    copy.ok(&["snapshot", "rm", "web@c"]);
    lab.ok(&["resume", "web"]);
    copy.ok(&["pause", "web"]);
    assert_eq!(lab.state("web"), "running");
    lab.ok(&["snapshot", "rm", "web@up"]);
    copy.ok(&["stop", "--force", "web"]);
    assert_eq!((copy.state("web"), lab.state("web")), ("stopped".to_owned(), "running".to_owned()));
    copy.ok(&["start", "--paused", "web"]);
    lab.ok(&["stop", "--force", "web"]);
    assert_eq!((copy.state("web"), lab.state("web")), ("paused".to_owned(), "stopped".to_owned()));
    copy.ok(&["rm", "--force", "web"]);
    assert_eq!(lab.on_disk("web", "/root/whose").as_deref(), Some("original"));
    lab.ok(&["doctor"]);
    copy.ok(&["doctor"]);
    lab.check_images();
}

/// A QEMU that has another file open than the record names is not told to change anything: neither
/// a stranger's node nor another store's file.
#[test]
fn a_qemu_that_has_another_file_open_is_not_changed() {
    let lab = Lab::unconfined();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    lab.ok(&["start", "--paused", "web"]);
    // The copy is told that its VM runs, and where: as if the store had been moved while it ran.
    let copy = Copy::of(&lab);
    let held = std::fs::File::open(copy.root.join("vms/web/run.lock")).unwrap();
    let held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let before = lab.fingerprint();
    let head = format!("layers/{}.qcow2", lab.chain("web")[0]);
    let (ours, theirs) = (lab.store().join(&head), copy.root.join(&head));
    for change in
        [&["snapshot", "create", "web", "a"][..], &["disk", "resize", "web", "vda", "32M"]]
    {
        let words = [ours.to_str().unwrap(), theirs.to_str().unwrap(), "cowhand doctor web"];
        lab.run(&copy.with(change)).fails(8, &words);
    }
    assert_eq!(lab.fingerprint(), before);
    drop(held);
    assert_eq!(copy.state("web"), "stopped");
    // What a user puts on top is no block job of ours.
    let overlay = lab.path().join("mine.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", overlay.to_str().unwrap(), "16M"]);
    let file = json!({"driver": "file", "filename": overlay});
    let node = json!({"driver": "qcow2", "node-name": "mine", "file": file, "backing": null});
    let below = format!("l-{}", lab.chain("web")[0]);
    lab.user_qmp(
        "web",
        &[
            json!({"execute": "blockdev-add", "arguments": node}),
            json!({
                "execute": "blockdev-snapshot", "arguments": {"node": below, "overlay": "mine"},
            }),
        ],
    );
    for change in
        [&["snapshot", "create", "web", "a"][..], &["disk", "resize", "web", "vda", "32M"]]
    {
        lab.run(change).fails(8, &["vda", "cowhand did not make", "cowhand doctor web"]);
    }
}

/// `tar` keeps whole seconds, `rsync` may; both make new inodes.
#[test]
fn a_store_that_comes_back_from_a_backup_keeps_its_templates() {
    let lab = Lab::new();
    lab.ok(&["create", "base", "--size", "16M", "--net", "none"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    lab.ok(&["clone", "base", "web"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    lab.ok(&["snapshot", "revert", "web@a"]);
    let archive = lab.path().join("store.tar");
    let back = lab.path().join("back");
    std::fs::create_dir(&back).unwrap();
    tool(
        "tar",
        &[
            "-C",
            lab.store().to_str().unwrap(),
            "--format=gnu",
            "-cf",
            archive.to_str().unwrap(),
            ".",
        ],
    );
    tool("tar", &["-C", back.to_str().unwrap(), "-xpf", archive.to_str().unwrap()]);
    let back = back.to_str().unwrap();
    for args in [
        &["doctor"][..],
        &["clone", "base", "other"],
        &["start", "--paused", "web"],
        &["stop", "--force", "web"],
        &["undo", "web"],
        &["doctor"],
    ] {
        lab.ok(&[&["--store", back], args].concat());
    }
    // Another content is still noticed, whatever its time.
    let layer = lab.chain("base")[0].clone();
    let file = Path::new(back).join("layers").join(format!("{layer}.qcow2"));
    tool("chmod", &["600", file.to_str().unwrap()]);
    tool("touch", &["-d", "2001-01-01", file.to_str().unwrap()]);
    lab.run(&["--store", back, "clone", "base", "third"])
        .fails(8, &["was changed behind our back"]);
}
