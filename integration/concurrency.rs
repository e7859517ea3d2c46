//! Many commands at once, at random, on the same few VMs, templates and clones: no deadlock, no
//! lost update, no damage, and every refusal is one.
//!
//! Twenty seconds in the test suite; `COWHAND_TOGETHER=600` for ten minutes.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::lab::{Done, Lab, Random};

/// Commands at once.
const WORKERS: u32 = 8;
/// Longer than any command may take: it waits for a lock for at most 60 s.
const ENOUGH: Duration = Duration::from_secs(120);

/// What has to be there at the end, by what was reported as done.
#[derive(Default)]
struct Ledger {
    /// Tags of `keeper`.
    tags: Vec<String>,
    /// Snapshots of `keeper`, which nobody else removes.
    snapshots: Vec<String>,
    /// Clones with the pattern their disk has to show, until somebody removes them.
    clones: BTreeMap<String, u8>,
    /// Verb and outcome: how often.
    counts: BTreeMap<(String, &'static str), u32>,
}

fn pattern_of(lab: &Lab, vm: &str) -> Vec<u8> {
    let raw = lab.path().join(format!("{vm}.raw"));
    lab.ok(&["image", "export", vm, raw.to_str().unwrap(), "--force"]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    let mut seen = bytes[..64 << 10].to_vec();
    seen.dedup();
    seen
}

fn write_pattern(lab: &Lab, vm: &str, pattern: u8) {
    let disks = lab.json(&["disk", "ls", vm]);
    let file = disks[0]["file"].as_str().unwrap().to_owned();
    let place = format!("write -P {pattern} 0 64k");
    let done = Command::new("qemu-io").args(["-f", "qcow2", "-c", &place, &file]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

fn outcome(done: &Done) -> &'static str {
    match done.code {
        0 => "done",
        3 => "not there",
        4 => "already there",
        5 => "refused",
        6 => "locked",
        _ => "FAILED",
    }
}

/// One worker's life.
fn work(lab: &Lab, ledger: &Mutex<Ledger>, serial: &AtomicU32, seed: u64, end: Instant) {
    let mut random = Random(seed);
    let crowd = ["a", "b", "c"];
    let points = ["tpl", "keeper@fixed", "a", "b", "c", "keeper"];
    while Instant::now() < end {
        let unique = serial.fetch_add(1, Ordering::Relaxed);
        let own = format!("n{unique}");
        let (vm, other) = (random.one_of(&crowd), random.one_of(&crowd));
        let victim = {
            let ledger = ledger.lock().unwrap();
            let names: Vec<String> = ledger.clones.keys().cloned().collect();
            if names.is_empty() {
                "nobody".to_owned()
            } else {
                names[random.below(names.len())].clone()
            }
        };
        let snapshot = {
            let ledger = ledger.lock().unwrap();
            if ledger.snapshots.is_empty() {
                "none".into()
            } else {
                ledger.snapshots[random.below(ledger.snapshots.len())].clone()
            }
        };
        let (tag, at) = (
            format!("tag.{own}=1"),
            format!("{vm}@{}", random.one_of(&["x", "y", "z", "current"])),
        );
        let of_keeper = format!("keeper@{snapshot}");
        let source = random.one_of(&points);
        let crowded = ledger.lock().unwrap().snapshots.len() > 30;
        let args: Vec<&str> = match random.below(23) {
            // A chain that only grows would make everything slow.
            2 | 3 if crowded => vec!["snapshot", "rm", &of_keeper],
            0 | 1 => vec!["set", "keeper", &tag],
            2 | 3 => vec!["snapshot", "create", "keeper", &own],
            4 => vec!["snapshot", "rm", &of_keeper],
            5 | 6 => vec!["clone", source, &own],
            7 => vec!["clone", source, &own, "--full"],
            8 => vec!["rm", &victim],
            9 => vec!["flatten", &victim],
            10 => vec!["create", vm, "--size", "16M"],
            11 => vec!["rm", vm],
            12 => vec!["rm", vm, "--cascade"],
            13 => vec!["rename", vm, other],
            14 => vec!["snapshot", "create", vm, random.one_of(&["x", "y", "z"])],
            15 => vec!["snapshot", "rm", &at],
            16 => vec!["snapshot", "revert", &at],
            17 => vec!["undo", vm],
            18 => vec!["disk", "resize", vm, "vda", "+1M"],
            19 => vec!["gc", "--older-than", random.one_of(&["0", "1m", "7d"])],
            20 => vec!["doctor", "--repair", "--format", "json"],
            21 => vec!["doctor", "--repair", "-q", random.one_of(&["keeper", "tpl"])],
            _ => vec!["ls", "-a"],
        };
        let began = Instant::now();
        let done = lab.run(&args);
        let took = began.elapsed();
        let outcome = outcome(&done);
        assert!(outcome != "FAILED", "{args:?}: {done:?}");
        // Nobody's record is damaged, so nobody's use of a layer is ever in doubt.
        assert!(
            !done.err.contains("stay in the pool") && !done.err.contains("are kept"),
            "{args:?}: {done:?}"
        );
        assert!(took < ENOUGH, "{args:?} took {took:?}: {done:?}");
        if outcome == "locked" {
            assert!(
                done.err.contains("locked by `") && done.err.contains("(pid "),
                "{args:?}: {done:?}"
            );
        }
        if args == ["doctor", "--repair", "--format", "json"] {
            // All others are alive: none has left anything.
            let found: Vec<serde_json::Value> = serde_json::from_str(&done.out).unwrap();
            let wrong = |finding: &&serde_json::Value| {
                finding["repaired"] == true || finding["level"] == "fail"
            };
            let wrong: Vec<_> = found.iter().filter(wrong).collect();
            assert!(wrong.is_empty(), "{wrong:?}");
        }
        let mut ledger = ledger.lock().unwrap();
        let verb: Vec<&str> = args
            .iter()
            .copied()
            .take(if ["snapshot", "disk"].contains(&args[0]) { 2 } else { 1 })
            .collect();
        *ledger.counts.entry((verb.join(" "), outcome)).or_default() += 1;
        if done.code != 0 {
            continue;
        }
        match args[..] {
            ["set", ..] => ledger.tags.push(own),
            ["snapshot", "create", "keeper", _] => ledger.snapshots.push(own),
            ["snapshot", "rm", target] if target == of_keeper => {
                ledger.snapshots.retain(|name| *name != snapshot)
            }
            // Of the crowd nobody knows what it held.
            ["clone", "tpl", ..] => drop(ledger.clones.insert(own, 1)),
            ["clone", "keeper" | "keeper@fixed", ..] => drop(ledger.clones.insert(own, 2)),
            ["rm", target] => drop(ledger.clones.remove(target)),
            _ => {}
        }
    }
}

#[test]
fn commands_at_random_and_at_once_lose_no_update_and_never_wait_for_each_other_in_a_ring() {
    let seconds = std::env::var("COWHAND_TOGETHER")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| crate::tier::first_or(6, 20));
    let seed: u64 = std::env::var("COWHAND_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0x2545_f491_4f6c_dd1d);
    let lab = Lab::new();
    for (vm, pattern) in [("tpl", 1), ("keeper", 2)] {
        lab.ok(&["create", vm, "--size", "16M"]);
        write_pattern(&lab, vm, pattern);
    }
    lab.ok(&["template", "create", "tpl", "--no-seal"]);
    lab.ok(&["snapshot", "create", "keeper", "fixed"]);
    let (ledger, serial) = (Mutex::new(Ledger::default()), AtomicU32::new(0));
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (lab, ledger, serial) = (&lab, &ledger, &serial);
            scope.spawn(move || {
                work(lab, ledger, serial, seed.wrapping_mul(u64::from(2 * worker + 1)), end)
            });
        }
    });
    let ledger = ledger.into_inner().unwrap();
    let mut lines = String::new();
    let mut totals: BTreeMap<&str, u32> = BTreeMap::new();
    for ((verb, outcome), count) in &ledger.counts {
        lines.push_str(&format!("  {verb:<16} {outcome:<14} {count:>5}\n"));
        *totals.entry(outcome).or_default() += count;
    }
    eprintln!("{lines}{WORKERS} at once for {seconds} s: {totals:?}");
    // Whatever order they happened in: this has to be there, and nothing but this.
    let about = lab.json(&["show", "keeper"]);
    let mut tags: Vec<String> = about["tags"].as_object().unwrap().keys().cloned().collect();
    let mut wanted = ledger.tags.clone();
    tags.sort();
    wanted.sort();
    assert_eq!(tags, wanted, "an update was lost");
    let kept = lab.json(&["snapshot", "ls", "keeper"]);
    let kept: Vec<String> = kept
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    for name in &ledger.snapshots {
        assert!(kept.contains(name), "snapshot {name} was reported as taken, and is gone");
    }
    let made_by_clones = |name: &String| {
        name == "fixed" || name.starts_with("clone-") || ledger.snapshots.contains(name)
    };
    assert!(kept.iter().all(made_by_clones), "{kept:?}: a snapshot that was removed is there");
    assert_eq!(pattern_of(&lab, "keeper"), [2]);
    for (clone, pattern) in &ledger.clones {
        assert_eq!(pattern_of(&lab, clone), [*pattern], "{clone}");
    }
    let names = lab.json(&["ls", "-a"]);
    for row in names.as_array().unwrap() {
        assert_eq!(row["state"], "stopped", "{row}");
    }
    lab.ok(&["gc", "--older-than", "0"]);
    let found = lab.ok(&["doctor", "-q"]);
    let wrong: Vec<&str> =
        found.lines().filter(|line| line.starts_with("fail") || line.starts_with("warn")).collect();
    assert!(
        wrong.iter().all(|line| line.contains(" kvm ") || line.contains("slows down reading")),
        "{wrong:?}"
    );
    lab.check_images();
}
