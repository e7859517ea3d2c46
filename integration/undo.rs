//! What can be taken back, and what cannot any more.

use crate::lab::Lab;
use crate::tier;

fn write_byte(lab: &Lab, vm: &str, value: u8) {
    let disks = lab.json(&["disk", "ls", vm]);
    let file = disks[0]["file"].as_str().unwrap();
    let output = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &format!("write -P {value} 0 64k"), file])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn byte(lab: &Lab, point: &str) -> u8 {
    let raw = lab.path().join("x.raw");
    lab.ok(&["image", "export", point, raw.to_str().unwrap(), "--force"]);
    std::fs::read(raw).unwrap()[0]
}

#[test]
fn a_tag_comes_and_goes_while_the_vm_runs() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    lab.ok(&["set", "web", "tag.a=b"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["undo", "web"]);
    let about = lab.json(&["show", "web"]);
    assert_eq!(about["tags"], serde_json::json!({}));
    lab.run(&["set", "web", "tag.a=c", "cpus=2"]).fails(5, &["while it runs"]);
    assert_eq!(lab.json(&["show", "web"])["tags"], serde_json::json!({}));
}

#[test]
fn a_template_is_removed_whole_beside_a_clone_that_never_came_to_be() {
    let lab = Lab::new();
    lab.ok(&["create", "base", "--size", "16M"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    let done = lab.command(&["clone", "base", "c"]).env("COWHAND_FAULT", "5:die").output().unwrap();
    assert_eq!(done.status.code(), None, "{done:?}");
    lab.ok(&["template", "rm", "base"]);
    lab.ok(&["gc"]);
    lab.ok(&["undo", "base"]);
    lab.ok(&["clone", "base", "c"]);
    lab.ok(&["disk", "check", "c"]);
}

#[test]
fn several_changes_are_taken_back_one_after_another() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--memory", "64M", "--net", "none"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "s"]);
    write_byte(&lab, "web", 2);
    lab.ok(&["snapshot", "revert", "web@s"]);
    write_byte(&lab, "web", 3);
    lab.ok(&["snapshot", "revert", "web@s"]);
    lab.ok(&["set", "web", "memory=128M"]);
    lab.ok(&["rm", "web"]);
    let list = lab.json(&["undo", "--list"]);
    let whats: Vec<&str> =
        list.as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect();
    assert_eq!(whats, ["rm", "set", "revert", "revert"]);
    assert!(lab.ok(&["undo"]).contains("rm web"));
    assert_eq!(byte(&lab, "web"), 1);
    lab.ok(&["undo", "web"]);
    assert_eq!(lab.json(&["show", "web"])["memory_bytes"], 64 << 20);
    lab.ok(&["undo", "web"]);
    assert_eq!(byte(&lab, "web"), 3);
    lab.ok(&["undo", "web"]);
    assert_eq!(byte(&lab, "web"), 2);
    assert_eq!(byte(&lab, "web@s"), 1);
    lab.run(&["undo", "web"]).fails(3, &["no revert, rm or set of web"]);
    lab.run(&["undo", "nobody"]).fails(3, &["no VM or template nobody"]);
    lab.check_images();
}

#[test]
fn what_an_undo_that_was_cut_short_needs_is_no_garbage() {
    let lab = Lab::in_memory();
    lab.ok(&["create", "web", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    write_byte(&lab, "web", 2);
    lab.ok(&["snapshot", "revert", "web@s"]);
    write_byte(&lab, "web", 3);
    // The trash knows it by its old name.
    lab.ok(&["rename", "web", "other"]);
    let pristine = lab.path().join("pristine");
    lab.copy_tree(&lab.store(), &pristine);
    let mut undone = 0;
    for point in (1..).step_by(tier::first_or(5, 1)) {
        std::fs::remove_dir_all(lab.store()).unwrap();
        lab.copy_tree(&pristine, &lab.store());
        let killed = lab
            .command(&["undo", "other"])
            .env("COWHAND_FAULT", format!("{point}:die"))
            .output()
            .unwrap();
        let begun = lab.store().join("vms/other/journal.json").exists();
        lab.ok(&["gc", "--older-than", "0"]);
        if begun && byte(&lab, "other") == 3 {
            lab.ok(&["undo", "other"]);
            assert_eq!(byte(&lab, "other"), 2, "{point}");
            undone += 1;
        }
        lab.ok(&["set", "other", "tag.t=1"]);
        let is = byte(&lab, "other");
        assert!(
            if killed.status.success() { is == 2 } else { [2, 3].contains(&is) },
            "{point}: {is}"
        );
        lab.ok(&["disk", "check", "other"]);
        if killed.status.success() {
            break;
        }
    }
    assert!(undone > 0, "none was killed where it had begun and had to be taken back");
}

#[test]
fn an_undo_keeps_snapshots_taken_since_and_the_head_it_replaces() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.write("web", "/root/a", "work");
    lab.ok(&["snapshot", "revert", "web@s"]);
    assert_eq!(lab.read("web", "/root/a"), None);
    lab.write("web", "/root/a", "newer");
    lab.ok(&["snapshot", "create", "web", "later"]);
    lab.ok(&["undo", "web"]);
    assert_eq!(lab.state("web"), "running", "it ran before, so it runs again");
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("work"));
    assert_eq!(lab.json(&["show", "web"])["head"], "s");
    assert_eq!(lab.on_disk("web@later", "/root/a").as_deref(), Some("newer"));
}

#[test]
fn what_rests_on_a_merged_layer_is_refused_and_not_restored_wrong() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "s"]);
    write_byte(&lab, "web", 2);
    lab.ok(&["snapshot", "revert", "web@s"]);
    write_byte(&lab, "web", 3);
    lab.ok(&["snapshot", "rm", "web@s"]);
    let before = lab.fingerprint();
    lab.run(&["undo", "web"]).fails(5, &["merged or removed since", "undo --list"]);
    assert_eq!(lab.fingerprint(), before);
    assert!(lab.ok(&["undo", "--list"]).contains("no: "));
    assert_eq!(byte(&lab, "web"), 3);
}

