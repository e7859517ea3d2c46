//! As a user who is not root: everything works with a store in the user's home.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::confined::has_its_own_root;
use crate::lab::{Done, guest, skip};

/// Debian's `nobody`.
const NOBODY: &str = "65534";

#[test]
fn a_user_without_privileges_can_do_the_main_job() {
    let test = "a_user_without_privileges_can_do_the_main_job";
    if !nix::unistd::geteuid().is_root() {
        return skip(
            test,
            "only root can become somebody else; the other tests run as a user just now",
        );
    }
    let tiny = guest("tiny");
    // What the user needs lies where only root can look: copies in a home of its own.
    let home = tempfile::Builder::new().prefix("cwhome").tempdir_in("/tmp").unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    for (from, to) in [
        (tiny.disk(), "disk.qcow2"),
        (tiny.kernel, "vmlinuz"),
        (tiny.initrd, "initrd"),
        (env!("CARGO_BIN_EXE_cowhand").to_owned(), "cowhand"),
    ] {
        std::fs::copy(from, at(to)).unwrap();
    }
    std::fs::create_dir(at("run")).unwrap();
    for path in [home.path().to_path_buf(), at("run").into()] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let run = |args: &[&str]| -> Done {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"])
            .arg(at("cowhand"))
            .args(args);
        command
            .env("HOME", home.path())
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("COWHAND_ACCEL", "tcg")
            .env_remove("COWHAND_STORE");
        // A QEMU in root's cache is out of reach: the installed one is tested here.
        command.env_remove("XDG_DATA_HOME").env_remove("COWHAND_QEMU");
        command.current_dir("/").output().unwrap().into()
    };
    let disk = at("disk.qcow2");
    run(&[
        "create",
        "web",
        "--disk",
        &disk,
        "--kernel",
        &at("vmlinuz"),
        "--initrd",
        &at("initrd"),
        "--append",
        &tiny.cmdline,
        "--memory",
        "192M",
        "--cpus",
        "1",
    ])
    .ok();
    assert!(home.path().join(".local/share/cowhand/vms/web/vm.json").exists());
    // Only root filters destinations.
    run(&["--confine", "strict", "start", "web"])
        .fails(5, &["cannot be confined as strictly", "set VM net=restricted"]);
    run(&["start", "web"]).ok();
    let shown = run(&["--format", "json", "show", "web"]).out;
    let pid = serde_json::from_str::<serde_json::Value>(&shown).unwrap()["pid"].as_i64();
    let pid = i32::try_from(pid.unwrap()).unwrap();
    let findings = run(&["--format", "json", "doctor"]).out;
    if findings.contains("its own namespaces and root directory") {
        assert!(has_its_own_root(pid));
    } else {
        skip(
            "QEMU of an ordinary user has its own root directory",
            "this host gives no namespaces",
        );
    }
    run(&["exec", "web", "--", "true"]).ok();
    run(&["snapshot", "create", "web", "s"]).ok();
    run(&["exec", "web", "--", "sh", "-c", "echo x > /root/x; sync"]).ok();
    run(&["snapshot", "revert", "web@s"]).ok();
    run(&["exec", "web", "--", "sh", "-c", "test ! -e /root/x"]).ok();
    run(&["snapshot", "rm", "web@s"]).ok();
    run(&["stop", "web"]).ok();
    run(&["template", "create", "web", "--no-seal", "--warm"]).ok();
    run(&["clone", "web", "c", "-n", "2"]).ok();
    run(&["start", "--paused", "c-2"]).ok();
    run(&["pool", "fill", "web", "1"]).ok();
    for _ in 0..2 {
        assert_eq!(
            run(&["run", "--warm", "web", "--", "sh", "-c", "cat > /root/x; exit 3"]).code,
            3
        );
    }
    run(&["pool", "drain", "web"]).ok();
    run(&["clone", "web", "warm", "--warm"]).ok();
    run(&["reset", "warm"]).ok();
    run(&["exec", "warm", "--", "true"]).ok();
    run(&["clone", "web", "full", "--full"]).ok();
    run(&["template", "rm", "web", "--cascade", "--force"]).ok();
    // A file the user may not read is an error with the kernel's reason.
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o0)).unwrap();
    run(&["create", "x", "--disk", &disk]).fails(1, &["Permission denied"]);
    run(&["--accel", "kvm", "start", "full"]).fails(1, &["/dev/kvm"]);
}
