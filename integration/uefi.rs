//! UEFI guests: they boot from their own disk, and their variables are theirs.

use crate::lab::{Lab, guest};

#[test]
fn a_uefi_guest_boots_from_its_disk_and_its_clone_has_variables_of_its_own() {
    let lab = Lab::new();
    lab.ok(&[
        "create",
        "efi",
        "--disk",
        &guest("tiny").disk(),
        "--memory",
        "256M",
        "--cpus",
        "1",
        "--firmware",
        "uefi",
    ]);
    lab.ok(&["start", "efi"]);
    assert!(lab.sh("efi", "cat /etc/os-release; ls /sys/firmware").contains("efi"));
    lab.write("efi", "/root/a", "one");
    lab.ok(&["snapshot", "create", "efi", "s"]);
    assert_eq!(lab.json(&["disk", "chain", "efi", "nvram"])[0]["layers"].as_array().unwrap().len(), 2);
    lab.write("efi", "/root/a", "two");
    lab.ok(&["snapshot", "revert", "efi@s"]);
    assert_eq!(lab.read("efi", "/root/a").as_deref(), Some("one"));
    lab.ok(&["snapshot", "rm", "efi@s"]);
    assert_eq!(lab.json(&["disk", "chain", "efi", "nvram"])[0]["layers"].as_array().unwrap().len(), 1);
    lab.ok(&["stop", "efi"]);
    lab.ok(&["template", "create", "efi", "--no-seal"]);
    lab.ok(&["clone", "efi", "copy", "--start"]);
    assert_eq!(lab.read("copy", "/root/a").as_deref(), Some("one"));
    let nvram = |vm: &str| lab.json(&["disk", "chain", vm, "nvram"])[0]["layers"][0]["id"].clone();
    assert_ne!(nvram("efi"), nvram("copy"));
}
