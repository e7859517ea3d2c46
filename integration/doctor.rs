//! `doctor`: what is wrong is said, what can be mended is mended, and nothing else is touched.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::{Done, Lab, eventually, is_about_the_host, kill, qemu_img};
use crate::tier;

/// What `doctor` finds with a level of `warn` or `fail`, as `check vm`. The host is not the store's
/// business.
fn wrong(lab: &Lab, args: &[&str]) -> Vec<String> {
    let done = lab.run(&[&["--format", "json", "doctor"], args].concat());
    let found: Vec<Value> =
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let fails = found.iter().any(|finding| finding["level"] == "fail");
    assert_eq!(done.code, i32::from(fails), "{done:?}");
    let bad = |finding: &&Value| finding["level"] == "warn" || finding["level"] == "fail";
    let about = |finding: &Value| {
        format!("{} {}", finding["check"].as_str().unwrap(), finding["vm"].as_str().unwrap_or("-"))
    };
    found.iter().filter(|finding| !is_about_the_host(finding)).filter(bad).map(about).collect()
}

/// `web` with the snapshots a and b, and a bystander.
fn lab() -> Lab {
    let lab = Lab::new();
    for vm in ["web", "bystander"] {
        lab.ok(&["create", vm, "--size", "16M"]);
        lab.ok(&["snapshot", "create", vm, "a"]);
        lab.ok(&["snapshot", "create", vm, "b"]);
    }
    lab.ok(&["set", "web", "cpus=3"]);
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
    lab
}

fn layer(lab: &Lab, vm: &str, depth: usize) -> PathBuf {
    lab.store().join("layers").join(format!("{}.qcow2", lab.chain(vm)[depth]))
}

#[test]
fn a_damaged_record_is_listed_explained_and_mended() {
    let lab = lab();
    let record = lab.store().join("vms/web/vm.json");
    let good = std::fs::read(&record).unwrap();
    let before = lab.fingerprint();
    for bad in [&b"{\"schema\": 1, \"cpuz\""[..], b"", b"\0\0\0\0", &good[..good.len() / 2]] {
        std::fs::write(&record, bad).unwrap();
        let rows = lab.json(&["ls"]);
        let states: Vec<_> =
            rows.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap()).collect();
        assert_eq!(states, ["stopped", "broken"]);
        assert_eq!(wrong(&lab, &[]), ["record web"]);
        assert_eq!(wrong(&lab, &["bystander"]), Vec::<String>::new());
        assert_eq!(std::fs::read(&record).unwrap(), bad, "looking has changed it");
        lab.ok(&["doctor", "--repair"]);
        assert_eq!(std::fs::read(&record).unwrap(), good);
        assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
    }
    std::fs::remove_file(&record).unwrap();
    assert_eq!(wrong(&lab, &[]).len(), 1);
    let mut now = lab.fingerprint();
    now.retain(|path, _| !path.to_string_lossy().contains("/trash") && *path != record);
    let mut before = before;
    before.retain(|path, _| !path.to_string_lossy().contains("/trash") && *path != record);
    assert_eq!(now, before, "something else was touched");
}

