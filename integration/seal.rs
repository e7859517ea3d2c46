//! Sealing, on the disks of systems as distributions lay them out. What has to go and what has to
//! stay is in `seal/planted.txt`; whether it did is looked at by a shell in the guest's own tree,
//! not by what has sealed it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Done, Lab, eventually, files_in, guest, kill, qemu_img};
use crate::tier;

const PLANTED: &str = include_str!("seal/planted.txt");

fn planted() -> impl Iterator<Item = (char, &'static str)> {
    PLANTED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| (line.chars().next().unwrap(), &line[2..]))
}

/// A lab with the appliance's kernel.
fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.needs_an_appliance();
    lab
}

/// A copy of the disk of that layout.
fn disk(lab: &Lab, layout: &str) -> String {
    let disk = lab.path().join(format!("{layout}.qcow2"));
    std::fs::copy(PathBuf::from(guest("layouts").disk()).join(format!("{layout}.qcow2")), &disk)
        .unwrap();
    disk.to_str().unwrap().to_owned()
}

/// Runs a shell script in the tree of the system on a disk, which must find nothing wrong.
#[track_caller]
fn look(lab: &Lab, disk: &str, script: &str) {
    let file = lab.path().join("look.sh");
    std::fs::write(
        &file,
        format!(
            "#!/bin/busybox sh\nset -u\nbad=0\nsay() {{ echo \"$*\"; bad=1; }}\n{script}\n\
             exit $bad\n"
        ),
    )
    .unwrap();
    lab.ok(&["seal", disk, "--operations", "customize", "--run", file.to_str().unwrap()]);
}

