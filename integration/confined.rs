//! What a QEMU reaches that its guest has taken over: asked of a real one, over the socket for the
//! user's own tools. What it can open, a guest could.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

use crate::lab::{Done, Lab, skip};

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
        let said = error["desc"].as_str().unwrap();
        let is_out_of_reach = |why| said.contains(why);
        let reasons = ["Permission denied", "No such file or directory", "Read-only file system"];
        assert!(reasons.into_iter().any(is_out_of_reach), "{answer}");
        return false;
    }
    let remove = json!({"execute": "blockdev-del", "arguments": {"node-name": "probe"}});
    let removed = ask(lab, vm, &remove);
    assert!(removed.get("return").is_some(), "{removed}");
    true
}

/// Can QEMU connect to a socket at this path? (`chardev-add`)
fn connects(lab: &Lab, vm: &str, socket: &Path) -> bool {
    let address = json!({"type": "unix", "data": {"path": socket}});
    let backend = json!({"type": "socket", "data": {"addr": address, "server": false}});
    let arguments = json!({"id": "probe", "backend": backend});
    let answer = ask(lab, vm, &json!({"execute": "chardev-add", "arguments": arguments}));
    if let Some(error) = answer.get("error") {
        assert!(error["desc"].as_str().unwrap().contains("No such file"), "{answer}");
        return false;
    }
    ask(lab, vm, &json!({"execute": "chardev-remove", "arguments": {"id": "probe"}}));
    true
}

/// Has this process another root directory than we?
pub fn has_its_own_root(pid: i32) -> bool {
    use std::os::unix::fs::MetadataExt;
    let root = |of: &str| {
        let about = std::fs::metadata(format!("/proc/{of}/root")).unwrap();
        (about.dev(), about.ino())
    };
    root(&pid.to_string()) != root("self")
}

/// A field of `/proc/PID/status` (`proc_pid_status(5)`).
fn status(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    u64::from_str_radix(value.trim(), 16).unwrap()
}

