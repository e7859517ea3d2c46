//! Snapshots with memory: disks and memory of one instant, a guest that goes on where it was, and
//! refusals where it could not.

use std::path::PathBuf;

use crate::lab::{Lab, eventually, kill};

/// A loop in the guest that writes one number to memory and to the disk, again and again.
const COUNT: &str = "rm -f /tmp/n; (i=0; while :; do i=$((i+1)); echo $i > /tmp/m; \
                     echo $i > /root/n.new; mv /root/n.new /root/n; mv /tmp/m /tmp/n; \
                     done) >/dev/null 2>&1 & sleep 1; cat /tmp/n";

fn counters(lab: &Lab, vm: &str) -> (i64, i64) {
    // The loop is stopped, so that both numbers are of the same moment: the one on the disk is at
    // most one ahead.
    let text = lab.sh(
        vm,
        "kill -STOP $(pidof sh | tr ' ' '\\n' | grep -v $$) 2>/dev/null; cat /tmp/n /root/n",
    );
    let mut numbers = text.lines().map(|line| line.trim().parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn uptime(lab: &Lab, vm: &str) -> f64 {
    lab.sh(vm, "cut -d' ' -f1 /proc/uptime").trim().parse().unwrap()
}

fn images(lab: &Lab) -> Vec<PathBuf> {
    std::fs::read_dir(lab.store().join("ram"))
        .map_or_else(|_| Vec::new(), |all| all.map(|entry| entry.unwrap().path()).collect())
}

#[test]
fn memory_and_disk_come_back_from_the_same_instant() {
    let lab = Lab::new();
    lab.booted("web");
    lab.sh("web", COUNT);
    let taken = lab.json(&["snapshot", "create", "web", "s", "--memory"]);
    assert_eq!((&taken["memory"], &taken["vm_state"]), (&true.into(), &"running".into()));
    assert!(
        taken["pause_ms"].as_f64().unwrap() > 0.0
            && taken["memory_bytes"].as_u64().unwrap() > 1 << 20,
        "{taken}"
    );
    assert_eq!(lab.state("web"), "running", "the guest goes on while its memory is written");
    let before = uptime(&lab, "web");
    lab.sh("web", "touch /tmp/later /root/later && sync");
    lab.ok(&["snapshot", "revert", "web@s"]);
    let back = counters(&lab, "web");
    assert!(back.0 > 0, "nothing counts any more");
    assert_eq!(
        lab.sh("web", "ls /tmp/later /root/later 2>/dev/null | wc -l").trim(),
        "0",
        "what came later is there"
    );
    assert!((0..=1).contains(&(back.1 - back.0)), "memory says {}, the disk {}", back.0, back.1);
    let after = uptime(&lab, "web");
    assert!(after > 2.0 && after < before + 60.0, "uptime went from {before} to {after}");
    // Private, and gone with the snapshot.
    let image = &images(&lab)[0];
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&image.metadata().unwrap()) & 0o777, 0o600);
    lab.ok(&["snapshot", "rm", "web@s"]);
    assert_eq!(images(&lab), Vec::<PathBuf>::new());
    lab.sh("web", "true");
}

#[test]
fn a_guest_is_taken_back_to_any_of_its_memories_compressed_or_not_and_may_stand_still() {
    let lab = Lab::new();
    lab.booted("web");
    lab.sh("web", "echo one > /tmp/a");
    lab.ok(&["snapshot", "create", "web", "s1", "--memory", "--compress", "zstd"]);
    lab.sh("web", "echo two > /tmp/a");
    lab.ok(&["snapshot", "create", "web", "s2", "--memory"]);
    lab.sh("web", "echo three > /tmp/a");
    for (point, text) in [("s1", "one"), ("s2", "two"), ("s1", "one")] {
        lab.ok(&["snapshot", "revert", &format!("web@{point}")]);
        assert_eq!(lab.sh("web", "cat /tmp/a").trim(), text);
    }
    lab.ok(&["snapshot", "revert", "web@s2", "--paused"]);
    assert_eq!(lab.state("web"), "paused");
    lab.ok(&["resume", "web"]);
    assert_eq!(lab.sh("web", "cat /tmp/a").trim(), "two");
    // A stopped VM is as good a place to begin.
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["snapshot", "revert", "web@s1"]);
    assert_eq!(lab.sh("web", "cat /tmp/a").trim(), "one");
    // Without its memory it boots.
    lab.ok(&["snapshot", "revert", "web@s1", "--cold"]);
    assert_eq!(lab.sh("web", "cat /tmp/a 2>/dev/null || echo gone").trim(), "gone");
    lab.ok(&["snapshot", "revert", "web@s1", "--stopped"]);
    assert_eq!(lab.state("web"), "stopped");
}

#[test]
fn a_paused_guest_stays_paused_and_can_be_worked_on_after_its_memory_was_saved() {
    let lab = Lab::new();
    lab.booted("web");
    lab.sh("web", "echo here > /tmp/a");
    lab.ok(&["pause", "web"]);
    let taken = lab.json(&["snapshot", "create", "web", "s1", "--memory"]);
    assert_eq!((&taken["vm_state"], &taken["memory"]), (&"paused".into(), &true.into()));
    assert_eq!(lab.state("web"), "paused");
    lab.ok(&["snapshot", "create", "web", "s2"]);
    let merged = lab.ok(&["snapshot", "rm", "web@s2"]);
    assert!(merged.contains("committed"), "QEMU must have its disks back: {merged}");
    // Until the guest has run, a QEMU may not be able to save the same memory once more: then
    // nothing happens.
    let before = lab.fingerprint();
    let again = lab.run(&["snapshot", "create", "web", "s3", "--memory"]);
    if again.code != 0 {
        again.fails(5, &["since it was paused", "cowhand resume web"]);
        assert_eq!(lab.fingerprint(), before);
    }
    lab.ok(&["resume", "web"]);
    assert_eq!(lab.sh("web", "cat /tmp/a").trim(), "here");
    lab.ok(&["snapshot", "revert", "web@s1"]);
    assert_eq!(lab.state("web"), "paused", "it stood still then");
    lab.ok(&["resume", "web"]);
    assert_eq!(lab.sh("web", "cat /tmp/a").trim(), "here");
}