#[test]
fn a_removal_says_which_undo_it_ends_and_keeps_it_where_that_is_asked_for() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["clone", "web@s", "copy"]);
    lab.ok(&["rm", "copy"]);
    write_byte(&lab, "web", 2);
    lab.ok(&["snapshot", "revert", "web@s"]);
    write_byte(&lab, "web", 3);
    let lost = ["`rm copy` of copy", "`snapshot revert web@s` of web"];
    let dry = lab.json(&["snapshot", "rm", "web@s", "--dry-run"]);
    assert_eq!(dry["lost_undo"], serde_json::json!(lost));
    assert!(lab.ok(&["snapshot", "rm", "web@s", "--dry-run"]).contains("--keep-undo"));
    let dry = lab.json(&["snapshot", "rm", "web@s", "--dry-run", "--keep-undo"]);
    assert_eq!(
        (&dry["lost_undo"], &dry["disks"][0]["what"]),
        (&serde_json::json!([]), &"kept".into())
    );

    let kept = lab.run(&["snapshot", "rm", "web@s", "--keep-undo"]);
    assert!(kept.err.is_empty() && kept.out.contains("is kept, hidden"), "{kept:?}");
    lab.ok(&["gc"]);
    lab.ok(&["undo", "copy"]);
    assert_eq!((byte(&lab, "copy"), byte(&lab, "web")), (1, 3));
    lab.ok(&["rm", "copy"]);
    lab.ok(&["undo", "web"]);
    assert_eq!(byte(&lab, "web"), 2);

    lab.ok(&["snapshot", "create", "web", "t"]);
    write_byte(&lab, "web", 4);
    lab.ok(&["snapshot", "revert", "web@t"]);
    let removed = lab.run(&["snapshot", "rm", "web@t"]);
    assert!(
        removed.err.contains("`snapshot revert web@t` of web cannot be undone after this"),
        "{removed:?}"
    );
    lab.run(&["undo", "web"]).fails(5, &["merged since"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!((byte(&lab, "web"), lab.layer_files().len()), (2, 1));
    lab.check_images();
}

#[test]
fn a_removed_vm_comes_back_with_its_snapshots_and_memory_unless_its_name_is_taken() {
    let lab = Lab::new();
    lab.booted("web");
    lab.write("web", "/root/a", "one");
    lab.sh("web", "echo alive > /tmp/a");
    lab.ok(&["snapshot", "create", "web", "s", "--memory"]);
    lab.ok(&["rm", "--force", "web"]);
    lab.ok(&["create", "web", "--size", "16M"]);
    lab.run(&["undo"]).fails(5, &["taken by another VM"]);
    lab.ok(&["rename", "web", "other"]);
    lab.ok(&["undo"]);
    lab.ok(&["snapshot", "revert", "web@s"]);
    assert_eq!(lab.sh("web", "cat /tmp/a /root/a"), "alive\none\n");
    lab.ok(&["rm", "--force", "web"]);
    lab.ok(&["gc", "--older-than", "0"]);
    lab.run(&["undo"]).fails(3, &["collected by gc"]);
    assert_eq!(std::fs::read_dir(lab.store().join("ram")).unwrap().count(), 0);
}

#[test]
fn a_change_that_needs_a_later_one_back_first_says_so_and_an_impossible_one_is_no_dead_end() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "s"]);
    write_byte(&lab, "web", 2);
    lab.ok(&["snapshot", "revert", "web@s"]);
    lab.ok(&["rm", "web"]);
    let list = lab.json(&["undo", "--list"]);
    assert_eq!((&list[0]["possible"], &list[1]["possible"]), (&true.into(), &false.into()));
    assert!(
        list[1]["reason"].as_str().unwrap().contains("`rm web` of web has to be taken back first"),
        "{list}"
    );
    lab.ok(&["undo"]);
    lab.ok(&["undo"]);
    assert_eq!(byte(&lab, "web"), 2);
    // Another VM's change that cannot be taken back is in nobody's way.
    lab.ok(&["create", "other", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "other", "s"]);
    lab.ok(&["set", "web", "memory=64M"]);
    lab.ok(&["snapshot", "revert", "other@s"]);
    write_byte(&lab, "other", 3);
    lab.ok(&["snapshot", "rm", "other@s"]);
    lab.run(&["undo"]).fails(5, &["merged or removed", "--nth 2"]);
    lab.run(&["undo", "--nth", "3"]).fails(3, &["2 changes"]);
    lab.run(&["undo", "--nth", "0"]).fails(2, &[]);
    assert!(lab.ok(&["undo", "--nth", "2"]).contains("set web"));
}

