//! The same for a VM that runs, with a guest that writes all the while: cowhand dies, QEMU dies,
//! both die, a command fails, or QEMU hangs, at each fault point of each operation. Afterwards
//! whatever the guest had been told is on its disk must be there; the guest runs or can be started,
//! is not frozen, no job and no journal is left, and `doctor` finds nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::content;
use crate::lab::{Lab, eventually, kill as kill_pid};
use crate::tier::{self, Class};

struct Case {
    name: &'static str,
    prepare: fn(&Lab),
    args: &'static [&'static str],
    /// The disk may be, or has to be, what it was at an earlier point.
    goes_back: bool,
}

const CASES: [Case; 15] = [
    Case {
        name: "snapshot create, frozen",
        prepare: |_| {},
        args: &["snapshot", "create", "web", "s", "--quiesce", "require"],
        goes_back: false,
    },
    Case {
        name: "snapshot create, memory",
        prepare: |_| {},
        args: &["snapshot", "create", "web", "s", "--memory"],
        goes_back: false,
    },
    Case {
        name: "snapshot create, internal",
        prepare: |_| {},
        args: &["snapshot", "create", "web", "s", "--internal"],
        goes_back: false,
    },
    Case {
        name: "snapshot revert",
        prepare: one,
        args: &["snapshot", "revert", "web@s1"],
        goes_back: true,
    },
    Case {
        name: "snapshot revert, memory",
        prepare: |_| {},
        args: &["snapshot", "revert", "web@base"],
        goes_back: true,
    },
    Case {
        name: "snapshot rm, last",
        prepare: one,
        args: &["snapshot", "rm", "web@s1"],
        goes_back: false,
    },
    Case {
        name: "snapshot rm, middle",
        prepare: two,
        args: &["snapshot", "rm", "web@s1"],
        goes_back: false,
    },
    Case {
        name: "snapshot rm, internal",
        prepare: |lab| drop(lab.ok(&["snapshot", "create", "web", "s1", "--internal"])),
        args: &["snapshot", "rm", "web@s1"],
        goes_back: false,
    },
    Case {
        name: "disk commit",
        prepare: two,
        args: &["disk", "commit", "web", "vdb"],
        goes_back: false,
    },
    Case {
        name: "disk commit, several layers",
        prepare: two,
        args: &["disk", "commit", "web", "vdb", "--base", "s1"],
        goes_back: false,
    },
    Case {
        name: "disk stream",
        prepare: two,
        args: &["disk", "stream", "web", "vdb"],
        goes_back: false,
    },
    Case {
        name: "disk resize",
        prepare: |_| {},
        args: &["disk", "resize", "web", "vdb", "+16M"],
        goes_back: false,
    },
    Case {
        name: "undo of a revert",
        prepare: |lab| {
            one(lab);
            lab.ok(&["snapshot", "revert", "web@s1", "--stopped"]);
            lab.ok(&["start", "web", "--paused"]);
        },
        args: &["undo", "web"],
        goes_back: true,
    },
    Case {
        name: "stop, forced",
        prepare: |_| {},
        args: &["stop", "--force", "web"],
        goes_back: false,
    },
    // Nobody writes in the one that boots.
    Case {
        name: "start",
        prepare: |lab| drop(lab.ok(&["stop", "--force", "web"])),
        args: &["start", "web"],
        goes_back: true,
    },
];

/// What goes wrong while they are under way.
pub const TRIED: [Class; 7] = [
    Class::Killed,
    Class::Failing,
    Class::QemuKilled,
    Class::BothKilled,
    Class::QemuHanging,
    Class::PowerOnXfs,
    Class::DiskFailing,
];

/// Their verbs.
pub fn verbs() -> Vec<String> {
    CASES.iter().map(|case| tier::verb(case.args)).collect()
}

fn one(lab: &Lab) {
    lab.ok(&["snapshot", "create", "web", "s1", "--quiesce", "never"]);
}

fn two(lab: &Lab) {
    one(lab);
    lab.ok(&["snapshot", "create", "web", "s2", "--quiesce", "never"]);
}

/// Who dies, or what else happens, when the point is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Us,
    Qemu,
    Both,
    Fail,
    Hang,
    Power,
    Disk,
}

