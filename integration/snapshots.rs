//! Snapshots of running and stopped guests: what is in them, what comes back, what is left after a
//! removal.

use serde_json::json;

use crate::lab::{Lab, qemu_img};
use crate::tier;

#[test]
fn a_revert_brings_back_what_was_deleted_and_takes_away_what_came_later() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/a", "one");
    let taken = lab.json(&[
        "snapshot", "create", "web", "s1", "--quiesce-timeout", "60", "--description",
        "first words",
    ]);
    for key in [
        "name", "parent", "kind", "memory", "vm_state", "created", "current", "description",
        "quiesced", "bytes", "children", "pause_ms", "freeze_ms", "total_ms",
    ] {
        assert!(taken.get(key).is_some(), "{key} is not in {taken}");
    }
    assert_eq!((&taken["quiesced"], &taken["vm_state"]), (&true.into(), &"running".into()));
    assert!(taken["freeze_ms"].as_f64().unwrap() > 0.0);
    lab.run(&["snapshot", "create", "web", "s1"]).fails(4, &["s1"]);
    lab.write("web", "/root/a", "two");
    lab.write("web", "/root/later", "later");
    lab.ok(&["snapshot", "create", "web", "s2"]);
    lab.write("web", "/root/a", "three");

    let reverts = [("s1", "one", None), ("s2", "two", Some("later")), ("s1", "one", None)];
    for (point, a, later) in reverts.into_iter().take(tier::first_or(2, 3)) {
        lab.ok(&["snapshot", "revert", &format!("web@{point}")]);
        assert_eq!(lab.state("web"), "running", "it ran before, so it runs again");
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some(a));
        assert_eq!(lab.read("web", "/root/later").as_deref(), later);
        assert_eq!(lab.json(&["show", "web"])["head"], point);
    }
    let tree = lab.ok(&["snapshot", "tree", "web"]);
    assert!(tree.contains("● you are here") && tree.contains("s2"), "{tree}");
    lab.ok(&["snapshot", "revert", "web@s2", "--stopped"]);
    assert_eq!(lab.state("web"), "stopped");
    lab.ok(&["snapshot", "revert", "web@current", "--paused"]);
    assert_eq!(lab.state("web"), "paused");
    lab.check_images();
}

#[test]
fn a_paused_guest_stays_paused_through_snapshot_and_removal() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["pause", "web"]);
    let taken = lab.json(&["snapshot", "create", "web", "s"]);
    assert_eq!(
        (&taken["vm_state"], &taken["quiesced"]),
        (&"paused".into(), &true.into()),
        "what stands still is consistent"
    );
    assert_eq!(lab.state("web"), "paused");
    lab.ok(&["snapshot", "rm", "web@s"]);
    assert_eq!(lab.state("web"), "paused");
    lab.ok(&["resume", "web"]);
    lab.sh("web", "true");
}

#[test]
fn all_disks_switch_together_and_a_read_only_one_is_left_out() {
    let lab = Lab::new();
    let seed = lab.path().join("seed.raw");
    std::fs::write(&seed, vec![7; 1 << 20]).unwrap();
    lab.booted_anew(
        "web",
        &["--size", "64M", "--size", "64M", "--disk", &format!("{},ro", seed.to_str().unwrap())],
    );
    lab.sh(
        "web",
        "echo one | dd of=/dev/vdc conv=fsync 2>/dev/null; echo two | dd of=/dev/vdd \
         conv=fsync 2>/dev/null",
    );
    lab.ok(&["snapshot", "create", "web", "s"]);
    let depth = |target: &str| {
        let chains = lab.json(&["disk", "chain", "web", target]);
        chains[0]["layers"].as_array().unwrap().len()
    };
    assert_eq!(["vda", "vdb", "vdc", "vdd"].map(depth), [2, 1, 2, 2]);
    lab.sh(
        "web",
        "echo xxx | dd of=/dev/vdc conv=fsync 2>/dev/null; echo xxx | dd of=/dev/vdd \
         conv=fsync 2>/dev/null",
    );
    lab.ok(&["snapshot", "revert", "web@s"]);
    assert_eq!(lab.sh("web", "head -c3 /dev/vdc; head -c3 /dev/vdd"), "onetwo");
    lab.ok(&["snapshot", "rm", "web@s"]);
    assert_eq!(["vda", "vdb", "vdc", "vdd"].map(depth), [1; 4]);
    assert_eq!(lab.sh("web", "head -c3 /dev/vdc; head -c3 /dev/vdd"), "onetwo");
}