#[test]
fn a_stopped_vm_has_no_memory_to_save_and_that_is_said() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M"]);
    let done = lab.run(&["snapshot", "create", "web", "s", "--memory"]);
    assert!(done.err.contains("no memory to save"), "{}", done.err);
    done.ok();
    assert_eq!(lab.json(&["snapshot", "ls", "web"])[0]["memory"], false);
}

#[test]
fn a_restore_that_fails_half_way_leaves_the_vm_where_it_was() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["snapshot", "create", "web", "s", "--memory"]);
    lab.write("web", "/root/a", "after");
    // The right length, and the wrong content in the middle: QEMU finds out while it loads.
    let image = images(&lab).remove(0);
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + (1 << 20)].fill(0xff);
    std::fs::write(&image, bytes).unwrap();
    let layers = lab.layer_files();
    lab.run(&["snapshot", "revert", "web@s"]).fails(7, &["cannot be loaded", "where it was"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("after"));
    assert_eq!(lab.layer_files(), layers);
    assert!(!lab.store().join("vms/web/journal.json").exists());
}

#[test]
fn a_snapshot_there_is_no_room_for_is_refused_before_anything_happens() {
    let lab = Lab::new();
    let Some(small) = crate::lab::SmallDisk::new("a_snapshot_there_is_no_room_for", 48) else {
        return;
    };
    let run = |args: &[&str]| -> crate::lab::Done {
        lab.command(args).env("COWHAND_STORE", small.path().join("store")).output().unwrap().into()
    };
    run(&["create", "web", "--size", "64M", "--memory", "128M"]).ok();
    run(&["start", "web"]).ok();
    // The firmware alone touches less than is free, so something has to be in the way.
    std::fs::write(small.path().join("filler"), vec![1; 30 << 20]).unwrap();
    let done = run(&["snapshot", "create", "web", "s", "--memory"]);
    let running = run(&["show", "web"]).out;
    run(&["stop", "--force", "web"]).ok();
    done.fails(5, &["free", "memory up to", "MiB"]);
    assert!(running.contains("running"), "{running}");
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn memory_of_another_machine_is_refused_and_the_difference_named() {
        let lab = Lab::new();
        lab.booted("web");
        lab.ok(&["snapshot", "create", "web", "s", "--memory"]);
        lab.write("web", "/root/a", "after");
        let record = lab.store().join("vms/web/vm.json");
        let text = std::fs::read_to_string(&record).unwrap();
        for (ours, theirs, words) in [
            ("\"accel\": \"tcg\"", "\"accel\": \"kvm\"", "accelerator was kvm"),
            ("\"qemu\": \"", "\"qemu\": \"6.", "QEMU was 6."),
        ] {
            std::fs::write(&record, text.replace(ours, theirs)).unwrap();
            lab.run(&["snapshot", "revert", "web@s"]).fails(5, &[words, "--cold"]);
            assert_eq!(lab.state("web"), "running", "a refused revert leaves the VM as it was");
            assert_eq!(lab.read("web", "/root/a").as_deref(), Some("after"));
        }
        std::fs::write(&record, &text).unwrap();
        // Cut short, it is noticed before anything is touched.
        let image = images(&lab).remove(0);
        let length = image.metadata().unwrap().len();
        std::fs::File::options().write(true).open(&image).unwrap().set_len(length - 4096).unwrap();
        lab.run(&["snapshot", "revert", "web@s"]).fails(8, &["cut short", "--cold"]);
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("after"));
        lab.ok(&["snapshot", "revert", "web@s", "--cold"]);
        assert_eq!(lab.read("web", "/root/a"), None);
    }

    #[test]
    fn a_killed_memory_snapshot_loses_neither_the_guest_nor_its_disks() {
        let lab = Lab::new();
        lab.booted("web");
        lab.sh("web", "dd if=/dev/urandom of=/tmp/fill bs=1M count=60 2>/dev/null");
        for round in 0..4 {
            let name = format!("s{round}");
            let child =
                lab.spawn(&["snapshot", "create", "web", &name, "--memory", "--compress", "zstd"]);
            std::thread::sleep(std::time::Duration::from_millis(20 + 60 * round));
            kill(child.id().cast_signed());
            child.wait_with_output().unwrap();
            // The next command puts things right: undone, or there with the disks alone.
            lab.sh("web", &format!("echo {round} > /root/a; sync"));
            eventually("the guest to run", || lab.state("web") == "running");
            lab.ok(&["snapshot", "ls", "web"]);
            assert!(
                !images(&lab).iter().any(|path| path.to_str().unwrap().ends_with(".part")),
                "{:?}",
                images(&lab)
            );
            assert_eq!(lab.read("web", "/root/a").unwrap(), round.to_string());
        }
        lab.ok(&["snapshot", "create", "web", "whole", "--memory"]);
        lab.ok(&["snapshot", "revert", "web@whole"]);
        assert_eq!(lab.read("web", "/root/a").unwrap(), "3");
        lab.ok(&["stop", "web"]);
        lab.check_images_after_a_kill();
    }
}