impl Death {
    fn class(self) -> Class {
        match self {
            Self::Us => Class::Killed,
            Self::Qemu => Class::QemuKilled,
            Self::Both => Class::BothKilled,
            Self::Fail => Class::Failing,
            Self::Hang => Class::QemuHanging,
            Self::Power => Class::PowerOnXfs,
            Self::Disk => Class::DiskFailing,
        }
    }
}

/// The guest writes numbers to its second disk, each to its place, and says each on its console
/// when the disk has it. In the first tier it takes a breath after each, because it would have a
/// core to itself.
fn writer() -> String {
    let pause = tier::first_or("; sleep 0.1", "");
    format!(
        "n=0; (while :; do n=$((n+1)); printf '%08d' $n | dd of=/dev/vdb bs=8 seek=$((n%1000)) \
         conv=fsync,notrunc 2>/dev/null && \
         echo acked:$n > /dev/ttyS0{pause}; done) </dev/null >/dev/null 2>&1 &"
    )
}

/// The last number the guest was told is on its disk, since the store was put back.
fn acked(lab: &Lab) -> u64 {
    let log = std::fs::read(lab.store().join("vms/web/serial.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log).into_owned();
    let whole = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
    whole
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("acked:")?.parse().ok())
        .unwrap_or(0)
}

/// The last number on the disk of a VM that does not run. Each has a place of its own, a thousand
/// in a ring, in whatever layer it was written to: all before the last one have to be there, too.
fn written(lab: &Lab, what: &str) -> u64 {
    let raw = lab.path().join("vdb.raw");
    lab.ok(&["image", "export", "web", raw.to_str().unwrap(), "--force", "--disk", "vdb"]);
    let mut bytes = [0; 8 * 1000];
    File::open(raw).unwrap().read_exact(&mut bytes).unwrap();
    let at = |place: usize| -> u64 {
        std::str::from_utf8(&bytes[8 * place..8 * place + 8])
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let last = (0..1000).map(at).max().unwrap();
    for number in last.saturating_sub(900).max(1)..=last {
        assert_eq!(
            at(usize::try_from(number % 1000).unwrap()),
            number,
            "{what}: {last} is there, and {number} is not"
        );
    }
    last
}

struct Running {
    lab: Lab,
}

impl Running {
    /// A guest that writes, with the memory snapshot `base` to come back to in an instant.
    fn new(lab: Lab) -> Self {
        lab.prepared("writing", &[&writer()], |lab| {
            lab.booted_with("web", &["--size", "16M"]);
            lab.sh("web", &writer());
            eventually("the first number", || acked(lab) > 0);
            lab.ok(&["snapshot", "create", "web", "base", "--memory"]);
            lab.ok(&["stop", "--force", "web"]);
        });
        lab.copy_tree(&lab.store(), &lab.beside_the_store().join("pristine"));
        Self { lab }
    }

    fn again(&self, case: &Case) {
        let lab = &self.lab;
        lab.run(&["stop", "--force", "web"]);
        std::fs::remove_dir_all(lab.store()).unwrap();
        lab.copy_tree(&lab.beside_the_store().join("pristine"), &lab.store());
        lab.ok(&["snapshot", "revert", "web@base", "--running"]);
        (case.prepare)(lab);
        // What the guest was told from here on is of this life.
        std::fs::write(lab.store().join("vms/web/serial.log"), "").unwrap();
        if lab.state("web") == "running" {
            eventually("a number", || acked(lab) > 0);
        }
    }

    /// Hits one point. False: the operation has fewer.
    fn hit(&self, case: &Case, number: u32, death: Death) -> bool {
        let lab = &self.lab;
        self.again(case);
        let pid = lab.json(&["show", "web"])["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap());
        let fault = match death {
            Death::Us | Death::Power => "die",
            Death::Fail => "fail",
            Death::Qemu | Death::Both | Death::Hang | Death::Disk => "stall",
        };
        let mut child = lab
            .command(case.args)
            .env("COWHAND_FAULT", format!("{number}:{fault}"))
            .env("COWHAND_PATIENCE", if death == Death::Hang { "1" } else { "60" })
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let us = child.id().cast_signed();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let Some(point) = said.find(|line| line.starts_with("fault ")) else {
            let status = child.wait().unwrap();
            assert!(status.success(), "{}: {status:?}", case.name);
            return false;
        };
        let what = format!("{}, {death:?}, {point}", case.name);
        let known;
        let signal = |pid: i32, signal| {
            let _ = kill(Pid::from_raw(pid), signal);
        };
        // The operation may have ended it, or started another one.
        let qemu = || {
            lab.json(&["show", "web"])["pid"]
                .as_i64()
                .map(|pid| i32::try_from(pid).unwrap())
                .or(pid)
        };
        if fault == "stall" {
            eventually("a standstill", || {
                std::fs::read_to_string(format!("/proc/{us}/stat"))
                    .is_ok_and(|stat| stat.contains(") T "))
            });
            let stopped = if death == Death::Disk { None } else { qemu() };
            known = acked(lab);
            match (death, stopped) {
                (Death::Disk, _) => lab.lose_disk(),
                (Death::Hang, Some(qemu)) => signal(qemu, Signal::SIGSTOP),
                (_, Some(qemu)) => signal(qemu, Signal::SIGKILL),
                _ => {}
            }
            if death == Death::Both {
                kill_pid(us);
            } else {
                signal(us, Signal::SIGCONT);
            }
            let rest: Vec<String> = said.collect();
            let status = child.wait().unwrap();
            if death == Death::Hang {
                assert!(
                    status.code().is_some_and(|code| [0, 1, 5, 7, 8].contains(&code)),
                    "{what}: {status:?} {rest:?}"
                );
                stopped.into_iter().for_each(|qemu| signal(qemu, Signal::SIGCONT));
            }
            if death == Death::Disk {
                assert!(status.code().is_some(), "{what}: {status:?} {rest:?}");
                lab.boot();
            }
        } else {
            let rest: Vec<String> = said.collect();
            let status = child.wait().unwrap();
            assert!(
                death == Death::Fail || status.signal() == Some(9),
                "{what}: {status:?} {rest:?}"
            );
            known = acked(lab);
            if death == Death::Power {
                lab.cut_power();
            }
        }
        self.check(case, number, &what, known);
        true
    }

    fn check(&self, case: &Case, number: u32, what: &str, known: u64) {
        let lab = &self.lab;
        // QEMU may have been told to end.
        eventually("an answer", || {
            let about = lab.json(&["show", "web"]);
            !(about["state"] == "running" && about["pid"].is_null())
        });
        // A command that changes something recovers; so does the doctor.
        let recovered = match number % 2 {
            0 => lab.run(&["set", "web", "tag.t=1"]),
            _ => lab.run(&["doctor", "web", "--repair"]),
        };
        assert!([0, 5].contains(&recovered.code), "{what}: {recovered:?}");
        assert!(!lab.store().join("vms/web/journal.json").exists(), "{what}: {recovered:?}");
        let doctor = lab.run(&["--format", "json", "doctor", "web"]);
        let found: Vec<serde_json::Value> = serde_json::from_str(&doctor.out).unwrap();
        let bad =
            |finding: &&serde_json::Value| finding["level"] == "fail" || finding["level"] == "warn";
        let bad: Vec<_> = found.iter().filter(bad).collect();
        assert!(bad.is_empty(), "{what}: {bad:?}");
        let unused = lab.run(&["gc", "--dry-run"]);
        assert!(!unused.err.contains("unused"), "{what}: {}", unused.err);
        lab.run(&["set", "web", "tag.t=1"]);
        let once = lab
            .fingerprint()
            .into_keys()
            .filter(|path| !path.ends_with("serial.log"))
            .collect::<Vec<_>>();
        lab.run(&["set", "web", "tag.t=1"]);
        lab.run(&["doctor", "web", "--repair"]);
        let twice = lab
            .fingerprint()
            .into_keys()
            .filter(|path| !path.ends_with("serial.log"))
            .collect::<Vec<_>>();
        assert_eq!(once, twice, "{what}: a second recovery did something");
        match lab.state("web").as_str() {
            // It answers, it writes, it is not frozen. One that was booted anew has no writer.
            "running" if case.goes_back => {
                lab.write("web", "/root/alive", "yes");
                lab.ok(&["stop", "--force", "web"]);
            }
            "running" => {
                let before = acked(lab);
                eventually("a guest that writes", || acked(lab) != before);
                lab.ok(&["stop", "--force", "web"]);
            }
            "paused" => {
                assert!(case.name.starts_with("undo"), "{what}: the guest stands still");
                lab.ok(&["stop", "--force", "web"]);
            }
            _ => {}
        }
        for file in lab.layer_files() {
            let path = lab.store().join("layers").join(&file);
            content::check(&path).unwrap_or_else(|checked| panic!("{what}: {file}: {checked:?}"));
        }
        let there = written(lab, what);
        assert!(
            there > 0 && (case.goes_back || there >= known),
            "{what}: {known} was promised and {there} is there"
        );
    }
}

/// How many points there are to an operation, and how many were survived.
fn walk(running: &Running, case: &Case, death: Death, sample: (u32, u32)) -> (u32, u32) {
    let (mut walked, mut survived) = (0, 0);
    tier::walk(sample, |number| {
        // One that is lost is told, and the others are tried all the same.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            running.hit(case, number, death)
        })) {
            Ok(false) => return false,
            Ok(true) => survived += 1,
            Err(_) => {}
        }
        walked += 1;
        assert!(walked - survived < 20, "too many are lost");
        true
    });
    (walked, survived)
}

