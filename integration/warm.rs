//! Warm templates and throw-away VMs: guests that go on from one memory are guests of their own,
//! and nothing is left of them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::lab::{Done, Lab, eventually, files_in, kill, skip, terminate};
use crate::ports::free_port;
use crate::prepared::LEASE;
use crate::tier;

/// Every file of the store but locks, and every process that belongs to it.
#[track_caller]
fn only_the_template_is_there(lab: &Lab, layers: usize) {
    assert_eq!(lab.vm_directories(), ["t"]);
    assert_eq!(lab.layer_files().len(), layers, "{:?}", lab.layer_files());
    assert_eq!(files_in(&lab.store().join("trash")), [] as [String; 0]);
    assert_eq!(files_in(&lab.path().join("run/cowhand")), [] as [String; 0], "sockets");
    eventually("all processes have ended", || processes(lab).is_empty());
}

pub fn processes(lab: &Lab) -> Vec<i32> {
    let path = lab.path().to_str().unwrap().to_owned();
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&path))
    })
    .collect()
}

#[test]
fn guests_from_one_memory_share_nothing_and_leave_nothing() {
    let lab = Lab::warm();
    let layers = lab.layer_files().len();
    let memory = lab.store().join("ram");
    let before: Vec<_> = files_in(&memory).iter().map(|file| stamp(&memory.join(file))).collect();
    assert_eq!(lab.json(&["template", "ls"])[0]["warm"], true);
    // Many at once: every one has its own of everything.
    let script =
        "hostname; head -c16 /dev/urandom | od -An -tx1; cat /sys/class/net/eth0/address; date +%s";
    let children: Vec<Child> = (0..tier::first_or(5, 10))
        .map(|_| lab.spawn(&["run", "--warm", "t", "--", "sh", "-c", script]))
        .collect();
    let mut seen = BTreeSet::new();
    for child in children {
        let told = Done::from(child.wait_with_output().unwrap()).ok();
        let lines: Vec<&str> = told.lines().collect();
        let [own @ .., date] = &lines[..] else { panic!("{told}") };
        assert_eq!(own.len(), 3, "{told}");
        own.iter()
            .for_each(|line| assert!(seen.insert((*line).to_owned()), "{line} was there before"));
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(date.parse::<u64>().unwrap().abs_diff(now) < 120, "the clock says {date}");
    }
    // Exit codes.
    let run = |args: &[&str]| lab.run(&[&["run"], args].concat());
    assert_eq!(run(&["t", "--", "true"]).code, 0);
    assert_eq!(run(&["t", "--", "sh", "-c", "exit 3"]).code, 3);
    assert_eq!(run(&["--timeout", "1", "t", "--", "sleep", "1000"]).code, 124);
    assert_eq!(run(&["t", "--", "/etc/passwd"]).code, 126);
    assert_eq!(run(&["t", "--", "no-such-program"]).code, 127);
    run(&["nowhere", "--", "true"]).fails(125, &["there is no VM or template nowhere"]);
    run(&["--copy-in", "/nowhere:/x", "t", "--", "true"]).fails(125, &["--copy-in", "/nowhere"]);
    run(&["--copy-out", "/x:/nowhere/x", "t", "--", "true"])
        .fails(125, &["--copy-out", "/nowhere"]);
    // Signals are for the command.
    let mut child = lab.spawn(&[
        "run",
        "t",
        "--",
        "sh",
        "-c",
        "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done",
    ]);
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    terminate(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(7));
    // Files in, and out again, although the command fails.
    let (from, to) = (lab.path().join("in"), lab.path().join("out"));
    std::fs::write(&from, "seven").unwrap();
    let (copy_in, copy_out) =
        (format!("{}:/tmp/in", from.display()), format!("/tmp/out:{}", to.display()));
    let done = run(&[
        "--copy-in",
        &copy_in,
        "--copy-out",
        &copy_out,
        "t",
        "--",
        "sh",
        "-c",
        "tr a-z A-Z < /tmp/in > /tmp/out; exit 5",
    ]);
    assert_eq!((done.code, std::fs::read_to_string(&to).unwrap().as_str()), (5, "SEVEN"));
    // What cannot be written is no success; a timeout tells what came before it.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let told =
        Done::from(lab.command(&["run", "t", "--", "echo", "hi"]).stdout(full).output().unwrap());
    told.fails(125, &["what the command writes cannot be written here"]);
    let told = lab.run(&[
        "--format", "json", "run", "--timeout", "2", "t", "--", "sh", "-c",
        "echo partial; sleep 1000",
    ]);
    let value: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(
        (told.code, &value["stdout"], &value["timed_out"]),
        (124, &"partial\n".into(), &true.into())
    );
    // What the kernel makes up is copied, too; what cannot be copied is said once, and is no
    // success.
    let version = lab.path().join("version");
    let out = format!("/proc/version:{}", version.display());
    run(&["--copy-out", &out, "t", "--", "true"]).ok();
    assert!(std::fs::read_to_string(&version).unwrap().starts_with("Linux"));
    for from in ["/dev/zero", "/nowhere"] {
        let out = format!("{from}:{}", lab.path().join("nothing").display());
        let told = run(&["--copy-out", &out, "t", "--", "true"]).fails(125, &["--copy-out", from]);
        assert_eq!(told.err.matches("--copy-out").count(), 1, "{told:?}");
    }
    // A name behind a blank is a source, which the error says.
    run(&["--keep", "mine", "t", "--", "true"]).fails(125, &["--keep=mine"]);
    run(&["--timeout", "1m", "t", "--", "true"]).ok();
    // Somebody else's record that cannot be read keeps nothing of a run.
    let broken = lab.store().join("vms/broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("vm.json"), "{").unwrap();
    run(&["t", "--", "true"]).ok();
    std::fs::remove_dir_all(broken).unwrap();
    // Three signals in a row hang up, whatever the command makes of them.
    let mut child = lab.spawn(&[
        "run",
        "t",
        "--",
        "sh",
        "-c",
        "trap '' INT TERM; echo up; while :; do sleep 0.1; done",
    ]);
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    // Signals that come before the last one was seen count as one, so they go on until it ends.
    eventually("the third signal", || {
        terminate(child.id());
        child.try_wait().unwrap().is_some()
    });
    let done = Done::from(child.wait_with_output().unwrap());
    assert!(done.code == 130 && done.err.contains("hung up"), "{done:?}");
    // A guest that restarts has forgotten the command.
    run(&["t", "--", "sh", "-c", "reboot -f; sleep 1000"]).fails(125, &["the guest"]);
    // A panic is an error, at once.
    run(&["t", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"])
        .fails(125, &["the guest"]);
    only_the_template_is_there(&lab, layers);
    let after: Vec<_> = files_in(&memory).iter().map(|file| stamp(&memory.join(file))).collect();
    assert_eq!(before, after, "the template's memory was written to");
    lab.check_images();
}

fn stamp(path: &Path) -> (std::time::SystemTime, u64) {
    let about = path.metadata().unwrap();
    (about.modified().unwrap(), about.len())
}

#[test]
fn a_pool_that_is_drained_while_a_shell_is_being_started_stays_empty() {
    let lab = Lab::warm();
    let mut fill = lab
        .command(&["pool", "fill", "t", "1"])
        .env("COWHAND_FAULT", "a shell, about to be cloned:stall")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let us = fill.id().cast_signed();
    eventually("a standstill", || {
        std::fs::read_to_string(format!("/proc/{us}/stat")).is_ok_and(|stat| stat.contains(") T "))
    });
    lab.run(&["--wait", "0", "pool", "drain", "t"])
        .fails(6, &["the pool of t is locked by `pool fill t`"]);
    let mut drain = lab.spawn(&["pool", "drain", "t"]);
    let mut waits = String::new();
    BufReader::new(drain.stderr.as_mut().unwrap()).read_line(&mut waits).unwrap();
    assert!(waits.contains("waiting for the pool of t"), "{waits}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(us), nix::sys::signal::Signal::SIGCONT)
        .unwrap();
    assert_eq!(fill.wait().unwrap().code(), Some(5), "it was drained meanwhile, which it says");
    Done::from(drain.wait_with_output().unwrap()).ok();
    assert_eq!((lab.vm_directories(), processes(&lab)), (vec!["t".to_owned()], vec![]));
    // While one is being started it has an owner, as a run has; it is none, and does not end by
    // itself.
    lab.ok(&["clone", "t", "a"]);
    let (status, _) =
        lab.stopped_at(&["pool", "fill", "t", "1"], "QEMU, about to be started", |_| {
            let refused = lab
                .run(&["template", "rm", "t"])
                .fails(5, &["wait in its pool: cowhand pool drain t"]);
            assert!(!refused.err.contains("have ended"), "{refused:?}");
        });
    assert!(status.success());
    lab.ok(&["pool", "drain", "t"]);
    lab.ok(&["template", "cool", "t"]);
    assert_eq!(lab.vm_directories(), ["a", "t"]);
}

#[test]
fn a_run_of_a_stopped_vm_leaves_it_as_it_was() {
    let lab = Lab::new();
    lab.tiny("web", &[]);
    let as_it_was = || {
        assert_eq!(lab.vm_directories(), ["web"]);
        assert_eq!(lab.json(&["snapshot", "ls", "web"]), serde_json::json!([]));
        assert_eq!(lab.chain("web").len(), 1);
        assert_eq!(lab.layer_files().len(), 1, "{:?}", lab.layer_files());
    };
    lab.ok(&["run", "web", "--", "touch", "/root/x"]);
    as_it_was();
    let mut child = lab.spawn(&["run", "web", "--", "sleep", "1000"]);
    eventually("it runs", || {
        lab.json(&["ls"]).as_array().unwrap().iter().any(|vm| vm["state"] == "running")
    });
    // What it depends on has no date, as long as it is there.
    lab.ok(&["gc"]);
    assert_eq!(lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len(), 1);
    // It belongs to its command.
    let done = lab.run(&["stop", "--all", "--force"]);
    assert!(
        done.code == 0
            && done.out.is_empty()
            && done.err.contains("because their commands are still running"),
        "{done:?}"
    );
    assert!(lab.json(&["ls"]).as_array().unwrap().iter().any(|vm| vm["state"] == "running"));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("QEMU has ended", || processes(&lab).is_empty());
    lab.ok(&["gc"]);
    as_it_was();
    // A clone that is kept keeps what it was made from.
    lab.ok(&["clone", "web", "copy", "--expires", "1d"]);
    lab.ok(&["set", "copy", "expires="]);
    assert_eq!(lab.json(&["show", "copy"])["expires"], Value::Null);
    lab.run(&["set", "copy", "expires=1d"]).fails(5, &["it was made to stay"]);
    lab.ok(&["gc"]);
    lab.ok(&["reset", "copy", "--stopped"]);
    // A name that is taken while a run waits is another's, and so is what that one depends on.
    for vm in ["web", "other"] {
        lab.run(&["create", vm, "--size", "16M"]);
        lab.ok(&["snapshot", "create", vm, "mine"]);
    }
    let slot = File::create(lab.store().join("slots/0.lock")).unwrap();
    let slot = nix::fcntl::Flock::lock(slot, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let mut waiting =
        lab.command(&["run", "--max-parallel", "1", "--keep=foo", "web", "--", "true"]);
    let mut waiting = waiting.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut words = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let queued = words.next().unwrap().unwrap();
    lab.ok(&["clone", "other@mine", "foo"]);
    drop(slot);
    assert_eq!(waiting.wait().unwrap().code(), Some(125), "{queued}");
    assert_eq!(lab.json(&["show", "foo"])["from"], "other@mine");
    let snapshots = lab.json(&["snapshot", "ls", "web"]);
    assert!(
        snapshots.as_array().unwrap().iter().any(|snapshot| snapshot["name"] == "mine"),
        "{snapshots}"
    );
}

#[test]
fn a_port_that_leads_into_a_warm_clone_is_answered_at_the_address_which_that_gets_by_dhcp() {
    let lab = Lab::warm();
    let port = free_port();
    lab.ok(&["clone", "t", "a", "--warm", "-p", &format!("{port}:80")]);
    // QEMU remembers the template's card, and gives another one another address.
    let lease = lab.sh("a", LEASE);
    assert!(lease.contains("lease of 10.0.2.15 obtained"), "{lease}");
    let fetch = || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        std::io::read_to_string(stream).ok()
    };
    let answers = || {
        eventually("the guest's page", || {
            fetch().is_some_and(|page| page.contains("hello from the tiny guest"))
        })
    };
    answers();
    // The table comes with the memory of a snapshot, too.
    for kind in ["--memory", "--internal"].into_iter().take(tier::first_or(1, 2)) {
        lab.ok(&["snapshot", "create", "a", "s", kind]);
        lab.ok(&["snapshot", "revert", "a@s"]);
        let lease = lab.sh("a", LEASE);
        assert!(lease.contains("lease of 10.0.2.15 obtained"), "{kind}: {lease}");
        answers();
        lab.ok(&["snapshot", "rm", "a@s"]);
    }
}

#[test]
fn a_gitlab_runner_finds_its_stages() {
    let lab = Lab::warm();
    let directory = lab.path().to_owned();
    let response = directory.join("job.json");
    std::fs::write(&response, r#"{"id": 4711, "token": "secret"}"#).unwrap();
    let exit_code = directory.join("exit-code");
    let stage = |args: &[&str], image: &str| {
        let mut command = lab.command(&[&["gitlab"], args].concat());
        command
            .env("JOB_RESPONSE_FILE", &response)
            .env("CUSTOM_ENV_CI_JOB_ID", "1; rm -rf /")
            .env("CUSTOM_ENV_CI_JOB_IMAGE", image);
        command
            .env("BUILD_FAILURE_EXIT_CODE", "201")
            .env("SYSTEM_FAILURE_EXIT_CODE", "202")
            .env("BUILD_EXIT_CODE_FILE", &exit_code);
        // Each in a process group of its own, which is killed at its end.
        let child =
            command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let group = i32::try_from(child.id()).unwrap();
        let done = Done::from(child.wait_with_output().unwrap());
        let _ = nix::sys::signal::killpg(
            nix::unistd::Pid::from_raw(group),
            nix::sys::signal::Signal::SIGKILL,
        );
        done
    };
    let script = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let config: Value = serde_json::from_str(&stage(&["config"], "").ok()).unwrap();
    assert_eq!(
        (&config["builds_dir"], &config["driver"]["name"]),
        (&"/builds".into(), &"cowhand".into())
    );
    stage(&["prepare", "--template", "t"], "evil")
        .fails(202, &["the job asks for the image \"evil\""]);
    stage(&["prepare", "--template", "nowhere", "--allow", "t"], "t").ok();
    assert_eq!(lab.state("gitlab-4711"), "running");
    // A runner tries again; what is there is replaced.
    let before = lab.pid("gitlab-4711");
    stage(&["prepare", "--template", "t"], "").ok();
    assert_ne!(lab.pid("gitlab-4711"), before);
    stage(
        &["run", &script("prepare_script", "mkdir -p /builds; echo prepared"), "prepare_script"],
        "",
    )
    .ok();
    let build = stage(
        &[
            "run",
            &script("build_script", "cd /builds; echo building; echo oops >&2; exit 42"),
            "build_script",
        ],
        "",
    );
    assert_eq!((build.code, build.out.as_str(), build.err.as_str()), (201, "building\n", "oops\n"));
    assert_eq!(std::fs::read_to_string(&exit_code).unwrap(), "42");
    stage(&["run", &script("after_script", "test -d /builds"), "after_script"], "").ok();
    // Of a machine that is gone it is the system's fault.
    kill(lab.pid("gitlab-4711"));
    eventually("the end of QEMU", || lab.state("gitlab-4711") == "crashed");
    stage(&["run", &script("late", "true"), "late"], "")
        .fails(202, &["gitlab-4711 is not running"]);
    stage(&["cleanup"], "").ok();
    stage(&["cleanup"], "").ok();
    assert_eq!(lab.vm_directories(), ["t"]);
    assert_eq!(processes(&lab), [] as [i32; 0]);
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn a_warm_guest_of_another_qemu_is_refused_with_the_reason() {
        let test = "a_warm_guest_of_another_qemu_is_refused_with_the_reason";
        let cache = std::env::var("COWHAND_GUESTS").unwrap_or_else(|_| {
            format!("{}/.cache/cowhand/guests", std::env::var("HOME").unwrap())
        });
        let next = Path::new(&cache).join("qemu-next/bin/qemu-system-x86_64");
        if !next.exists() {
            return skip(test, "there is no second QEMU (scripts/qemu-next)");
        }
        let lab = Lab::warm();
        let ours = std::env::var_os("COWHAND_QEMU").is_some_and(|qemu| Path::new(&qemu) == next);
        let other = if ours { Path::new("/usr/bin/qemu-system-x86_64") } else { &next };
        let with_other = |args: &[&str]| {
            Done::from(lab.command(args).env("COWHAND_QEMU", other).output().unwrap())
        };
        if ours {
            // An older QEMU does not even know the machine.
            with_other(&["clone", "t", "a", "--warm"]).fails(5, &["has no machine type pc-q35-"]);
            assert_eq!(lab.vm_directories(), ["t"]);
            return;
        }
        with_other(&["clone", "t", "a", "--warm"])
            .fails(5, &["the warm guest of t cannot be gone on from: QEMU was", "and is"]);
        let cold = with_other(&["run", "t", "--", "true"]);
        assert_eq!(cold.code, 0);
        assert!(
            cold.err.contains("QEMU was") && cold.err.contains("the guest boots instead"),
            "{}",
            cold.err
        );
        lab.ok(&["run", "--warm", "t", "--", "true"]);
    }

    #[test]
    fn a_run_that_is_killed_is_cleared_up_by_the_next_one() {
        let lab = Lab::warm();
        let layers = lab.layer_files().len();
        let up = |args: &[&str]| {
            let mut child = lab
                .spawn(&[&["run"], args, &["t", "--", "sh", "-c", "echo up; sleep 1000"]].concat());
            let mut up = [0; 3];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
            child
        };
        // QEMU dies with its run; gc removes the rest.
        let mut child = up(&[]);
        assert_eq!(
            lab.json(&["ls"])
                .as_array()
                .unwrap()
                .iter()
                .filter(|vm| vm["state"] == "running")
                .count(),
            1
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let doctor = lab.run(&["doctor"]);
        assert!(doctor.out.contains("whoever made it has ended"), "{doctor:?}");
        lab.ok(&["gc"]);
        only_the_template_is_there(&lab, layers);
        // So does the next run.
        let mut child = up(&[]);
        child.kill().unwrap();
        child.wait().unwrap();
        lab.ok(&["run", "t", "--", "true"]);
        only_the_template_is_there(&lab, layers);
        // One that is to be kept is.
        let mut child = up(&["--keep=kept"]);
        child.kill().unwrap();
        child.wait().unwrap();
        lab.ok(&["gc"]);
        assert_eq!(lab.state("kept"), "running");
        assert!(lab.json(&["show", "kept"])["expires"].is_null());
        lab.ok(&["rm", "--force", "kept"]);
        lab.ok(&["gc", "--older-than", "0"]);
        only_the_template_is_there(&lab, layers);
        // A power cut right after a claim of the pool: what was written for it is lost.
        lab.ok(&["pool", "fill", "t", "1"]);
        let mut child = up(&[]);
        let claimed =
            lab.vm_directories().into_iter().find(|name| name.starts_with("run-")).unwrap();
        let qemu = lab.pid(&claimed);
        kill(child.id().cast_signed());
        child.wait().unwrap();
        kill(qemu);
        eventually("QEMU has ended", || lab.state(&claimed) == "crashed");
        std::fs::write(lab.store().join("vms").join(&claimed).join("vm.json"), "").unwrap();
        lab.ok(&["gc"]);
        lab.ok(&["pool", "drain", "t"]);
        only_the_template_is_there(&lab, layers);
        // A whole process group, as a batch system kills it.
        let mut command = lab.command(&["run", "t", "--", "sleep", "1000"]);
        let mut child = command.process_group(0).stdout(Stdio::null()).spawn().unwrap();
        eventually("it runs", || lab.vm_directories().len() == 2);
        kill(-i32::try_from(child.id()).unwrap());
        child.wait().unwrap();
        lab.ok(&["gc"]);
        only_the_template_is_there(&lab, layers);
        // Its time is over, whoever looks after it. The date can be changed.
        lab.ok(&["clone", "t", "short", "--warm", "--expires", "1d"]);
        assert!(lab.json(&["show", "short"])["expires"].is_string());
        lab.ok(&["set", "short", "expires=0"]);
        let collected = lab.json(&["gc"]);
        assert!(
            collected["removed"][0]["what"] == "short"
                && collected["removed"][0]["bytes"].as_u64() > Some(0),
            "{collected}"
        );
        only_the_template_is_there(&lab, layers);
        lab.run(&["pool", "fill", "t", "1000"]).fails(5, &["would never run at once"]);
        // In the pool, too, nobody is left behind: neither a claimed shell whose run was killed,
        // nor those of a host that was switched off.
        lab.ok(&["pool", "fill", "t", "2"]);
        let shell =
            lab.vm_directories().into_iter().find(|name| name.starts_with("pool-")).unwrap();
        for change in [
            &["resume", &shell][..],
            &["set", &shell, "expires=1d"],
            &["exec", &shell, "--", "true"],
        ] {
            let done = lab.run(change);
            assert!(done.err.contains("waits in the pool of t"), "{done:?}");
        }
        let waiting = || lab.json(&["pool", "ls"])[0]["waiting"].as_u64();
        assert_eq!(waiting(), Some(2));
        assert_eq!(lab.ok(&["ls", "-q"]), "", "a shell is nobody's VM yet");
        let mut child = up(&["--warm"]);
        lab.run(&["template", "rm", "t"])
            .fails(5, &["wait until these have ended: run-", "template rm t --cascade --force"]);
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the pool is full again", || waiting() == Some(2));
        lab.ok(&["gc"]);
        assert_eq!(lab.vm_directories().len(), 3);
        lab.run(&["template", "cool", "t"])
            .fails(5, &["2 standby clones of the pool wait", "cowhand pool drain t"]);
        for pid in processes(&lab) {
            kill(pid);
        }
        // A process that ends gives up its memory first, and its lock last.
        eventually("they are gone", || processes(&lab).is_empty() && waiting() == Some(0));
        lab.ok(&["gc"]);
        only_the_template_is_there(&lab, layers);
        lab.ok(&["pool", "fill", "t", "1"]);
        assert_eq!(lab.ok(&["run", "t", "--", "hostname"]).trim().split('-').next(), Some("run"));
        eventually("the pool is full again", || waiting() == Some(1));
        lab.ok(&["pool", "fill", "t", "0"]);
        only_the_template_is_there(&lab, layers);
        let ram = lab.store().join("ram");
        let memory = files_in(&ram).into_iter().find(|file| file.ends_with(".mem")).unwrap();
        std::fs::File::options().write(true).open(ram.join(memory)).unwrap().set_len(4096).unwrap();
        let doctor = lab.run(&["doctor", "t"]);
        assert!(doctor.out.contains("its warm guest cannot be gone on from"), "{doctor:?}");
        assert!(lab.run(&["run", "t", "--", "true"]).err.contains("the guest boots instead"));
        lab.ok(&["template", "cool", "t"]);
        lab.run(&["pool", "fill", "t", "1"])
            .fails(5, &["template t is not warm", "cowhand template warm t"]);
        lab.run(&["run", "--warm", "t", "--", "true"]).fails(125, &["template t is not warm"]);
        lab.ok(&["template", "rm", "t"]);
    }

    #[test]
    fn a_warm_clone_is_a_vm_like_any_other() {
        let lab = Lab::warm();
        lab.run(&["template", "warm", "t"]).fails(5, &["is warm already"]);
        let made = lab.json(&["clone", "t", "a", "--warm"]);
        assert_eq!((&made[0]["kind"], lab.state("a").as_str()), (&"warm".into(), "running"));
        assert_eq!(
            lab.sh("a", "cat /sys/class/net/eth0/address").trim(),
            lab.json(&["show", "a"])["nics"][0]["mac"]
        );
        lab.run(&["template", "cool", "t"]).fails(5, &["clones run on the warm guest of t: a"]);
        lab.run(&["template", "rm", "t"]).fails(5, &["is the base of another VM: a (running)"]);
        // Its disk is its own, and outlives a boot.
        lab.write("a", "/root/x", "mine");
        // Its memory is its own, whole, and can be gone back to.
        lab.sh("a", "echo before > /proc/sys/kernel/domainname");
        lab.ok(&["snapshot", "create", "a", "m", "--memory"]);
        lab.sh("a", "echo after > /proc/sys/kernel/domainname");
        lab.ok(&["snapshot", "revert", "a@m"]);
        assert_eq!(lab.sh("a", "cat /proc/sys/kernel/domainname; hostname"), "before\na\n");
        lab.ok(&["snapshot", "rm", "a@m"]);
        lab.ok(&["snapshot", "create", "a", "s"]);
        lab.ok(&["stop", "--force", "a"]);
        lab.ok(&["start", "a"]);
        assert_eq!(lab.read("a", "/root/x").as_deref(), Some("mine"));
        // Back to the template at once; undo knows the way back.
        let reset = lab.json(&["reset", "a"]);
        assert_eq!((&reset["kind"], &reset["origin"]), (&"warm".into(), &"t".into()));
        assert_eq!(lab.read("a", "/root/x"), None);
        assert_eq!(lab.sh("a", "hostname").trim(), "a");
        lab.ok(&["undo", "a"]);
        assert_eq!(lab.read("a", "/root/x").as_deref(), Some("mine"));
        // One that stays, of a command that has failed.
        let done = lab.run(&[
            "run", "--keep-on-failure", "t", "--", "sh", "-c", "echo left > /root/y; sync; exit 1",
        ]);
        assert_eq!(done.code, 1);
        let kept =
            done.err.split_whitespace().find(|word| word.starts_with("run-")).unwrap().to_owned();
        assert_eq!(lab.read(&kept, "/root/y").as_deref(), Some("left"));
        lab.ok(&["gc"]);
        assert_eq!(lab.state(&kept), "running");
        lab.ok(&["run", "--keep=b", "t", "--", "true"]);
        lab.run(&["run", "--keep=b", "t", "--", "true"]).fails(125, &["the name b is taken"]);
        let kept_until = |name: &str| {
            let all = lab.json(&["ls"]);
            all.as_array().unwrap().iter().find(|vm| vm["name"] == name).unwrap()["expires"]
                .is_string()
        };
        assert!(kept_until(&kept) && !kept_until("b") && lab.state("b") == "running");
        lab.ok(&["rm", "--force", "a", "b", &kept]);
        // Runs queue up, and say for what.
        let first = lab.spawn(&["run", "--max-parallel", "1", "t", "--", "sleep", "3"]);
        eventually("the first one runs", || lab.vm_directories().len() == 2);
        let second = lab.run(&["run", "--max-parallel", "1", "t", "--", "true"]);
        assert!(
            second.err.contains("waiting for one of 1 runs to end (--max-parallel)"),
            "{}",
            second.err
        );
        assert_eq!((second.code, first.wait_with_output().unwrap().status.code()), (0, Some(0)));
        // Of a memory that somebody has touched, nobody goes on.
        let memory = files_in(&lab.store().join("ram"))
            .into_iter()
            .find(|file| file.ends_with(".mem"))
            .unwrap();
        let path = lab.store().join("ram").join(memory);
        std::fs::File::open(&path)
            .unwrap()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        lab.run(&["clone", "t", "c", "--warm"])
            .fails(5, &["is missing or was changed", "cowhand template cool t"]);
        let cold = lab.run(&["run", "t", "--", "true"]);
        assert!(cold.err.contains("the guest boots instead"), "{}", cold.err);
        assert_eq!(cold.code, 0);
        assert_eq!(lab.vm_directories(), ["t"]);
    }

    #[test]
    fn an_autopkgtest_testbed_reverts_and_goes() {
        use std::io::{BufRead, BufReader, Write};
        let lab = Lab::warm();
        let mut child = lab
            .command(&["autopkgtest-virt", "t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut to, mut from) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        assert_eq!(from.next().unwrap().unwrap(), "ok");
        let mut ask = |line: &str| {
            writeln!(to, "{line}").unwrap();
            let answer = from.next().unwrap().unwrap();
            answer
                .strip_prefix("ok")
                .unwrap_or_else(|| panic!("{line}: {answer}"))
                .trim()
                .to_owned()
        };
        assert!(ask("capabilities").split(' ').any(|word| word == "revert-full-system"));
        let scratch = ask("open");
        let program = ask("print-execute-command");
        let run = |args: &[&str]| {
            let words: Vec<String> =
                program.split(',').map(|word| word.replace("%20", " ")).collect();
            let base = lab.command(&[]);
            let mut command = Command::new(&words[0]);
            command
                .args(&words[1..])
                .args(args)
                .envs(base.get_envs().filter_map(|(key, value)| Some((key, value?))));
            Done::from(command.stdin(Stdio::null()).output().unwrap())
        };
        run(&["test", "-d", &scratch]).ok();
        assert_eq!(run(&["sh", "-c", "exit 77"]).code, 77);
        // A directory, and a file with a name that has to be encoded.
        let tree = lab.path().join("a tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("x"), "there and back").unwrap();
        let encoded = tree.to_str().unwrap().replace(' ', "%20");
        ask(&format!("copydown {encoded}/ {scratch}/tree/"));
        ask(&format!("copyup {scratch}/tree/x {encoded}/y"));
        assert_eq!(std::fs::read_to_string(tree.join("y")).unwrap(), "there and back");
        run(&["sh", "-c", "echo dirt > /root/dirt; sync"]).ok();
        // A reboot keeps the disk and the scratch directory, and is a boot.
        let boot = || run(&["cat", "/proc/sys/kernel/random/boot_id"]).ok();
        let before = boot();
        assert_eq!(ask("reboot"), "");
        assert_ne!(boot(), before);
        run(&["cat", &format!("{scratch}/tree/x"), "/root/dirt"]).ok();
        // The same, by the test itself: it waits until its mark is gone.
        let before = boot();
        let script = "touch /run/autopkgtest-reboot-prepare-mark; \
                      (while [ -e /run/autopkgtest-reboot-prepare-mark ]; do sleep 0.2; done; \
                      reboot -f) >/dev/null 2>&1 &";
        run(&["sh", "-c", script]).ok();
        assert_eq!(ask("reboot prepare-only"), "");
        assert_ne!(boot(), before);
        run(&[
            "test",
            "-e",
            &format!("{scratch}/tree/x"),
            "-a",
            "!",
            "-e",
            "/var/cache/cowhand-testbed.tar",
        ])
        .ok();
        let scratch = ask("revert");
        assert_eq!(run(&["test", "-e", "/root/dirt"]).code, 1);
        run(&["test", "-d", &scratch]).ok();
        ask("close");
        assert_eq!(lab.vm_directories(), ["t"]);
        ask("open");
        // Whatever ends it, the testbed goes.
        terminate(child.id());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(lab.vm_directories(), ["t"]);
        assert_eq!(processes(&lab), [] as [i32; 0]);
    }
}