#[test]
fn a_damaged_header_stops_its_own_vm_and_no_other() {
    let lab = lab();
    // `lab` makes two.
    for n in 2..if tier::is_all() { 50 } else { 2 } {
        lab.ok(&["create", &format!("other{n}"), "--size", "16M", "--net", "none"]);
    }
    let file = layer(&lab, "web", 1);
    let good = std::fs::read(&file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let (mut noticed, mut stopped) = (0, Vec::new());
    for at in (0..104).step_by(tier::first_or(7, 1)) {
        let mut bad = good.clone();
        bad[at] ^= 0x9a;
        std::fs::write(&file, &bad).unwrap();
        let what = format!("byte {at}");
        let states = lab.json(&["ls"]);
        let state = |vm: &str| {
            states.as_array().unwrap().iter().find(|row| row["name"] == vm).unwrap()["state"]
                .clone()
        };
        assert_eq!(state("bystander"), "stopped", "{what}");
        for args in [
            &["start", "--paused", "bystander"][..],
            &["snapshot", "create", "bystander", "more"],
            &["stop", "--force", "bystander"],
            &["snapshot", "rm", "bystander@more"],
            &["clone", "bystander", "copy", "--full"],
            &["rm", "copy"],
            &["gc", "--older-than", "0"],
        ] {
            let done = lab.run(args);
            if done.code != 0 {
                stopped.push(format!("{what}: {args:?}: {done:?}"));
            }
        }
        assert_eq!(wrong(&lab, &["bystander"]), Vec::<String>::new(), "{what}");
        let done = lab.run(&["doctor"]);
        assert!(!done.err.contains("error:"), "{what}: {done:?}");
        // What is found is said with the layer and the VM.
        if done.code != 0 {
            noticed += 1;
            assert!(
                done.out.contains(name.trim_end_matches(".qcow2")) && done.out.contains("web"),
                "{what}: {done:?}"
            );
            let done = lab.run(&["start", "--paused", "web"]);
            assert_ne!(done.code, 0, "{what}: {done:?}");
            assert!(done.err.contains(name.trim_end_matches(".qcow2")), "{what}: {done:?}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), bad, "{what}: something was written to it");
        std::fs::write(&file, &good).unwrap();
    }
    assert_eq!(stopped, Vec::<String>::new());
    assert!(noticed > 0);
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
}

#[test]
fn what_a_damaged_layer_was_made_on_is_neither_written_to_nor_removed() {
    let lab = lab();
    let damage = |file: &PathBuf| {
        let mut bytes = std::fs::read(file).unwrap();
        bytes[7] = 9;
        std::fs::write(file, bytes).unwrap();
    };
    // The record is an older one, and the head that it does not know is damaged.
    let record = lab.store().join("vms/web/vm.json");
    let old = std::fs::read(&record).unwrap();
    let below = layer(&lab, "web", 0);
    lab.ok(&["snapshot", "create", "web", "c"]);
    let head = layer(&lab, "web", 0);
    if rustix::fs::getxattr(&head, "user.cowhand.backing", &mut [0; 64][..]).is_err() {
        let why = "the file system of /tmp has no extended attributes";
        return crate::lab::skip(
            "what_a_damaged_layer_was_made_on_is_neither_written_to_nor_removed",
            why,
        );
    }
    std::fs::write(&record, old).unwrap();
    damage(&head);
    let before = std::fs::read(&below).unwrap();
    lab.run(&["start", "--paused", "web"]).fails(8, &["out of date", "cowhand doctor web"]);
    lab.run(&["doctor", "web", "--repair"]);
    lab.run(&["start", "--paused", "web"]).fails(8, &[]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(std::fs::read(&below).unwrap(), before);
    assert!(head.exists());
    // A clone whose layer is damaged is still a clone.
    lab.ok(&["clone", "bystander", "copy"]);
    damage(&layer(&lab, "copy", 0));
    lab.run(&["rm", "bystander"]).fails(5, &["copy"]);
    let removed = lab.run(&["rm", "bystander", "--cascade"]);
    assert_eq!(removed.code, 0, "{removed:?}");
    assert_eq!(lab.vm_directories(), ["web"]);
}

#[test]
fn a_spare_record_that_does_not_fit_is_not_used() {
    let lab = lab();
    let (record, spare) =
        (lab.store().join("vms/web/vm.json"), lab.store().join("vms/web/vm.json.spare"));
    // From before the last snapshot: its head is a layer that another one depends on by now.
    let old = std::fs::read(&spare).unwrap();
    lab.ok(&["snapshot", "create", "web", "c"]);
    std::fs::write(&spare, old).unwrap();
    std::fs::write(&record, "{").unwrap();
    let done = lab.run(&["doctor", "web", "--repair"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.out.contains("spare copy does not fit") && done.out.contains("backed by its vda"),
        "{}",
        done.out
    );
    assert_eq!(std::fs::read_to_string(&record).unwrap(), "{");
    // While nobody knows what it uses, its layers are not taken for unused.
    let layers = lab.layer_files();
    lab.run(&["doctor", "--repair"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files(), layers);
}

#[test]
fn a_wrong_backing_file_is_put_right_where_the_records_tell() {
    let lab = lab();
    let image = |lab: &Lab| {
        let raw = lab.path().join("x.raw");
        lab.ok(&["image", "export", "web", raw.to_str().unwrap(), "--force"]);
        std::fs::read(raw).unwrap()
    };
    let base = layer(&lab, "web", 2);
    let place = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 7 1M 64k"])
        .arg(&base)
        .output()
        .unwrap();
    assert!(place.status.success());
    if rustix::fs::setxattr(&base, "user.test", b"x", rustix::fs::XattrFlags::empty()).is_err() {
        return crate::lab::skip(
            "a_wrong_backing_file",
            "the file system of /tmp has no extended attributes",
        );
    }
    // It is to be as it is now.
    let _ = rustix::fs::removexattr(&base, "user.cowhand.sealed");
    let before = image(&lab);
    let stranger = layer(&lab, "bystander", 1);
    let stranger = stranger.file_name().unwrap().to_str().unwrap();
    let below = layer(&lab, "web", 2);
    let below = below.file_name().unwrap().to_str().unwrap();
    let wrong_names = ["nothing.qcow2", "aaaaaaaaaa.qcow2", "/etc/passwd", stranger, "", below];
    for depth in [0, 1, 2] {
        // In the first tier each name at one depth.
        let stride = tier::first_or(3, 1);
        for wrong_name in wrong_names.into_iter().skip(depth % stride).step_by(stride) {
            let file = layer(&lab, "web", depth);
            if file.ends_with(wrong_name)
                || (depth == 1 && wrong_name == below)
                || (depth == 2 && wrong_name.is_empty())
            {
                continue;
            }
            let format: &[&str] = if wrong_name.is_empty() { &[] } else { &["-F", "qcow2"] };
            let rebase = [
                &["rebase", "-u", "-f", "qcow2", "-b", wrong_name][..],
                format,
                &[file.to_str().unwrap()],
            ]
            .concat();
            qemu_img(&rebase);
            assert_eq!(wrong(&lab, &["bystander"]), Vec::<String>::new());
            assert_eq!(wrong(&lab, &["web"]), ["chain web"], "{wrong_name} at {depth}");
            lab.ok(&["doctor", "web", "--repair"]);
            assert_eq!(image(&lab), before, "{wrong_name} at {depth}");
        }
    }
    // Without the note that it was made with, nobody knows what it should be, and nobody guesses.
    let head = layer(&lab, "web", 0);
    rustix::fs::removexattr(&head, "user.cowhand.backing").unwrap();
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "aaaaaaaaaa.qcow2",
        "-F",
        "qcow2",
        head.to_str().unwrap(),
    ]);
    let (bytes, files) = (std::fs::read(&head).unwrap(), lab.layer_files());
    lab.run(&["doctor", "--repair"]).fails(1, &[]);
    assert_eq!(std::fs::read(&head).unwrap(), bytes);
    // What seems unused now may be what is missing.
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files(), files);
}

/// A snapshot killed at any point, and then a record that is emptied: the spare or the journal,
/// together, lead out of it.
#[test]
fn a_record_that_is_lost_in_the_middle_of_a_change_comes_back() {
    let lab = lab();
    for point in 1.. {
        let output = lab
            .command(&["snapshot", "create", "web", &format!("s{point}")])
            .env("COWHAND_FAULT", format!("{point}:die"))
            .output()
            .unwrap();
        let record = lab.store().join("vms/web/vm.json");
        std::fs::write(&record, "").unwrap();
        let done = lab.run(&["doctor", "--repair"]);
        if !lab.store().join("vms/web/vm.json.spare").exists() {
            // It died between the two copies.
            assert_eq!(done.code, 1, "{point}: {done:?}");
            return;
        }
        assert_eq!(wrong(&lab, &[]), Vec::<String>::new(), "{point}: {done:?}");
        lab.ok(&["set", "web", &format!("tag.t={point}")]);
        if output.status.success() {
            return;
        }
    }
}

#[test]
fn a_template_never_becomes_a_vm_by_being_repaired() {
    for point in 1.. {
        let lab = Lab::new();
        lab.ok(&["create", "web", "--size", "16M"]);
        let create = ["template", "create", "web", "--no-seal"];
        let output =
            lab.command(&create).env("COWHAND_FAULT", format!("{point}:die")).output().unwrap();
        lab.run(&["set", "web", "tag.t=1"]);
        let is_template = |lab: &Lab| lab.json(&["template", "ls"]).as_array().unwrap().len() == 1;
        let was = is_template(&lab);
        std::fs::write(lab.store().join("vms/web/vm.json"), "").unwrap();
        let done = lab.run(&["doctor", "--repair"]);
        assert!(done.code == 1 || is_template(&lab) == was, "{point}: {done:?}");
        if output.status.success() {
            assert!(was && done.code == 0, "{done:?}");
            return;
        }
    }
}

#[test]
fn a_record_of_a_newer_version_is_left_alone() {
    let lab = lab();
    let record = lab.store().join("vms/web/vm.json");
    let newer = std::fs::read_to_string(&record).unwrap().replace("\"schema\": 1", "\"schema\": 2");
    std::fs::write(&record, &newer).unwrap();
    assert_eq!(wrong(&lab, &["--repair"]), ["record web"]);
    assert_eq!(std::fs::read_to_string(&record).unwrap(), newer);
}

/// Full and flattened clones, renamed and reused snapshot names, hidden layers: what a record says
/// of its origin is history, and proves nothing.
#[test]
fn doctor_believes_headers_where_records_tell_of_the_past() {
    let lab = Lab::new();
    lab.ok(&["create", "b", "--size", "16M"]);
    lab.ok(&["template", "create", "b", "--no-seal"]);
    for (clone, how) in [("full", "--full"), ("flat", "--thin")] {
        lab.ok(&["clone", "b", clone, how]);
        if clone == "flat" {
            lab.ok(&["flatten", "flat"]);
        }
        lab.ok(&["snapshot", "create", clone, "x"]);
        lab.ok(&["snapshot", "create", clone, "z", "--internal"]);
        lab.ok(&["snapshot", "rm", &format!("{clone}@x")]);
    }
    lab.ok(&["create", "src", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "src", "s0"]);
    lab.ok(&["snapshot", "create", "src", "s1"]);
    for clone in ["c1", "c2", "c3"] {
        lab.ok(&["clone", "src@s1", clone]);
    }
    lab.ok(&["snapshot", "revert", "src@s0"]);
    lab.ok(&["snapshot", "rename", "src@s1", "old"]);
    lab.ok(&["snapshot", "create", "src", "s1"]);
    lab.ok(&["snapshot", "rm", "src@old"]);
    lab.ok(&["rm", "c3"]);
    let before = lab.fingerprint();
    assert_eq!(wrong(&lab, &["--repair"]), Vec::<String>::new());
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn a_missing_layer_comes_out_of_the_trash_or_is_said_to_be_lost() {
    let lab = lab();
    let file = layer(&lab, "web", 1);
    let trash = lab.store().join("trash/20260101T000000000Z-rm-web/layers");
    std::fs::create_dir_all(&trash).unwrap();
    std::fs::rename(&file, trash.join(file.file_name().unwrap())).unwrap();
    assert_eq!(wrong(&lab, &["web"]), ["chain web"]);
    lab.run(&["start", "web"]).fails(8, &["missing"]);
    lab.ok(&["doctor", "--repair"]);
    assert!(file.exists());
    std::fs::remove_file(&file).unwrap();
    let done = lab.run(&["doctor", "--repair"]);
    assert_eq!(done.code, 1);
    assert!(
        done.out.contains("is missing (vda, vda at snapshot b)") && done.out.contains("backup"),
        "{}",
        done.out
    );
    assert_eq!(lab.json(&["ls"]).as_array().unwrap().len(), 2);
    assert_eq!(wrong(&lab, &["bystander"]), Vec::<String>::new());
}

#[test]
fn what_lies_around_is_found_and_cleared_up() {
    let lab = lab();
    let store = lab.store();
    let layers = lab.layer_files();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        store.join("layers/aaaaaaaaaa.qcow2").to_str().unwrap(),
        "1M",
    ]);
    std::fs::write(store.join("layers/bbbbbbbbbb.qcow2.part"), "half").unwrap();
    let temporary = store.join("vms/web/.x.tmp");
    std::fs::write(&temporary, "").unwrap();
    let touched =
        Command::new("touch").args(["-d", "1 hour ago"]).arg(&temporary).output().unwrap();
    assert!(touched.status.success());
    std::fs::write(store.join("vms/web/.fresh.tmp"), "").unwrap();
    for private in [&temporary, &store.join("vms/web/.fresh.tmp")] {
        std::fs::set_permissions(private, PermissionsExt::from_mode(0o600)).unwrap();
    }
    for name in ["aaaaaaaaaa.qcow2", "bbbbbbbbbb.qcow2.part"] {
        std::fs::set_permissions(store.join("layers").join(name), PermissionsExt::from_mode(0o600))
            .unwrap();
    }
    let open = layer(&lab, "web", 0);
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(store.join("vms/web"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut found = wrong(&lab, &[]);
    found.sort();
    assert_eq!(found, ["leftovers -", "permissions -"]);
    lab.ok(&["doctor", "--repair"]);
    // While a layer is nobody's, it could be that of a VM which has lost its record.
    std::fs::create_dir(store.join("vms/never")).unwrap();
    std::fs::set_permissions(store.join("vms/never"), PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(wrong(&lab, &[]), ["leftovers never"]);
    lab.ok(&["doctor", "--repair"]);
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
    assert_eq!(lab.layer_files(), layers);
    assert!(
        !temporary.exists()
            && store.join("vms/web/.fresh.tmp").exists()
            && !store.join("vms/never").exists()
    );
    let kept = lab
        .fingerprint()
        .into_keys()
        .filter(|path| path.to_string_lossy().contains("trash"))
        .count();
    assert!(kept >= 2, "unused files were not kept in the trash");
    assert_eq!(std::fs::metadata(open).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_journal_that_cannot_be_read_is_set_aside_only_where_the_vm_is_whole() {
    let lab = lab();
    let journal = lab.store().join("vms/web/journal.json");
    std::fs::write(&journal, "{\"schema\":").unwrap();
    std::fs::set_permissions(&journal, PermissionsExt::from_mode(0o600)).unwrap();
    lab.run(&["set", "web", "cpus=1"]).fails(8, &["journal"]);
    assert_eq!(wrong(&lab, &[]), ["journal web"]);
    lab.ok(&["doctor", "--repair"]);
    assert!(!journal.exists());
    lab.ok(&["set", "web", "cpus=1"]);
    // A switch that the record does not know of: the overlay may hold the guest's writes, so it is
    // the head.
    let head = layer(&lab, "web", 0);
    let overlay = head.with_file_name("aaaaaaaaaa.qcow2");
    let backing = head.file_name().unwrap().to_str().unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        backing,
        "-F",
        "qcow2",
        overlay.to_str().unwrap(),
        "16M",
    ]);
    std::fs::set_permissions(&overlay, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::write(&journal, "").unwrap();
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(overlay.exists());
    lab.ok(&["doctor", "--repair"]);
    assert!(!journal.exists());
    assert_eq!(lab.chain("web")[0], "aaaaaaaaaa");
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
}

#[test]
fn a_running_qemu_is_compared_with_the_record() {
    let lab = Lab::unconfined();
    lab.booted("web");
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
    // A job that somebody of ours has left behind.
    let node = lab.user_qmp(
        "web",
        &[json!({"execute": "query-named-block-nodes", "arguments": {"flat": true}})],
    );
    let node = node[1]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|node| node["node-name"].as_str().filter(|name| name.starts_with("l-")));
    let target = lab.path().join("target.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", target.to_str().unwrap(), "1M"]);
    let options = json!({"driver": "file", "filename": target, "size": 1 << 20});
    lab.user_qmp(
        "web",
        &[json!({
            "execute": "blockdev-create", "arguments": {"job-id": "cw-left", "options": options},
        })],
    );
    eventually("the end of the job", || wrong(&lab, &["web"]) == ["jobs web"]);
    lab.ok(&["doctor", "web", "--repair"]);
    assert_eq!(wrong(&lab, &["web"]), Vec::<String>::new());
    // Switched to another layer behind our back.
    let overlay = lab.store().join("layers/aaaaaaaaaa.qcow2");
    let head = node.unwrap();
    let backing = format!("{}.qcow2", head.trim_start_matches("l-"));
    let size = lab.json(&["disk", "ls", "web"])[0]["virtual_bytes"].to_string();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        &backing,
        "-F",
        "qcow2",
        overlay.to_str().unwrap(),
        &size,
    ]);
    let file = json!({"driver": "file", "filename": overlay});
    let node =
        json!({"driver": "qcow2", "node-name": "l-aaaaaaaaaa", "file": file, "backing": null});
    lab.user_qmp(
        "web",
        &[
            json!({"execute": "blockdev-add", "arguments": node}),
            json!({
                "execute": "blockdev-snapshot",
                "arguments": {"node": head, "overlay": "l-aaaaaaaaaa"},
            }),
        ],
    );
    let done = lab.run(&["doctor", "web"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.out.contains("its QEMU writes vda to layer aaaaaaaaaa"), "{}", done.out);
    // Nobody takes it for unused meanwhile; what QEMU says goes before the record.
    lab.ok(&["gc", "--older-than", "0"]);
    let old = std::fs::read(lab.store().join("vms/web/vm.json")).unwrap();
    lab.write("web", "/root/precious", "yes");
    lab.ok(&["doctor", "web", "--repair"]);
    assert_eq!(wrong(&lab, &["web"]), Vec::<String>::new());
    assert_eq!(lab.chain("web")[0], "aaaaaaaaaa");
    std::fs::write(lab.store().join("vms/web/vm.json"), old).unwrap();
    // And its file is taken away.
    std::fs::remove_file(&overlay).unwrap();
    assert!(lab.run(&["doctor", "web"]).out.contains("writes to a file that was removed"));
    kill(lab.pid("web"));
    eventually("the end of QEMU", || lab.state("web") == "crashed");
    assert!(lab.run(&["doctor", "web"]).out.contains("did not end in order"));
    lab.ok(&["doctor", "web", "--repair"]);
    assert_eq!(lab.state("web"), "stopped");
}

#[test]
fn an_older_record_put_back_by_hand_does_not_lose_what_was_written_since() {
    let lab = Lab::new();
    lab.booted("web");
    let record = lab.store().join("vms/web/vm.json");
    let old = std::fs::read(&record).unwrap();
    lab.ok(&["snapshot", "create", "web", "later"]);
    lab.write("web", "/root/precious", "yes");
    lab.ok(&["stop", "web"]);
    let head = lab.chain("web")[0].clone();
    std::fs::write(&record, &old).unwrap();
    // Starting it would write into a layer that another one depends on.
    lab.run(&["start", "web"]).fails(8, &["out of date", "cowhand doctor web"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(wrong(&lab, &[]).contains(&"record web".to_owned()));
    lab.ok(&["doctor", "--repair"]);
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
    assert_eq!(lab.chain("web")[0], head);
    assert_eq!(lab.on_disk("web", "/root/precious").as_deref(), Some("yes"));
    lab.ok(&["start", "web"]);
    // The same while it runs.
    let old = std::fs::read(&record).unwrap();
    lab.ok(&["snapshot", "create", "web", "again"]);
    lab.write("web", "/root/more", "yes");
    std::fs::write(&record, old).unwrap();
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["doctor", "--repair"]);
    lab.ok(&["stop", "web"]);
    assert_eq!(lab.on_disk("web", "/root/more").as_deref(), Some("yes"));
}

#[test]
fn beside_a_missing_layer_nothing_is_merged_that_it_may_depend_on() {
    let lab = Lab::new();
    lab.ok(&["create", "v", "--size", "16M"]);
    for name in ["a", "b", "c", "d"] {
        lab.ok(&["snapshot", "create", "v", name]);
    }
    let chain = lab.chain("v");
    let layers = lab.layer_files();
    // Of c, which depends on b, which depends on a.
    let gone = lab.store().join("layers").join(format!("{}.qcow2", chain[2]));
    let aside = lab.path().join("aside");
    std::fs::rename(&gone, &aside).unwrap();
    for name in ["v@a", "v@b"] {
        lab.run(&["snapshot", "rm", name]);
    }
    lab.run(&["gc", "--older-than", "0"]);
    std::fs::rename(&aside, &gone).unwrap();
    assert_eq!(lab.layer_files(), layers);
    lab.ok(&["disk", "check", "v"]);
    lab.ok(&["gc"]);
    assert_eq!(lab.chain("v").len(), 3, "what could not be merged then is merged now");
}

#[test]
fn a_qemu_that_hangs_can_be_stopped_although_it_was_looked_at() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    let pid = lab.pid("web");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP)
        .unwrap();
    for _ in 0..4 {
        lab.run(&["ls"]);
        lab.run(&["show", "web"]);
    }
    // No longer than the guest may take.
    lab.run(&["stop", "--timeout", "1", "web"])
        .fails(7, &["does not answer", "cowhand stop --force web"]);
    // Its greeting is waited for in vain: in the first tier not for all of the ten seconds.
    let mut stop = lab.command(&["stop", "--force", "web"]);
    Done::from(stop.env("COWHAND_PATIENCE", tier::first_or("3", "30")).output().unwrap()).ok();
    assert_eq!(lab.state("web"), "stopped");
}

#[test]
fn a_layer_that_depends_on_a_wrong_one_is_not_started_on() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["create", "other", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    let layers = lab.store().join("layers");
    let [head, wrong] = ["web", "other"].map(|vm| format!("{}.qcow2", lab.chain(vm)[0]));
    crate::lab::qemu_img(&[
        "rebase",
        "-u",
        "-F",
        "qcow2",
        "-b",
        &wrong,
        layers.join(head).to_str().unwrap(),
    ]);
    lab.run(&["start", "web"]).fails(8, &["it was made on", "cowhand doctor web"]);
    lab.ok(&["doctor", "web", "--repair"]);
    lab.ok(&["start", "web"]);
}

#[test]
fn a_broken_vm_that_is_removed_can_be_had_back() {
    let lab = lab();
    let record = lab.store().join("vms/web/vm.json");
    std::fs::write(&record, "").unwrap();
    lab.run(&["start", "web"]).fails(8, &["cowhand doctor web"]);
    lab.ok(&["rm", "--force", "web"]);
    lab.ok(&["undo", "web"]);
    assert_eq!(lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len(), 2);
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
}

#[test]
fn a_head_that_two_records_name_is_started_by_neither() {
    let lab = lab();
    std::fs::create_dir(lab.store().join("vms/copy")).unwrap();
    // Records that were written before they said whose they are.
    let mut record: Value =
        serde_json::from_slice(&std::fs::read(lab.store().join("vms/web/vm.json")).unwrap())
            .unwrap();
    record.as_object_mut().unwrap().remove("name");
    std::fs::write(lab.store().join("vms/copy/vm.json"), record.to_string()).unwrap();
    lab.run(&["start", "copy"]).fails(8, &["belongs to web"]);
    lab.run(&["start", "web"]).fails(8, &["belongs to copy"]);
    // Nor by hand.
    lab.run(&["plan", "copy"]).fails(8, &["belongs to web"]);
    lab.run(&["plan", "web"]).fails(8, &["belongs to copy"]);
    assert!(wrong(&lab, &[]).contains(&"record copy".to_owned()));
    std::fs::remove_dir_all(lab.store().join("vms/copy")).unwrap();
    assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
}

#[test]
fn a_store_without_its_own_file_is_no_empty_store() {
    let lab = lab();
    let file = lab.store().join("store.json");
    for damage in [None, Some(""), Some("{")] {
        match damage {
            None => std::fs::remove_file(&file).unwrap(),
            Some(text) => std::fs::write(&file, text).unwrap(),
        }
        assert_eq!(wrong(&lab, &[]), ["store -"]);
        lab.ok(&["doctor", "--repair"]);
        assert_eq!(wrong(&lab, &[]), Vec::<String>::new());
    }
    std::fs::write(&file, "{\"schema\": 99}").unwrap();
    lab.run(&["doctor", "--repair"]).fails(1, &[]);
    assert!(
        std::fs::read_to_string(&file).unwrap().contains("99"),
        "a newer version's store was changed"
    );
    std::fs::write(lab.store().join("vms/afile"), "").unwrap();
    lab.ok(&["ls"]);
}

/// Writes `bytes` into a file at `at` as a failing disk does: nothing else of the file changes.
fn rot(file: &Path, at: u64, bytes: &[u8]) {
    let about = file.metadata().unwrap();
    let open = std::fs::File::options().write(true).open(file).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&open, bytes, at).unwrap();
    open.set_times(std::fs::FileTimes::new().set_modified(about.modified().unwrap())).unwrap();
}

#[test]
fn a_byte_that_changes_though_nobody_wrote_is_found_by_a_look_into_the_files() {
    let lab = Lab::new();
    let disk = lab.path().join("disk.raw");
    std::fs::write(&disk, vec![7; 4 << 20]).unwrap();
    lab.ok(&["create", "t", "--disk", disk.to_str().unwrap()]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    lab.ok(&["clone", "t", "a"]);
    lab.ok(&["snapshot", "create", "a", "s"]);
    lab.ok(&["create", "other", "--size", "16M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "other"]);
    let deep = |name: &[&str]| {
        let done = lab.run(&[&["doctor", "--deep", "--format", "json"], name].concat());
        let findings: Vec<Value> = serde_json::from_str(&done.out).unwrap();
        let of_files =
            |finding: &Value| ["images", "content"].contains(&finding["check"].as_str().unwrap());
        let findings: Vec<Value> = findings.into_iter().filter(of_files).collect();
        (done.code, findings)
    };
    let level = |findings: &[Value], check: &str, vm: &str| {
        let one = findings
            .iter()
            .find(|finding| finding["check"] == check && finding["vm"] == vm)
            .unwrap();
        one["level"].as_str().unwrap().to_owned()
    };
    let (code, first) = deep(&[]);
    assert_eq!((code, level(&first, "content", "t").as_str()), (0, "info"), "{first:?}");
    let (code, second) = deep(&[]);
    assert!(code == 0 && second.iter().all(|finding| finding["level"] == "ok"), "{second:?}");
    assert!(
        second
            .iter()
            .any(|finding| finding["message"].as_str().unwrap().contains("being written to")),
        "{second:?}"
    );
    // It follows the template.
    lab.ok(&["rename", "t", "u"]);

    let chain = lab.json(&["disk", "chain", "a"]);
    let file = |at: usize| PathBuf::from(chain[0]["layers"][at]["file"].as_str().unwrap());
    let length = file(2).metadata().unwrap().len();
    rot(&file(2), length - 100, &[8]);
    assert_eq!(lab.run(&["doctor"]).code, 0, "only a look into the file finds it");
    let (code, found) = deep(&[]);
    assert_eq!((code, level(&found, "content", "u").as_str()), (1, "fail"), "{found:?}");
    let said = found.iter().find(|finding| finding["level"] == "fail").unwrap().to_string();
    assert!(
        said.contains(file(2).to_str().unwrap()) && said.contains("does not hold what it held"),
        "{said}"
    );
    assert_eq!(deep(&["other"]).0, 0);
    rot(&file(2), length - 100, &[7]);
    assert_eq!(deep(&[]).0, 0);

    // The reference count of the first cluster, in the sealed layer of the clone.
    let layer = file(1);
    let bytes = std::fs::read(&layer).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = usize::try_from(number(48)).unwrap();
    let block = number(table);
    rot(&layer, block, &[0, 0]);
    let (code, found) = deep(&["a"]);
    assert_eq!((code, level(&found, "images", "a").as_str()), (1, "fail"), "{found:?}");
    assert_eq!((deep(&["u"]).0, deep(&["other"]).0), (0, 0));
    rot(&layer, block, &[0, 1]);
    assert_eq!(deep(&[]).0, 0);

    // What was noted cannot be read, or is a newer version's.
    let sums = lab.store().join("vms/u/sums.json");
    let noted = std::fs::read(&sums).unwrap();
    for text in ["{", "{\"schema\": 9}"] {
        std::fs::write(&sums, text).unwrap();
        let (code, found) = deep(&["u"]);
        assert_eq!((code, level(&found, "content", "u").as_str()), (0, "warn"), "{found:?}");
        assert_eq!(std::fs::read(&sums).unwrap(), text.as_bytes());
    }
    std::fs::write(&sums, noted).unwrap();
    assert_eq!(deep(&["u"]).0, 0);
}