/// Walks through the operations, the `part`th of `parts` of them; some of their points, see
/// [`tier::sample`].
fn all(lab: Lab, death: Death, (part, parts): (usize, usize), stride: u32) {
    assert!(TRIED.contains(&death.class()));
    let full = tier::is_all();
    let running = Running::new(lab);
    let (mut total, mut lost, mut lines) = (0, 0, String::new());
    let wanted = std::env::var("COWHAND_FAULTS_ONLY").unwrap_or_default();
    for at in tier::picked(&verbs(), death.class()).into_iter().skip(part).step_by(parts) {
        let case = &CASES[at];
        if !case.name.starts_with(&wanted) {
            continue;
        }
        let (walked, survived) =
            walk(&running, case, death, tier::sample(at, death.class(), stride));
        assert!(walked > 0, "{} has no fault points", case.name);
        (total, lost) = (total + walked, lost + walked - survived);
        let line = format!(
            "{:<28} {:<5} {survived:>3} of {walked} survived\n",
            case.name,
            format!("{death:?}").to_lowercase()
        );
        if full {
            eprint!("{line}");
        }
        lines.push_str(&line);
    }
    if !full {
        eprint!("{lines}");
    }
    eprintln!(
        "{} operations on a running VM, {total} faults of {death:?}: {lost} lost",
        lines.lines().count()
    );
    assert!(total > 0);
    assert_eq!(lost, 0);
}

