//! cloud-init's seed: what is asked for is on the disk that QEMU is given, each VM is an instance
//! of its own, and real cloud-init does it.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use fatfs::{FileSystem, FsOptions};
use serde_json::Value;

use crate::images::server::{Reply, Server};
use crate::lab::{Lab, eventually, guest, tool};
use crate::ports::free_port;

/// The seed that QEMU would be given, with what is in it.
fn seed(lab: &Lab, vm: &str) -> (PathBuf, Vec<(String, String)>) {
    let argv = lab.json(&["plan", vm]);
    let argv: Vec<String> = serde_json::from_value(argv).unwrap();
    let node: Value = argv
        .iter()
        .filter_map(|arg| serde_json::from_str(arg).ok())
        .find(|arg: &Value| arg["node-name"] == "seed")
        .unwrap();
    assert_eq!((&node["read-only"], &node["file"]["read-only"]), (&true.into(), &true.into()));
    let path = PathBuf::from(node["file"]["filename"].as_str().unwrap());
    let system = FileSystem::new(
        std::fs::File::options().read(true).write(true).open(&path).unwrap(),
        FsOptions::new(),
    );
    let system = system.unwrap();
    let files = system.root_dir().iter().map(|entry| {
        let (entry, mut text) = (entry.unwrap(), String::new());
        entry.to_file().read_to_string(&mut text).unwrap();
        (entry.file_name(), text)
    });
    let files = files.collect();
    (path, files)
}

fn document(files: &[(String, String)], name: &str) -> String {
    files
        .iter()
        .find(|(file, _)| file == name)
        .unwrap_or_else(|| panic!("no {name} in {files:?}"))
        .1
        .clone()
}

#[test]
fn each_vm_is_an_instance_of_its_own_and_its_snapshots_are_the_same_one() {
    let lab = Lab::new();
    let (key, word) = (lab.path().join("k.pub"), lab.path().join("word"));
    std::fs::write(&key, "ssh-ed25519 AAAA ada@home\n").unwrap();
    std::fs::write(&word, "secret\n").unwrap();
    let [key, word] = [&key, &word].map(|path| path.to_str().unwrap());
    lab.ok(&[
        "create", "web", "--size", "16M", "--net", "none", "--user", "ada", "--ssh-key", key,
        "--password-file", word, "--packages", "nginx,curl", "--run", "echo one > /one", "--run",
        "echo two > /two",
    ]);
    let (path, files) = seed(&lab, "web");
    assert_eq!(
        tool(
            "blkid",
            &["--probe", "--output", "value", "--match-tag", "LABEL", path.to_str().unwrap()]
        )
        .trim(),
        "CIDATA"
    );
    tool("fsck.vfat", &["-n", path.to_str().unwrap()]);
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions(),
        std::os::unix::fs::PermissionsExt::from_mode(0o100600)
    );
    let user_data = document(&files, "user-data");
    let config: Value =
        serde_json::from_str(user_data.strip_prefix("#cloud-config\n").unwrap()).unwrap();
    assert_eq!(config["users"][0]["name"], "ada");
    assert_eq!(config["packages"], serde_json::json!(["nginx", "curl"]));
    assert_eq!(config["runcmd"], serde_json::json!(["echo one > /one", "echo two > /two"]));
    // Nobody sees the password, nor what became of it.
    let record = std::fs::read_to_string(lab.store().join("vms/web/vm.json")).unwrap();
    assert!(!record.contains("secret"));
    for args in [&["show", "web"][..], &["show", "web", "--format", "json"], &["plan", "web"]] {
        assert!(!lab.ok(args).contains("$6$"), "{args:?}");
    }
    assert!(lab.ok(&["show", "web"]).contains("cloud-init"));
    let meta = |vm: &str| -> Value {
        serde_json::from_str(&document(&seed(&lab, vm).1, "meta-data")).unwrap()
    };
    let first = meta("web");
    assert_eq!(first["local-hostname"], "web");
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["start", "web", "--paused"]);
    lab.ok(&["snapshot", "create", "web", "memory", "--memory"]);
    lab.ok(&["snapshot", "revert", "web@memory"]);
    assert_eq!(lab.state("web"), "paused");
    lab.ok(&["stop", "--force", "web"]);
    assert!(!path.exists(), "the seed stays behind");
    assert_eq!(meta("web"), first);
    lab.ok(&["clone", "web@s", "db"]);
    let second = meta("db");
    assert!(
        second["local-hostname"] == "db" && second["instance-id"] != first["instance-id"],
        "{second}"
    );
    assert_eq!(document(&seed(&lab, "db").1, "user-data"), user_data);
    lab.ok(&["rename", "web", "shop"]);
    assert_eq!(meta("shop")["local-hostname"], "shop");
    lab.ok(&["set", "shop", "hostname=shop.example"]);
    assert_eq!(meta("shop")["local-hostname"], "shop.example");
    // Documents of the user's own.
    let own = lab.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("user-data"), "#!/bin/sh\necho hi\n").unwrap();
    std::fs::write(own.join("network-config"), "version: 2\n").unwrap();
    lab.ok(&["set", "shop", &format!("cloud-init={}", own.display())]);
    let (_, files) = seed(&lab, "shop");
    assert_eq!(document(&files, "user-data"), "#!/bin/sh\necho hi\n");
    assert_eq!(document(&files, "network-config"), "version: 2\n");
    lab.ok(&["undo", "shop"]);
    assert_eq!(document(&seed(&lab, "shop").1, "user-data"), user_data);
    lab.ok(&["set", "shop", "cloud-init="]);
    assert!(!lab.ok(&["plan", "shop"]).contains("seed"));
    lab.run(&["set", "shop", "hostname=x"]).fails(5, &["cloud-init=FILE"]);
    lab.ok(&["doctor"]);
}

