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
    lab.ok(&["template", "create", "efi", "--no-seal"]);
    // One boot shows both: that of the clone.
    lab.ok(&["clone", "efi", "copy", "--start"]);
    assert!(lab.sh("copy", "cat /etc/os-release; ls /sys/firmware").contains("efi"));
    let nvram = |vm: &str| {
        lab.json(&["disk", "chain", vm, "nvram"])[0]["layers"].as_array().unwrap().clone()
    };
    assert_ne!(nvram("efi")[0]["id"], nvram("copy")[0]["id"]);
    let layers = nvram("copy").len();
    lab.write("copy", "/root/a", "one");
    lab.ok(&["snapshot", "create", "copy", "s"]);
    assert_eq!(nvram("copy").len(), layers + 1);
    lab.write("copy", "/root/a", "two");
    lab.ok(&["snapshot", "revert", "copy@s", "--stopped"]);
    lab.ok(&["snapshot", "rm", "copy@s"]);
    assert_eq!(nvram("copy").len(), layers);
    assert_eq!(lab.on_disk("copy", "/root/a").as_deref(), Some("one"));
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn a_uefi_guest_goes_on_from_memory_with_variables_of_its_own() {
        let lab = Lab::new();
        let disk = guest("tiny").disk();
        lab.ok(&[
            "create", "efi", "--disk", &disk, "--memory", "256M", "--cpus", "1", "--firmware",
            "uefi",
        ]);
        lab.ok(&["template", "create", "efi", "--no-seal", "--warm"]);
        assert_eq!(
            lab.run(&["run", "--warm", "efi", "--", "test", "-d", "/sys/firmware/efi"]).code,
            0
        );
        lab.ok(&["clone", "efi", "copy", "--warm"]);
        let nvram =
            |vm: &str| lab.json(&["disk", "chain", vm, "nvram"])[0]["layers"][0]["id"].clone();
        assert_ne!(nvram("efi"), nvram("copy"));
        // Its firmware can still boot it.
        let boot = || lab.sh("copy", "cat /proc/sys/kernel/random/boot_id");
        let before = boot();
        lab.ok(&["stop", "copy"]);
        lab.ok(&["start", "copy"]);
        assert_ne!(boot(), before);
        assert_eq!(lab.json(&["reset", "copy"])["kind"], "warm");
        lab.sh("copy", "true");
    }

    #[test]
    fn a_boot_variable_set_after_a_snapshot_is_gone_after_the_revert() {
        let lab = Lab::new();
        let disk = guest("tiny").disk();
        lab.ok(&[
            "create", "efi", "--disk", &disk, "--memory", "256M", "--cpus", "1", "--firmware",
            "uefi",
        ]);
        lab.ok(&["start", "efi"]);
        let variables = "mount -t efivarfs none /sys/firmware/efi/efivars 2>/dev/null; \
                         cd /sys/firmware/efi/efivars";
        let name = |n: u32| format!("Cowhand{n}-5a3e4f60-2c1d-4b7a-9e8f-0a1b2c3d4e5f");
        let set = |n: u32| {
            lab.sh(
                "efi",
                &format!(
                    "{variables}; printf '\\007\\000\\000\\000x' > /tmp/v; dd if=/tmp/v of={} \
                     bs=64 2>/dev/null; sync",
                    name(n)
                ),
            )
        };
        let seen = || lab.sh("efi", &format!("{variables}; ls | grep Cowhand || true"));
        set(1);
        lab.ok(&["snapshot", "create", "efi", "external"]);
        set(2);
        lab.ok(&["snapshot", "create", "efi", "inner", "--internal"]);
        set(3);
        assert_eq!(seen().lines().count(), 3);
        lab.ok(&["snapshot", "revert", "efi@inner"]);
        assert_eq!(seen().lines().count(), 2);
        lab.ok(&["snapshot", "revert", "efi@external"]);
        assert_eq!(seen().trim(), name(1));
    }
}
