//! VMs that start with the host, and stopping all of them.

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::host::Host;
use crate::lab::{Done, Lab, copy_tree, eventually, kill, skip, tool};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn blank(lab: &Lab, name: &str, options: &[&str]) {
    lab.ok(
        &[&["create", name, "--size", "16M", "--memory", "64M", "--net", "none"], options].concat()
    );
}

/// Removes the only layer of a VM.
fn lose_disk(lab: &Lab, name: &str) {
    let file = lab.json(&["disk", "ls", name])[0]["file"].as_str().unwrap().to_owned();
    std::fs::remove_file(file).unwrap();
}

#[test]
fn those_that_are_to_start_with_the_host_do_and_no_others() {
    let lab = Lab::new();
    lab.ok(&["start", "--autostart"]);
    blank(&lab, "a", &["--autostart"]);
    blank(&lab, "b", &[]);
    let said = lab.run(&["set", "b", "autostart=yes"]).fails(2, &["\"yes\" is neither on nor off"]);
    assert!(said.err.contains("autostart=on"), "{said:?}");
    let autostart = |name: &str| lab.json(&["show", name])["autostart"].as_bool().unwrap();
    assert!(autostart("a") && !autostart("b"));
    assert_eq!(lab.ok(&["start", "--autostart"]), "started a\n");
    assert_eq!((lab.state("a"), lab.state("b")), ("running".into(), "stopped".into()));
    // It can be changed while the VM runs, and that can be undone, as every change by `set`.
    lab.ok(&["set", "a", "autostart=off", "tag.role=db"]);
    assert!(!autostart("a"));
    lab.ok(&["undo", "a"]);
    assert!(autostart("a") && lab.json(&["show", "a"])["tags"] == serde_json::json!({}));
    assert_eq!(lab.json(&["ls", "--filter", "autostart=on"])[0]["name"], "a");
    // What runs already is no error.
    assert_eq!(lab.ok(&["start", "--autostart"]), "");
    lab.run(&["start", "--autostart", "b"]).fails(2, &["cannot be used with"]);
    lab.run(&["start"]).fails(2, &["required"]);
    lab.ok(&["stop", "--force", "a"]);

    // It is the VM's, whatever its disks go back to; a clone and a template are others.
    lab.ok(&["set", "a", "autostart=off"]);
    lab.ok(&["snapshot", "create", "a", "s"]);
    lab.ok(&["set", "a", "autostart=on"]);
    lab.ok(&["snapshot", "revert", "a@s"]);
    lab.ok(&["clone", "a@s", "copy"]);
    lab.ok(&["rm", "copy"]);
    lab.ok(&["clone", "a@s", "t"]);
    lab.ok(&["set", "t", "autostart=on"]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    assert!(autostart("a") && !autostart("t"));
    lab.ok(&["template", "rm", "t"]);
    lab.ok(&["rename", "a", "d"]);
    lab.ok(&["rm", "d"]);
    lab.ok(&["undo"]);
    assert!(autostart("d"));

    // One that cannot be started, and one that cannot be read, keep no other from starting.
    lab.ok(&["set", "b", "autostart=on"]);
    blank(&lab, "c", &["--autostart"]);
    let record = lab.store().join("vms/b/vm.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    lose_disk(&lab, "c");
    let said = lab.run(&["start", "--autostart"]);
    assert_eq!((said.code, said.out.as_str()), (8, "started d\n"), "{said:?}");
    assert!(said.err.contains("cannot determine whether b starts with the host"), "{said:?}");
    assert!(said.err.contains("a disk of c is damaged"), "{said:?}");
    std::fs::write(&record, whole).unwrap();
    lab.ok(&["stop", "--all", "--force"]);
    assert_eq!(lab.state("d"), "stopped");
    assert!(lab.run(&["stop", "--all"]).err.contains("no VM runs"));
}

#[test]
fn all_that_run_are_stopped_at_the_same_time_and_what_did_not_stop_is_named() {
    let lab = Lab::new();
    lab.tiny("web", &[]);
    // It hears neither an agent nor a power button, and its name comes first.
    blank(&lab, "deaf", &[]);
    blank(&lab, "frozen", &[]);
    blank(&lab, "off", &[]);
    lab.ok(&["start", "web", "deaf"]);
    lab.ok(&["start", "--paused", "frozen"]);
    lab.ok(&["exec", "web", "--", "true"]);
    // A record that cannot be read is no reason to leave a guest running.
    let record = lab.store().join("vms/web/vm.json");
    let whole = std::fs::read(&record).unwrap();
    std::fs::write(&record, "{").unwrap();
    let mut stopping = lab.spawn(&["stop", "--all", "--timeout", "3600"]);
    let mut said = BufReader::new(stopping.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(said.next().unwrap(), "stopped web (shut down by its guest agent)");
    assert_eq!(lab.state("deaf"), "running");
    kill(lab.pid("deaf"));
    assert_eq!(
        said.next().unwrap(),
        "deaf has stopped (its QEMU was ended, the guest had not shut down)"
    );
    assert_eq!(said.next(), None);
    std::fs::write(&record, whole).unwrap();
    let done = Done::from(stopping.wait_with_output().unwrap());
    assert_eq!(done.code, 5, "{done:?}");
    assert!(done.err.contains("frozen is paused"), "{done:?}");
    assert!(done.err.contains("1 of 3 VMs have not been stopped: frozen"), "{done:?}");
    assert!(done.err.contains("cowhand stop --force frozen"), "{done:?}");
    assert_eq!(lab.state("frozen"), "paused");
    lab.ok(&["stop", "--all", "--force"]);
    lab.run(&["stop"]).fails(2, &["required"]);
    lab.run(&["stop", "--all", "web"]).fails(2, &["cannot be used with"]);
}

const SYSTEMD: &str = "/usr/lib/systemd/systemd --system --unit=multi-user.target";

/// Files of a host that is run by systemd: the units that come with cowhand, and one that stands
/// for a network and disks.
fn systemd(root: &Path) {
    let etc = root.join("etc");
    let units = etc.join("systemd/system");
    std::fs::create_dir_all(etc.join("systemd")).unwrap();
    copy_tree(&Path::new(ROOT).join("scripts/systemd"), &units);
    let write = |name: &str, text: &str| {
        let path = units.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "cowhand-autostart.service.d/log.conf",
        "[Service]\nStandardOutput=append:/log/guests\nStandardError=append:/log/guests\n",
    );
    write(
        "network-and-disks.service",
        "[Unit]\nWants=network.target remote-fs.target\nBefore=network.target remote-fs.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n\
         ExecStop=sh -c 'echo $(pgrep -c qemu-system) guests >> /log/network'\n",
    );
    for name in ["cowhand-autostart.service", "network-and-disks.service", "cowhand-gc.timer"] {
        let wanted = units.join("multi-user.target.wants");
        std::fs::create_dir_all(&wanted).unwrap();
        symlink(format!("../{name}"), wanted.join(name)).unwrap();
    }
    // Devices, logins and logs are the host's around it.
    for name in [
        "systemd-udevd", "systemd-udev-trigger", "systemd-logind", "dbus", "systemd-journald",
        "systemd-timesyncd",
    ] {
        symlink("/dev/null", units.join(format!("{name}.service"))).unwrap();
    }
    for name in [
        "dbus", "systemd-journald", "systemd-journald-dev-log", "systemd-udevd-kernel",
        "systemd-udevd-control",
    ] {
        symlink("/dev/null", units.join(format!("{name}.socket"))).unwrap();
    }
    symlink("/dev/null", units.join("getty.target")).unwrap();
    std::fs::write(
        etc.join("systemd/system.conf"),
        "[Manager]\nDefaultEnvironment=COWHAND_ACCEL=tcg\n",
    )
    .unwrap();
    std::fs::write(etc.join("machine-id"), "").unwrap();
}

#[test]
fn under_systemd_guests_start_with_the_host_and_shut_down_before_its_network_and_disks() {
    let lab = Lab::new();
    lab.tiny("one", &["--autostart"]);
    lab.tiny("by-hand", &[]);
    blank(&lab, "broken", &["--autostart"]);
    lose_disk(&lab, "broken");
    let mut host = match Host::boot(&lab, SYSTEMD, "systemd", systemd) {
        Ok(host) => host,
        Err(why) => return skip("under_systemd_guests_start_with_the_host", &why),
    };
    eventually("the start of the guests", || host.log("guests").contains("started one"));
    eventually("the answer for the one that is broken", || {
        host.log("guests").contains("cowhand doctor broken")
    });
    // One that does not start is no reason to end those that did.
    eventually("the unit", || {
        host.run(&["systemctl", "is-active", "cowhand-autostart.service"]).out == "active\n"
    });
    // From a login; systemd makes a scope for each.
    let words = [
        "--quiet", "--scope", "--unit=session-7", "--slice=user.slice", "cowhand", "start",
        "by-hand",
    ];
    host.run(&[&["systemd-run"], &words[..]].concat()).ok();
    assert_eq!(
        host.run(&["systemctl", "is-active", "session-7.scope", "cowhand-gc.timer"]).ok(),
        "active\nactive\n"
    );
    for name in ["one", "by-hand"] {
        host.run(&["cowhand", "exec", name, "--", "true"]).ok();
    }
    host.run(&["systemctl", "start", "cowhand-gc.service"]).ok();
    host.run(&["systemctl", "poweroff"]);
    host.wait();
    let said = host.log("guests");
    for name in ["one", "by-hand"] {
        assert!(said.contains(&format!("stopped {name} (shut down by its guest agent)")), "{said}");
        assert_eq!(lab.state(name), "stopped");
    }
    assert_eq!(host.log("network"), "0 guests\n");
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    /// The block of the how-to in `language`.
    fn recipe(language: &str) -> String {
        let text =
            std::fs::read_to_string(Path::new(ROOT).join("docs/how-to/start-with-the-host.md"))
                .unwrap();
        text.split(&format!("```{language}\n"))
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap()
            .to_owned()
    }

    #[test]
    fn under_systemd_guests_shut_down_while_others_are_still_being_started() {
        let lab = Lab::new();
        lab.tiny("one", &["--autostart"]);
        blank(&lab, "waits", &["--autostart"]);
        let lock = File::create(lab.store().join("vms/waits/lock")).unwrap();
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        let mut host = match Host::boot(&lab, SYSTEMD, "systemd", |root| {
            systemd(root);
            let path = root.join("etc/systemd/system/cowhand-autostart.service");
            let unit = std::fs::read_to_string(&path).unwrap();
            // Under load the host may come to its shutdown late.
            std::fs::write(
                &path,
                unit.replace("cowhand start --autostart", "cowhand --wait 3600 start --autostart"),
            )
            .unwrap();
        }) {
            Ok(host) => host,
            Err(why) => {
                return skip(
                    "under_systemd_guests_shut_down_while_others_are_still_being_started",
                    &why,
                );
            }
        };
        eventually("the start of the guest", || host.log("guests").contains("waiting for waits"));
        host.run(&["cowhand", "exec", "one", "--", "true"]).ok();
        host.run(&["systemctl", "poweroff"]);
        host.wait();
        let said = host.log("guests");
        assert!(said.contains("stopped one (shut down by its guest agent)"), "{said}");
        assert_eq!(host.log("network"), "0 guests\n");
    }

    #[test]
    fn under_busybox_init_guests_start_with_the_host_and_shut_down_before_it() {
        let lab = Lab::new();
        lab.tiny("one", &["--autostart"]);
        let recipe = recipe("inittab");
        // What is printed goes to a file, instead of to a console that is not there.
        let logged = |line: &str| {
            let (fields, command) = line.split_once(":/usr/").unwrap();
            format!("{fields}:sh -c '/usr/{command} >> /log/guests 2>&1'\n")
        };
        let inittab: String = recipe.lines().map(logged).collect();
        let mut host = match Host::boot(&lab, "/usr/bin/busybox init", "busybox", |root| {
            std::fs::write(root.join("etc/inittab"), &inittab).unwrap();
        }) {
            Ok(host) => host,
            Err(why) => return skip("under_busybox_init_guests_start_with_the_host", &why),
        };
        eventually("the start of the guest", || host.log("guests").contains("started one"));
        host.run(&["cowhand", "exec", "one", "--", "true"]).ok();
        host.run(&["busybox", "poweroff"]);
        host.wait();
        let said = host.log("guests");
        assert!(said.contains("stopped one (shut down by its guest agent)"), "{said}");
        assert_eq!(lab.state("one"), "stopped");
    }
    #[test]
    fn under_openrc_guests_start_with_the_host_and_shut_down_before_its_network_and_disks() {
        let lab = Lab::new();
        let test = "under_openrc_guests_start_with_the_host";
        lab.tiny("one", &["--autostart"]);
        let unpacked = Command::new(Path::new(ROOT).join("scripts/openrc")).output().unwrap();
        if !unpacked.status.success() {
            return skip(test, &String::from_utf8_lossy(&unpacked.stderr));
        }
        let openrc = String::from_utf8(unpacked.stdout).unwrap();
        let script = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            std::fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        };
        let prepare = |root: &Path| {
            tool(
                "cp",
                &[
                    "-a",
                    &format!("{}/usr/.", openrc.trim()),
                    root.join("programs").to_str().unwrap(),
                ],
            );
            tool(
                "cp",
                &["-a", &format!("{}/etc/.", openrc.trim()), root.join("etc").to_str().unwrap()],
            );
            let at = |name: &str| root.join("etc/init.d").join(name);
            script(&at("cowhand"), &recipe("openrc"));
            let stop = "stop() { echo $(pgrep -c qemu-system) guests >> /log/network; }";
            for name in ["localmount", "net"] {
                script(&at(name), &format!("#!/sbin/openrc-run\nstart() {{ true; }}\n{stop}\n"));
            }
            for name in ["cowhand", "localmount", "net"] {
                let wanted = root.join("etc/runlevels/default");
                std::fs::create_dir_all(&wanted).unwrap();
                symlink(format!("/etc/init.d/{name}"), wanted.join(name)).unwrap();
            }
        };
        let mut host = match Host::boot(&lab, "/usr/sbin/openrc-init", "openrc-init", prepare) {
            Ok(host) => host,
            Err(why) => return skip(test, &why),
        };
        eventually("the start of the guest", || {
            host.run(&["cowhand", "ls", "--filter", "state=running", "-q"]).out == "one\n"
        });
        host.run(&["cowhand", "exec", "one", "--", "true"]).ok();
        host.run(&["openrc-shutdown", "--poweroff", "now"]);
        host.wait();
        let said = host.log("errors");
        assert!(said.contains("stopped one (shut down by its guest agent)"), "{said}");
        assert_eq!(host.log("network"), "0 guests\n0 guests\n");
    }
}
