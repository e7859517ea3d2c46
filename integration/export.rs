//! What is exported for libvirt comes over again as it was: `import` reads what `export` writes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::lab::{Lab, files_in, qemu_img, tool};

/// The first bytes of each megabyte of a point's disk.
fn bytes(lab: &Lab, point: &str, disk: &str) -> Vec<u8> {
    let raw = lab.path().join("looked-at.raw");
    lab.ok(&[
        "image",
        "export",
        point,
        raw.to_str().unwrap(),
        "--force",
        "--disk",
        disk,
        "-O",
        "raw",
    ]);
    std::fs::read(&raw).unwrap().chunks(1 << 20).map(|chunk| chunk[0]).collect()
}

/// Writes into the head of a VM that does not run.
fn put(lab: &Lab, vm: &str, disk: usize, byte: u8, megabyte: u32) {
    let file = lab.json(&["disk", "ls", vm])[disk]["file"].as_str().unwrap().to_owned();
    let command = format!("write -P {byte} {megabyte}M 1M");
    tool("qemu-io", &["-f", "qcow2", "-c", &command, &file]);
}

fn tree(lab: &Lab, vm: &str) -> Vec<Value> {
    let listed = lab.json(&["snapshot", "ls", vm]);
    let keys = ["name", "parent", "kind", "current", "description", "created"];
    let row = |row: &Value| keys.iter().map(|key| (key.to_string(), row[key].clone())).collect();
    // A file has whole seconds.
    let rows = listed.as_array().unwrap().iter().map(row);
    rows.map(|mut row: Value| {
        let text = row["created"].as_str().unwrap()[..19].to_owned();
        row["created"] = text.into();
        row
    })
    .collect()
}

fn again(lab: &Lab, directory: &Path, name: &str) -> Value {
    let xml = directory.join("web.xml");
    let mut args = vec!["import", xml.to_str().unwrap(), "--name", name, "--with-backing=DIR"];
    let below = format!("--with-backing={}", lab.path().display());
    args[4] = &below;
    let snapshots = directory.join("snapshots");
    if snapshots.exists() {
        args.extend(["--snapshots", snapshots.to_str().unwrap()]);
    }
    lab.json(&args)
}

#[test]
fn a_vm_with_snapshots_comes_over_again_as_it_was() {
    let lab = Lab::new();
    let (raw, iso) = (lab.path().join("base.img"), lab.path().join("a & b's.iso"));
    std::fs::write(&raw, vec![1; 4 << 20]).unwrap();
    std::fs::write(&iso, vec![1; 1 << 20]).unwrap();
    let nic = "user,model=e1000e,mac=52:54:00:12:34:56";
    lab.ok(&[
        "create",
        "web",
        "--disk",
        &format!("{},bus=sata,serial=WD-1", raw.display()),
        "--size",
        "4M",
        "--bus",
        "scsi",
        "--iso",
        iso.to_str().unwrap(),
        "--net",
        nic,
        "--tag",
        "description=ours & <theirs>",
        "--cpus",
        "3",
        "--memory",
        "64M",
    ]);
    lab.ok(&["snapshot", "create", "web", "first", "--description", "before \"it\""]);
    put(&lab, "web", 0, 2, 1);
    lab.ok(&["snapshot", "create", "web", "second"]);
    put(&lab, "web", 1, 3, 2);
    lab.ok(&["snapshot", "revert", "web@first"]);
    put(&lab, "web", 0, 9, 3);
    lab.ok(&["snapshot", "create", "web", "aside"]);
    put(&lab, "web", 0, 7, 0);
    let out = lab.path().join("out");
    let before = lab.fingerprint();
    let done = lab.json(&["export", "--libvirt", "web", out.to_str().unwrap()]);
    assert_eq!(lab.fingerprint(), before);
    assert_eq!(done["snapshots"].as_array().unwrap().len(), 3);
    assert_eq!(done["snapshots"][2]["current"], true, "{done}");
    let commands = done["commands"].as_array().unwrap();
    assert!(
        commands.len() == 4
            && commands[3].as_str().unwrap().ends_with("003-aside.xml --redefine --current"),
        "{done}"
    );
    assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o711);
    for file in files_in(&out).iter().filter(|file| file.ends_with(".qcow2")) {
        qemu_img(&["check", "-q", out.join(file).to_str().unwrap()]);
    }
    let done = again(&lab, &out, "copy");
    let parts = done["parts"].as_array().unwrap();
    for what in [
        "disk sda", "disk sdb", "CD-ROM sdc", "snapshot first", "snapshot second",
        "snapshot aside", "description",
    ] {
        assert!(
            parts.iter().any(|part| part["what"] == what && part["fate"] == "kept"),
            "{what}: {done}"
        );
    }
    let mut trees = [tree(&lab, "web"), tree(&lab, "copy")];
    trees.iter_mut().for_each(|tree| tree.sort_by_key(|row| row["name"].to_string()));
    assert_eq!(trees[0], trees[1]);
    for point in ["", "@first", "@second", "@aside"] {
        for disk in ["sda", "sdb"] {
            let (one, two) = (
                bytes(&lab, &format!("web{point}"), disk),
                bytes(&lab, &format!("copy{point}"), disk),
            );
            assert_eq!(one, two, "{point} {disk}");
        }
    }
    let shown = [lab.json(&["show", "web"]), lab.json(&["show", "copy"])];
    for key in ["machine", "memory_bytes", "cpus", "cdroms", "nics", "tags"] {
        assert_eq!(shown[0][key], shown[1][key], "{key}");
    }
    assert_eq!(bytes(&lab, "copy", "sda"), [7, 1, 1, 9]);
    // A point alone is one file for each disk, and has no snapshots.
    let point = lab.path().join("point");
    let done = lab.json(&["export", "--libvirt", "web@second", point.to_str().unwrap()]);
    assert_eq!(done["snapshots"], json!([]));
    assert_eq!(files_in(&point), ["sda.qcow2", "sdb.qcow2", "web.xml"]);
    again(&lab, &point, "third");
    assert_eq!(bytes(&lab, "third", "sda"), [1, 2, 1, 1]);
}

