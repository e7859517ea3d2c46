//! Internal snapshots, alone and mixed with external ones.

use crate::lab::{Lab, qemu_img};

#[test]
fn an_internal_snapshot_of_a_running_guest_brings_back_memory_and_disk() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/a", "one");
    lab.sh("web", "echo one > /tmp/a; sync");
    let alone = lab.allocated("web");
    let taken =
        lab.json(&["snapshot", "create", "web", "s", "--internal", "--description", "words"]);
    assert_eq!(
        (&taken["kind"], &taken["memory"], &taken["description"]),
        (&"internal".into(), &true.into(), &"words".into())
    );
    assert_eq!(lab.state("web"), "running");
    assert_eq!(lab.chain("web").len(), 1, "it needs no layer");
    lab.write("web", "/root/a", "two");
    lab.sh("web", "echo two > /tmp/a");
    lab.ok(&["snapshot", "revert", "web@s"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("one"));
    assert_eq!(lab.sh("web", "cat /tmp/a").trim(), "one", "it goes on where it was");
    // What was overwritten is not lost.
    lab.ok(&["undo", "web"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("two"));
    lab.ok(&["snapshot", "revert", "web@s"]);
    lab.ok(&["snapshot", "rm", "web@s"]);
    // QEMU has loaded the memory, and has it in the image until it ends.
    let collected = lab.run(&["gc", "--older-than", "0"]);
    assert!(
        collected.code == 0 && collected.err.contains("cowhand stop web, then cowhand gc"),
        "{collected:?}"
    );
    lab.ok(&["stop", "web"]);
    let collected = lab.json(&["gc", "--older-than", "0"]);
    let removed =
        collected["removed"].as_array().unwrap().iter().find(|one| one["why"] == "memory").unwrap();
    assert!(
        removed["what"] == "web" && removed["bytes"].as_u64().unwrap() > 8 << 20,
        "{collected}"
    );
    let now = lab.allocated("web");
    assert!(
        now < alone + (4 << 20),
        "{alone} bytes before the internal snapshot, and {now} after it"
    );
    let file = lab.store().join("layers").join(&lab.layer_files()[0]);
    assert!(
        !qemu_img(&["info", file.to_str().unwrap()]).contains("Snapshot list"),
        "none must be left behind"
    );
    lab.check_images();
}

/// QEMU keeps memory behind the disk in the same table; were the disk grown, the guest would read
/// it there.
#[test]
fn a_disk_that_grows_does_not_show_the_memory_of_an_internal_snapshot() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "512M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    lab.ok(&["snapshot", "create", "web", "inner", "--internal"]);
    lab.ok(&["snapshot", "revert", "web@inner"]);
    let before = lab.fingerprint();
    let grow = ["disk", "resize", "web", "vda", "1G"];
    lab.run(&grow).fails(5, &["vda of web", "memory", "cowhand stop web"]);
    assert_eq!(lab.fingerprint(), before);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&grow);
    let file = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("web")[0]));
    let read = ["-f", "qcow2", "-c", "read -P 0 0 1G"];
    let read = std::process::Command::new("qemu-io").args(read).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&read.stdout);
    assert!(read.status.success() && !said.contains("verification failed"), "{said}");
    lab.ok(&["snapshot", "revert", "web@inner"]);
    assert_eq!(lab.state("web"), "running");
    lab.ok(&["stop", "--force", "web"]);
    lab.check_images();
}