/// Is it the first process of a PID namespace that is not ours?
fn is_alone(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    numbers.split_whitespace().count() > 1 && numbers.ends_with("\t1")
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
    let service = lab.path().join("service");
    let _listener = UnixListener::bind(&service).unwrap();
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
        reached.extend(connects(&lab, "web", &service).then_some("service"));
        let capabilities = status(pid, "CapEff:");
        let is_apart = has_its_own_root(pid);
        assert_eq!(is_alone(pid), is_apart);
        let told = lab.json(&["show", "web"])["confinement"].clone();
        assert_eq!(
            (&told["root_directory"], &told["processes"]),
            (&is_apart.into(), &is_apart.into())
        );
        assert_eq!(told["system_call_filter"], how == "default", "{told}");
        let looked = lab.ok(&["doctor", "--security"]);
        let of_vm = looked.lines().find(|line| line.contains("web: ")).unwrap();
        assert_eq!(of_vm.starts_with("ok"), how == "default" && is_apart, "{looked}");
        lab.ok(&["stop", "web", "--force"]);
        if how == "default" && !is_apart {
            let why = "this host gives no mount namespaces";
            skip("services of the host and layers of other VMs are out of reach", why);
            reached.retain(|what| !["service", "layers"].contains(what));
        }
        (reached, capabilities)
    };
    let is_root = nix::unistd::geteuid().is_root();
    let (everything, all) = reached("off");
    assert_eq!(everything.len(), if is_root { 8 } else { 7 }, "{everything:?}");
    if !has_landlock(&lab) {
        return skip(
            "a_qemu_reaches_the_files_of_its_guest_and_nothing_else_of_the_host",
            "this kernel has no Landlock",
        );
    }
    let (few, kept) = reached("default");
    assert_eq!(few, ["own", "iso"]);
    if is_root {
        assert_eq!(kept, CAP_SYS_PTRACE & all);
        // A file of another user, which root opens by privilege alone.
        nix::unistd::chown(&own, Some(nix::unistd::Uid::from_raw(4711)), None).unwrap();
        std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let (few, kept) = reached("default");
        assert_eq!(few, ["own", "iso"]);
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

/// Is anything of this name mounted for the process? (`proc_pid_mountinfo(5)`)
fn mounts(pid: i32, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap().contains(name)
}

#[test]
fn a_qemu_reaches_the_layers_of_its_guest_as_they_come_and_go_and_no_others() {
    let test = "a_qemu_reaches_the_layers_of_its_guest_as_they_come_and_go_and_no_others";
    let lab = Lab::new();
    lab.ok(&["create", "base", "--size", "16M", "--net", "none"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    lab.ok(&["clone", "base", "web"]);
    lab.ok(&["clone", "base", "other"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    lab.ok(&["start", "web", "--paused"]);
    let pid = lab.pid("web");
    if !has_its_own_root(pid) {
        return skip(test, "this host gives no mount namespaces");
    }
    let file = |id: &str| lab.store().join("layers").join(format!("{id}.qcow2"));
    let reached = |id: &str| [false, true].map(|write| opens(&lab, "web", &file(id), write));
    let (head, below) = (lab.chain("web")[0].clone(), lab.chain("web")[1..].to_vec());
    assert!(below.len() >= 2, "{below:?}");
    assert_eq!(reached(&head), [true, true]);
    // The last one is the template's.
    for id in &below {
        assert_eq!(reached(id), [true, false], "{id}");
    }
    assert_eq!(reached(&lab.chain("other")[0]), [false, false]);

    lab.ok(&["snapshot", "create", "web", "b"]);
    let new = lab.chain("web")[0].clone();
    assert_ne!(new, head);
    assert_eq!(reached(&new), [true, true]);
    // What it holds is written to the layer below, and its room on the disk becomes free.
    lab.ok(&["snapshot", "rm", "web@b"]);
    let left = lab.chain("web");
    assert_eq!(left.len(), 1 + below.len());
    let gone = [head, new].into_iter().find(|id| !left.contains(id)).unwrap();
    assert!(!mounts(pid, &gone) && mounts(pid, &left[0]));
    assert_eq!(reached(&left[0]), [true, true]);
    assert!(!file(&gone).exists());
    lab.ok(&["stop", "web", "--force"]);
}

#[test]
fn a_store_that_is_reached_by_another_path_is_the_same_for_a_vm_that_runs() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    let link = lab.path().join("link");
    std::os::unix::fs::symlink(lab.store(), &link).unwrap();
    std::fs::create_dir(lab.path().join("beside")).unwrap();
    let round_about = lab.path().join("beside/../link");
    let by = |store: &Path, args: &[&str]| {
        let done: Done = lab.command(args).env("COWHAND_STORE", store).output().unwrap().into();
        done.ok()
    };
    by(&round_about, &["start", "web", "--paused"]);
    by(&lab.store(), &["snapshot", "create", "web", "a"]);
    by(&link, &["snapshot", "create", "web", "b"]);
    by(&round_about, &["snapshot", "create", "web", "c"]);
    let pid = lab.pid("web");
    let head = lab.chain("web")[0].clone();
    assert!(mounts(pid, &head) || !has_its_own_root(pid));
    for point in ["web@c", "web@a", "web@b"] {
        by(&link, &["snapshot", "rm", point]);
    }
    assert_eq!(lab.chain("web").len(), 1);
    assert!(!mounts(pid, &head) || lab.chain("web")[0] == head);
    lab.ok(&["doctor"]);
    // Where it was started from is there no more.
    let moved = lab.path().join("moved");
    std::fs::rename(lab.store(), &moved).unwrap();
    by(&moved, &["snapshot", "create", "web", "d"]);
    by(&moved, &["snapshot", "rm", "web@d"]);
    by(&moved, &["stop", "web", "--force"]);
    std::fs::rename(&moved, lab.store()).unwrap();
    lab.ok(&["doctor"]);
}

#[test]
fn a_file_that_is_used_in_its_place_is_written_to_by_who_has_it_as_its_head() {
    let test = "a_file_that_is_used_in_its_place_is_written_to_by_who_has_it_as_its_head";
    let lab = Lab::new();
    let own = lab.path().join("own.raw");
    std::fs::write(&own, vec![0; 1 << 20]).unwrap();
    let using = format!("{},use", own.display());
    lab.ok(&["create", "web", "--disk", &using, "--net", "none"]);
    lab.ok(&["snapshot", "create", "web", "a"]);
    lab.ok(&["clone", "web@a", "copy"]);
    lab.ok(&["start", "web", "--paused"]);
    lab.ok(&["start", "copy", "--paused"]);
    if !has_its_own_root(lab.pid("copy")) {
        return skip(test, "this host gives no mount namespaces");
    }
    for vm in ["web", "copy"] {
        assert_eq!([false, true].map(|write| opens(&lab, vm, &own, write)), [true, false], "{vm}");
    }
    lab.ok(&["rm", "--force", "copy"]);
    lab.ok(&["gc", "--older-than", "0"]);
    // The head is merged into it.
    lab.ok(&["snapshot", "rm", "web@a"]);
    assert_eq!(lab.chain("web").len(), 1);
    assert!(opens(&lab, "web", &own, true));
    lab.ok(&["stop", "web", "--force"]);
}

/// Who ignores SIGCHLD has no children to wait for, and programs inherit that.
#[test]
fn a_vm_starts_for_a_caller_that_ignores_the_end_of_its_children() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "16M", "--net", "none"]);
    for args in [&["start", "web", "--paused"][..], &["disk", "check", "web"]] {
        let command = lab.command(args);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", "trap '' CHLD; exec \"$@\"", "sh"]).args(words).envs(variables);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        if args[0] == "start" {
            lab.ok(&["stop", "web", "--force"]);
        }
    }
}
