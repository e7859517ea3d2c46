//! Clones: independent of each other, of their source, and whole or not there.

use std::collections::BTreeSet;
use std::process::Command;

use crate::lab::{Done, Lab, eventually, skip};

#[test]
fn clones_of_one_template_share_no_identity_and_no_writes() {
    let lab = Lab::new();
    lab.tiny("base", &["-p", "18080:80"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    let made = lab.json(&["clone", "base", "web", "-n", "3"]);
    for (n, entry) in made.as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (entry["name"].clone(), entry["kind"].clone()),
            (format!("web-{}", n + 1).into(), "thin".into())
        );
        assert!(entry["ms"].is_number() && entry["reason"].is_string());
    }
    lab.ok(&["clone", "base", "full", "--full"]);
    let names = ["base", "web-1", "web-2", "web-3", "full"];
    let shown: Vec<_> = names.iter().map(|name| lab.json(&["show", name])).collect();
    for key in ["/uuid", "/generation", "/nics/0/mac", "/disks/0/chain/0"] {
        let values: BTreeSet<String> =
            shown.iter().map(|vm| vm.pointer(key).unwrap().to_string()).collect();
        assert_eq!(values.len(), names.len(), "{key} is shared");
    }
    assert!(
        shown[1..].iter().all(|vm| vm["nics"][0]["ports"] == serde_json::json!([])),
        "a host port cannot be shared"
    );
    assert_eq!(
        shown[4]["disks"][0]["chain"].as_array().unwrap().len(),
        1,
        "a full clone stands on nothing"
    );

    lab.ok(&["start", "web-1", "full"]);
    lab.write("web-1", "/root/a", "one");
    lab.write("full", "/root/a", "full");
    lab.ok(&["stop", "--force", "web-1", "full"]);
    assert_eq!(lab.on_disk("web-2", "/root/a"), None, "a clone sees another clone's writes");
    // A full clone outlives its source.
    lab.ok(&["rm", "--force", "web-1", "web-2", "web-3"]);
    lab.ok(&["template", "rm", "base"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["start", "full"]);
    assert_eq!(lab.read("full", "/root/a").as_deref(), Some("full"));
    lab.check_images();
}

#[test]
fn a_stopped_vm_and_a_snapshot_can_be_cloned_and_keep_their_own_data() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/a", "one");
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.write("web", "/root/a", "two");
    lab.ok(&["clone", "web@s", "thin"]);
    lab.ok(&["clone", "web@s", "full", "--full"]);
    lab.ok(&["stop", "web"]);
    lab.ok(&["clone", "web", "now"]);
    assert_eq!(lab.json(&["show", "now"])["from"], "web@clone-now");
    // A chain of several layers becomes one.
    lab.ok(&["clone", "web", "flat", "--full"]);
    assert_eq!(lab.chain("flat").len(), 1);
    lab.run(&["rm", "web"]).fails(5, &["now", "thin"]);
    for (vm, text) in
        [("thin", "one"), ("full", "one"), ("now", "two"), ("flat", "two"), ("web", "two")]
    {
        assert_eq!(lab.on_disk(vm, "/root/a").as_deref(), Some(text), "{vm}");
    }
    lab.check_images();
}

#[test]
fn merging_under_a_running_clone_does_not_change_its_data() {
    let lab = Lab::new();
    lab.booted("web");
    for point in ["s1", "s2"] {
        lab.write("web", "/root/a", point);
        lab.ok(&["snapshot", "create", "web", point]);
    }
    lab.ok(&["clone", "web@s2", "clone", "--start"]);
    assert_eq!(lab.read("clone", "/root/a").as_deref(), Some("s2"));
    // s1's layer is open in two QEMUs: it has to wait, and the command says so.
    let said = lab.ok(&["snapshot", "rm", "web@s1"]);
    assert!(said.contains("another VM has it open"), "{said}");
    lab.ok(&["snapshot", "rm", "web@s2"]);
    for vm in ["web", "clone"] {
        lab.ok(&["stop", "--force", vm]);
        assert_eq!(lab.on_disk(vm, "/root/a").as_deref(), Some("s2"), "{vm}");
    }
    lab.check_images();
}

