//! What a QEMU reaches that its guest has taken over: asked of a real one, over the socket for the
//! user's own tools. What it can open, a guest could.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::lab::{Lab, skip};

/// What QEMU says to one command.
fn ask(lab: &Lab, vm: &str, command: &Value) -> Value {
    let socket = lab.store().join("vms").join(vm).join("run/user-qmp.sock").canonicalize().unwrap();
    let mut stream = UnixStream::connect(socket).unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    writeln!(stream, "{}", json!({"execute": "qmp_capabilities"})).unwrap();
    writeln!(stream, "{command}").unwrap();
    let answers = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    answers.filter(|line| line.get("event").is_none()).nth(2).unwrap()
}

/// Can QEMU open this file?
fn opens(lab: &Lab, vm: &str, file: &Path, write: bool) -> bool {
    let node = json!({
        "driver": "file", "node-name": "probe", "filename": file, "read-only": !write,
        "locking": "off",
    });
    let answer = ask(lab, vm, &json!({"execute": "blockdev-add", "arguments": node}));
    if let Some(error) = answer.get("error") {
        assert!(error["desc"].as_str().unwrap().contains("Permission denied"), "{answer}");
        return false;
    }
    let remove = json!({"execute": "blockdev-del", "arguments": {"node-name": "probe"}});
    let removed = ask(lab, vm, &remove);
    assert!(removed.get("return").is_some(), "{removed}");
    true
}

/// A field of `/proc/PID/status` (`proc_pid_status(5)`).
fn status(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    u64::from_str_radix(value.trim(), 16).unwrap()
}

const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// `start` warns where the kernel has none.
fn has_landlock(lab: &Lab) -> bool {
    let started = lab.run(&["start", "other", "--paused"]);
    lab.ok(&["stop", "other", "--force"]);
    !started.err.contains("has no Landlock")
}

#[test]
fn a_qemu_reaches_the_files_of_its_guest_and_nothing_else_of_the_host() {
    let lab = Lab::new();
    let disk = |name: &str| {
        let path = lab.path().join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        path
    };
    let (own, iso, secret) = (disk("own.raw"), disk("cd.iso"), disk("secret"));
    let using = format!("{},use", own.display());
    lab.ok(&["create", "web", "--disk", &using, "--iso", iso.to_str().unwrap(), "--net", "none"]);
    lab.ok(&["create", "other", "--size", "16M", "--net", "none"]);
    let reached = |how: &str| {
        lab.ok(&["--confine", how, "start", "web", "--paused"]);
        let layer = lab.store().join("layers").join(format!("{}.qcow2", lab.chain("other")[0]));
        let record = lab.store().join("vms/web/vm.json");
        let mut reached = Vec::new();
        for (name, file, write) in [
            ("own", own.as_path(), true),
            ("iso", &iso, false),
            ("layers", &layer, true),
            ("iso to write", &iso, true),
            ("secret", &secret, false),
            ("record", &record, false),
            ("passwords", Path::new("/etc/shadow"), false),
        ] {
            reached.extend(opens(&lab, "web", file, write).then_some(name));
        }
        let pid = lab.pid("web");
        assert_eq!(status(pid, "NoNewPrivs:"), 1);
        let capabilities = status(pid, "CapEff:");
        lab.ok(&["stop", "web", "--force"]);
        (reached, capabilities)
    };
    let is_root = nix::unistd::geteuid().is_root();
    let (everything, all) = reached("off");
    assert_eq!(everything.len(), if is_root { 7 } else { 6 }, "{everything:?}");
    if !has_landlock(&lab) {
        return skip(
            "a_qemu_reaches_the_files_of_its_guest_and_nothing_else_of_the_host",
            "this kernel has no Landlock",
        );
    }
    let (few, kept) = reached("default");
    // All layers, since new ones are added while it runs.
    assert_eq!(few, ["own", "iso", "layers"]);
    if is_root {
        assert_eq!(kept, CAP_SYS_PTRACE & all);
        // A file of another user, which root opens by privilege alone.
        nix::unistd::chown(&own, Some(nix::unistd::Uid::from_raw(4711)), None).unwrap();
        std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let (few, kept) = reached("default");
        assert_eq!(few, ["own", "iso", "layers"]);
        assert_eq!(kept, (CAP_SYS_PTRACE | CAP_DAC_OVERRIDE) & all);
    }
}

#[test]
fn strict_confinement_holds_or_the_vm_does_not_start() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    let mut start = lab.command(&["start", "web", "--paused"]);
    let started = start.env("COWHAND_CONFINE", "strict").output().unwrap();
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    if !started.status.success() {
        assert!(
            said.contains("cannot be confined") && said.contains("--confine default"),
            "{said}"
        );
        return skip(
            "strict_confinement_holds_or_the_vm_does_not_start",
            "this kernel does not know all rules of Landlock",
        );
    }
    assert!(!opens(&lab, "web", Path::new("/etc/passwd"), false));
    lab.ok(&["stop", "web", "--force"]);
    lab.run(&["--confine", "loose", "start", "web"]).fails(2, &["default", "strict", "off"]);
}