#[test]
fn a_snapshot_and_a_revert_during_somebodys_block_job_are_refused_and_name_it() {
    let lab = Lab::unconfined();
    lab.ok(&[
        "create", "web", "--size", "64M", "--size", "64M", "--memory", "64M", "--net", "none",
    ]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["start", "web"]);
    let target = lab.path().join("backup.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", target.to_str().unwrap(), "64M"]);
    let device = lab.json(&["disk", "chain", "web", "vdb"])[0]["layers"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    lab.user_qmp(
        "web",
        &[
            json!({
                "execute": "blockdev-add",
                "arguments": {
                    "driver": "qcow2",
                    "node-name": "backup",
                    "file": {"driver": "file", "filename": target},
                },
            }),
            json!({
                "execute": "blockdev-backup",
                "arguments": {
                    "job-id": "mine",
                    "device": format!("l-{device}"),
                    "target": "backup",
                    "sync": "full",
                    "speed": 1,
                },
            }),
        ],
    );
    let before = lab.fingerprint();
    lab.run(&["snapshot", "create", "web", "t"]).fails(5, &["mine"]);
    lab.run(&["snapshot", "revert", "web@s"]).fails(5, &["mine"]);
    assert_eq!(lab.fingerprint(), before);
    assert_eq!(lab.state("web"), "running");
}

#[test]
fn quiesce_require_fails_without_an_agent_and_leaves_nothing_behind() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    let before = lab.fingerprint();
    lab.run(&["snapshot", "create", "web", "s", "--quiesce", "require"])
        .fails(7, &["guest agent", "--quiesce never"]);
    assert_eq!(lab.fingerprint(), before);
    let taken = lab.json(&["snapshot", "create", "web", "s"]);
    assert_eq!(taken["quiesced"], false);
}

#[test]
fn a_branch_keeps_its_layers_and_a_fork_is_hidden_until_one_child_is_left() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/a", "fork");
    lab.ok(&["snapshot", "create", "web", "fork"]);
    lab.write("web", "/root/a", "left");
    lab.ok(&["snapshot", "create", "web", "left"]);
    lab.ok(&["snapshot", "revert", "web@fork"]);
    lab.write("web", "/root/a", "right");
    assert!(lab.ok(&["snapshot", "rm", "web@fork"]).contains("hidden"));
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("right"));
    // The other branch goes: the fork has one child left and is merged into it.
    lab.ok(&["snapshot", "rm", "web@left"]);
    assert_eq!(lab.chain("web").len(), 1);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("right"));
    lab.check_images();
}

#[test]
fn the_configuration_comes_back_with_the_snapshot() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "128M"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    let generation = lab.json(&["show", "web"])["generation"].clone();
    lab.ok(&["set", "web", "memory=256M", "cpus=4"]);
    lab.ok(&["snapshot", "revert", "web@s"]);
    let shown = lab.json(&["show", "web"]);
    assert_eq!((&shown["memory_bytes"], &shown["cpus"]), (&(128 << 20).into(), &2.into()));
    assert_ne!(shown["generation"], generation, "the guest must notice that it went back");
}

#[test]
fn a_snapshot_on_a_base_of_another_format_works() {
    let lab = Lab::new();
    let image = |format: &str| {
        let raw = lab.path().join("data.raw");
        std::fs::write(&raw, vec![1; 2 << 20]).unwrap();
        let image = lab.path().join(format!("disk.{format}"));
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            format,
            raw.to_str().unwrap(),
            image.to_str().unwrap(),
        ]);
        image.to_str().unwrap().to_owned()
    };
    let formats = [("raw", "vdb"), ("vmdk", "vdc"), ("vhdx", "vdd")];
    let disks = formats.map(|(format, _)| image(format));
    lab.booted_anew("web", &["--disk", &disks[0], "--disk", &disks[1], "--disk", &disks[2]]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    for (_, disk) in formats {
        lab.sh("web", &format!("echo changed | dd of=/dev/{disk} conv=fsync 2>/dev/null"));
    }
    lab.ok(&["snapshot", "rm", "web@s"]);
    for (format, disk) in formats {
        assert_eq!(lab.sh("web", &format!("head -c7 /dev/{disk}")), "changed", "{format}");
        let chains = lab.json(&["disk", "chain", "web", disk]);
        assert_eq!(chains[0]["layers"].as_array().unwrap().len(), 1, "{format}");
    }
}