#[test]
fn a_clone_under_another_name_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    lab.ok(&["create", "base", "--size", "64M"]);
    lab.ok(&["create", "web-2", "--size", "64M"]);
    let before = lab.fingerprint();
    lab.run(&["clone", "base", "web", "-n", "3"]).fails(4, &["web-2"]);
    lab.run(&["clone", "base@no", "x"]).fails(3, &["no snapshot no"]);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn a_vm_whose_record_cannot_be_read_loses_nothing_when_its_neighbours_change() {
    let lab = Lab::new();
    lab.ok(&["create", "a", "--size", "64M"]);
    lab.ok(&["snapshot", "create", "a", "s0"]);
    lab.ok(&["snapshot", "create", "a", "s"]);
    lab.ok(&["clone", "a@s", "b"]);
    lab.ok(&["snapshot", "revert", "a@s0"]);
    let record = lab.store().join("vms/b/vm.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"schema\": 1", "\"schema\": 99")).unwrap();
    let said = lab.ok(&["snapshot", "rm", "a@s"]);
    assert!(said.contains("the journal of b cannot be read"), "{said}");
    lab.ok(&["gc", "--older-than", "0"]);
    std::fs::write(&record, text).unwrap();
    assert_eq!(lab.chain("b").len(), 3);
    lab.ok(&["start", "b"]);
}

#[test]
fn a_hidden_layer_under_a_running_clone_waits_and_blocks_nobody() {
    let lab = Lab::new();
    lab.ok(&["create", "a", "--size", "64M", "--memory", "64M", "--net", "none"]);
    for point in ["s0", "s", "t"] {
        lab.ok(&["snapshot", "create", "a", point]);
    }
    lab.ok(&["clone", "a@s", "b"]);
    lab.ok(&["snapshot", "rm", "a@s"]);
    lab.ok(&["snapshot", "revert", "a@s0"]);
    lab.ok(&["snapshot", "rm", "a@s0"]);
    lab.ok(&["start", "b"]);
    lab.ok(&["snapshot", "rm", "a@t"]);
    lab.ok(&["start", "a"]);
    lab.ok(&["stop", "--force", "a", "b"]);
    for vm in ["a", "b"] {
        lab.ok(&["disk", "chain", vm]);
        lab.ok(&["start", vm]);
    }
}