fn check_planted() -> String {
    planted()
        .map(|(sign, path)| match sign {
            '-' => {
                format!("{{ [ ! -e {path} ] && [ ! -L {path} ]; }} || say still there: {path}\n")
            }
            '=' => format!("[ -s {path} ] || say lost: {path}\n"),
            '0' => format!("{{ [ -e {path} ] && [ ! -s {path} ]; }} || say not empty: {path}\n"),
            '!' => format!(
                "{{ [ -e {path} ] && ! /bin/busybox grep -q PLANTED {path}; }} || say \
                 unchanged: {path}\n"
            ),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn touched(report: &Value) -> Vec<String> {
    let operations = report["operations"].as_array().unwrap();
    operations
        .iter()
        .flat_map(|one| one["touched"].as_array().unwrap())
        .map(|one| one["path"].as_str().unwrap().to_owned())
        .collect()
}

/// Seals a disk and looks at everything that was planted on it.
fn takes_out_what_is_planted(layout: &str, mounts: &[&str]) {
    let mut lab = Lab::new();
    let disk = disk(&lab, layout);
    // The first tier has Debian's kernel where it seals, which is what users have, and one that
    // boots in half the time where it only looks.
    let debians = |lab: &mut Lab| {
        lab.needs_debians_appliance(if layout == "whole" { "vmlinuz" } else { "vmlinux" })
    };
    if tier::first_or(true, false) {
        lab.needs_an_appliance()
    } else {
        debians(&mut lab)
    }
    let before = std::fs::read(&disk).unwrap();
    let dry = lab.json(&["seal", "--dry-run", &disk]);
    assert!(std::fs::read(&disk).unwrap() == before, "a dry run has changed the disk");
    assert_eq!(dry["mounts"], serde_json::json!(mounts));
    let would = touched(&dry);
    debians(&mut lab);
    let sealed = lab.json(&["seal", &disk]);
    if tier::first_or(true, false) {
        lab.needs_an_appliance();
    }
    assert_eq!(touched(&sealed), would, "what was done is not what was announced");
    for (sign, path) in planted().filter(|(sign, _)| *sign == '-') {
        let covered =
            would.iter().any(|touched| path == touched || path.starts_with(&format!("{touched}/")));
        assert!(covered, "{sign} {path} was not announced");
    }
    look(&lab, &disk, &check_planted());
    assert!(
        !std::fs::read_dir(lab.path())
            .unwrap()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with('.'))
    );
    // The image must not keep what the file system has forgotten.
    if layout != "btrfs" {
        let image = std::fs::read(&disk).unwrap();
        let secrets: Vec<_> = planted()
            .filter(|(sign, _)| *sign == '-')
            .map(|(_, path)| format!("PLANTED {path}\n").into_bytes())
            .collect();
        for at in (0..image.len()).filter(|at| image[*at..].starts_with(b"PLANTED ")) {
            let left = secrets.iter().find(|secret| image[at..].starts_with(secret));
            assert_eq!(
                left.map(|secret| String::from_utf8_lossy(secret)),
                None,
                "the image still holds this"
            );
        }
    }
    qemu_img(&["check", &disk]);
}

#[test]
fn sealing_ext4_on_gpt_takes_out_what_is_planted_and_nothing_else() {
    takes_out_what_is_planted("gpt", &["vda2 on / (ext4)", "vda3 on /home (ext4)"]);
}

#[test]
fn what_cannot_be_sealed_is_refused_and_changes_nothing() {
    let lab = lab();
    let whole = disk(&lab, "whole");
    let mbr = disk(&lab, "mbr");
    let cases: [(&[&str], i32, &[&str]); 8] = [
        (
            &["seal", &whole, "--operations", "ssh-hostkey"],
            2,
            &["no operation \"ssh-hostkey\"", "ssh-hostkeys"],
        ),
        (&["seal", &whole, "--operations", "defaults", "--enable", "utmp"], 2, &["--enable"]),
        (&["seal", &whole, &mbr], 5, &["2 operating systems", "vda", "vdb1"]),
        (
            &["seal", &whole, "--appliance-kernel", "/none", "--appliance-modules", "/none"],
            3,
            &["/none"],
        ),
        (&["seal", &whole, "--run", "/none"], 3, &["--run", "/none"]),
        (&["seal", &whole, "--timezone", "Mars/Base"], 3, &["--timezone", "Mars/Base"]),
        (&["seal", &whole, &whole], 2, &["twice"]),
        (&["seal", "/none.qcow2"], 3, &["/none.qcow2"]),
    ];
    let before: Vec<Vec<u8>> = [&whole, &mbr].map(|disk| std::fs::read(disk).unwrap()).to_vec();
    for (args, code, words) in cases {
        lab.run(args).fails(code, words);
    }
    // Somebody else has it open.
    let mut other = Command::new("qemu-io")
        .args(["-f", "qcow2", &whole])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has opened it when it answers.
    other.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    other.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    lab.run(&["seal", &whole]).fails(5, &["in use"]);
    drop(other.stdin.take());
    other.wait().unwrap();
    let after: Vec<Vec<u8>> = [&whole, &mbr].map(|disk| std::fs::read(disk).unwrap()).to_vec();
    assert!(before == after, "a refusal has changed a disk");
    lab.ok(&["create", "web", "--disk", &whole]);
    lab.ok(&["start", "--paused", "web"]);
    lab.run(&["template", "create", "web"]).fails(5, &["running", "cowhand stop web"]);
}

#[test]
fn sealing_killed_at_any_of_its_fault_points_leaves_all_disks_as_they_were_or_sealed() {
    let lab = lab();
    let (one, two) = (disk(&lab, "whole"), disk(&lab, "mbr"));
    let pristine = [&one, &two].map(|disk| std::fs::read(disk).unwrap());
    cut_short(&lab, &[&one, &two], inode);
    let sealing = lab.store().join("sealing");
    let prepared = lab.path().join("sealing");
    lab.copy_tree(&sealing, &prepared);
    for number in (1..).step_by(tier::first_or(3, 1)) {
        [&one, &two]
            .into_iter()
            .zip(&pristine)
            .for_each(|(disk, bytes)| std::fs::write(disk, bytes).unwrap());
        std::fs::remove_dir_all(&sealing).unwrap();
        lab.copy_tree(&prepared, &sealing);
        restamp(&lab, &[&one, &two]);
        // There is no kernel to seal anything with, but first the earlier one is carried on.
        let command =
            ["seal", &two, &one, "--appliance-kernel", "/none", "--appliance-modules", "/none"];
        let killed: Done = lab
            .command(&command)
            .env("COWHAND_FAULT", format!("{number}:die"))
            .output()
            .unwrap()
            .into();
        if killed.code != 137 {
            assert!(number > 5, "it has {number} fault points: {killed:?}");
            break;
        }
        // What it had started ends with it, and may hold the disks for a moment longer.
        let mut said = killed.clone();
        eventually("the end of its children", || {
            said = lab.run(&command);
            !["in use", "another command"].iter().any(|words| said.err.contains(words))
        });
        assert_eq!((first_byte(&one), first_byte(&two)), (7, 7), "{killed:?} {said:?}");
        assert_eq!(files_in(&sealing), Vec::<String>::new(), "{killed:?}");
    }
}

const CHECK_SEALED: &str = "[ -e /etc/machine-id ] && [ ! -s /etc/machine-id ] && \
                            [ ! -e /root/.bash_history ] || say not sealed";
const CHECK_UNTOUCHED: &str = "[ -s /etc/machine-id ] && [ -s /root/.bash_history ] && \
                               [ ! -e /usr/lib/cowhand ] || say half sealed";

/// As a `seal` leaves it that was killed when all of it had worked: overlays with a 7 in their
/// first bytes, and the order. Returns the order's directory.
fn cut_short(lab: &Lab, disks: &[&str], inode_of: impl Fn(&str) -> u64) -> PathBuf {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let directory = lab.store().join("sealing/00000000000040008000000000000001");
    if !lab.store().exists() {
        // Makes the store.
        lab.ok(&["create", "web", "--size", "1M"]);
    }
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).unwrap();
    let stamps: Vec<Value> = disks
        .iter()
        .map(|disk| {
            let about = std::fs::metadata(disk).unwrap();
            serde_json::json!({
                "path": disk,
                "format": "qcow2",
                "device": about.dev(),
                "inode": inode_of(disk),
                "bytes": about.len(),
                "modified": [about.mtime(), about.mtime_nsec()],
            })
        })
        .collect();
    let order = serde_json::json!({"schema": 1, "started": false, "disks": stamps});
    for (number, disk) in disks.iter().enumerate() {
        let overlay = directory.join(format!("{number}.qcow2"));
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            disk,
            overlay.to_str().unwrap(),
        ]);
        let written = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "write -P 7 0 512"])
            .arg(&overlay)
            .output()
            .unwrap();
        assert!(written.status.success(), "{written:?}");
    }
    std::fs::write(directory.join("order.json"), order.to_string()).unwrap();
    directory
}