#[test]
fn a_disk_that_grew_behind_our_back_keeps_its_end() {
    let lab = Lab::new();
    let disk = lab.path().join("disk.raw");
    std::fs::write(&disk, vec![1; 16 << 20]).unwrap();
    lab.ok(&["create", "web", "--disk", &format!("{},use", disk.to_str().unwrap())]);
    std::fs::File::options().write(true).open(&disk).unwrap().set_len(64 << 20).unwrap();
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["clone", "web@s", "copy"]);
    for vm in ["web", "copy"] {
        let layers = lab.json(&["disk", "chain", vm])[0]["layers"].clone();
        assert!(
            layers.as_array().unwrap().iter().all(|layer| layer["virtual_bytes"] == 64 << 20),
            "{layers}"
        );
    }
}

#[test]
fn a_merge_that_cannot_be_done_leaves_the_layer_hidden_and_the_vm_usable() {
    let lab = Lab::new();
    let bin = lab.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = |name: &str, script: &str| {
        std::fs::write(bin.join(name), format!("#!/bin/bash\n{script}\n")).unwrap();
        std::fs::set_permissions(
            bin.join(name),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
    };
    let qemu =
        std::env::var("COWHAND_QEMU").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".to_owned());
    script("qemu-system-x86_64", &format!("exec '{qemu}' \"$@\""));
    // QEMU's own crashes where it finds no room, now and then.
    let crash = r#"fd=${2##*fd=}
        version='{"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}'
        greeting='{"QMP": {"version": '$version', "capabilities": []}}'
        echo "$greeting" >&$fd
        while read -r -u $fd line; do
            case $line in *block-commit*|*block-stream*) kill -SEGV $$;; esac
            [[ $line =~ \"id\":([0-9]+) ]]
            echo "{\"return\": {}, \"id\": ${BASH_REMATCH[1]}}" >&$fd
        done"#;
    // An offline engine that does not start, one that finds no room, and one that crashes while it
    // copies.
    for (name, engine, why) in [
        ("unlucky", "echo out of luck >&2; exit 1", "out of luck"),
        ("cramped", "ulimit -f 4096; exec /usr/bin/qemu-storage-daemon \"$@\"", "File too large"),
        ("crashing", crash, "closed"),
    ] {
        script("qemu-storage-daemon", engine);
        lab.ok(&["create", name, "--size", "64M", "--memory", "64M", "--net", "none"]);
        lab.ok(&["snapshot", "create", name, "first"]);
        write_in(&lab, name, "0 8M");
        lab.ok(&["snapshot", "create", name, "s"]);
        write_in(&lab, name, "8M 8M");
        let mut command = lab.command(&["snapshot", "rm", &format!("{name}@s")]);
        command.env("COWHAND_QEMU", bin.join("qemu-system-x86_64"));
        let said = crate::lab::Done::from(command.output().unwrap()).ok();
        assert!(said.contains("could not be merged") && said.contains(why), "{said}");
        assert_eq!(lab.json(&["snapshot", "ls", name]).as_array().unwrap().len(), 1);
        assert_eq!(lab.chain(name).len(), 3);
        lab.ok(&["start", name]);
        lab.ok(&["snapshot", "create", name, "again"]);
        lab.ok(&["stop", "--force", name]);
    }
    // Somebody else can do it.
    lab.ok(&["gc"]);
    assert_eq!(lab.chain("crashing").len(), 3);
    lab.check_images_after_a_kill();
    lab.ok(&["rm", "crashing"]);
}

/// Writes to the head of a stopped VM.
fn write_in(lab: &Lab, vm: &str, place: &str) {
    let head = lab.store().join("layers").join(format!("{}.qcow2", lab.chain(vm)[0]));
    let command = format!("write -P 7 {place}");
    let done = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &command])
        .arg(head)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// `--dry-run` foretells what is done, also where each of several begins with what the one before
/// has left.
#[test]
fn a_removal_of_several_snapshots_is_foretold_as_it_is_done() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    // a ─ b ─ c ─ d, and e beside c; each with another amount of data.
    for (at, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        write_in(&lab, "web", &format!("{}M {}M", 8 * at, 1 + (at * 5) % 7));
        lab.ok(&["snapshot", "create", "web", name]);
    }
    lab.ok(&["snapshot", "revert", "web@b"]);
    write_in(&lab, "web", "40M 3M");
    lab.ok(&["snapshot", "create", "web", "e"]);
    write_in(&lab, "web", "48M 1M");
    let pristine = lab.path().join("pristine");
    lab.copy_tree(&lab.store(), &pristine);
    let told = |args: &[&str]| -> Vec<(String, String)> {
        let rows = lab.ok(&[&["--format", "json"], args].concat());
        let rows: Vec<serde_json::Value> = serde_json::Deserializer::from_str(&rows)
            .into_iter()
            .collect::<Result<_, _>>()
            .unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        rows.iter()
            .flat_map(|row| {
                row["disks"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|disk| (text(&row["name"]), text(&disk["what"])))
            })
            .collect()
    };
    let mut several = 0;
    for (point, which) in [
        ("web@a", "--children"),
        ("web@a", "--children-only"),
        ("web@b", "--children-only"),
        ("web@c", "--children"),
    ] {
        let args = ["snapshot", "rm", point, which];
        let foretold = told(&[&args[..], &["--dry-run"]].concat());
        assert_eq!(foretold, told(&args), "{args:?}");
        several += usize::from(foretold.len() > 1);
        std::fs::remove_dir_all(lab.store()).unwrap();
        lab.copy_tree(&pristine, &lab.store());
    }
    assert_eq!(several, 4);
}