#[test]
fn a_shared_read_only_disk_ties_nobody_to_anybody() {
    let lab = Lab::new();
    let seed = lab.path().join("seed.raw");
    std::fs::write(&seed, vec![7; 1 << 20]).unwrap();
    lab.ok(&[
        "create",
        "base",
        "--size",
        "64M",
        "--disk",
        &format!("{},ro", seed.to_str().unwrap()),
    ]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    lab.ok(&["clone", "base", "one"]);
    lab.ok(&["clone", "base", "two"]);
    lab.ok(&["rm", "one"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["start", "two"]);
    lab.run(&["template", "rm", "base"]).fails(5, &["two"]);
}

#[test]
fn a_hundred_clones_at_once_are_all_whole() {
    let lab = Lab::new();
    lab.ok(&["create", "base", "--size", "64M"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    let children: Vec<_> = (0..20)
        .map(|n| lab.spawn(&["--wait", "300", "clone", "base", &format!("c{n}"), "-n", "5"]))
        .collect();
    for child in children {
        Done::from(child.wait_with_output().unwrap()).ok();
    }
    let rows = lab.json(&["ls"]);
    assert_eq!(rows.as_array().unwrap().len(), 100);
    assert!(
        rows.as_array()
            .unwrap()
            .iter()
            .all(|row| row["state"] == "stopped" && row["from"] == "base")
    );
    assert_eq!(lab.layer_files().len(), 101);
}

#[test]
fn a_full_clone_that_finds_no_room_leaves_nothing() {
    let test = "a_full_clone_that_finds_no_room_leaves_nothing";
    let Some(disk) = Mounted::new("ext4", 48) else {
        return skip(test, "a loop device cannot be mounted here");
    };
    let lab = Lab::new();
    let run = |args: &[&str]| disk.run(&lab, args);
    disk.create_base(&lab);
    run(&["clone", "base", "x", "--full"]).fails(1, &["No space left", "make room"]);
    let files = |what: &str| std::fs::read_dir(disk.path().join(what)).unwrap().count();
    assert_eq!((files("vms"), files("layers")), (1, 1));
    run(&["clone", "base", "x", "--thin"]).ok();
}

#[test]
fn a_full_clone_shares_blocks_where_the_file_system_can() {
    let test = "a_full_clone_shares_blocks_where_the_file_system_can";
    let Some(disk) = ["btrfs", "xfs"].iter().find_map(|kind| Mounted::new(kind, 400)) else {
        return skip(test, "neither btrfs nor xfs can be made and mounted here");
    };
    let lab = Lab::new();
    let run = |args: &[&str]| disk.run(&lab, args);
    disk.create_base(&lab);
    let made: serde_json::Value =
        serde_json::from_str(&run(&["--format", "json", "clone", "base", "x", "--full"]).ok())
            .unwrap();
    assert!(made[0]["reason"].as_str().unwrap().contains("reflink"), "{made}");
}

/// A small file system of its own, on a loop device.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(kind: &str, megabytes: u64) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("cwfs").tempdir_in("/tmp").unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        std::fs::create_dir(directory.path().join("mnt")).unwrap();
        let quiet = |program: &str, args: &[&str]| {
            Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
        };
        let (image, mount) = (image.to_str().unwrap().to_owned(), directory.path().join("mnt"));
        (quiet(&format!("mkfs.{kind}"), &["-q", &image])
            && quiet("mount", &["-o", "loop", &image, mount.to_str().unwrap()]))
        .then_some(Self(directory))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mnt/store")
    }

    /// `cowhand …` with its store on this file system.
    fn run(&self, lab: &Lab, args: &[&str]) -> Done {
        lab.command(args).env("COWHAND_STORE", self.path()).output().unwrap().into()
    }

    /// The VM `base` with 20 MiB of data.
    fn create_base(&self, lab: &Lab) {
        let source = lab.path().join("data.raw");
        std::fs::write(&source, vec![1; 20 << 20]).unwrap();
        self.run(lab, &["create", "base", "--disk", source.to_str().unwrap()]).ok();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let mount = self.0.path().join("mnt");
        eventually("the unmounting", || {
            Command::new("umount").arg(&mount).status().is_ok_and(|status| status.success())
        });
    }
}

#[test]
fn a_flatten_removes_nothing_of_a_template_whose_record_cannot_be_read() {
    let lab = Lab::new();
    lab.ok(&["create", "t", "--size", "16M"]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    lab.ok(&["clone", "t", "a"]);
    let before = lab.layer_files().len();
    std::fs::write(lab.store().join("vms/t/vm.json"), "{").unwrap();
    lab.ok(&["flatten", "a"]);
    assert_eq!(lab.layer_files().len(), before);
    lab.ok(&["doctor", "t", "--repair"]);
    lab.ok(&["clone", "t", "b"]);
    lab.check_images();
}

#[test]
fn a_copy_of_a_vm_is_not_reset_onto_what_that_writes_to() {
    let lab = Lab::new();
    lab.ok(&["create", "v", "--size", "16M"]);
    lab.ok(&["clone", "v", "copy", "--full"]);
    lab.run(&["reset", "copy", "--stopped"]).fails(5, &["copy is a copy of the VM v"]);
    lab.ok(&["snapshot", "create", "v", "s"]);
    lab.ok(&["clone", "v@s", "other"]);
    lab.ok(&["reset", "other", "--stopped"]);
    lab.run(&["rm", "v"]).fails(5, &["other"]);
}

#[test]
fn a_vm_that_depends_on_nobody_is_not_made_dependent_by_a_reset() {
    let lab = Lab::new();
    lab.ok(&["create", "v", "--size", "16M"]);
    // What is copied out of an internal snapshot depends on nothing, either.
    lab.ok(&["snapshot", "create", "v", "inner", "--internal"]);
    lab.ok(&["clone", "v@inner", "copied"]);
    lab.ok(&["create", "t", "--size", "16M"]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    lab.ok(&["clone", "t", "full", "--full"]);
    lab.ok(&["clone", "t", "flat"]);
    lab.ok(&["clone", "t", "thin"]);
    lab.ok(&["flatten", "flat"]);
    for vm in ["full", "flat", "copied"] {
        let before = lab.json(&["show", vm]);
        lab.run(&["reset", vm, "--stopped"]).fails(5, &["full clone", "cowhand clone"]);
        assert_eq!(lab.json(&["show", vm]), before);
    }
    lab.ok(&["reset", "thin", "--stopped"]);
    lab.ok(&["rm", "thin"]);
    lab.ok(&["template", "rm", "t"]);
    lab.check_images();
}

#[test]
fn a_layer_nobody_needs_on_a_missing_one_is_in_nobodys_way() {
    let lab = Lab::new();
    lab.ok(&["create", "v", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "v", "s"]);
    let chain = lab.json(&["disk", "chain", "v"]);
    let base = chain[0]["layers"][1]["file"].as_str().unwrap().to_owned();
    lab.ok(&["create", "other", "--size", "16M"]);
    std::fs::remove_file(base).unwrap();
    lab.ok(&["rm", "v"]);
    lab.ok(&["snapshot", "create", "other", "s"]);
    lab.ok(&["snapshot", "rm", "other@s"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files().len(), 1);
}