#[test]
fn what_cloud_init_would_not_take_makes_no_vm() {
    let lab = Lab::new();
    let file = |name: &str, text: &str| {
        let path = lab.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (page, long, private) = (
        file("page", "<html>\n"),
        file("long", &format!("#cloud-config\n{}", "#".repeat(16 << 10))),
        file("private", "-----BEGIN OPENSSH PRIVATE KEY-----\n"),
    );
    for (args, words) in [
        (vec!["--cloud-init", &page], "its first line is"),
        (vec!["--cloud-init", &long], "16 KiB"),
        (vec!["--cloud-init", "/dev/zero"], "16 KiB"),
        (vec!["--cloud-init", "none"], "is not there"),
        (vec!["--cloud-init", &page, "--user", "ada"], "cannot be used with"),
        (vec!["--ssh-key", &private], "private key"),
        (vec!["--user", "Ada Lovelace"], "no name of a user"),
        (vec!["--hostname", "a_b"], "no name of a host"),
        (vec!["--password-file", &page], "--user"),
        (vec!["--packages", "nginx,"], "no name of a package"),
        (vec!["--run", " "], "empty command"),
    ] {
        let done = lab.run(&[&["create", "web", "--size", "16M"][..], &args].concat());
        assert!([2, 3].contains(&done.code) && done.err.contains(words), "{args:?}: {done:?}");
    }
    assert!(lab.vm_directories().is_empty());
}

/// The files of credentials that QEMU would be given.
fn credentials(lab: &Lab, vm: &str) -> Vec<PathBuf> {
    let argv: Vec<String> = serde_json::from_value(lab.json(&["plan", vm])).unwrap();
    assert!(!argv.iter().any(|arg| arg.contains("c2VjcmV0")), "{argv:?}");
    argv.iter().filter_map(|arg| arg.strip_prefix("type=11,path=")).map(PathBuf::from).collect()
}

#[test]
fn credentials_are_told_by_files_that_nobody_else_reads_and_go_where_the_configuration_goes() {
    let lab = Lab::new();
    let file = lab.path().join("secret");
    std::fs::write(&file, b"secret\0\xff").unwrap();
    let file = file.to_str().unwrap();
    let long = lab.path().join("long");
    std::fs::write(&long, vec![1; 20 << 10]).unwrap();
    for (said, code, words) in [
        ("name".to_owned(), 2, "is not NAME=FILE"),
        ("name=".to_owned(), 2, "is not NAME=FILE"),
        (format!("a/b={file}"), 2, "is not the name of a credential"),
        ("name=/nowhere".to_owned(), 3, "/nowhere"),
        (format!("name={}", long.display()), 2, "at most 16 KiB"),
    ] {
        lab.run(&["create", "web", "--size", "16M", "--credential", &said]).fails(code, &[words]);
    }
    assert!(lab.vm_directories().is_empty());
    lab.ok(&["create", "web", "--size", "16M", "--credential", &format!("tls.key={file}")]);
    let files = credentials(&lab, "web");
    assert_eq!(
        std::fs::read_to_string(&files[0]).unwrap(),
        "io.systemd.credential.binary:tls.key=c2VjcmV0AP8="
    );
    assert_eq!(std::fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
    // QEMU reads it, and nothing stays when it has ended.
    lab.ok(&["start", "web", "--paused"]);
    lab.ok(&["stop", "--force", "web"]);
    assert!(!files[0].exists());
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["set", "web", &format!("credential.other={file}"), "credential.tls.key="]);
    assert_eq!(lab.json(&["show", "web"])["credentials"], serde_json::json!(["other"]));
    assert!(credentials(&lab, "web")[0].ends_with("credential.other") && !files[0].exists());
    lab.ok(&["snapshot", "revert", "web@s"]);
    lab.ok(&["clone", "web@s", "copy"]);
    for vm in ["web", "copy"] {
        assert_eq!(lab.json(&["show", vm])["credentials"], serde_json::json!(["tls.key"]));
    }
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    /// Debian's own cloud-init, in an image that is downloaded first, makes the user, puts in the
    /// key and gives the name; and anew in each clone of a template.
    #[test]
    fn real_cloud_init_does_what_is_asked_for_and_anew_in_each_clone() {
        let mut lab = Lab::new();
        lab.needs_debians_appliance("vmlinux");
        let debian = guest("debian");
        let key = lab.path().join("key");
        tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
        let public = format!("{}.pub", key.display());
        let port = free_port().to_string() + ":22";
        let greeting = lab.path().join("greeting");
        std::fs::write(&greeting, "hello\n").unwrap();
        let (content, sum) =
            (std::fs::read(debian.disk()).unwrap(), tool("sha256sum", &[&debian.disk()]));
        let server = Server::new(move |request, _| Reply::file(&content, "\"one\"", request));
        lab.ok(&[
            "create",
            "web",
            "--image",
            &server.url("/debian-12.qcow2"),
            "--sha256",
            sum.split(' ').next().unwrap(),
            "--disk-size",
            "8G",
            "--kernel",
            &debian.kernel,
            "--initrd",
            &debian.initrd,
            "--append",
            &debian.cmdline,
            "--memory",
            "512M",
            "--user",
            "ada",
            "--ssh-key",
            &public,
            "--hostname",
            "first",
            "--run",
            "echo done > /root/ran",
            "--credential",
            &format!("greeting={}", greeting.display()),
            "-p",
            &port,
        ]);
        let facts = |vm: &str| -> Vec<String> {
            lab.ok(&["start", vm]);
            // Its `status --wait` ends at the first error, and this guest has no locales.
            let script = "while ! [ -e /run/cloud-init/result.json ]; do sleep 1; done; hostname; \
                          cat /var/lib/cloud/data/instance-id; id -un ada; \
                          cat ~ada/.ssh/authorized_keys | tail -n 1; cat /root/ran; \
                          cat /etc/ssh/ssh_host_ed25519_key.pub; \
                          systemd-creds --system cat greeting";
            let exec = [
                "exec", "--agent-timeout", "290", "--timeout", "290", vm, "--", "sh", "-c", script,
            ];
            lab.ok(&exec).lines().map(str::to_owned).collect()
        };
        let lets_in = |vm: &str| {
            let port = lab.json(&["show", vm])["nics"][0]["ports"][0]["host"].to_string();
            let hosts =
                format!("UserKnownHostsFile={}", lab.path().join(format!("hosts-{vm}")).display());
            eventually("ssh lets the key in", || {
                let mut ssh = Command::new("ssh");
                ssh.args([
                    "-o", &hosts, "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-p",
                    &port, "-i",
                ]);
                let done = ssh.arg(&key).args(["ada@127.0.0.1", "id", "-un"]).output().unwrap();
                String::from_utf8_lossy(&done.stdout).trim() == "ada"
            });
        };
        let first = facts("web");
        let uuid = |vm: &str| lab.json(&["show", vm])["uuid"].as_str().unwrap().to_owned();
        assert_eq!(
            first[..3],
            ["first".to_owned(), format!("iid-{}", uuid("web")), "ada".to_owned()],
            "{first:?}"
        );
        assert_eq!(first[3], std::fs::read_to_string(&public).unwrap().trim());
        assert_eq!((&*first[4], &*first[6]), ("done", "hello"));
        lets_in("web");
        lab.ok(&["stop", "--timeout", "280", "web"]);
        lab.ok(&["set", "web", "hostname="]);
        lab.ok(&["template", "create", "web", "--as", "deb12"]);
        let clones = ["one", "two"].map(|vm| {
            lab.ok(&["clone", "deb12", vm, "-p", &format!("{}:22", free_port())]);
            let facts = facts(vm);
            assert_eq!(
                facts[..3],
                [vm.to_owned(), format!("iid-{}", uuid(vm)), "ada".to_owned()],
                "{facts:?}"
            );
            lets_in(vm);
            lab.ok(&["stop", "--force", vm]);
            facts
        });
        for at in [1, 5] {
            assert_ne!(clones[0][at], clones[1][at]);
            assert_ne!(clones[0][at], first[at]);
        }
        lab.check_images();
    }
}
