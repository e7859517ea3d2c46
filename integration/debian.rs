//! The main job on a real distribution: a Debian guest with systemd and everything.

use std::process::Command;

use crate::lab::{Lab, eventually, guest};
use crate::ports::free_port;

fn create(lab: &Lab, name: &str) {
    let debian = guest("debian");
    lab.ok(&[
        "create",
        name,
        "--disk",
        &debian.disk(),
        "--kernel",
        &debian.kernel,
        "--initrd",
        &debian.initrd,
        "--append",
        &debian.cmdline,
        "--memory",
        "512M",
    ]);
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn the_whole_way_on_a_debian_guest() {
        let lab = Lab::new();
        create(&lab, "web");
        lab.ok(&["start", "web"]);
        let exec = |vm: &str, command: &[&str]| {
            lab.run(&[&["exec", "--agent-timeout", "280", vm, "--"], command].concat())
        };
        assert!(exec("web", &["cat", "/etc/os-release"]).ok().contains("Debian GNU/Linux"));
        let stopped = lab.ok(&["stop", "--timeout", "280", "web"]);
        assert!(stopped.contains("guest agent"), "{stopped}");
        lab.ok(&["template", "create", "web", "--no-seal", "--as", "deb12"]);
        lab.ok(&["clone", "deb12", "web", "-n", "3"]);
        lab.ok(&["start", "web-1"]);
        exec("web-1", &["test", "-f", "/etc/ssh/sshd_config"]).ok();
        let taken = lab.json(&["snapshot", "create", "web-1", "before", "--quiesce-timeout", "60"]);
        assert_eq!(taken["quiesced"], true);
        exec("web-1", &["rm", "-rf", "/etc/ssh"]).ok();
        exec("web-1", &["sync"]).ok();
        assert_eq!(exec("web-1", &["test", "-e", "/etc/ssh"]).code, 1);
        lab.ok(&["snapshot", "revert", "web-1@before"]);
        exec("web-1", &["test", "-f", "/etc/ssh/sshd_config"]).ok();
        lab.ok(&["snapshot", "rm", "web-1@before"]);
        exec("web-1", &["test", "-f", "/etc/ssh/sshd_config"]).ok();
        assert_eq!(lab.chain("web-1").len(), 2, "one layer on the template's");
        lab.ok(&["stop", "--force", "web-1"]);
        lab.check_images();
    }

    #[test]
    fn clones_of_a_sealed_template_share_no_identity_and_work() {
        let mut lab = Lab::new();
        lab.needs_debians_appliance("vmlinux");
        create(&lab, "web");
        let key = lab.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let inject = format!("root:file:{}.pub", key.display());
        let first = "cat /etc/hostname > /root/first-boot";
        let sealed = lab.json(&[
            "template", "create", "web", "--as", "deb12", "--ssh-inject", &inject,
            "--firstboot-command", first,
        ]);
        assert_eq!(
            (&sealed["sealed"], &sealed["seal"]["mounts"][0]),
            (&true.into(), &"vda2 on / (ext4)".into())
        );
        assert_eq!(lab.json(&["template", "ls"])[0]["sealed"], true);
        let [one, two] = ["one", "two"].map(|name| {
            lab.ok(&["clone", "deb12", name, "-p", &format!("{}:22", free_port())]);
            lab.ok(&["start", name]);
            name
        });
        let script = "systemctl is-system-running --wait; cat /etc/machine-id; hostname; \
                      cat /etc/ssh/ssh_host_ed25519_key.pub; \
                      sha256sum < /var/lib/systemd/random-seed; \
                      networkctl status --all 2>/dev/null | grep -o 'DUID-EN.*'; \
                      cat /root/first-boot";
        let facts: Vec<Vec<String>> = [one, two]
            .map(|name| {
                let done = lab.run(&[
                    "exec", "--agent-timeout", "290", "--timeout", "290", name, "--", "sh", "-c",
                    script,
                ]);
                done.ok().lines().map(str::to_owned).collect()
            })
            .to_vec();
        for (name, facts) in ["one", "two"].iter().zip(&facts) {
            assert_eq!(facts.len(), 7, "{facts:?}");
            assert_eq!(facts[0], "running", "{facts:?}");
            assert_eq!((facts[2].as_str(), facts[6].as_str()), (*name, *name));
            assert_eq!(facts[1].len(), 32);
        }
        for (one, two) in facts[0][1..6].iter().zip(&facts[1][1..6]) {
            assert_ne!(one, two, "both clones have it");
        }
        let port = lab.json(&["show", "one"])["nics"][0]["ports"][0]["host"].to_string();
        let hosts = format!("UserKnownHostsFile={}", lab.path().join("known_hosts").display());
        eventually("ssh lets the key in", || {
            let ssh = Command::new("ssh")
                .args([
                    "-o", "StrictHostKeyChecking=no", "-o", &hosts, "-o", "BatchMode=yes", "-p",
                    &port, "-i",
                ])
                .arg(&key)
                .args(["root@127.0.0.1", "hostname"])
                .output()
                .unwrap();
            String::from_utf8_lossy(&ssh.stdout).trim() == "one"
        });
    }

    #[test]
    fn a_guest_with_new_file_system_uuids_is_told_of_them() {
        let mut lab = Lab::new();
        lab.needs_debians_appliance("vmlinux");
        let disk = lab.path().join("debian.qcow2");
        std::fs::copy(guest("debian").disk(), &disk).unwrap();
        let disk = disk.to_str().unwrap();
        let uuid = || -> String {
            let report = lab.json(&["seal", disk, "--dry-run", "--enable", "fs-uuids"]);
            let touched = report["operations"][0]["touched"].as_array().unwrap();
            touched
                .iter()
                .find_map(|one| one["path"].as_str()?.strip_prefix("/dev/disk/by-uuid/"))
                .unwrap()
                .to_owned()
        };
        let old = uuid();
        let append = format!("/etc/fstab:UUID={old} /again ext4 noauto 0 0");
        lab.ok(&["seal", disk, "--operations", "fs-uuids,customize", "--append-line", &append]);
        let new = uuid();
        assert_ne!(old, new);
        lab.ok(&[
            "seal",
            disk,
            "--operations",
            "customize",
            "--run-command",
            &format!("grep -q 'UUID={new} /again' /etc/fstab"),
        ]);
    }
}