/// The memory that a revert has loaded takes room in the active part of the image, also when a
/// later snapshot has sealed it.
#[test]
fn the_room_of_an_internal_snapshot_comes_back_from_a_sealed_layer_and_undo_still_works() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    let alone = lab.allocated("web");
    lab.ok(&["start", "web"]);
    lab.ok(&["snapshot", "create", "web", "inner", "--internal"]);
    lab.ok(&["snapshot", "revert", "web@inner"]);
    lab.ok(&["snapshot", "create", "web", "outer"]);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["snapshot", "revert", "web@outer"]);
    // The head that this puts aside depends on the layer that carries the internal snapshot.
    lab.ok(&["snapshot", "rm", "web@inner"]);
    let sealed = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("web")[1]));
    let allocated = || std::os::unix::fs::MetadataExt::blocks(&sealed.metadata().unwrap()) * 512;
    assert!(allocated() < alone + (512 << 10), "{alone} bytes at first, {} now", allocated());
    lab.ok(&["doctor"]);
    lab.ok(&["undo", "web"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(allocated() < alone + (512 << 10), "{alone} bytes at first, {} now", allocated());
    lab.ok(&["start", "web", "--paused"]);
    lab.ok(&["doctor"]);
    lab.ok(&["stop", "--force", "web"]);
    lab.check_images();
}

#[test]
fn internal_snapshots_of_a_stopped_vm_come_and_go_in_any_order() {
    let lab = Lab::new();
    lab.tiny("web", &["--size", "16M"]);
    for n in 1..=3 {
        let disks = lab.json(&["disk", "ls", "web"]);
        let file = disks[1]["file"].as_str().unwrap();
        let output = std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &format!("write -P {n} 0 64k"), file])
            .output()
            .unwrap();
        assert!(output.status.success());
        // Without a name, one is made up.
        let name: &[&str] = if n == 2 { &[] } else { &[["one", "", "three"][n - 1]] };
        lab.ok(&[&["snapshot", "create", "web"], name, &["--internal"]].concat());
    }
    let rows = lab.json(&["snapshot", "ls", "web"]);
    let second = rows[1]["name"].as_str().unwrap().to_owned();
    let first_byte = |lab: &Lab, point: &str| {
        let raw = lab.path().join("x.raw");
        lab.ok(&["image", "export", point, raw.to_str().unwrap(), "--disk", "vdb", "--force"]);
        std::fs::read(raw).unwrap()[0]
    };
    assert_eq!(first_byte(&lab, "web@one"), 1);
    assert_eq!(first_byte(&lab, &format!("web@{second}")), 2);
    lab.ok(&["snapshot", "revert", "web@one"]);
    assert_eq!(first_byte(&lab, "web"), 1);
    lab.ok(&["snapshot", "rm", &format!("web@{second}")]);
    lab.ok(&["snapshot", "rename", "web@one", "uno"]);
    // A new one of the old name is another one, in the image, too.
    lab.ok(&["snapshot", "create", "web", "one", "--internal"]);
    lab.ok(&["snapshot", "revert", "web@three"]);
    assert_eq!(first_byte(&lab, "web"), 3);
    lab.ok(&["snapshot", "revert", "web@uno"]);
    assert_eq!(first_byte(&lab, "web"), 1);
    lab.ok(&["snapshot", "rm", "web@uno", "--children"]);
    assert_eq!(lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len(), 0);
    lab.check_images();
}

