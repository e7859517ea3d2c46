//! What a guest prints: its serial port, and QEMU's messages, which it can provoke.
//!
//! The floods last two seconds here; with `COWHAND_HOSTILE_SECONDS=60` they last a minute.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::victim::{heading, row, seconds, watch};
use crate::lab::{Lab, eventually, kill};

/// The limit of each file in these tests, in bytes.
const LIMIT: u64 = 64 << 10;
/// The most that an older file has: what was printed while it was written is in it, too.
const OLDER: u64 = LIMIT / 4 * 5;
/// The most memory that `logs` may take, however long the log is.
const READER_MEMORY: u64 = 48 << 20;

fn directory(lab: &Lab) -> PathBuf {
    lab.store().join("vms/a")
}

/// The bytes of a log, its older part first.
fn sizes(log: &Path) -> (u64, u64) {
    let bytes = |path: PathBuf| path.metadata().map_or(0, |about| about.size());
    (bytes(older(log)), bytes(log.to_owned()))
}

fn older(log: &Path) -> PathBuf {
    log.with_extension("log.1")
}

/// How many bytes a log has had in all: where its older part begins, and what is there.
fn printed(log: &Path) -> u64 {
    let mut digits = [0; 20];
    let length =
        rustix::fs::getxattr(older(log), "user.cowhand.begin", &mut digits[..]).unwrap_or(0);
    let begin: u64 = std::str::from_utf8(&digits[..length]).unwrap().parse().unwrap_or(0);
    let (older, newer) = sizes(log);
    begin + older + newer
}

/// The process that limits the logs of the VM `a`.
fn limiter(lab: &Lab) -> Option<i32> {
    let log = std::fs::canonicalize(directory(lab)).unwrap().join("serial.log");
    let holds = |pid: i32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|path| path == log)
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "cowhand-logs" && holds(*pid)
    })
}

/// A VM whose guest prints as fast as it can.
fn printing() -> Lab {
    let lab = Lab::new();
    lab.tiny("a", &["--log-max", "64K"]);
    lab.ok(&["start", "a"]);
    flood(&lab);
    lab
}

fn flood(lab: &Lab) {
    let line = "all work and no play makes a guest a dull boy ".repeat(20);
    lab.sh("a", &format!("yes '{line}' >/dev/ttyS0 2>/dev/null </dev/null & echo $! >/tmp/flood"));
}

fn end_flood(lab: &Lab) {
    lab.sh("a", "kill -9 $(cat /tmp/flood)");
}

#[test]
fn a_guest_that_never_stops_printing_takes_the_disk_of_the_host_and_the_memory_of_who_reads_it() {
    let lab = printing();
    let log = directory(&lab).join("serial.log");
    let began = Instant::now();
    let (mut most, mut enough) = (0, false);
    // More than the limit allows for, however slow the machine is.
    while began.elapsed() < Duration::from_secs(seconds()) || !enough {
        let (older, newer) = sizes(&log);
        most = most.max(older + newer);
        enough = printed(&log) > 6 * LIMIT;
        std::thread::sleep(Duration::from_millis(20));
        assert!(
            began.elapsed() < crate::lab::PATIENCE + Duration::from_secs(seconds()),
            "it prints {}",
            printed(&log)
        );
    }
    heading();
    for words in [&["logs", "a"][..], &["logs", "--raw", "a"], &["logs", "--follow", "a"]] {
        let mut command = lab.command(words);
        if words.contains(&"--follow") {
            command = std::process::Command::new("timeout");
            let inner = lab.command(words);
            command.arg("5").arg(inner.get_program()).args(words);
            command.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        }
        let outcome = watch(&lab, command);
        let kept = outcome.done.out.len() as u64;
        row(&format!("serial port: {}", words.join(" ")), &outcome, printed(&log), (kept, 1));
        // A command can be over before it has been looked at once; the one that follows the log is
        // not.
        assert!(outcome.peak > 0 || !words.contains(&"--follow"), "its memory was not measured");
        assert!(outcome.peak <= READER_MEMORY, "{} MiB of memory", outcome.peak >> 20);
        assert!(outcome.done.out.contains("dull boy"), "{:?}", outcome.done);
    }
    let (sent, kept) = (printed(&log), sizes(&log));
    eprintln!(
        "serial port: {sent} bytes in {:.0} s, at most {most} on the disk, now {kept:?}",
        began.elapsed().as_secs_f64()
    );
    end_flood(&lab);
    eventually("logs below their limit", || {
        let (older, newer) = sizes(&log);
        newer <= LIMIT && (1..=OLDER).contains(&older)
    });
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    assert_eq!((mode(&log), mode(&older(&log))), (0o600, 0o600));
    // QEMU's messages have the same limit: some of them a guest can provoke again and again.
    let messages = directory(&lab).join("qemu.log");
    let mut qemu = std::fs::File::options().append(true).open(&messages).unwrap();
    for _ in 0..64 {
        qemu.write_all(&vec![b'm'; LIMIT as usize]).unwrap();
    }
    eventually("messages below their limit", || {
        let (older, newer) = sizes(&messages);
        newer <= LIMIT && (1..=OLDER).contains(&older)
    });
    lab.ok(&["stop", "--force", "a"]);
    eventually("the end of the limiter", || limiter(&lab).is_none());
}

#[test]
fn a_guest_prints_without_a_limit_once_the_process_that_limits_it_is_killed() {
    let lab = Lab::new();
    lab.tiny("a", &["--log-max", "64K"]);
    lab.ok(&["start", "a"]);
    lab.sh("a", "true");
    let (log, qemu) = (directory(&lab).join("serial.log"), lab.pid("a"));
    let first = limiter(&lab).expect("a limiter");
    assert_eq!(lab.run(&["doctor", "a"]).code, 0);
    kill(first);
    eventually("the end of the limiter", || limiter(&lab).is_none());
    flood(&lab);
    eventually("more than the limit", || sizes(&log).1 > 4 * LIMIT);
    let found = lab.run(&["doctor", "a"]);
    assert!(found.out.contains("no process limits its logs"), "{found:?}");
    assert_eq!(lab.pid("a"), qemu);
    lab.ok(&["doctor", "a", "--repair"]);
    let second = limiter(&lab).expect("a limiter");
    assert_ne!(first, second);
    end_flood(&lab);
    eventually("logs below their limit", || {
        let (older, newer) = sizes(&log);
        newer <= LIMIT && older <= OLDER
    });
    assert!(!lab.run(&["doctor", "a"]).out.contains("limits its logs"));
    // The guest goes on.
    assert_eq!((lab.sh("a", "echo here").trim(), lab.pid("a")), ("here", qemu));
    // Another limit is obeyed while it runs; without one nothing is cut.
    lab.ok(&["set", "a", "log.max=none"]);
    flood(&lab);
    eventually("a log without a limit", || sizes(&log).1 > 4 * LIMIT);
    lab.ok(&["set", "a", "log.max=64K"]);
    end_flood(&lab);
    eventually("logs below their limit again", || sizes(&log).1 <= LIMIT && sizes(&log).0 <= OLDER);
}