#[test]
fn a_removal_cut_short_is_finished_by_gc_and_can_be_taken_back() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 7);
    let layers = lab.layer_files();
    lab.ok(&["rm", "web"]);
    // As if `rm` had died between the directory and the layers.
    let trash =
        std::fs::read_dir(lab.store().join("trash")).unwrap().next().unwrap().unwrap().path();
    for layer in &layers {
        std::fs::rename(trash.join("layers").join(layer), lab.store().join("layers").join(layer))
            .unwrap();
    }
    lab.ok(&["gc"]);
    assert_eq!(lab.layer_files(), Vec::<String>::new());
    lab.ok(&["gc"]);
    lab.ok(&["undo"]);
    assert_eq!(byte(&lab, "web"), 7);
}

#[test]
fn gc_leaves_alone_what_an_undo_rests_on() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["clone", "web@s", "copy"]);
    write_byte(&lab, "web", 2);
    lab.ok(&["snapshot", "revert", "web@s"]);
    write_byte(&lab, "web", 3);
    // Two depend on it, so it stays, hidden; then one.
    lab.ok(&["snapshot", "rm", "web@s"]);
    lab.ok(&["rm", "copy"]);
    let dry = lab.run(&["gc", "--dry-run"]);
    assert!(!dry.err.contains("merged"), "{dry:?}");
    lab.ok(&["gc"]);
    lab.ok(&["undo", "web"]);
    assert_eq!(byte(&lab, "web"), 2);
    let dry = lab.run(&["gc", "--dry-run", "--older-than", "0"]);
    assert!(dry.err.contains("would be merged"), "{dry:?}");
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(byte(&lab, "web"), 2);
    assert_eq!(lab.layer_files().len(), 1);
}