#[test]
fn a_name_can_be_used_again_after_a_commit() {
    let lab = Lab::new();
    lab.booted("web");
    for round in 0..3 {
        lab.write("web", "/root/a", &format!("{round}"));
        lab.ok(&["snapshot", "create", "web", "s"]);
        lab.write("web", "/root/b", &format!("{round}"));
        lab.ok(&["disk", "commit", "web", "vda"]);
        assert_eq!(lab.chain("web").len(), 1);
        assert_eq!(lab.read("web", "/root/b"), Some(format!("{round}")));
    }
    lab.ok(&["snapshot", "create", "web", "s", "--memory"]);
    lab.ok(&["snapshot", "rm", "web@s"]);
    lab.ok(&["stop", "web"]);
    lab.check_images();
}

#[test]
fn a_revert_works_from_every_state_to_every_state() {
    let lab = Lab::new();
    // What the guest sees afterwards is in other tests: this one has no system, because most of its
    // starts are given up at once.
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    lab.ok(&["snapshot", "create", "web", "running"]);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["snapshot", "create", "web", "stopped"]);
    for point in tier::first_or(&["running"][..], &["running", "stopped"]) {
        for before in ["running", "paused", "stopped"] {
            for (then, after) in [
                (None, before),
                (Some("--running"), "running"),
                (Some("--paused"), "paused"),
                (Some("--stopped"), "stopped"),
            ] {
                lab.run(&["stop", "--force", "web"]).ok();
                match before {
                    "running" => drop(lab.ok(&["start", "web"])),
                    "paused" => drop(lab.ok(&["start", "web", "--paused"])),
                    _ => {}
                }
                let point = format!("web@{point}");
                let args: Vec<&str> =
                    ["snapshot", "revert", &point].into_iter().chain(then).collect();
                lab.ok(&args);
                assert_eq!(lab.state("web"), after, "{point} while {before}, {then:?}");
            }
        }
    }
}

#[test]
fn a_merged_base_is_read_only_again_below_the_next_overlay() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    for name in ["a", "b"] {
        lab.ok(&["snapshot", "create", "web", name]);
    }
    lab.ok(&["snapshot", "rm", "web@b"]);
    let chain = lab.chain("web");
    let nodes = lab
        .user_qmp(
            "web",
            &[json!({"execute": "query-named-block-nodes", "arguments": {"flat": true}})],
        )
        .remove(1);
    let read_only = |id: &String| {
        nodes
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["node-name"] == format!("l-{id}"))
            .unwrap()["ro"]
            .clone()
    };
    assert_eq!(
        (read_only(&chain[0]), read_only(&chain[1])),
        (false.into(), true.into()),
        "after one that worked"
    );
}

#[test]
fn a_slip_in_the_last_of_several_points_changes_nothing() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    let name = lab.ok(&["-q", "snapshot", "create", "web"]);
    let point = format!("web@{}", name.trim());
    assert_eq!(lab.ok(&["-q", "snapshot", "create", "web", "named"]), "");
    let before = lab.fingerprint();
    lab.run(&["snapshot", "rm", &point, "web@nosuch"]).fails(3, &["nosuch"]);
    lab.run(&["flatten", "web", "nosuch"]).fails(3, &["nosuch"]);
    assert_eq!(lab.fingerprint(), before);
    let reverted = lab.json(&["snapshot", "revert", &point]);
    assert_eq!(reverted["state"], "stopped");
    // Scripts get what they can parse, whatever they typed.
    let done = lab.run(&["--format", "json", "snapshot", "create", "web", "--nonsense"]);
    let error: serde_json::Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!((done.code, &error["error"]["kind"]), (2, &"usage".into()));
}

