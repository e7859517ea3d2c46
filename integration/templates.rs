//! Templates: what must never happen to them, and who depends on them.

use std::os::unix::fs::PermissionsExt;

use crate::lab::{Lab, qemu_img};

#[test]
fn a_template_cannot_be_started_changed_or_lost() {
    let lab = Lab::new();
    lab.booted("deb");
    lab.ok(&["stop", "deb"]);
    lab.ok(&["template", "create", "deb", "--no-seal", "--as", "deb12"]);
    let file = lab.json(&["disk", "ls", "deb12"])[0]["file"].as_str().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o444);
    lab.ok(&["clone", "deb12", "t", "-n", "2"]);
    lab.ok(&["start", "t-1"]);
    lab.sh("t-1", "true");
    let bytes = std::fs::read(&file).unwrap();

    for args in [
        &["start", "deb12"][..],
        &["stop", "deb12"],
        &["set", "deb12", "cpus=1"],
        &["snapshot", "create", "deb12", "s"],
        &["template", "create", "deb12", "--no-seal"],
        &["rm", "deb12"],
        &["plan", "deb12"],
        &["pause", "deb12"],
    ] {
        lab.run(args).fails(5, &["template"]);
    }
    let refused = lab.run(&["--format", "json", "template", "rm", "deb12"]).fails(5, &[]);
    let error: serde_json::Value = serde_json::from_str(&refused.err).unwrap();
    assert_eq!(error["error"]["dependents"], serde_json::json!(["t-1", "t-2"]));
    lab.run(&["template", "rm", "deb12"]).fails(5, &["t-1 (running), t-2", "--cascade"]);
    lab.run(&["template", "rm", "deb12", "--cascade"]).fails(5, &["t-1 is running"]);

    let row = lab.json(&["template", "ls"])[0].clone();
    for key in ["name", "sealed", "warm", "dependents", "bytes"] {
        assert!(row.get(key).is_some(), "{key} is not in {row}");
    }
    assert_eq!(lab.json(&["ls"]).as_array().unwrap().len(), 2, "ls shows VMs only");
    assert_eq!(lab.json(&["ls", "-a"]).as_array().unwrap().len(), 3);
    assert!(std::fs::read(&file).unwrap() == bytes, "a clone wrote into the template");
    lab.ok(&["rename", "deb12", "debian"]);
    assert_eq!(lab.json(&["show", "t-1"])["from"], "debian", "clones follow a rename");
    lab.ok(&["template", "rm", "debian", "--cascade", "--force"]);
    assert_eq!(lab.json(&["ls", "-a"]), serde_json::json!([]));
    assert_eq!(lab.layer_files(), [""; 0]);
}

#[test]
fn a_template_edited_behind_our_back_is_noticed() {
    let lab = Lab::new();
    lab.ok(&["create", "deb", "--size", "64M"]);
    lab.ok(&["template", "create", "deb", "--no-seal"]);
    lab.ok(&["clone", "deb", "before"]);
    let file = lab.json(&["disk", "ls", "deb"])[0]["file"].as_str().unwrap().to_owned();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::File::options().append(true).open(&file).unwrap().set_len(1 << 20).unwrap();
    lab.run(&["clone", "deb", "after"]).fails(8, &["behind our back"]);
    assert_eq!(lab.vm_directories(), ["before", "deb"]);
}

#[test]
fn a_vm_with_snapshots_is_no_template_until_they_are_gone() {
    let lab = Lab::new();
    lab.ok(&["create", "deb", "--size", "64M"]);
    lab.ok(&["snapshot", "create", "deb", "s"]);
    lab.run(&["template", "create", "deb", "--no-seal"]).fails(5, &["deb@s", "snapshot rm"]);
    lab.ok(&["snapshot", "rm", "deb@s"]);
    lab.ok(&["template", "create", "deb", "--no-seal"]);
}

#[test]
fn a_shell_of_the_pool_that_is_still_being_started_is_not_called_a_run() {
    let lab = Lab::new();
    lab.ok(&["create", "t", "--size", "64M"]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    lab.ok(&["clone", "t", "pool-t-1"]);
    lab.ok(&["clone", "t", "run-t-1"]);
    // Until a shell waits, its record names the process that starts it, as the record of a run does
    // all the time.
    let owned = |name: &str, shell: bool| {
        let path = lab.store().join("vms").join(name).join("vm.json");
        let mut record: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let owner = serde_json::json!({
            "pid": std::process::id(), "started": 1, "boot": "this one", "namespace": 1,
        });
        record["ephemeral"] = serde_json::json!({"owner": owner, "shell": shell});
        std::fs::write(&path, record.to_string()).unwrap();
    };
    owned("pool-t-1", true);
    owned("run-t-1", false);
    let both = lab.run(&["template", "rm", "t"]).fails(5, &["pool drain t", "--cascade --force"]);
    assert!(both.err.contains("wait until these have ended: run-t-1\n"), "{both:?}");
    lab.ok(&["rm", "run-t-1"]);
    let shell = lab
        .run(&["template", "rm", "t"])
        .fails(5, &["another VM that waits in its pool", "pool drain t"]);
    assert!(!shell.err.contains("wait until"), "{shell:?}");
}

#[test]
fn who_makes_a_template_of_a_file_of_theirs_is_told_before_that_it_becomes_read_only() {
    let lab = Lab::new();
    let file = lab.path().join("mine.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", file.to_str().unwrap(), "16M"]);
    lab.ok(&["create", "base", "--disk", &format!("{},use", file.display()), "--net", "none"]);
    let done = lab.run(&["template", "create", "base", "--no-seal"]);
    assert!(done.code == 0 && done.err.contains(file.to_str().unwrap()), "{done:?}");
    assert!(std::fs::metadata(&file).unwrap().permissions().readonly());
}