#[test]
fn undoing_an_internal_revert_goes_back_step_by_step() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "a", "--internal"]);
    for value in [2, 3] {
        write_byte(&lab, "web", value);
        lab.ok(&["snapshot", "revert", "web@a"]);
    }
    lab.ok(&["undo", "web"]);
    assert_eq!(byte(&lab, "web"), 3);
    lab.ok(&["undo", "web"]);
    assert_eq!(byte(&lab, "web"), 2);
    lab.run(&["undo", "web"]).fails(3, &[]);
}

#[test]
fn a_change_is_not_taken_back_over_the_head_of_a_later_one() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--memory", "64M", "--net", "none", "--cpus", "1"]);
    lab.ok(&["set", "web", "memory=128M"]);
    lab.ok(&["set", "web", "cpus=2"]);
    lab.run(&["undo", "web", "--nth", "2"]).fails(5, &["`set web` of web came later"]);
    lab.run(&["undo", "--list", "nobody"]).fails(3, &[]);
    lab.ok(&["undo", "web"]);
    lab.ok(&["undo", "web"]);
    let now = lab.json(&["show", "web"]);
    assert_eq!((&now["memory_bytes"], &now["cpus"]), (&(64 << 20).into(), &1.into()));
}

#[test]
fn nothing_is_taken_back_on_top_of_a_layer_that_a_guest_writes_to_now() {
    // A merge with no data to move leaves a layer's file as it was, and makes it the head: of this
    // VM, or of a clone.
    for clone in [false, true] {
        let lab = Lab::new();
        lab.ok(&["create", "web", "--size", "16M"]);
        write_byte(&lab, "web", 1);
        lab.ok(&["snapshot", "create", "web", "s"]);
        if clone {
            lab.ok(&["clone", "web@s", "copy"]);
        }
        write_byte(&lab, "web", 2);
        lab.ok(&["snapshot", "revert", "web@s"]);
        lab.ok(&["snapshot", "rm", "web@s"]);
        if clone {
            lab.ok(&["flatten", "web"]);
            lab.ok(&["disk", "commit", "copy", "vda"]);
        }
        let (vm, layers) = if clone { ("copy", 2) } else { ("web", 1) };
        assert_eq!(lab.layer_files().len(), layers, "it was merged");
        let listed = lab.ok(&["undo", "--list", "web"]);
        assert!(listed.contains(&format!("{vm} writes to it")), "{listed}");
        lab.run(&["undo", "web"]).fails(5, &["which was merged since then"]);
        assert_eq!((byte(&lab, "web"), byte(&lab, vm)), (1, 1));
        lab.ok(&["gc", "--older-than", "0"]);
        assert_eq!((byte(&lab, "web"), byte(&lab, vm)), (1, 1));
        lab.check_images();
    }
}

#[test]
fn a_stream_keeps_what_an_undo_needs_and_a_commit_says_which_undo_it_ends() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    write_byte(&lab, "web", 1);
    lab.ok(&["snapshot", "create", "web", "s"]);
    let reverted = || {
        write_byte(&lab, "web", 2);
        lab.ok(&["snapshot", "create", "web", "t"]);
        write_byte(&lab, "web", 3);
        lab.ok(&["snapshot", "revert", "web@t"]);
        lab.ok(&["snapshot", "rm", "web@t", "--keep-undo"]);
    };
    for stream in [&["flatten", "web"][..], &["disk", "stream", "web", "vda"]] {
        reverted();
        lab.ok(stream);
        lab.ok(&["undo", "web"]);
        assert_eq!(byte(&lab, "web"), 3, "{stream:?}");
        lab.ok(&["gc", "--older-than", "0"]);
    }
    reverted();
    let lost = "`snapshot revert web@t` of web cannot be undone after this";
    let commit = ["disk", "commit", "web", "vda"];
    for args in [&["--dry-run"][..], &[]] {
        let said = lab.run(&[&commit[..], args].concat());
        assert!(said.code == 0 && said.err.contains(lost), "{said:?}");
    }
    lab.run(&["undo", "web"]).fails(5, &["merged since"]);
    assert_eq!(byte(&lab, "web"), 2);
    lab.check_images();
}
