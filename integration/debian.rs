//! The main job on a real distribution: a Debian guest with systemd and everything.

use crate::lab::{Lab, guest};

#[test]
fn the_whole_way_on_a_debian_guest() {
    let lab = Lab::new();
    let debian = guest("debian");
    lab.ok(&[
        "create",
        "web",
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
    lab.ok(&["start", "web"]);
    let exec = |vm: &str, command: &[&str]| lab.run(&[&["exec", "--agent-timeout", "280", vm, "--"], command].concat());
    assert!(exec("web", &["cat", "/etc/os-release"]).ok().contains("Debian GNU/Linux"));
    let stopped = lab.ok(&["stop", "--timeout", "280", "web"]);
    assert!(stopped.contains("guest agent"), "{stopped}");
    lab.ok(&["template", "create", "web", "--no-seal", "--as", "deb12"]);
    lab.ok(&["clone", "deb12", "web", "-n", "3"]);
    lab.ok(&["start", "web-1"]);
    exec("web-1", &["test", "-f", "/etc/ssh/sshd_config"]).ok();
    let taken = lab.json(&["snapshot", "create", "web-1", "before"]);
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