#[test]
fn internal_snapshots_keep_their_names_and_nothing_else_goes_along() {
    let lab = Lab::new();
    let base = lab.path().join("base.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "4M"]);
    lab.ok(&["image", "add", base.to_str().unwrap(), "small"]);
    lab.ok(&["create", "web", "--image", "small", "--machine", "pc", "--net", "none"]);
    put(&lab, "web", 0, 1, 0);
    lab.ok(&["snapshot", "create", "web", "early", "--internal"]);
    put(&lab, "web", 0, 2, 0);
    lab.ok(&["snapshot", "create", "web", "late", "--internal"]);
    put(&lab, "web", 0, 3, 0);
    // The way back from a revert is inside, too, and is nobody else's business.
    lab.ok(&["snapshot", "revert", "web@early"]);
    put(&lab, "web", 0, 4, 1);
    let out = lab.path().join("out");
    lab.ok(&["export", "--libvirt", "web", out.to_str().unwrap()]);
    let head = lab.json(&["disk", "ls", "web"])[0]["file"].as_str().unwrap().to_owned();
    let copy = out.join(Path::new(&head).file_name().unwrap());
    let info: Value =
        serde_json::from_str(&qemu_img(&["info", "--output=json", copy.to_str().unwrap()]))
            .unwrap();
    let mut names: Vec<&str> = info["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["early", "late"]);
    qemu_img(&["check", "-q", copy.to_str().unwrap()]);
    again(&lab, &out, "copy");
    assert_eq!(bytes(&lab, "copy", "vda"), [1, 4, 0, 0]);
    lab.ok(&["snapshot", "revert", "copy@late"]);
    assert_eq!(bytes(&lab, "copy", "vda")[0], 2);
    // What came over is exported once more, with the names that it has.
    let twice = lab.path().join("twice");
    let done = lab.json(&["export", "--libvirt", "copy", twice.to_str().unwrap()]);
    assert_eq!(done["snapshots"].as_array().unwrap().len(), 2, "{done}");
    assert_eq!(done["snapshots"][1]["current"], true, "{done}");
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "4M", "--net", "none"]);
    let at = |name: &str| lab.path().join(name).to_str().unwrap().to_owned();
    let out = at("out");
    lab.ok(&["start", "--paused", "web"]);
    lab.run(&["export", "--libvirt", "web", &out]).fails(5, &["web is running", "web@SNAPSHOT"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["export", "--libvirt", "web@s", &at("running")]);
    lab.ok(&["stop", "--force", "web"]);
    lab.run(&["export", "--libvirt", "nobody", &out]).fails(3, &["nobody"]);
    lab.run(&["export", "--libvirt", "web@t", &out]).fails(3, &["no snapshot t"]);
    lab.run(&["export", "--libvirt", "web", &at("running")]).fails(4, &["is there already"]);
    lab.run(&["export", "--libvirt", "web", &at("no/where")]).fails(3, &["no"]);
    let inside = lab.store().join("out");
    lab.run(&["export", "--libvirt", "web", inside.to_str().unwrap()])
        .fails(5, &["lies in the store"]);
    lab.run(&["export", "web", &out]).fails(2, &["--libvirt"]);
    let left: Vec<String> =
        files_in(lab.path()).into_iter().filter(|name| name.starts_with(".cowhand")).collect();
    assert!(left.is_empty() && !Path::new(&out).exists(), "{left:?}");
}
