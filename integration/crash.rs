//! Killed in the middle: the next command puts things right, and nothing is lost.

use std::time::Duration;

use crate::lab::{Done, Lab, eventually, kill};

#[test]
fn a_killed_clone_leaves_nothing() {
    let lab = Lab::new();
    lab.large("base", 300);
    let files = lab.layer_files();
    let child = lab.spawn(&["clone", "base", "x", "--full"]);
    eventually("the beginning of the copy", || {
        lab.layer_files().iter().any(|file| file.ends_with(".part"))
    });
    kill(child.id().cast_signed());
    child.wait_with_output().unwrap();
    assert_eq!(lab.json(&["ls"]).as_array().unwrap().len(), 1, "half a clone is not listed");
    lab.run(&["start", "x"]).fails(3, &[]);
    lab.ok(&["create", "other", "--size", "64M"]);
    lab.ok(&["rm", "other"]);
    assert_eq!(lab.layer_files(), files);
    assert_eq!(lab.vm_directories(), ["base"]);
    lab.ok(&["clone", "base", "x", "--full"]);
}

#[test]
fn an_interrupted_clone_cleans_up_after_itself() {
    let lab = Lab::new();
    lab.large("base", 300);
    let files = lab.layer_files();
    let child = lab.spawn(&["clone", "base", "x", "--full"]);
    eventually("the beginning of the copy", || {
        lab.layer_files().iter().any(|file| file.ends_with(".part"))
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!(done.code, 130, "{done:?}");
    assert_eq!(lab.layer_files(), files);
    assert_eq!(lab.vm_directories(), ["base"]);
}

#[test]
fn a_guest_that_stands_still_because_a_command_was_killed_is_said_to() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--memory", "64M", "--net", "none"]);
    lab.ok(&["start", "web"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    let killed = lab
        .command(&["snapshot", "rm", "web@s"])
        .env("COWHAND_FAULT", "resume, about to happen:die")
        .output();
    assert_eq!(killed.unwrap().status.code(), None);
    assert_eq!(lab.state("web"), "paused");
    let list = lab.answered(&["ls"]);
    assert!(
        list.err.contains("`snapshot rm web@s` was cut short")
            && list.err.contains("its guest is paused"),
        "{list:?}"
    );
    let doctor = lab.answered(&["doctor", "web"]);
    assert!(doctor.out.contains("was cut short, and its guest is paused"), "{doctor:?}");
    lab.ok(&["set", "web", "tag.a=b"]);
    assert_eq!(lab.state("web"), "running");
}

/// Kills a command after ever longer times, until it is quick enough to end by itself; `check` must
/// hold after each recovery.
fn killed_at_every_moment(
    lab: &Lab,
    prepare: impl Fn(u32),
    args: &dyn Fn(u32) -> Vec<String>,
    check: impl Fn(u32, bool),
) {
    let (mut delay, mut killed) = (Duration::ZERO, 0);
    for round in 0..100 {
        prepare(round);
        let args = args(round);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = lab.spawn(&args);
        std::thread::sleep(delay);
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            kill(child.id().cast_signed());
        }
        let survived = Done::from(child.wait_with_output().unwrap()).code == 0;
        check(round, survived);
        if !ended {
            killed += 1;
            delay += Duration::from_micros(700) + delay / 2;
        } else if killed > 2 {
            return;
        }
        // A busy host may have let the command run to its end before this test could go on: the
        // same time once more.
    }
    panic!("it was killed {killed} times");
}

/// Every layer in the pool is named by somebody, or depended on.
fn assert_no_orphans(lab: &Lab) {
    lab.ok(&["stop", "--force", "web"]);
    let before = lab.layer_files();
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files(), before, "layers were left that nobody uses");
}

#[test]
fn a_removal_that_was_killed_can_be_repeated() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "web", "base"]);
    killed_at_every_moment(
        &lab,
        |_| {
            lab.run(&["snapshot", "create", "web", "a"]);
        },
        &|_| vec!["snapshot".into(), "rm".into(), "web@a".into()],
        |_, survived| {
            let there = lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len() == 2;
            let cut_short = lab.store().join("vms/web/journal.json").exists();
            let again = lab.run(&["snapshot", "rm", "web@a"]);
            assert_eq!(again.code, if there || cut_short { 0 } else { 3 }, "{survived}: {again:?}");
        },
    );
    lab.check_images_after_a_kill();
}