#[test]
fn a_command_killed_at_any_of_its_fault_points_loses_no_write_of_the_guest() {
    all(Lab::new(), Death::Us, (0, 1), 17);
}

#[test]
fn qemu_killed_at_any_fault_point_loses_no_write_of_the_guest() {
    all(Lab::new(), Death::Qemu, (0, 1), 29);
}

#[test]
fn both_killed_at_any_fault_point_lose_no_write_of_the_guest() {
    all(Lab::new(), Death::Both, (0, 1), 29);
}

#[test]
fn a_command_failing_at_any_fault_point_loses_no_write_of_the_guest() {
    all(Lab::new(), Death::Fail, (0, 1), 31);
}

// In two halves: it is mostly waiting, and the longest of all.
#[test]
fn qemu_hanging_at_any_fault_point_ends_in_an_error_and_loses_no_write_of_the_guest() {
    all(Lab::new(), Death::Hang, (0, 2), 41);
}

#[test]
fn qemu_hanging_at_any_fault_point_of_the_others_ends_in_an_error_and_loses_no_write_of_the_guest()
{
    all(Lab::new(), Death::Hang, (1, 2), 41);
}

#[test]
fn a_power_cut_at_any_fault_point_loses_no_write_of_the_guest() {
    if let Some(lab) =
        Lab::with_power("a_power_cut_at_any_fault_point_loses_no_write_of_the_guest", "xfs", 2000)
    {
        all(lab, Death::Power, (0, 1), 23);
    }
}

#[test]
fn a_disk_that_fails_at_any_fault_point_loses_no_write_of_the_guest() {
    if let Some(lab) = Lab::with_power(
        "a_disk_that_fails_at_any_fault_point_loses_no_write_of_the_guest",
        "xfs",
        2000,
    ) {
        all(lab, Death::Disk, (0, 1), 31);
    }
}
