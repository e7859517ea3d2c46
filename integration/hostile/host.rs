//! What a QEMU gets from whoever starts it, by `start` or by hand: variables, files, directories.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::lab::{Lab, eventually};

const MARKER: &str = "a-secret-of-the-job-that-started-it";

/// THREATS: a QEMU of the pool carries the variables of job A into job B, where a guest that takes
/// it over reads them.
#[test]
fn the_variables_of_another_job_through_the_environment_of_qemu() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    let mut start = lab.command(&["start", "web"]);
    start
        .env("CI_JOB_TOKEN", MARKER)
        .env("LD_PRELOAD_OF_THE_JOB", MARKER)
        .env("QEMU_AUDIO_DRV", MARKER);
    assert!(start.output().unwrap().status.success());
    let pid = lab.pid("web");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(!environment.contains(MARKER), "{environment}");
    assert!(environment.contains("PATH="), "{environment}");
    for variable in environment.split('\0').filter(|variable| !variable.is_empty()) {
        let name = variable.split('=').next().unwrap();
        let known = [
            "PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "LANG", "LANGUAGE", "QEMU_MODULE_DIR",
            "PWD", "OLDPWD", "SHLVL", "_",
        ];
        assert!(known.contains(&name) || name.starts_with("LC_"), "QEMU has {name}");
    }
    // Neither does any other process that this store has started.
    eventually("no process of the store has the variable", || {
        let found = Command::new("grep")
            .args(["-l", "-a", MARKER])
            .args(processes_of(&lab))
            .output()
            .unwrap();
        found.stdout.is_empty()
    });
    lab.ok(&["stop", "-f", "web"]);
}

/// The environments of the processes that have the store on their command line.
fn processes_of(lab: &Lab) -> Vec<String> {
    let store = lab.path().to_str().unwrap().to_owned();
    let mut found = vec!["/dev/null".to_owned()];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&store) {
            found.push(entry.path().join("environ").to_str().unwrap().to_owned());
        }
    }
    found
}

/// A VM that is started from the output of `plan` writes what its guest prints, passwords of a
/// first boot for example, to a file that QEMU would make with the umask of the shell; its sockets
/// are in a directory that somebody may have made before.
#[test]
fn what_a_guest_prints_or_its_monitor_through_what_plan_has_made() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    let log = lab.store().join("vms/web/serial.log");
    let mode = |path: &std::path::Path| path.symlink_metadata().unwrap().mode() & 0o777;
    lab.ok(&["plan", "web"]);
    let run = std::fs::canonicalize(lab.store().join("vms/web/run")).unwrap();
    assert_eq!((mode(&log), mode(&run), mode(run.parent().unwrap())), (0o600, 0o700, 0o700));
    // One that is there is made private.
    std::fs::set_permissions(&log, PermissionsExt::from_mode(0o644)).unwrap();
    lab.ok(&["plan", "web"]);
    assert_eq!(mode(&log), 0o600);
    // A link is not followed, by neither.
    let precious = lab.path().join("precious");
    std::fs::write(&precious, "mine").unwrap();
    std::fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&precious, &log).unwrap();
    for verb in ["plan", "start"] {
        lab.run(&[verb, "web"]).fails(1, &["serial.log"]);
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
    std::fs::remove_file(&log).unwrap();
    // A directory for sockets that others can enter.
    std::fs::set_permissions(run.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    for verb in ["plan", "start"] {
        lab.run(&[verb, "web"]).fails(5, &["is not a directory of yours alone", "chmod 700"]);
    }
}

/// Puts every time in the JSON files below `directory` back by 30 days: the store as a clock finds
/// it that has jumped ahead by as much.
fn put_back(directory: &Path, is_meant: fn(&str) -> bool) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            put_back(&path, is_meant);
        } else if is_meant(&entry.file_name().to_string_lossy()) {
            let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            shift(&mut value);
            std::fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
        }
    }
}