/// Makes the order one for the disks as they are now.
fn restamp(lab: &Lab, disks: &[&str]) {
    use std::os::unix::fs::MetadataExt;
    let order = lab.store().join("sealing/00000000000040008000000000000001/order.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&order).unwrap()).unwrap();
    for (number, disk) in disks.iter().enumerate() {
        let about = std::fs::metadata(disk).unwrap();
        value["disks"][number]["bytes"] = about.len().into();
        value["disks"][number]["modified"] = serde_json::json!([about.mtime(), about.mtime_nsec()]);
    }
    std::fs::write(&order, value.to_string()).unwrap();
}

fn inode(disk: &str) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(disk).unwrap())
}

fn first_byte(disk: &str) -> u8 {
    let output =
        Command::new("qemu-io").args(["-f", "qcow2", "-c", "read -v 0 16", disk]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    u8::from_str_radix(text.split_whitespace().nth(1).unwrap(), 16).unwrap()
}

#[test]
fn an_earlier_seal_is_not_passed_over_while_another_command_looks_at_it() {
    let lab = lab();
    let disk = disk(&lab, "whole");
    let directory = cut_short(&lab, &[&disk], inode);
    let before = first_byte(&disk);
    // As `doctor` holds it for a moment, and `seal` of the same disk for as long as it writes.
    let lock = nix::fcntl::Flock::lock(
        File::open(&directory).unwrap(),
        nix::fcntl::FlockArg::LockExclusive,
    )
    .unwrap();
    // Without a kernel nothing more is sealed than what was left.
    let seal = [
        "--wait", "0", "seal", &disk, "--appliance-kernel", "/none", "--appliance-modules", "/none",
    ];
    lab.run(&seal).fails(6, &["an earlier `seal` of", "whole.qcow2"]);
    assert_eq!(first_byte(&disk), before);
    drop(lock);
    lab.run(&seal);
    assert_eq!((first_byte(&disk), directory.exists()), (7, false));
    // An older version kept what it was about beside the disk; whoever cannot read it must not seal
    // over it.
    let beside = |ending: &str| lab.path().join(format!(".whole.qcow2.cowhand-{ending}"));
    let old = ["seal.json", "sealing"].map(beside);
    old.iter().for_each(|path| std::fs::write(path, "left").unwrap());
    lab.run(&seal)
        .fails(5, &["by an older version was cut short", "complete it with that version", "rm "]);
    std::fs::remove_file(&old[0]).unwrap();
    assert!(lab.run(&seal).err.contains("it is not used"));
}

#[test]
fn gc_forgets_a_seal_that_was_not_begun_and_keeps_one_that_was() {
    let lab = lab();
    let one = disk(&lab, "whole");
    let directory = cut_short(&lab, &[&one], inode);
    lab.ok(&["gc"]);
    assert!(directory.exists(), "it is not old");
    lab.ok(&["gc", "--older-than", "0", "--dry-run"]);
    assert!(directory.exists());
    let order = directory.join("order.json");
    let text = std::fs::read_to_string(&order).unwrap();
    for kept in [text.replace("\"started\":false", "\"started\":true"), "{".to_owned()] {
        std::fs::write(&order, &kept).unwrap();
        lab.ok(&["gc", "--older-than", "0"]);
        assert!(directory.exists(), "{kept}");
    }
    std::fs::write(&order, text).unwrap();
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(!directory.exists());
    assert_ne!(first_byte(&one), 7);
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn an_earlier_seal_is_carried_on_into_all_of_its_disks_and_into_no_others() {
        let lab = lab();
        let (one, two) = (disk(&lab, "whole"), disk(&lab, "mbr"));
        let directory = cut_short(&lab, &[&one, &two], |disk| inode(disk) + u64::from(disk == two));
        let forget = format!("rm -r {}", directory.display());
        lab.run(&["seal", &two]).fails(5, &["mbr.qcow2 was cut short", "to forget", &forget]);
        lab.run(&["seal", &one]).fails(5, &["mbr.qcow2", "not named here", &forget]);
        assert_ne!((first_byte(&one), first_byte(&two)), (7, 7));
        cut_short(&lab, &[&one, &two], inode);
        lab.run(&["seal", &two, &one, "--dry-run"]).fails(5, &["cut short"]);
        // A disk that is not named is not written to, whatever an order says.
        let all = format!("cowhand seal {one} {two}");
        lab.run(&["seal", &two]).fails(5, &["whole.qcow2", "not named here", &all]);
        // Whatever becomes of this one: the earlier one comes first, and has both disks.
        lab.run(&["seal", &two, &one, "--operations", "nonsense"]).fails(2, &[]);
        assert_ne!((first_byte(&one), first_byte(&two)), (7, 7));
        let found = lab.json(&["doctor"]);
        assert!(
            found.to_string().contains(&format!("a `seal` of {one} {two} was cut short")),
            "{found}"
        );
        lab.run(&["seal", &two, &one]);
        assert_eq!((first_byte(&one), first_byte(&two)), (7, 7));
        assert_eq!(files_in(&lab.store().join("sealing")), Vec::<String>::new());
    }

    #[test]
    fn hostile_trees_get_nowhere() {
        let lab = lab();
        let disk = disk(&lab, "gpt");
        let setup = "echo '/dev/sda3 /../modules ext4 defaults 0 0' >> /etc/fstab; \
                     mv /home/ann/.ssh /home/ann/ssh; ln -s /etc /home/ann/.ssh; \
                     rm /var/lib/dbus/machine-id; mv /etc/machine-id /var/lib/dbus/machine-id; \
                     ln -s /var/lib/dbus/machine-id /etc/machine-id; \
                     printf 'caf\\351 key\\n' > /root/.ssh/authorized_keys; sleep 1000 &";
        lab.ok(&["seal", &disk, "--operations", "customize", "--run-command", setup]);
        let key = "root:string:ssh-ed25519 AAAAC3Nza me@here";
        lab.run(&["seal", &disk, "--ssh-inject", &key.replace("root", "ann")])
            .fails(5, &["/home/ann/.ssh is a link"]);
        let sealed = lab.json(&[
            "seal", &disk, "--operations", "defaults,ssh-authorized-keys", "--ssh-inject", key,
        ]);
        assert_eq!(
            sealed["mounts"],
            serde_json::json!(["vda2 on / (ext4)", "vda3 on /home (ext4)"])
        );
        look(
            &lab,
            &disk,
            "[ -e /etc/machine-id ] && [ ! -s /etc/machine-id ] || say machine-id: $(cat \
             /etc/machine-id)\n\
             [ \"$(cat /root/.ssh/authorized_keys)\" = 'ssh-ed25519 AAAAC3Nza me@here' ] || say \
             keys: $(cat /root/.ssh/authorized_keys)",
        );
    }

    #[test]
    fn a_full_file_system_is_an_error_and_changes_nothing() {
        let lab = lab();
        let Some(small) =
            crate::lab::SmallDisk::new("a_full_file_system_is_an_error_and_changes_nothing", 12)
        else {
            return;
        };
        let disk = small.path().join("whole.qcow2");
        std::fs::copy(PathBuf::from(guest("layouts").disk()).join("whole.qcow2"), &disk).unwrap();
        let before = std::fs::read(&disk).unwrap();
        let big = lab.path().join("big");
        std::fs::write(&big, vec![1; 20 << 20]).unwrap();
        let done = lab.run(&[
            "seal",
            disk.to_str().unwrap(),
            "--upload",
            &format!("{}:/opt/", big.display()),
        ]);
        assert_ne!(done.code, 0, "{done:?}");
        assert!(std::fs::read(&disk).unwrap() == before);
        assert_eq!(
            std::fs::read_dir(small.path()).unwrap().count(),
            1,
            "something was left behind"
        );
    }

    #[test]
    fn what_is_on_the_disk_or_is_not_is_said_and_changes_nothing() {
        let lab = lab();
        let whole = disk(&lab, "whole");
        let empty = lab.path().join("empty.raw");
        File::create(&empty).unwrap().set_len(1 << 20).unwrap();
        let magic = |name: &str, at: u64, bytes: &[u8]| {
            let path = lab.path().join(name);
            let mut file = File::create(&path).unwrap();
            file.set_len(1 << 20).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let luks = magic("luks.raw", 0, b"LUKS\xba\xbe\x00\x02");
        let ntfs = magic("ntfs.raw", 3, b"NTFS    ");
        let damaged = lab.path().join("damaged.raw");
        qemu_img(&["convert", "-O", "raw", &whole, damaged.to_str().unwrap()]);
        let mut file = File::options().write(true).open(&damaged).unwrap();
        file.seek(SeekFrom::Start(4096)).unwrap();
        file.write_all(&vec![0xff; 64 << 10]).unwrap();
        let damaged = damaged.to_str().unwrap();
        let before = std::fs::read(&whole).unwrap();
        lab.run(&["seal", &luks]).fails(5, &["encrypted"]);
        lab.run(&["seal", &ntfs]).fails(5, &["NTFS"]);
        lab.run(&["seal", damaged]).fails(5, &["cannot be mounted", "EXT4-fs"]);
        lab.run(&["seal", empty.to_str().unwrap()]).fails(5, &["no operating system"]);
        lab.run(&["seal", &whole, "--password", "nobody:random"])
            .fails(3, &["--password", "no user nobody"]);
        lab.run(&["seal", &whole, "--install", "hello"])
            .fails(5, &["--install", "package manager"]);
        assert!(std::fs::read(&whole).unwrap() == before, "a refusal has changed a disk");
    }

    #[test]
    fn optional_operations_are_done_when_asked_for_and_only_then() {
        let lab = lab();
        let disk = disk(&lab, "whole");
        lab.ok(&[
            "seal",
            &disk,
            "--enable",
            "firewall-rules,user-account,ssh-authorized-keys,kerberos-data,flag-reconfiguration",
        ]);
        look(
            &lab,
            &disk,
            "for gone in /etc/sysconfig/iptables /etc/firewalld/zones/own.xml /home/ann \
             /root/.ssh/authorized_keys /var/kerberos/krb5kdc/principal; do \
             [ ! -e $gone ] || say still there: $gone; done\n\
             grep -q ann /etc/passwd && say ann is still known\n\
             grep -q ^root: /etc/passwd || say root is lost\n\
             [ -e /.unconfigured ] || say no flag\n\
             [ -s /root/.bash_history ] || say more was done than asked for",
        );
    }

    #[test]
    fn what_is_put_in_is_there_in_the_users_order() {
        let lab = lab();
        let disk = disk(&lab, "gpt");
        let file = |name: &str, text: &str| {
            let path = lab.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let key = file("key.pub", "ssh-ed25519 AAAAC3Nza me@here\n");
        let script = file("script", "#!/bin/sh\necho \"$(cat /etc/order)\" > /etc/ran\n");
        file("tree/sub/file", "in a tree");
        std::os::unix::fs::symlink("sub/file", lab.path().join("tree/link")).unwrap();
        let big = "x".repeat(3 << 20);
        let big = file("big", &big);
        let commands =
            file("commands", "# a comment\nwrite /etc/from-file:yes\n\nmkdir /opt/made/deep\n");
        let tree = lab.path().join("tree").to_str().unwrap().to_owned();
        let done = lab.json(&[
            "seal",
            &disk,
            "--write",
            "/etc/order:one",
            "--append-line",
            "/etc/order:two",
            "--run",
            &script,
            "--run-command",
            "echo command > /etc/commanded",
            "--ssh-inject",
            &format!("ann:file:{key}"),
            "--root-password",
            "password:sesame",
            "--password",
            "ann:random",
            "--hostname",
            "fixed.example.org",
            "--upload",
            &format!("{big}:/opt/"),
            "--copy-in",
            &format!("{tree}:/opt"),
            "--commands-from-file",
            &commands,
            "--touch",
            "/etc/touched",
            "--chmod",
            "0640:/etc/touched",
            "--chown",
            "ann:1001:/etc/touched",
            "--move",
            "/usr/bin/tool:/usr/bin/moved",
            "--link",
            "/usr/bin/moved:/usr/bin/l1:/usr/bin/l2",
            "--delete",
            "/etc/cloud/*",
            "--truncate",
            "/root/notes.txt",
            "--motd",
            "hello",
            "--edit",
            "/etc/cron.d/own:s/PLANTED/edited/",
            "--firstboot-command",
            "echo hello",
            "--selinux-relabel",
        ]);
        assert_eq!(done["passwords"]["ann"].as_str().unwrap().len(), 20);
        look(
            &lab,
            &disk,
            "is() { [ \"$(cat $1)\" = \"$2\" ] || say $1 is $(cat $1); }\nis /etc/ran \
             'one\ntwo'\nis /etc/commanded command\nis /etc/from-file yes\nis /etc/motd hello\n\
             is /etc/hostname fixed.example.org\ngrep -q '127.0.1.1 fixed.example.org fixed' \
             /etc/hosts || say hosts: $(cat /etc/hosts)\n\
             is /opt/tree/link 'in a tree'\n[ -L /opt/tree/link ] || say no link\n[ $(stat -c %s \
             /opt/big) = 3145728 ] || say big is short\n[ -d /opt/made/deep ] || say not made\n\
             [ $(stat -c %a:%u:%g /etc/touched) = 640:1000:1001 ] || say touched is $(stat -c \
             %a:%u:%g /etc/touched)\n\
             [ -s /usr/bin/moved ] && [ ! -e /usr/bin/tool ] && [ -s /usr/bin/l2 ] || say not \
             moved\n[ -e /etc/cloud/cloud.cfg ] && say not deleted\n[ -s /root/notes.txt ] && say \
             not truncated\n\
             grep -q '^edited' /etc/cron.d/own || say not edited\ngrep -q '^root:[$]6[$]' \
             /etc/shadow || say no password\n\
             tail -n 1 /home/ann/.ssh/authorized_keys | grep -q me@here || say no key\n[ $(stat -c \
             %a:%u /home/ann/.ssh/authorized_keys) = 600:1000 ] || say the key is not hers\n\
             [ -e /.autorelabel ] || say no relabel\nls /usr/lib/cowhand/first-boot.d/ | grep -q \
             command || say no script",
        );
        // A script that fails changes nothing, and its words are shown.
        let before = std::fs::read(&disk).unwrap();
        let failing =
            ["seal", &disk, "--write", "/etc/a:b", "--run-command", "echo so it is >&2; exit 3"];
        lab.run(&failing).fails(5, &["exit status: 3", "so it is", "nothing was changed"]);
        assert!(std::fs::read(&disk).unwrap() == before);
    }

    #[test]
    fn into_a_new_file_leaves_the_old_one_alone() {
        let lab = lab();
        let disk = disk(&lab, "whole");
        let before = std::fs::read(&disk).unwrap();
        let out = lab.path().join("out.raw");
        let out = out.to_str().unwrap();
        lab.ok(&["seal", &disk, "--out", out]);
        assert!(std::fs::read(&disk).unwrap() == before);
        look(&lab, out, &check_planted());
        lab.run(&["seal", &disk, "--out", out]).fails(4, &["--force"]);
    }

    #[test]
    fn a_key_that_is_not_utf_8_is_not_lost() {
        let lab = lab();
        let disk = disk(&lab, "gpt");
        let key = "root:string:ssh-ed25519 AAAAC3Nza me@here";
        lab.ok(&[
            "seal",
            &disk,
            "--operations",
            "customize",
            "--run-command",
            "printf 'caf\\351 key\\n' > /root/.ssh/authorized_keys",
        ]);
        lab.ok(&["seal", &disk, "--operations", "customize", "--ssh-inject", key]);
        look(
            &lab,
            &disk,
            "[ $(wc -l < /root/.ssh/authorized_keys) = 2 ] || say keys: $(cat \
             /root/.ssh/authorized_keys)",
        );
    }

    #[test]
    fn sealing_ext4_on_a_whole_disk_takes_out_what_is_planted_and_nothing_else() {
        takes_out_what_is_planted("whole", &["vda on / (ext4)"]);
    }

    #[test]
    fn sealing_an_mbr_disk_takes_out_what_is_planted_and_nothing_else() {
        takes_out_what_is_planted("mbr", &["vda1 on / (ext4)"]);
    }

    #[test]
    fn sealing_xfs_on_lvm_takes_out_what_is_planted_and_nothing_else() {
        takes_out_what_is_planted(
            "lvm",
            &["centos-root on / (xfs)", "vda1 on /boot (xfs)", "centos-my--var on /var (xfs)"],
        );
    }

    #[test]
    fn sealing_btrfs_with_subvolumes_takes_out_what_is_planted_and_nothing_else() {
        takes_out_what_is_planted("btrfs", &["vda1 on / (btrfs)", "vda1 on /home (btrfs)"]);
    }

    #[test]
    fn sealing_killed_at_any_moment_leaves_the_disk_as_it_was_or_sealed() {
        let lab = lab();
        let disk = disk(&lab, "whole");
        let original = std::fs::read(&disk).unwrap();
        let mut delay = Duration::from_millis(30);
        loop {
            let child = lab.spawn(&["seal", &disk]);
            std::thread::sleep(delay);
            kill(child.id().cast_signed());
            let survived = child.wait_with_output().unwrap().status.success();
            let orders = files_in(&lab.store().join("sealing"));
            let sealed = orders
                .iter()
                .any(|order| lab.store().join("sealing").join(order).join("order.json").exists());
            match survived || sealed {
                // The next command finishes it.
                true => look(&lab, &disk, &check_planted()),
                false => assert!(
                    std::fs::read(&disk).unwrap() == original,
                    "after {delay:?} the disk is another"
                ),
            }
            // What is left without an order goes with the next one.
            assert!(files_in(&lab.store().join("sealing")).len() <= usize::from(!survived));
            if survived {
                break;
            }
            if sealed {
                std::fs::write(&disk, &original).unwrap();
            }
            delay += delay / 2;
        }
    }

    #[test]
    fn a_template_is_sealed_and_killed_at_any_moment_it_is_the_vm_it_was_or_sealed() {
        let lab = lab();
        let disk = disk(&lab, "gpt");
        let raw = lab.path().join("x.raw");
        let raw = raw.to_str().unwrap();
        let mut delay = Duration::from_millis(30);
        loop {
            lab.ok(&["create", "web", "--disk", &disk]);
            let files = lab.layer_files();
            let child = lab.spawn(&["template", "create", "web", "--firstboot-command", "true"]);
            std::thread::sleep(delay);
            kill(child.id().cast_signed());
            let survived = child.wait_with_output().unwrap().status.success();
            // Any command puts it right: undone, or carried on to the end.
            let done = lab.run(&["set", "web", "cpus=1"]);
            let template = lab.json(&["template", "ls"]).as_array().unwrap().len() == 1;
            assert_eq!(done.code, if template { 5 } else { 0 }, "{done:?}");
            assert!(template || !survived);
            assert_eq!(lab.layer_files(), files, "an overlay was left behind");
            lab.ok(&["clone", "web", "copy", "--full"]);
            lab.ok(&["image", "export", "copy", raw, "--force"]);
            look(&lab, raw, if template { CHECK_SEALED } else { CHECK_UNTOUCHED });
            lab.ok(&["rm", "copy"]);
            lab.ok(if template { &["template", "rm", "web"] } else { &["rm", "web"] });
            lab.ok(&["gc", "--older-than", "0"]);
            if survived {
                break;
            }
            delay += delay / 2;
        }
    }
}
