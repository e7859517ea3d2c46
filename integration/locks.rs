//! Two commands at once on one VM: one waits, says for whom, and both end well.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Done, Lab, eventually};

#[test]
fn a_snapshot_during_a_stop_waits_and_says_for_whom() {
    let lab = Lab::new();
    lab.booted("web");
    // The guest takes its time to shut down.
    lab.sh("web", "printf '#!/bin/sh\\nsleep 4\\nexec /bin/poweroff\\n' > /sbin/shutdown");
    let stop = lab.spawn(&["stop", "web"]);
    let lock = lab.store().join("vms/web/lock");
    eventually("the stop's signature", || {
        std::fs::read_to_string(&lock).is_ok_and(|text| text.contains("stop web"))
    });
    let snapshot = Done::from(lab.command(&["snapshot", "create", "web", "s"]).output().unwrap());
    assert!(snapshot.err.contains("waiting for web: `stop web` (pid"), "{}", snapshot.err);
    snapshot.ok();
    Done::from(stop.wait_with_output().unwrap()).ok();
    assert_eq!(lab.json(&["snapshot", "ls", "web"])[0]["vm_state"], "stopped");
}

#[test]
fn a_wait_that_is_too_long_ends_with_the_holders_name() {
    let lab = Lab::new();
    lab.booted("web");
    lab.sh("web", "printf '#!/bin/sh\\nsleep 6\\nexec /bin/poweroff\\n' > /sbin/shutdown");
    let stop = lab.spawn(&["stop", "web"]);
    let lock = lab.store().join("vms/web/lock");
    eventually("the stop's signature", || {
        std::fs::read_to_string(&lock).is_ok_and(|text| text.contains("stop web"))
    });
    lab.run(&["--wait", "0", "snapshot", "create", "web", "s"])
        .fails(6, &["`stop web` (pid", "--wait"]);
    // Observers take no lock.
    assert_eq!(lab.json(&["ls"])[0]["name"], "web");
    Done::from(stop.wait_with_output().unwrap()).ok();
}

#[test]
fn many_snapshots_at_once_are_all_taken() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    let children: Vec<_> = (0..8)
        .map(|n| lab.spawn(&["--wait", "300", "snapshot", "create", "web", &format!("s{n}")]))
        .collect();
    children.into_iter().for_each(|child| drop(Done::from(child.wait_with_output().unwrap()).ok()));
    assert_eq!(lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len(), 8);
    assert_eq!(lab.chain("web").len(), 9);
}

#[test]
fn a_template_is_never_removed_under_a_clone_that_is_being_made() {
    let lab = Lab::new();
    for round in 0..5 {
        let base = format!("base{round}");
        lab.ok(&["create", &base, "--size", "64M"]);
        lab.ok(&["template", "create", &base, "--no-seal"]);
        let clone = lab.spawn(&["clone", &base, &format!("c{round}"), "-n", "10"]);
        let remove =
            lab.command(&["template", "rm", &base]).stderr(Stdio::piped()).spawn().unwrap();
        let clone = Done::from(clone.wait_with_output().unwrap());
        let remove = Done::from(remove.wait_with_output().unwrap());
        // Either order is fine; what is not is a clone on nothing.
        assert_eq!(
            [clone.code, remove.code].iter().filter(|code| **code == 0).count(),
            1,
            "{clone:?} {remove:?}"
        );
        for row in lab.json(&["ls"]).as_array().unwrap() {
            lab.ok(&["disk", "chain", row["name"].as_str().unwrap()]);
        }
    }
}

#[test]
fn a_cascade_waits_for_a_full_clone_of_what_it_removes() {
    let lab = Lab::new();
    lab.ok(&["create", "a", "--size", "16M"]);
    lab.ok(&["clone", "a", "b"]);
    // It has the lock of b, and the source's layers in its journal.
    let mut clone = lab
        .command(&["clone", "b", "c", "--full"])
        .env("COWHAND_FAULT", "4:stall")
        .spawn()
        .unwrap();
    let pid = clone.id().cast_signed();
    eventually("a standstill", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
    });
    assert!(lab.store().join("vms/c/journal.json").exists(), "it stands still too early");
    let remove = lab.spawn(&["rm", "a", "--cascade"]);
    let lock = lab.store().join("store.lock");
    eventually("the removal's signature", || {
        std::fs::read_to_string(&lock).is_ok_and(|text| text.contains("rm a"))
    });
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    assert!(clone.wait().unwrap().success());
    Done::from(remove.wait_with_output().unwrap()).ok();
    assert_eq!(lab.json(&["ls"])[0]["name"], "c");
    assert_eq!(lab.json(&["ls"]).as_array().unwrap().len(), 1);
    assert_eq!(lab.chain("c").len(), 1);
    lab.ok(&["doctor", "c"]);
}

#[test]
fn of_two_creates_with_one_name_only_one_makes_it() {
    let lab = Lab::new();
    let source = lab.path().join("data.raw");
    std::fs::write(&source, vec![1; 300 << 20]).unwrap();
    let first = lab.spawn(&["create", "web", "--disk", source.to_str().unwrap()]);
    eventually("the beginning of the copy", || {
        lab.layer_files().iter().any(|file| file.ends_with(".part"))
    });
    lab.run(&["create", "web", "--size", "64M"]).fails(4, &["web is taken"]);
    Done::from(first.wait_with_output().unwrap()).ok();
    assert_eq!(
        lab.json(&["disk", "ls", "web"])[0]["virtual_bytes"],
        300 << 20,
        "the first one's disk was replaced"
    );
}

#[test]
fn emptying_the_trash_beside_snapshots_takes_nothing_that_is_used() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "64M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    let children: Vec<_> = (0..12)
        .flat_map(|n| {
            [
                lab.spawn(&["snapshot", "create", "web", &format!("s{n}")]),
                lab.spawn(&["gc", "--older-than", "0"]),
            ]
        })
        .collect();
    children.into_iter().for_each(|child| drop(Done::from(child.wait_with_output().unwrap()).ok()));
    assert_eq!(lab.chain("web").len(), 13);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["start", "web"]);
}

#[test]
fn a_command_in_the_guest_survives_a_freeze() {
    let lab = Lab::new();
    lab.booted("web");
    let exec = lab.spawn(&["exec", "web", "--", "sh", "-c", "sleep 3; echo done"]);
    for n in 0..6 {
        lab.ok(&[
            "snapshot",
            "create",
            "web",
            &format!("s{n}"),
            "--quiesce",
            "require",
            "--quiesce-timeout",
            "60",
        ]);
    }
    assert_eq!(Done::from(exec.wait_with_output().unwrap()).ok(), "done\n");
}

#[test]
fn two_removals_of_neighbours_at_once_are_both_done() {
    let lab = Lab::new();
    lab.booted("web");
    for n in 0..6 {
        lab.write("web", "/root/a", &format!("{n}"));
        lab.ok(&["snapshot", "create", "web", &format!("s{n}")]);
    }
    let removals: Vec<_> =
        (0..6).map(|n| lab.spawn(&["snapshot", "rm", &format!("web@s{n}")])).collect();
    let taking = lab.spawn(&["snapshot", "create", "web", "between"]);
    for child in removals.into_iter().chain([taking]) {
        crate::lab::Done::from(child.wait_with_output().unwrap()).ok();
    }
    assert_eq!(lab.ok(&["snapshot", "ls", "web", "-q"]), "between\n");
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("5"));
    assert_eq!(lab.chain("web").len(), 2);
}
