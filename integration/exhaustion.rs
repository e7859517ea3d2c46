//! Errors of the world around: no room, a store that cannot be written, no more files, a clock that
//! jumps. What was, or what should be, and nothing between; once the world is well again,
//! everything works.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::faults::{CASES, Pristine, State, TRIED, state, verbs};
use crate::lab::{Done, Lab, eventually, files_in, terminate};
use crate::tier::{self, Class};

/// Takes all room on the disk of the lab but `left` bytes, until it is dropped.
pub struct Filler(PathBuf);

impl Filler {
    pub fn new(lab: &Lab, left: u64) -> Self {
        let path = lab.beside_the_store().join("filler");
        let about = nix::sys::statvfs::statvfs(&lab.beside_the_store()).unwrap();
        let free = about.blocks_available() * about.fragment_size();
        let most = free.saturating_sub(1 << 20).to_string();
        let done = Command::new("fallocate").args(["-l", &most]).arg(&path).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        while file.write_all(&[1; 4096]).and_then(|()| file.sync_all()).is_ok() {}
        let full = file.metadata().unwrap().len();
        file.set_len(full.saturating_sub(left)).unwrap();
        file.sync_all().unwrap();
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs the operations in ever different circumstances, the tightest first; afterwards the store is
/// as it was before or as it should be, and nothing is left behind. In the first tier each is run
/// in one of the tighter half, in the second in a quarter.
fn in_all(
    lab: &Lab,
    what: &str,
    class: Class,
    circumstances: &[u64],
    run: &dyn Fn(Command, u64) -> Done,
) {
    assert!(TRIED.contains(&class));
    let (mut pristine, mut failed, mut tried) = (Pristine::new(), 0, 0);
    for at in tier::picked(&verbs(), class) {
        let case = &CASES[at];
        let circumstances =
            &circumstances[..tier::first_or(circumstances.len() / 2, circumstances.len())];
        let all = circumstances.iter().cycle().skip(at).step_by(if tier::is_all() { 1 } else { 4 });
        let quarter = tier::first_or(1, circumstances.len() / 4);
        let circumstances: Vec<u64> =
            all.take(if tier::is_all() { circumstances.len() } else { quarter }).copied().collect();
        let before = pristine.put(lab, case);
        case.run(lab).ok();
        let after = state(lab);
        for circumstance in &circumstances {
            pristine.put_back(lab, case);
            let done = run(case.command(lab), *circumstance);
            let what = format!("{} with {circumstance}: {done:?}", case.name);
            (failed, tried) = (failed + u32::from(done.code != 0), tried + 1);
            assert!(
                [0, 1, 5, 7, 8].contains(&done.code) && !done.err.contains("panicked"),
                "{what}"
            );
            if lab.store().exists() {
                let repaired = lab.run(&["--format", "json", "doctor", "--repair"]);
                assert!(!repaired.out.contains("\"fail\""), "{what}: {repaired:?}");
            }
            if case.name == "rm" && lab.vm_directories().is_empty() && done.code != 0 {
                // It is in the trash, whole.
                lab.ok(&["gc"]);
                lab.ok(&["undo", "web"]);
            }
            let now: State = state(lab);
            let fine = now == before
                || now == after
                || now.iter().all(|(point, fact)| {
                    after.get(point) == Some(fact) || before.get(point) == Some(fact)
                });
            assert!(fine, "{what}\nnow    {now:?}\nbefore {before:?}\nafter  {after:?}");
            if done.code == 0 {
                assert_eq!(now, after, "{what}: it said that it had worked");
            }
            assert!(!lab.layer_files().iter().any(|file| file.ends_with(".part")), "{what}");
            let unused = lab.run(&["gc", "--dry-run"]);
            assert!(!unused.err.contains("unused"), "{what}: {}", unused.err);
            if done.code != 0 && case.name != "undo of a removal" {
                // With the world well again, it works.
                let done = case.run(lab);
                assert!([0, 3, 4].contains(&done.code), "{what}; then {done:?}");
            }
        }
        let _ = std::fs::remove_dir_all(lab.store());
        let count = circumstances.len();
        eprintln!("{:<28} {what:<5} {count:>3} of {count} survived", case.name);
    }
    eprintln!("{failed} of {tried} operations failed without {what}");
    // Some need none, and some make room for themselves.
    assert!(failed * 3 >= tried, "there was no shortage");
}

#[test]
fn a_full_disk_out_of_room_at_any_moment_is_an_error_and_changes_nothing() {
    const NAME: &str = "a_full_disk_out_of_room_at_any_moment_is_an_error_and_changes_nothing";
    let Some(lab) = Lab::with_power(NAME, "ext4", 200) else { return };
    let run = |mut command: Command, left: u64| -> Done {
        let _filler = Filler::new(&lab, left << 10);
        command.output().unwrap().into()
    };
    in_all(&lab, "room", Class::NoRoom, &[0, 4, 8, 12, 20, 40, 100, 300, 1000], &run);
}

#[test]
fn a_full_disk_out_of_room_is_made_room_on_by_removing() {
    const NAME: &str = "a_full_disk_out_of_room_is_made_room_on_by_removing";
    let Some(lab) = Lab::with_power(NAME, "ext4", 200) else { return };
    for left in [0, 8, 4, 20, 60].into_iter().take(tier::first_or(2, 5)) {
        lab.ok(&["create", "web", "--size", "16M"]);
        lab.ok(&["snapshot", "create", "web", "first"]);
        lab.ok(&["snapshot", "create", "web", "second"]);
        lab.ok(&["clone", "web@second", "copy", "-n", "2"]);
        let reserve = lab.store().join("reserve");
        assert!(
            reserve.metadata().unwrap().blocks() > 0,
            "{left}: what was given up is not taken back"
        );
        let filler = Filler::new(&lab, left << 10);
        if left == 0 {
            lab.run(&["create", "third", "--size", "16M"])
                .fails(1, &["No space left", "make room"]);
            assert_eq!(files_in(&lab.store().join("trash")), [] as [String; 0]);
        }
        lab.ok(&["snapshot", "rm", "web@first"]);
        assert!(!reserve.exists(), "{left}");
        let removed = lab.json(&["rm", "web", "--cascade"]);
        assert_eq!(removed["removed"].as_array().unwrap().len(), 3, "{left}: {removed}");
        lab.ok(&["gc", "--older-than", "0"]);
        assert_eq!(lab.vm_directories(), [] as [String; 0], "{left}");
        assert_eq!(lab.layer_files(), [] as [String; 0], "{left}");
        drop(filler);
        lab.ok(&["doctor"]);
    }
}

#[test]
fn a_process_that_may_open_no_more_files_changes_nothing() {
    let lab = Lab::in_memory();
    let run = |inner: Command, files: u64| -> Done {
        let mut command = Command::new("prlimit");
        // All but so many of 64 are taken when it begins.
        let taken = 64 - 3 - files;
        let script =
            format!("for i in $(seq {taken}); do exec {{fd}}</dev/null; done; exec \"$@\"");
        command
            .args(["--nofile=64", "bash", "-c", &script, "bash"])
            .arg(inner.get_program())
            .args(inner.get_args());
        for (key, value) in inner.get_envs() {
            value.map(|value| command.env(key, value));
        }
        command.stdin(Stdio::null()).output().unwrap().into()
    };
    in_all(&lab, "files", Class::NoDescriptors, &(2..32).collect::<Vec<_>>(), &run);
}

#[test]
fn a_store_that_cannot_be_written_can_be_looked_at() {
    let Some(lab) = Lab::with_power("a_store_that_cannot_be_written_out_of_room", "ext4", 200)
    else {
        return;
    };
    lab.ok(&["create", "web", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    let before = lab.fingerprint();
    let remount = |how: &str| {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(lab.beside_the_store())
            .output();
        assert!(done.unwrap().status.success());
    };
    remount("ro");
    for args in [
        &["ls"][..],
        &["show", "web"],
        &["snapshot", "tree", "web"],
        &["disk", "chain", "web"],
        &["undo", "--list"],
    ] {
        lab.ok(args);
    }
    assert!(lab.ok(&["doctor"]).contains("cannot be written"));
    for args in [
        &["create", "x", "--size", "1M"][..],
        &["start", "web"],
        &["snapshot", "create", "web", "b"],
        &["rm", "web"],
        &["set", "web", "cpus=2"],
        &["clone", "web@a", "y"],
        &["gc"],
    ] {
        lab.run(args).fails(1, &["read-only"]);
    }
    remount("rw");
    assert_eq!(lab.fingerprint(), before);
    lab.ok(&["rm", "web"]);
}

#[test]
fn a_clock_that_jumps_keeps_nothing_for_ever_and_loses_nothing() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    lab.ok(&["snapshot", "create", "web", "b", "--expires", "1d"]);
    lab.ok(&["snapshot", "revert", "web@a"]);
    // The clock stood wrong when these were written: in 2060.
    let future = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"2026") || text.contains("\"20"), "{text}");
        let year = jiff::Timestamp::now().strftime("%Y").to_string();
        std::fs::write(&path, text.replace(&format!("\"{year}-"), "\"2060-")).unwrap();
    };
    future(lab.store().join("vms/web/vm.json"));
    let trash =
        std::fs::read_dir(lab.store().join("trash")).unwrap().next().unwrap().unwrap().path();
    future(trash.join("entry.json"));
    let said = lab.ok(&["doctor"]);
    assert!(said.contains("in the future"), "{said}");
    lab.ok(&["snapshot", "create", "web", "c"]);
    let names = lab.json(&["snapshot", "ls", "web"]);
    assert_eq!(names.as_array().unwrap().len(), 3, "a snapshot has expired that has not");
    let said = lab.run(&["gc"]);
    assert!(said.err.contains("from the future") && trash.exists(), "{}", said.err);
    lab.ok(&["gc", "--yes"]);
    assert!(!trash.exists(), "what was put there in the future stays for ever");
    assert_eq!(lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len(), 3);
}

