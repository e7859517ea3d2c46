//! The same for guests that go on from memory: at each fault point of what makes them, keeps them
//! ready and takes them away, cowhand dies, fails, dies together with the QEMUs, or loses them.
//! Afterwards the template is as whole as before, no guest runs that is another's double, and of
//! what was not to stay nothing is left.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, eventually, files_in, is_about_the_host, kill as kill_pid};
use crate::tier::{self, Class};
use crate::warm::processes;

struct Case {
    name: &'static str,
    prepare: fn(&Lab),
    args: &'static [&'static str],
    /// It boots a guest each time.
    slow: bool,
}

const CASES: [Case; 7] = [
    Case { name: "template warm", prepare: cold, args: &["template", "warm", "t"], slow: true },
    Case { name: "template cool", prepare: |_| {}, args: &["template", "cool", "t"], slow: false },
    Case {
        name: "clone, warm",
        prepare: |_| {},
        args: &["clone", "--warm", "t", "vm"],
        slow: false,
    },
    Case { name: "run", prepare: |_| {}, args: &["run", "t", "--", "true"], slow: false },
    Case {
        name: "run, from the pool",
        prepare: pool,
        args: &["run", "t", "--", "true"],
        slow: false,
    },
    Case { name: "pool fill", prepare: |_| {}, args: &["pool", "fill", "t", "1"], slow: false },
    Case { name: "reset", prepare: clone, args: &["reset", "vm"], slow: false },
];

/// What goes wrong while they are under way.
pub const TRIED: [Class; 4] = [Class::Killed, Class::Failing, Class::QemuKilled, Class::BothKilled];

/// Can it be tried? While a template is cooled, none of its QEMUs runs that could be killed.
pub fn is_tried(verb: &str, class: Class) -> bool {
    verb != "template cool" || [Class::Killed, Class::Failing].contains(&class)
}

/// Their verbs.
pub fn verbs() -> Vec<String> {
    CASES.iter().map(|case| tier::verb(case.args)).collect()
}

fn cold(lab: &Lab) {
    if is_warm(lab) {
        lab.ok(&["template", "cool", "t"]);
    }
}

fn pool(lab: &Lab) {
    lab.ok(&["pool", "fill", "t", "1"]);
}

fn clone(lab: &Lab) {
    lab.ok(&["clone", "--warm", "t", "vm"]);
}

fn is_warm(lab: &Lab) -> bool {
    lab.json(&["template", "ls"])[0]["warm"] == true
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Us,
    Fail,
    Both,
    Qemu,
}

impl Death {
    fn class(self) -> Class {
        match self {
            Self::Us => Class::Killed,
            Self::Fail => Class::Failing,
            Self::Both => Class::BothKilled,
            Self::Qemu => Class::QemuKilled,
        }
    }
}

/// The QEMUs of the lab.
fn qemus(lab: &Lab) -> Vec<i32> {
    let is_qemu = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/exe"))
            .is_ok_and(|exe| exe.to_string_lossy().contains("qemu-system"))
    };
    processes(lab).into_iter().filter(is_qemu).collect()
}

/// Hits one point. False: the operation has fewer.
fn hit(lab: &Lab, case: &Case, number: u32, death: Death) -> bool {
    if case.name != "template warm" && !is_warm(lab) {
        lab.warm_again();
    }
    (case.prepare)(lab);
    let fault = match death {
        Death::Us => "die",
        Death::Fail => "fail",
        Death::Both | Death::Qemu => "stall",
    };
    let mut child = lab
        .command(case.args)
        .env("COWHAND_FAULT", format!("{number}:{fault}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let us = child.id().cast_signed();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let Some(point) = said.find(|line| line.starts_with("fault ")) else {
        let status = child.wait().unwrap();
        assert!(status.success(), "{}: {status:?}", case.name);
        wait_for_filling(lab);
        clear(lab);
        return false;
    };
    let what = format!("{}, {death:?}, {point}", case.name);
    if fault == "stall" {
        eventually("a standstill", || {
            std::fs::read_to_string(format!("/proc/{us}/stat"))
                .is_ok_and(|stat| stat.contains(") T "))
        });
        qemus(lab).into_iter().for_each(kill_pid);
        if death == Death::Both {
            kill_pid(us);
        } else {
            kill(Pid::from_raw(us), Signal::SIGCONT).unwrap();
        }
    }
    let status = child.wait().unwrap();
    wait_for_filling(lab);
    assert!(fault != "die" || !status.success(), "{what}: {status:?}");
    check(lab, case, &what);
    true
}

/// Who fills the pool behind a run meets the same fault.
fn wait_for_filling(lab: &Lab) {
    eventually("the end of the filling", || {
        let filling = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains("top-up"))
        };
        let pids: Vec<i32> = processes(lab).into_iter().filter(filling).collect();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
        }
        pids.is_empty()
    });
}

/// So that each way to put it right has its turn, whatever is left out.
static NEXT: AtomicU32 = AtomicU32::new(0);