#[test]
fn an_internal_snapshot_of_a_raw_disk_is_refused_and_the_disk_named() {
    let lab = Lab::new();
    let raw = lab.path().join("data.raw");
    std::fs::write(&raw, vec![1; 1 << 20]).unwrap();
    lab.ok(&["create", "web", "--size", "64M", "--disk", raw.to_str().unwrap()]);
    let before = lab.fingerprint();
    lab.run(&["snapshot", "create", "web", "s", "--internal"])
        .fails(5, &["vda", "raw", "cowhand snapshot create web"]);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn a_point_that_carries_internal_snapshots_is_not_merged_away() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/a", "inner");
    lab.ok(&["snapshot", "create", "web", "inner", "--internal"]);
    lab.write("web", "/root/a", "outer");
    lab.ok(&["snapshot", "create", "web", "outer"]);
    lab.write("web", "/root/a", "head");
    lab.run(&["snapshot", "rm", "web@outer"])
        .fails(5, &["web@inner", "cowhand snapshot rm web@inner"]);
    lab.run(&["disk", "commit", "web", "vda"]).fails(5, &["internal snapshots"]);
    // Its layer is sealed now: going back copies it out, and its memory cannot come along.
    lab.run(&["snapshot", "revert", "web@inner"]).fails(5, &["sealed", "--cold"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("head"));
    lab.ok(&["snapshot", "revert", "web@inner", "--cold"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("inner"));
    lab.ok(&["snapshot", "revert", "web@outer"]);
    lab.run(&["snapshot", "rm", "web@inner"]).fails(5, &["running", "cowhand stop web"]);
    lab.ok(&["clone", "web@inner", "copy"]);
    lab.ok(&["stop", "--force", "web"]);
    assert_eq!(lab.on_disk("web", "/root/a").as_deref(), Some("outer"));
    lab.ok(&["snapshot", "rm", "web@inner"]);
    lab.ok(&["snapshot", "rm", "web@outer"]);
    assert_eq!(lab.on_disk("web", "/root/a").as_deref(), Some("outer"));
    assert_eq!(lab.on_disk("copy", "/root/a").as_deref(), Some("inner"));
}

#[test]
fn an_internal_snapshot_on_another_branch_is_removed_while_the_vm_runs_and_undo_still_works() {
    let lab = Lab::new();
    lab.tiny("web", &[]);
    lab.ok(&["snapshot", "create", "web", "root"]);
    lab.ok(&["snapshot", "create", "web", "inner", "--internal"]);
    lab.ok(&["snapshot", "create", "web", "side"]);
    // The trash depends on the layer that carries the internal snapshot.
    lab.ok(&["snapshot", "revert", "web@side"]);
    lab.ok(&["snapshot", "revert", "web@root"]);
    lab.ok(&["start", "web"]);
    let dry = lab.json(&["snapshot", "rm", "web@inner", "--dry-run"]);
    assert_eq!(dry["disks"][0]["what"], "internal", "{dry}");
    lab.ok(&["snapshot", "rm", "web@inner"]);
    assert_eq!(lab.state("web"), "running");
    lab.ok(&["undo", "web"]);
    lab.ok(&["undo", "web"]);
    assert_eq!(lab.json(&["show", "web"])["head"], "side");
}

#[test]
fn a_template_carries_no_way_back() {
    let lab = Lab::new();
    lab.tiny("web", &[]);
    lab.ok(&["snapshot", "create", "web", "inner", "--internal"]);
    lab.ok(&["snapshot", "revert", "web@inner"]);
    lab.ok(&["snapshot", "rm", "web@inner"]);
    lab.ok(&["template", "create", "web", "--no-seal"]);
    let file = lab.store().join("layers").join(&lab.layer_files()[0]);
    assert!(!qemu_img(&["info", file.to_str().unwrap()]).contains("Snapshot list"));
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["clone", "web", "copy"]);
}

/// What an `undo` needs is in the layer, and QEMU reads it: the refusal says what to do, and that
/// helps.
#[test]
fn a_point_that_holds_the_way_back_of_a_revert_is_refused_with_what_helps() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["snapshot", "create", "web", "inner", "--internal"]);
    lab.ok(&["snapshot", "revert", "web@inner"]);
    lab.ok(&["snapshot", "rm", "web@inner"]);
    lab.ok(&["snapshot", "create", "web", "outer"]);
    lab.ok(&["start", "--paused", "web"]);
    let refused = ["cowhand undo", "cowhand stop web", "cowhand gc --older-than 0"];
    lab.run(&["snapshot", "rm", "web@outer"]).fails(5, &refused);
    lab.ok(&["stop", "--force", "web"]);
    let done = lab.run(&["snapshot", "rm", "web@outer"]).fails(5, &["cowhand gc --older-than 0"]);
    assert!(!done.err.contains("cowhand stop"), "{}", done.err);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["snapshot", "rm", "web@outer"]);
    assert_eq!(lab.chain("web").len(), 1);
}