/// A guest with 40 MB to merge, on a small disk.
fn cramped(name: &str) -> Option<Lab> {
    let lab = Lab::with_power(name, "ext4", 500)?;
    lab.tiny("web", &["--size", "64M"]);
    lab.ok(&["start", "web"]);
    lab.sh("web", "echo one > /root/a; sync");
    Some(lab)
}

#[test]
fn memory_that_runs_out_of_room_is_given_up_and_the_disks_are_kept() {
    let Some(lab) = cramped("memory_that_runs_out_of_room") else { return };
    let mut child = lab
        .command(&["snapshot", "create", "web", "s", "--memory"])
        .env("COWHAND_FAULT", "20:stall")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let us = child.id().cast_signed();
    let stat = || std::fs::read_to_string(format!("/proc/{us}/stat")).unwrap_or_default();
    eventually("a standstill", || stat().contains(") T "));
    let filler = Filler::new(&lab, 1 << 20);
    kill(Pid::from_raw(us), Signal::SIGCONT).unwrap();
    eventually("its end", || child.try_wait().unwrap().is_some());
    let done = Done::from(child.wait_with_output().unwrap());
    let snapshots = lab.json(&["snapshot", "ls", "web"]);
    drop(filler);
    match done.code {
        // Too late for the memory, and the disks had switched.
        7 if done.err.contains("contains the disks only") => {
            assert_eq!(snapshots[0]["memory"], false, "{done:?}")
        }
        0 => {}
        _ => assert_eq!(snapshots, serde_json::json!([]), "{done:?}"),
    }
    lab.run(&["resume", "web"]);
    lab.ok(&["doctor", "web", "--repair"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("one"));
    let left = std::fs::read_dir(lab.store().join("ram")).map_or(0, |entries| {
        entries.flatten().map(|entry| entry.metadata().unwrap().blocks() * 512).sum::<u64>()
    });
    assert_eq!(left > 0, snapshots[0]["memory"] == true, "memory of nobody is left: {left} bytes");
    lab.ok(&["snapshot", "create", "web", "whole", "--memory"]);
    lab.ok(&["snapshot", "revert", "web@whole"]);
    assert_eq!(lab.read("web", "/root/a").as_deref(), Some("one"));
}

#[test]
fn a_guest_that_finds_no_room_is_paused_and_goes_on_when_there_is_some() {
    let Some(lab) = cramped("a_guest_that_finds_no_room_is_paused") else { return };
    {
        let _filler = Filler::new(&lab, 2 << 20);
        let writer = lab.spawn(&[
            "exec", "web", "--", "dd", "if=/dev/urandom", "of=/dev/vdb", "bs=1M", "count=20",
            "conv=fsync",
        ]);
        eventually("a guest that is paused", || lab.state("web") == "paused");
        assert!(lab.json(&["show", "web"])["reason"].as_str().unwrap().contains("io-error"));
        assert!(lab.run(&["doctor", "web"]).out.contains("is there room on the disk?"));
        lab.run(&["exec", "web", "--", "true"]).fails(125, &["cannot be written", "make room"]);
        // It looks for a second whether the guest stands still again, which a slow one has not come
        // to by then.
        let mut resumed = lab.run(&["resume", "web"]);
        eventually("a guest that is paused again", || {
            if resumed.code == 0 && lab.state("web") == "paused" {
                resumed = lab.run(&["resume", "web"]);
            }
            resumed.code != 0
        });
        resumed.fails(1, &["paused again", "make room"]);
        drop(_filler);
        lab.ok(&["resume", "web"]);
        assert_eq!(Done::from(writer.wait_with_output().unwrap()).code, 0);
    }
    assert_eq!(lab.state("web"), "running");
    // Who waits for a command in a guest that stands still can leave.
    let args = ["exec", "web", "--", "sh", "-c", "echo up; sleep 1000"];
    let mut child = lab.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    lab.ok(&["pause", "web"]);
    terminate(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    lab.ok(&["stop", "--force", "web"]);
    lab.check_images_after_a_kill();
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn a_merge_out_of_room_leaves_everything_as_it_was() {
        let Some(lab) = cramped("a_merge_out_of_room_leaves_everything_as_it_was") else { return };
        // One letter, because random bytes take long under emulation.
        let fill = |letter: &str, seek: u32| {
            format!(
                "tr '\\0' {letter} < /dev/zero | dd of=/dev/vdb bs=1M count=40 seek={seek} \
                 iflag=fullblock conv=fsync 2>/dev/null"
            )
        };
        lab.sh("web", &fill("a", 0));
        lab.ok(&["snapshot", "create", "web", "s", "--quiesce", "never"]);
        // Elsewhere: whichever way it is merged, it takes room.
        lab.sh("web", &format!("{}; echo two > /root/a; sync", fill("b", 20)));
        let sum = lab.sh("web", "md5sum < /dev/vdb");
        let chain = lab.chain("web");
        {
            let _filler = Filler::new(&lab, 4 << 20);
            let done = lab.run(&["snapshot", "rm", "web@s"]);
            // The name is gone or not; the layers are where they were, and the guest runs.
            assert!(
                done.err.contains("No space left") || done.out.contains("No space left"),
                "{done:?}"
            );
            assert_eq!(lab.chain("web"), chain);
            assert_eq!(lab.state("web"), "running");
            assert_eq!(lab.sh("web", "md5sum < /dev/vdb"), sum);
            assert_eq!(lab.read("web", "/root/a").as_deref(), Some("two"));
        }
        lab.write("web", "/root/a", "three");
        if lab.json(&["snapshot", "ls", "web"]) != serde_json::json!([]) {
            lab.ok(&["snapshot", "rm", "web@s"]);
        }
        lab.ok(&["gc"]);
        assert_eq!(lab.chain("web").len(), 1, "with room again, it is merged");
        assert_eq!(lab.sh("web", "md5sum < /dev/vdb"), sum);
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("three"));
        lab.ok(&["stop", "--force", "web"]);
        lab.check_images_after_a_kill();
    }
}