#[test]
fn a_vm_in_the_middle_of_a_change_is_not_started_by_hand() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "web", "a", "--internal"]);
    let journal = lab.store().join("vms/web/journal.json");
    killed_at_every_moment(
        &lab,
        |_| {},
        &|_| vec!["snapshot".into(), "revert".into(), "web@a".into()],
        |_, survived| {
            if journal.exists() {
                assert!(!survived);
                lab.run(&["plan", "web"]).fails(8, &["cut short", "cowhand start web"]);
                // As long as a process lives that it was about to start, somebody is at work on it.
                eventually("a list that tells of it", || {
                    lab.run(&["ls"]).err.contains("web: `snapshot revert web@a` was cut short")
                });
                assert_eq!(lab.json(&["show", "web"])["cut_short"], "snapshot revert web@a");
            }
            lab.ok(&["set", "web", "cpus=1"]);
            lab.ok(&["plan", "web"]);
            assert_eq!(lab.json(&["ls"])[0].get("cut_short"), None);
        },
    );
    lab.check_images_after_a_kill();
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn a_merge_whose_qemu_is_killed_too_is_finished_offline() {
        let lab = Lab::new();
        lab.booted("web");
        for (round, delay) in [0, 20, 40, 60, 80, 120].into_iter().enumerate() {
            lab.write("web", "/root/a", "before");
            lab.ok(&["snapshot", "create", "web", "s"]);
            lab.sh(
                "web",
                &format!(
                    "echo 'after {round}' > /root/a; dd if=/dev/urandom of=/root/b bs=1M count=16 \
                     2>/dev/null; sync"
                ),
            );
            let pid = lab.pid("web");
            let child = lab.spawn(&["snapshot", "rm", "web@s"]);
            std::thread::sleep(Duration::from_millis(delay));
            kill(child.id().cast_signed());
            kill(pid);
            child.wait_with_output().unwrap();
            eventually("the end of QEMU", || lab.state("web") == "crashed");
            lab.ok(&["start", "web"]);
            assert_eq!(lab.read("web", "/root/a"), Some(format!("after {round}")));
            if lab.json(&["snapshot", "ls", "web"]) != serde_json::json!([]) {
                lab.ok(&["snapshot", "rm", "web@s"]);
            }
            assert_eq!(lab.chain("web").len(), 1);
        }
        lab.check_images_after_a_kill();
        assert_no_orphans(&lab);
    }

    #[test]
    fn a_snapshot_killed_at_any_moment_is_there_or_not_and_the_guest_keeps_its_writes() {
        let lab = Lab::new();
        lab.booted("web");
        killed_at_every_moment(
            &lab,
            |round| lab.write("web", "/root/a", &format!("round {round}")),
            &|round| vec!["snapshot".into(), "create".into(), "web".into(), format!("s{round}")],
            |round, _| {
                // The next command recovers; then the guest works, is not frozen, and what was
                // written before is there.
                lab.ok(&[
                    "snapshot",
                    "create",
                    "web",
                    &format!("after{round}"),
                    "--quiesce",
                    "never",
                ]);
                assert_eq!(lab.read("web", "/root/a"), Some(format!("round {round}")));
                assert!(!lab.store().join("vms/web/journal.json").exists());
            },
        );
        lab.ok(&["stop", "--force", "web"]);
        lab.ok(&["start", "web"]);
        assert!(lab.read("web", "/root/a").unwrap().starts_with("round"));
        lab.check_images_after_a_kill();
        assert_no_orphans(&lab);
    }

    #[test]
    fn a_merge_killed_at_any_moment_is_finished_by_the_next_command() {
        let lab = Lab::new();
        lab.booted("web");
        killed_at_every_moment(
            &lab,
            |round| {
                lab.write("web", "/root/a", &format!("before {round}"));
                lab.ok(&["snapshot", "create", "web", &format!("s{round}")]);
                lab.sh(
                    "web",
                    &format!(
                        "echo 'after {round}' > /root/a; dd if=/dev/urandom of=/root/b bs=1M \
                         count=8 2>/dev/null; sync"
                    ),
                );
            },
            &|round| vec!["snapshot".into(), "rm".into(), format!("web@s{round}")],
            |round, _| {
                // Refused, as it runs; but recovery comes first, and lets the guest go on.
                lab.run(&["set", "web", "cpus=1"]).fails(5, &["while it runs"]);
                assert_eq!(lab.state("web"), "running");
                assert_eq!(lab.read("web", "/root/a"), Some(format!("after {round}")));
                if lab.json(&["snapshot", "ls", "web"]) != serde_json::json!([]) {
                    lab.ok(&["snapshot", "rm", &format!("web@s{round}")]);
                }
                assert_eq!(lab.chain("web").len(), 1, "the merge was not finished");
            },
        );
        lab.check_images_after_a_kill();
        assert_no_orphans(&lab);
    }

    #[test]
    fn a_revert_killed_at_any_moment_leaves_the_vm_before_or_after_it() {
        let lab = Lab::new();
        lab.booted("web");
        lab.write("web", "/root/a", "old");
        lab.ok(&["snapshot", "create", "web", "s"]);
        killed_at_every_moment(
            &lab,
            |_| {
                if lab.state("web") != "running" {
                    lab.ok(&["start", "web"]);
                }
                lab.write("web", "/root/a", "new");
            },
            &|_| vec!["snapshot".into(), "revert".into(), "web@s".into()],
            |_, _| {
                // QEMU may have been told to end just before, or be on its way to the greeting.
                eventually("a guest that answers", || {
                    lab.run(&["start", "web"]);
                    lab.run(&["exec", "web", "--", "true"]).code == 0
                });
                let text = lab.read("web", "/root/a").unwrap();
                assert!(text == "old" || text == "new", "{text}");
            },
        );
        lab.check_images_after_a_kill();
        assert_no_orphans(&lab);
    }

    #[test]
    fn an_internal_snapshot_killed_at_any_moment_leaves_neither_job_nor_tag() {
        let lab = Lab::new();
        lab.booted("web");
        let inside = |lab: &Lab| {
            let file = lab.store().join("layers").join(&lab.layer_files()[0]);
            crate::lab::qemu_img(&["snapshot", "-U", "-l", file.to_str().unwrap()])
                .matches("cw-")
                .count()
        };
        for delay in [0, 5, 10, 20, 40, 80, 160, 320] {
            let child = lab.spawn(&["snapshot", "create", "web", "s", "--internal"]);
            std::thread::sleep(Duration::from_millis(delay));
            kill(child.id().cast_signed());
            child.wait_with_output().unwrap();
            // Refused, as it runs; but recovery comes first.
            lab.run(&["set", "web", "cpus=1"]).fails(5, &["while it runs"]);
            let names = lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len();
            assert_eq!(inside(&lab), names, "after {delay} ms");
            assert_eq!(lab.state("web"), "running");
            if names == 1 {
                lab.ok(&["snapshot", "rm", "web@s"]);
            }
        }
        lab.write("web", "/root/a", "alive");
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("alive"));
    }
}
