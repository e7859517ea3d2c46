//! Disks by hand: commit, stream, flatten, resize, check; images: info, check, convert, export;
//! snapshots that expire.

use std::process::Command;

use serde_json::Value;

use crate::lab::{Lab, qemu_img};

fn write(lab: &Lab, vm: &str, disk: usize, value: u8, at: &str) {
    let disks = lab.json(&["disk", "ls", vm]);
    let file = disks[disk]["file"].as_str().unwrap();
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &format!("write -P {value} {at} 64k"), file])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn content(lab: &Lab, point: &str, disk: &str) -> Vec<u8> {
    let raw = lab.path().join("content.raw");
    lab.ok(&["image", "export", point, raw.to_str().unwrap(), "--disk", disk, "--force"]);
    std::fs::read(raw).unwrap()
}

fn depth(lab: &Lab, vm: &str, disk: &str) -> usize {
    lab.json(&["disk", "chain", vm, disk])[0]["layers"].as_array().unwrap().len()
}

/// Two disks; s1, s2, s3 below the head, each with a mark of its own on both.
fn line(lab: &Lab) {
    lab.ok(&[
        "create", "web", "--size", "16M", "--size", "16M", "--memory", "64M", "--net", "none",
    ]);
    for n in 1..=4u8 {
        write(lab, "web", 0, n, &format!("{}k", 64 * u32::from(n)));
        write(lab, "web", 1, n, &format!("{}k", 64 * u32::from(n)));
        if n < 4 {
            lab.ok(&["snapshot", "create", "web", &format!("s{n}")]);
        }
    }
}

#[test]
fn a_commit_by_hand_gives_up_what_it_says_and_keeps_every_byte() {
    let lab = Lab::new();
    line(&lab);
    let (first, second) = (content(&lab, "web", "vda"), content(&lab, "web", "vdb"));
    let before = lab.fingerprint();
    let told = lab.json(&["disk", "commit", "web", "vda", "--base", "s2", "--dry-run"]);
    assert_eq!(told["given_up"], serde_json::json!(["s2", "s3"]));
    assert_eq!(lab.fingerprint(), before, "a dry run changes nothing");
    for (args, code, words) in [
        (vec!["--top", "s2", "--base", "s3"], 2, "above"),
        (vec!["--top", "s2", "--base", "s2"], 2, "the same layer"),
        (vec!["--base", "s9"], 3, "no layer below"),
        (vec!["--top", "s1"], 5, "no backing file"),
    ] {
        lab.run(&[&["disk", "commit", "web", "vda"], &args[..]].concat()).fails(code, &[words]);
    }
    lab.run(&["disk", "commit", "web", "vdz"]).fails(3, &["vda, vdb"]);
    assert_eq!(lab.fingerprint(), before, "what is refused changes nothing");
    // In the middle: the head stays on top.
    lab.ok(&["disk", "commit", "web", "vda", "--top", "s3", "--base", "s2"]);
    assert_eq!(
        (depth(&lab, "web", "vda"), depth(&lab, "web", "vdb")),
        (3, 3),
        "the other disk follows"
    );
    assert_eq!(
        (content(&lab, "web", "vda"), content(&lab, "web", "vdb")),
        (first.clone(), second.clone())
    );
    lab.ok(&["start", "web"]);
    lab.ok(&["disk", "commit", "web", "vda"]);
    lab.ok(&["disk", "commit", "web", "vda"]);
    assert_eq!(lab.state("web"), "running");
    assert_eq!((depth(&lab, "web", "vda"), depth(&lab, "web", "vdb")), (1, 1));
    assert_eq!(lab.ok(&["snapshot", "ls", "web", "-q"]), "");
    lab.run(&["disk", "commit", "web", "vda"]).fails(5, &["no backing file to commit into"]);
    lab.ok(&["stop", "--force", "web"]);
    assert_eq!((content(&lab, "web", "vda"), content(&lab, "web", "vdb")), (first, second));
    lab.check_images();
}