fn shift(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(shift),
        Value::Object(values) => values.values_mut().for_each(shift),
        Value::String(text) => {
            if let Ok(time) = text.parse::<Timestamp>() {
                *text = (time - SignedDuration::from_hours(30 * 24)).to_string();
            }
        }
        _ => {}
    }
}

/// A store with a snapshot and a clone that go in a week, and something in the trash.
fn dated() -> Lab {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    lab.ok(&["snapshot", "create", "web", "kept"]);
    lab.ok(&["snapshot", "create", "web", "dated", "--expires", "7d"]);
    lab.ok(&["clone", "web@kept", "copy", "--expires", "7d"]);
    lab.ok(&["snapshot", "revert", "web@dated"]);
    lab
}

fn snapshots(lab: &Lab) -> usize {
    lab.json(&["snapshot", "ls", "web"]).as_array().unwrap().len()
}

fn trash(lab: &Lab) -> usize {
    std::fs::read_dir(lab.store().join("trash")).unwrap().count()
}

const TIMES: fn(&str) -> bool = |name| name.starts_with("vm.json") || name == "entry.json";
const NOTE: fn(&str) -> bool = |name| name == "clock.json";

/// THREATS: a clock that jumps forward lets `gc` remove what expires.
#[test]
fn what_has_a_date_through_a_clock_that_jumped_ahead() {
    let lab = dated();
    let (count, in_trash) = (snapshots(&lab), trash(&lab));
    put_back(&lab.store(), TIMES);
    let before = lab.fingerprint();
    let today = Timestamp::now().strftime("%Y-%m-%d").to_string();
    let then =
        (Timestamp::now() - SignedDuration::from_hours(30 * 24)).strftime("%Y-%m-%d").to_string();
    lab.run(&["gc"]).fails(5, &["the clock", &today, &then, "cowhand gc --yes"]);
    assert_eq!(lab.fingerprint(), before);
    let said = lab.run(&["gc", "--dry-run"]);
    assert!(said.out.contains("dated") && said.out.contains("copy"), "{}", said.out);
    assert!(said.err.contains("--yes"), "{}", said.err);
    assert_eq!(lab.fingerprint(), before);
    assert!(lab.run(&["doctor"]).out.contains("gc --yes"));
    // Other commands clear up as well, before they do what they are for.
    let said = lab.run(&["pool", "fill", "no-such-template", "1"]);
    said.clone().fails(3, &["no-such-template"]);
    assert!(said.err.contains("copy") && said.err.contains("gc --yes"), "{}", said.err);
    // A record that is made by the wrong clock proves nothing.
    lab.ok(&["create", "later", "--size", "16M", "--net", "none"]);
    lab.run(&["gc"]).fails(5, &[&today, &then]);
    assert_eq!((snapshots(&lab), trash(&lab)), (count, in_trash));
    lab.ok(&["show", "copy"]);
    // Until an administrator says so.
    lab.ok(&["gc", "--yes"]);
    lab.run(&["show", "copy"]).fails(3, &["copy"]);
    assert!(snapshots(&lab) < count && trash(&lab) < in_trash);
    lab.ok(&["gc"]);
}

/// The same in a boot of the host in which the clock was believed: nothing written since then hides
/// a jump, and a store that nobody used for a month is none.
#[test]
fn what_has_a_date_through_a_record_made_by_the_wrong_clock() {
    let lab = dated();
    lab.ok(&["gc"]);
    put_back(&lab.store(), NOTE);
    lab.run(&["gc"]).fails(5, &["the clock", "the time that has passed"]);
    lab.ok(&["gc", "--yes"]);
    let count = snapshots(&lab);
    put_back(&lab.store(), TIMES);
    let said = lab.run(&["gc"]);
    assert!(!said.err.contains("clock"), "{said:?}");
    said.ok();
    assert!(snapshots(&lab) < count);
    // What cannot be read is as if it were not there.
    std::fs::write(lab.store().join("clock.json"), "{\"time\": 1").unwrap();
    lab.run(&["gc"]).fails(5, &["the newest record"]);
}