fn check(lab: &Lab, case: &Case, what: &str) {
    let stays = case.name == "reset";
    // Whoever comes next puts it right: who makes another, who tidies up, who only looks.
    let turn = NEXT.fetch_add(1, Ordering::Relaxed) % 3;
    match turn {
        0 => drop(lab.ok(&["gc", "--older-than", "0"])),
        1 => drop(lab.run(&["doctor", "--repair"])),
        _ if is_warm(lab) => assert_eq!(lab.run(&["run", "t", "--", "true"]).code, 0, "{what}"),
        _ => {}
    }
    assert!(!stays || lab.json(&["show", "vm"])["from"] == "t", "{what}: the VM is lost");
    // A VM that is to stay and runs has a name of its own; one that does not can be started. One
    // whose maker has died is nobody's, and goes.
    let changed = lab.run(&["set", "vm", "tag.x=y"]).code;
    assert!(!stays || changed == 0, "{what}: {changed}");
    if changed == 0 {
        let state = lab.state("vm");
        assert!(["running", "stopped", "crashed"].contains(&state.as_str()), "{what}: {state}");
        if state == "running" {
            assert_eq!(
                lab.sh("vm", "hostname").trim(),
                "vm",
                "{what}: it runs under the template's name"
            );
        } else {
            lab.ok(&["reset", "vm"]);
        }
        lab.ok(&["doctor", "vm"]);
    }
    clear(lab);
    assert_eq!(lab.vm_directories(), ["t"], "{what}");
    assert_eq!(files_in(&lab.path().join("run/cowhand")), [] as [String; 0], "{what}: sockets");
    eventually("all processes have ended", || processes(lab).is_empty());
    let doctor = lab.run(&["--format", "json", "doctor"]);
    let found: Vec<serde_json::Value> = serde_json::from_str(&doctor.out).unwrap();
    let bad = |finding: &&serde_json::Value| {
        (finding["level"] == "fail" || finding["level"] == "warn") && !is_about_the_host(finding)
    };
    let bad: Vec<_> = found.iter().filter(bad).collect();
    assert!(bad.is_empty(), "{what}: {bad:?}");
    let memory = files_in(&lab.store().join("ram"));
    assert_eq!(memory.len(), if is_warm(lab) { 2 } else { 0 }, "{what}: {memory:?}");
    lab.ok(&["gc", "--older-than", "0"]);
    let once = lab.fingerprint();
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.fingerprint(), once, "{what}: there was still something to tidy up");
    lab.check_images_after_a_kill();
    if is_warm(lab) && turn <= tier::first_or(0, 2) {
        assert_eq!(
            lab.run(&["run", "--warm", "t", "--", "true"]).code,
            0,
            "{what}: the template is warm in name only"
        );
    }
}

/// Takes away what is to stay.
fn clear(lab: &Lab) {
    if lab.vm_directories().contains(&"vm".to_owned()) {
        let done = lab.run(&["rm", "--force", "vm"]);
        assert!([0, 3].contains(&done.code), "{done:?}");
    }
    lab.ok(&["pool", "drain"]);
    for _ in 0..2 {
        lab.ok(&["gc", "--older-than", "0"]);
    }
}

fn all(deaths: &[Death], stride: u32) {
    let lab = Lab::warm();
    let wanted = std::env::var("COWHAND_FAULTS_ONLY").unwrap_or_default();
    let (mut total, mut lost) = (0, 0);
    for death in deaths {
        assert!(TRIED.contains(&death.class()));
        for at in tier::picked(&verbs(), death.class()) {
            let case = &CASES[at];
            if !case.name.starts_with(&wanted) || !is_tried(case.name, death.class()) {
                continue;
            }
            let stride = if case.slow { stride * 5 } else { stride };
            let (mut walked, mut survived) = (0, 0);
            tier::walk(tier::sample(at, death.class(), stride), |number| {
                match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    hit(&lab, case, number, *death)
                })) {
                    Ok(false) => return false,
                    Ok(true) => survived += 1,
                    // One that is lost is told, and the others are tried all the same.
                    Err(_) => clear(&lab),
                }
                walked += 1;
                assert!(walked - survived < 20, "too many are lost");
                true
            });
            assert!(walked > 0, "{} has too few points", case.name);
            (total, lost) = (total + walked, lost + walked - survived);
            eprintln!(
                "{:<28} {:<5} {survived:>3} of {walked} survived",
                case.name,
                format!("{death:?}").to_lowercase()
            );
        }
    }
    eprintln!(
        "{} operations on warm guests, {total} faults of {deaths:?}: {lost} lost",
        CASES.len()
    );
    assert_eq!(lost, 0);
}

#[test]
fn a_command_killed_at_any_of_its_fault_points_leaves_no_double_and_no_rest() {
    all(&[Death::Us], 13);
}

#[test]
fn a_command_failing_at_any_of_its_fault_points_leaves_no_double_and_no_rest() {
    all(&[Death::Fail], 19);
}

#[test]
fn guests_killed_at_any_fault_point_alone_or_with_the_command_leave_no_rest() {
    all(&[Death::Both, Death::Qemu], 37);
}
