//! KVM, for real: a boot sector, which runs even where a Linux kernel does not get through.

use std::fs::OpenOptions;

use serde_json::json;

use crate::lab::{Done, Lab, eventually, guest, skip};

#[test]
fn a_boot_sector_runs_under_kvm() {
    if let Err(why) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return skip("a_boot_sector_runs_under_kvm", &format!("/dev/kvm: {why}"));
    }
    let lab = Lab::new();
    lab.ok(&[
        "create",
        "boot",
        "--disk",
        &guest("bootsector").disk(),
        "--memory",
        "64M",
        "--cpus",
        "1",
    ]);
    lab.ok(&["--accel", "kvm", "start", "boot"]);
    eventually("the boot sector's line", || {
        lab.ok(&["logs", "boot"]).contains("cowhand boot sector")
    });
    let answers = lab.user_qmp("boot", &[json!({"execute": "query-kvm"})]);
    assert_eq!(answers[1]["enabled"], true);
    assert_eq!(lab.json(&["show", "boot"])["accel"], "kvm");
    let looked = |accel: &str| lab.json(&["--accel", accel, "doctor"]);
    let kvm = |found: &serde_json::Value| {
        found.as_array().unwrap().iter().find(|one| one["check"] == "kvm").cloned()
    };
    assert!(
        kvm(&looked("kvm")).unwrap()["message"]
            .as_str()
            .unwrap()
            .starts_with("a probe guest ran under KVM")
    );
    assert!(kvm(&looked("tcg")).unwrap()["message"].as_str().unwrap().starts_with("not tried"));
}

#[test]
fn automatic_acceleration_never_trusts_kvm_without_hardware_behind_it() {
    let lab = Lab::new();
    lab.ok(&[
        "create",
        "boot",
        "--disk",
        &guest("bootsector").disk(),
        "--memory",
        "64M",
        "--cpus",
        "1",
    ]);
    let done: Done =
        lab.command(&["start", "boot"]).env("COWHAND_ACCEL", "auto").output().unwrap().into();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let hardware = cpuinfo.split_whitespace().any(|word| word == "vmx" || word == "svm");
    let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    assert_eq!(done.err.contains("much slower"), !(hardware && opens), "{}", done.err);
    done.ok();
    let expected = if hardware && opens { "kvm" } else { "tcg" };
    assert_eq!(lab.json(&["show", "boot"])["accel"], expected);
    eventually("the boot sector's line", || {
        lab.ok(&["logs", "boot"]).contains("cowhand boot sector")
    });
}