#[test]
fn current_among_several_points_is_the_one_it_was_at_first() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    for name in ["a", "b", "c"] {
        lab.ok(&["snapshot", "create", "web", name]);
    }
    lab.ok(&["snapshot", "rm", "web@c", "web@current", "web@c"]);
    let names = lab.ok(&["-q", "snapshot", "ls", "web"]);
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), ["a", "b"]);
    lab.ok(&["snapshot", "rm", "web@a", "web@b", "--children"]);
    assert_eq!(lab.ok(&["-q", "snapshot", "ls", "web"]), "");
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn removing_any_snapshot_of_a_line_keeps_every_other_point() {
        let lab = Lab::new();
        lab.booted("web");
        let base = lab.chain("web").len();
        for point in ["s1", "s2", "s3"] {
            lab.write("web", "/root/a", point);
            lab.ok(&["snapshot", "create", "web", point]);
        }
        lab.write("web", "/root/a", "head");
        // The middle one while it runs, the first one while it is stopped, the last one (under the
        // head) while it runs.
        lab.ok(&["snapshot", "rm", "web@s2"]);
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("head"));
        assert_eq!(lab.chain("web").len(), base + 2);
        lab.ok(&["stop", "web"]);
        lab.ok(&["snapshot", "rm", "web@s1"]);
        lab.ok(&["start", "web"]);
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("head"));
        assert_eq!(lab.on_disk("web@s3", "/root/a").as_deref(), Some("s3"));
        lab.ok(&["snapshot", "rm", "web@s3"]);
        assert_eq!(
            lab.state("web"),
            "running",
            "the guest was paused for the switch and must go on"
        );
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("head"));
        assert_eq!(lab.chain("web").len(), base);
        lab.write("web", "/root/a", "after");
        lab.ok(&["stop", "web"]);
        assert_eq!(
            lab.on_disk("web", "/root/a").as_deref(),
            Some("after"),
            "the merged layer must be the one that is written"
        );
        lab.check_images();
    }

    #[test]
    fn a_snapshot_during_a_reboot_or_hard_writing_is_whole() {
        let lab = Lab::new();
        lab.booted("web");
        lab.sh(
            "web",
            "(while :; do dd if=/dev/urandom of=/root/load bs=64k count=64 conv=fsync; done) \
             >/dev/null 2>&1 &",
        );
        lab.write("web", "/root/a", "kept");
        lab.ok(&["snapshot", "create", "web", "writing"]);
        lab.ok(&["snapshot", "create", "web", "memory", "--memory"]);
        lab.user_qmp("web", &[json!({"execute": "system_reset"})]);
        for n in 0..6 {
            lab.ok(&[
                "snapshot",
                "create",
                "web",
                &format!("booting{n}"),
                "--quiesce-timeout",
                "1",
            ]);
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        for point in ["writing", "memory", "booting0", "booting5"] {
            lab.ok(&["snapshot", "revert", &format!("web@{point}"), "--running"]);
            assert_eq!(lab.read("web", "/root/a").as_deref(), Some("kept"), "{point}");
        }
        lab.ok(&["stop", "--force", "web"]);
        lab.check_images_after_a_kill();
    }

    #[test]
    fn two_hundred_and_fifty_snapshots_in_a_row_can_be_taken_and_removed() {
        let lab = Lab::new();
        lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
        lab.ok(&["start", "web"]);
        let names: Vec<String> = (0..250).map(|n| format!("s{n}")).collect();
        for name in &names {
            lab.ok(&["snapshot", "create", "web", name, "--quiesce", "never"]);
        }
        assert_eq!(lab.chain("web").len(), 251);
        lab.ok(&["stop", "--force", "web"]);
        lab.ok(&["start", "web"]);
        let points: Vec<String> = names.iter().map(|name| format!("web@{name}")).collect();
        let mut args = vec!["snapshot", "rm"];
        args.extend(points.iter().take(40).map(String::as_str));
        lab.ok(&args);
        assert_eq!(lab.chain("web").len(), 211);
        lab.check_images();
    }
}