#[test]
fn a_commit_into_what_a_clone_or_a_template_depends_on_is_refused() {
    let lab = Lab::new();
    line(&lab);
    lab.ok(&["clone", "web@s3", "copy"]);
    let before = content(&lab, "copy", "vda");
    lab.run(&["disk", "commit", "web", "vda"]).fails(5, &["copy"]);
    lab.ok(&["create", "base", "--size", "16M"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    lab.ok(&["clone", "base", "thin"]);
    lab.run(&["disk", "commit", "thin", "vda"]).fails(5, &["template base"]);
    assert_eq!(content(&lab, "copy", "vda"), before);
}

#[test]
fn a_stream_shortens_the_chain_and_snapshots_keep_theirs() {
    let lab = Lab::new();
    line(&lab);
    let head = content(&lab, "web", "vda");
    let points: Vec<Vec<u8>> = ["s1", "s2", "s3"]
        .iter()
        .map(|name| content(&lab, &format!("web@{name}"), "vda"))
        .collect();
    lab.ok(&["start", "web"]);
    lab.ok(&["disk", "stream", "web", "vda", "--base", "s1"]);
    assert_eq!((depth(&lab, "web", "vda"), depth(&lab, "web", "vdb")), (2, 4));
    lab.ok(&["flatten", "web"]);
    assert_eq!((depth(&lab, "web", "vda"), depth(&lab, "web", "vdb")), (1, 1));
    assert!(lab.ok(&["disk", "stream", "web", "vda"]).contains("nothing to merge"));
    for (name, expected) in ["s1", "s2", "s3"].iter().zip(&points) {
        assert!(content(&lab, &format!("web@{name}"), "vda") == *expected, "{name}");
    }
    lab.ok(&["stop", "--force", "web"]);
    assert!(content(&lab, "web", "vda") == head);
    lab.check_images();
}

#[test]
fn a_flatten_that_is_interrupted_does_not_say_that_it_was_completed() {
    let lab = Lab::new();
    line(&lab);
    let (head, before) = (content(&lab, "web", "vda"), depth(&lab, "web", "vda"));
    let interrupt = |pid| {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    };
    let (status, said) = lab.stopped_at(&["flatten", "web"], "merge, about to happen", interrupt);
    let said = said.join("\n");
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(
        said.contains("cut short before its layers were merged (it was interrupted)"),
        "{said}"
    );
    assert!(!said.contains("completed") && !said.contains("hidden"), "{said}");
    assert_eq!(depth(&lab, "web", "vda"), before);
    lab.ok(&["flatten", "web"]);
    assert_eq!(depth(&lab, "web", "vda"), 1);
    assert!(content(&lab, "web", "vda") == head);
    lab.check_images();
}

#[test]
fn a_flattened_clone_outlives_its_template() {
    let lab = Lab::new();
    line(&lab);
    for name in ["s3", "s2", "s1"] {
        lab.ok(&["snapshot", "rm", &format!("web@{name}")]);
    }
    lab.ok(&["template", "create", "web", "--no-seal"]);
    lab.ok(&["clone", "web", "t", "-n", "2"]);
    lab.ok(&["start", "t-2"]);
    lab.run(&["template", "rm", "web"]).fails(5, &["t-1", "cowhand flatten t-1 t-2"]);
    let expected = content(&lab, "web", "vda");
    lab.ok(&["flatten", "t-1", "t-2"]);
    lab.ok(&["template", "rm", "web"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(content(&lab, "t-1", "vda") == expected);
    lab.ok(&["stop", "--force", "t-2"]);
    assert!(content(&lab, "t-2", "vda") == expected);
}

#[test]
fn a_disk_grows_while_its_guest_runs_and_never_shrinks_below_its_data() {
    let lab = Lab::new();
    lab.tiny("web", &["--size", "16M"]);
    write(&lab, "web", 1, 7, "8M");
    lab.ok(&["snapshot", "create", "web", "small"]);
    lab.ok(&["start", "web"]);
    lab.sh("web", "true");
    lab.ok(&["disk", "resize", "web", "vdb", "+16M"]);
    let sectors =
        |lab: &Lab| lab.sh("web", "cat /sys/block/vdb/size").trim().parse::<u64>().unwrap();
    assert_eq!(sectors(&lab) * 512, 32 << 20, "the guest sees it at once");
    assert_eq!(lab.json(&["disk", "ls", "web"])[1]["virtual_bytes"], 32 << 20);
    lab.run(&["disk", "resize", "web", "vdb", "4M"]).fails(5, &["its data reaches up to"]);
    lab.run(&["disk", "resize", "web", "vdb", "9M"]).fails(5, &["--shrink"]);
    lab.run(&["disk", "resize", "web", "vdb", "9M", "--shrink"]).fails(5, &["while it runs"]);
    lab.run(&["disk", "resize", "web", "vdb", "1000"]).fails(2, &["512"]);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["disk", "resize", "web", "vdb", "9M", "--shrink"]);
    assert_eq!(content(&lab, "web", "vdb").len(), 9 << 20);
    lab.ok(&["disk", "resize", "web", "vdb", "64M"]);
    assert_eq!(content(&lab, "web", "vdb")[8 << 20], 7);
    lab.ok(&["snapshot", "revert", "web@small"]);
    assert_eq!(
        lab.json(&["disk", "ls", "web"])[1]["virtual_bytes"],
        16 << 20,
        "the size comes back, too"
    );
    lab.check_images();
}

#[test]
fn damage_in_any_layer_is_found_and_sound_ones_are_called_so() {
    let lab = Lab::new();
    line(&lab);
    let rows = lab.json(&["disk", "check", "web"]);
    assert_eq!(rows.as_array().unwrap().len(), 8);
    assert!(lab.ok(&["disk", "check", "web", "vda"]).contains("sound"));
    // The base of the first disk: an L2 table that leads behind the end of the file.
    let base = lab.chain("web").pop().unwrap();
    let file = lab.store().join(format!("layers/{base}.qcow2"));
    let mut bytes = std::fs::read(&file).unwrap();
    let l1_at = usize::try_from(u64::from_be_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    bytes[l1_at..l1_at + 8].copy_from_slice(&((1u64 << 63) | (64 << 20)).to_be_bytes());
    std::fs::write(&file, bytes).unwrap();
    lab.run(&["disk", "check", "web"]).fails(8, &[&base, "damaged"]);
    lab.run(&["image", "check", file.to_str().unwrap()]).fails(8, &["damaged"]);
    lab.ok(&["disk", "check", "web", "vdb"]);
}

#[test]
fn images_are_described_converted_and_never_overwritten_by_mistake() {
    let lab = Lab::new();
    line(&lab);
    let file = |name: &str| lab.path().join(name).to_str().unwrap().to_owned();
    lab.run(&["image", "export", "web@s2", &file("x.qcow2")]).fails(2, &["--disk vda"]);
    lab.run(&["image", "export", "web@nothing", &file("x.qcow2")]).fails(3, &["s3, s2, s1"]);
    let written = lab.json(&["image", "export", "web@s2", &file("x.qcow2"), "--disk", "vda"]);
    assert_eq!(written["format"], "qcow2");
    let info = lab.json(&["image", "info", &file("x.qcow2")]);
    assert_eq!(
        (&info["format"], &info["virtual_bytes"], &info["backing"]),
        (&"qcow2".into(), &(16 << 20).into(), &Value::Null)
    );
    lab.run(&["image", "export", "web@s2", &file("x.qcow2"), "--disk", "vda"])
        .fails(4, &["--force"]);
    for format in ["raw", "qcow2", "vmdk", "vhdx", "vdi"] {
        lab.ok(&["image", "convert", &file("x.qcow2"), &file(&format!("y.{format}"))]);
        let info = lab.json(&["image", "info", &file(&format!("y.{format}"))]);
        assert_eq!((&info["format"], &info["virtual_bytes"]), (&format.into(), &(16 << 20).into()));
    }
    assert!(std::fs::read(file("y.raw")).unwrap() == content(&lab, "web@s2", "vda"));
    lab.ok(&["image", "convert", &file("y.raw"), &file("z"), "-O", "qcow2"]);
    lab.run(&["image", "check", &file("z")])
        .fails(5, &["without a format in its name", "-f raw", "-f qcow2"]);
    lab.ok(&["image", "check", &file("z"), "-f", "qcow2"]);
    // QEMU has no check for this one.
    qemu_img(&["create", "-q", "-f", "vpc", &file("v.vpc"), "1M"]);
    assert!(lab.ok(&["image", "check", &file("v.vpc")]).contains("vpc: there is nothing to check"));
    lab.run(&["image", "info", &file("none")]).fails(3, &["none"]);
    lab.run(&["image", "convert", &file("y.raw"), &file("no/z")]).fails(3, &["no directory"]);
    // A layer of the store tells of its internal snapshots, too.
    qemu_img(&["snapshot", "-c", "inner", &file("x.qcow2")]);
    assert!(lab.ok(&["image", "info", &file("x.qcow2")]).contains("inner"));
    // Of a running VM: a point of it, not its head.
    lab.ok(&["start", "web"]);
    lab.run(&["image", "export", "web", &file("w.raw"), "--disk", "vda"])
        .fails(5, &["running", "web@NOW"]);
    lab.ok(&["image", "export", "web@s3", &file("w.raw"), "--disk", "vda"]);
}

#[test]
fn snapshots_that_have_expired_are_merged_by_gc_and_others_are_not() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["snapshot", "create", "web", "old", "--expires", "0s"]);
    lab.write("web", "/root/a", "one");
    lab.ok(&["snapshot", "create", "web", "young", "--expires", "7d"]);
    lab.ok(&["snapshot", "create", "web", "ever"]);
    let rows = lab.json(&["snapshot", "ls", "web"]);
    assert!(
        rows[0]["expires"].is_string()
            && rows[1]["expires"].is_string()
            && rows[2]["expires"].is_null()
    );
    assert!(lab.ok(&["gc", "--dry-run"]).contains("web@old"));
    assert_eq!(lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len(), 3);
    lab.ok(&["gc"]);
    assert_eq!(lab.ok(&["snapshot", "ls", "web", "-q"]), "young\never\n");
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("one"));
    assert_eq!(lab.state("web"), "running");
    lab.run(&["snapshot", "create", "web", "x", "--expires", "soon"]).fails(2, &["not a time"]);
}

#[test]
fn a_layer_that_a_clone_kept_hidden_is_merged_once_the_clone_is_gone() {
    let lab = Lab::new();
    line(&lab);
    lab.ok(&["clone", "web@s2", "copy"]);
    lab.ok(&["snapshot", "rm", "web@s2"]);
    assert_eq!(depth(&lab, "web", "vda"), 4);
    let head = content(&lab, "web", "vda");
    lab.ok(&["rm", "copy"]);
    // While the clone could still be had back, what it depends on stays.
    lab.ok(&["gc"]);
    assert_eq!(depth(&lab, "web", "vda"), 4);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!((depth(&lab, "web", "vda"), depth(&lab, "web", "vdb")), (3, 3));
    assert!(content(&lab, "web", "vda") == head);
}
