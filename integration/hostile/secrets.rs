//! What other users of the host look for, and what they leave lying about.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use crate::lab::{Done, Lab, eventually, files_in, guest, kill, qemu_img, skip};

/// Debian's `nobody`: another user of the host.
const OTHER: u32 = 65534;
/// What must be nowhere: another word for each test, which may run beside each other.
fn secret() -> String {
    format!("Zq7-Open-Sesame-{}", std::process::id())
}

/// A lab with the appliance's kernel and a store; `None` where we cannot become another user.
fn lab(test: &str) -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "only root can make files of another user");
        return None;
    }
    let mut lab = Lab::new();
    lab.needs_an_appliance();
    lab.ok(&["create", "first", "--size", "1M"]);
    Some(lab)
}

/// A directory of another user's, with a disk of theirs in it.
fn theirs(lab: &Lab) -> (PathBuf, PathBuf) {
    // Others may pass through.
    std::fs::set_permissions(lab.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let directory = lab.path().join("theirs");
    std::fs::create_dir(&directory).unwrap();
    let disk = directory.join("disk.qcow2");
    std::fs::copy(PathBuf::from(guest("layouts").disk()).join("whole.qcow2"), &disk).unwrap();
    for path in [&directory, &disk] {
        chown(path, Some(OTHER), Some(OTHER)).unwrap();
    }
    (directory, disk)
}

/// Gives the other user what was made for them; links, too.
fn give_away(paths: &[&Path]) {
    for path in paths {
        std::os::unix::fs::lchown(path, Some(OTHER), Some(OTHER)).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_order_beside_an_image_does_not_make_root_write_to_a_file_of_roots() {
    let Some(lab) = lab("an_order_beside_an_image_does_not_make_root_write_to_a_file_of_roots")
    else {
        return;
    };
    let (directory, disk) = theirs(&lab);
    let victim = lab.path().join("victim");
    std::fs::write(&victim, vec![1; 1 << 20]).unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    // The order of a `seal` that never was: of the disk, and of a "disk" that is a link to the
    // victim. The other user knows all of these numbers.
    let link = directory.join("link");
    symlink(&victim, &link).unwrap();
    let beside = |disk: &Path, ending: &str| {
        disk.with_file_name(format!(
            ".{}.cowhand-{ending}",
            disk.file_name().unwrap().to_str().unwrap()
        ))
    };
    let mut planted = vec![link.clone()];
    let stamp = |path: &Path, format: &str| {
        let about = std::fs::metadata(path).unwrap();
        serde_json::json!({
            "path": path,
            "format": format,
            "device": about.dev(),
            "inode": about.ino(),
            "bytes": about.len(),
            "modified": [about.mtime(), about.mtime_nsec()],
        })
    };
    let order = serde_json::json!({"id": "00000000-0000-4000-8000-000000000001", "started": false,
        "disks": [stamp(&disk, "qcow2"), stamp(&link, "raw")]});
    for (disk, size) in [(&disk, "64M"), (&link, "1M")] {
        let overlay = beside(disk, "sealing");
        qemu_img(&["create", "-q", "-f", "qcow2", text(&overlay), size]);
        let done = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", "write -P 7 0 64k"])
            .arg(&overlay)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        std::fs::write(beside(disk, "seal.json"), order.to_string()).unwrap();
        planted.extend([overlay, beside(disk, "seal.json")]);
    }
    give_away(&planted.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    let done = lab.run(&["seal", text(&disk)]);
    assert!(
        std::fs::read(&victim).unwrap().iter().all(|byte| *byte == 1),
        "the victim was written to: {done:?}"
    );
    done.ok();
    // It says what lies there, and leaves it alone.
    let done = lab.run(&["seal", text(&disk)]);
    assert!(
        done.err.contains("is not used")
            && planted.iter().all(|path| path.symlink_metadata().is_ok()),
        "{done:?}"
    );
}

#[test]
fn a_disk_that_is_exchanged_for_a_link_does_not_make_root_write_to_another_image() {
    let Some(lab) =
        lab("a_disk_that_is_exchanged_for_a_link_does_not_make_root_write_to_another_image")
    else {
        return;
    };
    let (directory, disk) = theirs(&lab);
    let victim = lab.path().join("victim.qcow2");
    std::fs::copy(&disk, &victim).unwrap();
    let before = std::fs::read(&victim).unwrap();
    // What is made once is there.
    lab.ok(&["seal", "--dry-run", text(&disk)]);
    // Stopped when everything has been worked out and nothing is written to the disk.
    let exchange = |_| {
        std::fs::rename(&disk, directory.join("kept")).unwrap();
        symlink(&victim, &disk).unwrap();
        give_away(&[&disk]);
    };
    let (status, rest) = lab.stopped_at(&["seal", text(&disk)], "2", exchange);
    assert!(rest[0].contains("json, written"), "{rest:?}");
    assert!(
        std::fs::read(&victim).unwrap() == before,
        "the victim was written to: {status} {rest:?}"
    );
    qemu_img(&["check", "-q", text(&directory.join("kept"))]);
}

#[test]
fn a_raw_disk_that_is_exchanged_for_a_link_does_not_bring_a_file_of_roots_into_a_guest() {
    let Some(lab) =
        lab("a_raw_disk_that_is_exchanged_for_a_link_does_not_bring_a_file_of_roots_into_a_guest")
    else {
        return;
    };
    let (directory, _) = theirs(&lab);
    let (disk, victim) = (directory.join("disk.raw"), lab.path().join("victim"));
    std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
    std::fs::write(&victim, secret().repeat(1 << 15)).unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    let link = directory.join("link.raw");
    symlink(&victim, &link).unwrap();
    give_away(&[&disk, &link]);
    let before = lab.fingerprint();
    // Their link from the beginning.
    let out = lab.path().join("out.raw");
    for args in [
        &["create", "web", "--disk", text(&link)][..],
        &["create", "web", "--disk", &format!("{},use", text(&link))],
        &["image", "convert", text(&link), text(&out)],
        &["image", "info", text(&link)],
    ] {
        lab.run(args).fails(5, &["symbolic link", "65534", "name the file"]);
    }
    // Their file, which is exchanged after it was looked at: for a link, for another name of the
    // victim, for another file.
    for (exchange, words) in
        [("link", "symbolic link"), ("name", "hard links"), ("file", "was replaced")]
    {
        let act = |_| {
            std::fs::rename(&disk, directory.join("kept")).unwrap();
            match exchange {
                "link" => symlink(&victim, &disk).unwrap(),
                "name" => std::fs::hard_link(&victim, &disk).unwrap(),
                _ => std::fs::write(&disk, vec![2; 1 << 20]).unwrap(),
            }
            if exchange == "link" {
                give_away(&[&disk]);
            }
        };
        let (status, rest) =
            lab.stopped_at(&["create", "web", "--disk", text(&disk)], "journal.json, written", act);
        assert_eq!(status.code(), Some(5), "{exchange}: {rest:?}");
        assert!(rest.iter().any(|line| line.contains(words)), "{exchange}: {rest:?}");
        let mut found = Vec::new();
        files_with_it(&lab.store(), &mut found);
        assert!(found.is_empty(), "{found:?}: {rest:?}");
        std::fs::rename(directory.join("kept"), &disk).unwrap();
        // QEMU's program is given the file that was looked at.
        let convert = &["image", "convert", text(&disk), text(&out)];
        let (status, rest) = lab.stopped_at(convert, "a file from outside, looked at", act);
        assert!(status.success(), "{exchange}: {rest:?}");
        assert!(
            std::fs::read(&out).unwrap() == vec![1; 1 << 20],
            "{exchange}: another file was converted"
        );
        std::fs::remove_file(&out).unwrap();
        std::fs::rename(directory.join("kept"), &disk).unwrap();
    }
    assert_eq!(lab.fingerprint(), before);
    // Left alone, it is the disk that it is.
    lab.ok(&["create", "web", "--disk", text(&disk)]);
}

#[test]
fn a_disk_in_its_place_that_becomes_a_link_does_not_bring_a_file_of_roots_into_a_copy() {
    let Some(lab) =
        lab("a_disk_in_its_place_that_becomes_a_link_does_not_bring_a_file_of_roots_into_a_copy")
    else {
        return;
    };
    let (directory, _) = theirs(&lab);
    let (disk, victim, outside) =
        (directory.join("disk.raw"), lab.path().join("victim"), lab.path().join("outside"));
    std::fs::create_dir(&outside).unwrap();
    let out = outside.join("out.raw");
    std::fs::write(&disk, vec![1; 1 << 20]).unwrap();
    std::fs::write(&victim, secret().repeat(1 << 15)).unwrap();
    give_away(&[&disk]);
    lab.ok(&["create", "web", "--disk", &format!("{},use", text(&disk))]);
    lab.ok(&["image", "export", "web", text(&out)]);
    assert!(std::fs::read(&out).unwrap() == vec![1; 1 << 20]);
    std::fs::remove_file(&out).unwrap();
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["image", "export", "web@s", text(&out)]);
    std::fs::remove_file(&out).unwrap();
    lab.ok(&["clone", "web@s", "before", "--full"]);
    let exchange = |_| {
        std::fs::rename(&disk, directory.join("kept")).unwrap();
        symlink(&victim, &disk).unwrap();
        give_away(&[&disk]);
    };
    let back = || std::fs::rename(directory.join("kept"), &disk).unwrap();
    let nothing_of_it = || {
        let mut found = Vec::new();
        files_with_it(&lab.store(), &mut found);
        files_with_it(&outside, &mut found);
        assert!(found.is_empty(), "{found:?}");
    };
    // Before the command.
    exchange(0);
    for args in [
        &["image", "export", "web@s", text(&out)][..],
        &["clone", "web@s", "copy", "--full"],
        &["clone", "web@s", "copy"],
        &["start", "web"],
    ] {
        lab.run(args).fails(8, &["used in its place", "symbolic link", "65534"]);
    }
    nothing_of_it();
    // Others go on, and nothing of theirs has become uncertain.
    lab.ok(&["clone", "before", "another"]);
    lab.ok(&["ls"]);
    assert!(!lab.run(&["rm", "another"]).err.contains("cannot be read"));
    lab.ok(&["gc", "--older-than", "0"]);
    assert!(lab.run(&["doctor"]).out.contains("used in its place"));
    back();
    // While it is at work.
    let (status, rest) =
        lab.stopped_at(&["clone", "web@s", "copy", "--full"], "journal.json, written", exchange);
    assert_eq!(status.code(), Some(8), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("symbolic link")), "{rest:?}");
    nothing_of_it();
    back();
    // Between a look and the use, of one layer and of two.
    for args in [
        &["image", "export", "web@s", text(&out)][..],
        &["image", "export", "web", text(&out)],
        &["clone", "web@s", "copy", "--full"],
        &["clone", "web", "copy", "--full"],
    ] {
        let (status, rest) = lab.stopped_at(args, "a file in its place, opened", exchange);
        assert!(matches!(status.code(), Some(0 | 8)), "{args:?}: {rest:?}");
        nothing_of_it();
        back();
        let _ = std::fs::remove_file(&out);
        lab.run(&["rm", "copy"]);
    }
    lab.ok(&["clone", "web@s", "copy", "--full"]);
}

#[test]
fn a_name_that_another_user_made_does_not_make_root_seal_another_image() {
    let Some(lab) = lab("a_name_that_another_user_made_does_not_make_root_seal_another_image")
    else {
        return;
    };
    let (directory, _) = theirs(&lab);
    let images = lab.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let victim = images.join("victim.qcow2");
    std::fs::copy(PathBuf::from(guest("layouts").disk()).join("whole.qcow2"), &victim).unwrap();
    let before = std::fs::read(&victim).unwrap();
    let (link, way, name) =
        (directory.join("a.qcow2"), directory.join("images"), directory.join("b.qcow2"));
    symlink(&victim, &link).unwrap();
    symlink(&images, &way).unwrap();
    std::fs::hard_link(&victim, &name).unwrap();
    give_away(&[&link, &way]);
    lab.run(&["seal", text(&link)]).fails(5, &["symbolic link", "65534", "name the file"]);
    lab.run(&["seal", text(&way.join("victim.qcow2"))]).fails(5, &["symbolic link", "65534"]);
    lab.run(&["seal", text(&name)]).fails(5, &["hard links"]);
    assert!(std::fs::read(&victim).unwrap() == before);
    // By its own name it is what the user means, and a link of the user's own is the user's own
    // business.
    let own = lab.path().join("own.qcow2");
    symlink(&victim, &own).unwrap();
    lab.ok(&["seal", "--dry-run", text(&own)]);
}

fn base64(bytes: &[u8]) -> String {
    let mut child =
        Command::new("base64").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout)
        .unwrap()
        .trim()
        .trim_end_matches('=')
        .to_owned()
}

/// The secret as it would be found: as it is, and in base64 at each of the three places it may have
/// in a group.
fn needles() -> Vec<Vec<u8>> {
    let inside = |shift: usize| {
        let text = base64(&[&vec![b'x'; shift], secret().as_bytes()].concat());
        // The first and last letters depend on what is beside it.
        text.as_bytes()[4..text.len() - 2].to_vec()
    };
    [vec![secret().into_bytes()], (0..3).map(inside).collect()].concat()
}

fn holds(bytes: &[u8]) -> bool {
    static NEEDLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(needles);
    NEEDLES.iter().any(|needle| memchr::memmem::find(bytes, needle).is_some())
}

/// Every file below a directory that holds the secret; sparse memory and images, too.
fn files_with_it(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(about) = entry.metadata() else { continue };
        if about.is_dir() {
            files_with_it(&entry.path(), found);
            continue;
        }
        let named = holds(entry.path().to_string_lossy().as_bytes());
        let is_small = about.is_file() && about.len() < 64 << 20;
        if named || (is_small && std::fs::read(entry.path()).is_ok_and(|bytes| holds(&bytes))) {
            found.push(entry.path());
        }
    }
}

/// Processes other than `ours`, whom the user has told, with the secret in their arguments or their
/// environment.
fn processes_with_it(ours: u32) -> Vec<String> {
    let mut found = Vec::new();
    let ours_said = std::fs::read(format!("/proc/{ours}/cmdline")).ok();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(pid) = name.parse::<u32>() else { continue };
        // A child that is about to become another program still has our arguments.
        let is_copy_of_ours = std::fs::read(entry.path().join("cmdline")).ok() == ours_said;
        for file in ["cmdline", "environ"] {
            if pid != ours
                && !is_copy_of_ours
                && std::fs::read(entry.path().join(file)).is_ok_and(|bytes| holds(&bytes))
            {
                let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push(format!("{file} of {pid} ({})", comm.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn nowhere(lab: &Lab, when: &str) {
    let mut found = Vec::new();
    files_with_it(lab.path(), &mut found);
    assert!(found.is_empty(), "{when}: {found:?}");
}

/// A lab whose temporary files lie in it, too.
fn with_temporary_files(lab: &Lab, args: &[&str]) -> Command {
    let directory = lab.path().join("tmp");
    let _ = std::fs::create_dir(&directory);
    let mut command = lab.command(args);
    command.env("TMPDIR", directory);
    command
}

#[test]
fn a_password_is_in_no_lock_journal_log_temporary_file_or_process_list() {
    let mut lab = Lab::new();
    lab.needs_an_appliance();
    let disk = PathBuf::from(guest("layouts").disk()).join("whole.qcow2");
    let root = format!("password:{}", secret());
    let ann = format!("ann:password:{}", secret());
    let args = ["-vv", "template", "create", "web", "--root-password", &root, "--password", &ann];
    // Cut short before, in the middle and at the end.
    let mut survived = false;
    for number in crate::tier::first_or(&[6, 1000][..], &[2, 6, 12, 18, 1000]) {
        lab.ok(&["create", "web", "--disk", text(&disk)]);
        let mut command = with_temporary_files(&lab, &args);
        let mut child = command
            .env("COWHAND_FAULT", format!("{number}:die"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let mut stderr = child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).map(|_| text).unwrap()
        });
        while child.try_wait().unwrap().is_none() {
            let found = processes_with_it(pid);
            assert!(found.is_empty(), "{found:?}");
            nowhere(&lab, "while it ran");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        survived = child.wait().unwrap().success();
        let stderr = reader.join().unwrap();
        assert!(!holds(&stderr), "{}", String::from_utf8_lossy(&stderr));
        nowhere(&lab, &format!("after fault {number}"));
        lab.run(&["set", "web", "cpus=1"]);
        nowhere(&lab, &format!("when it was put right after fault {number}"));
        let verb: &[&str] = if lab.json(&["show", "web"])["template"] == true {
            &["template", "rm", "web"]
        } else {
            &["rm", "web"]
        };
        lab.ok(verb);
        nowhere(&lab, "in the trash");
        if !survived {
            lab.ok(&["gc", "--older-than", "0"]);
        }
    }
    assert!(survived, "the last of them has no fault");
}

#[test]
fn a_variable_is_in_no_lock_log_or_process_list() {
    let lab = Lab::new();
    lab.booted("web");
    let pair = format!("TOKEN={}", secret());
    let file = lab.path().join("variables");
    std::fs::write(&file, format!("# for the job\n{pair}\n")).unwrap();
    let script = "test ${#TOKEN} -gt 15 && echo ready && read line";
    for given in [["-e", pair.as_str()], ["--env-file", "-"]] {
        for agent_only in [false, true] {
            let mut args = vec!["-vv", "exec", given[0], given[1]];
            if given[1] != "-" {
                args.push("-i");
            }
            if agent_only {
                args.push("--agent-only");
            }
            args.extend(["web", "--", "sh", "-c", script]);
            let mut child = with_temporary_files(&lab, &args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut input = child.stdin.take().unwrap();
            if given[1] == "-" {
                input.write_all(&std::fs::read(&file).unwrap()).unwrap();
            } else {
                input.write_all(b"go on\n").unwrap();
            }
            if agent_only || given[1] == "-" {
                drop(input);
            }
            let mut found = Vec::new();
            files_with_it(&lab.store(), &mut found);
            files_with_it(&lab.path().join("run"), &mut found);
            files_with_it(&lab.path().join("tmp"), &mut found);
            assert!(found.is_empty(), "{given:?}: {found:?}");
            let processes = processes_with_it(child.id());
            assert!(processes.is_empty(), "{given:?}: {processes:?}");
            let done: Done = child.wait_with_output().unwrap().into();
            assert!(done.out.contains("ready"), "{given:?} {agent_only}: {done:?}");
            assert!(!holds(done.err.as_bytes()), "{given:?}: {done:?}");
        }
    }
    // What is wrong with one is said without it.
    let wrong = format!("={}", secret());
    let done = lab.run(&["exec", "-e", &wrong, "web", "--", "true"]);
    assert!(done.code == 125 && !holds(done.err.as_bytes()), "{done:?}");
    let mut found = Vec::new();
    files_with_it(&lab.store(), &mut found);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn who_waits_for_a_lock_is_not_told_the_holders_values() {
    let lab = Lab::new();
    lab.booted("web");
    lab.ok(&["snapshot", "create", "web", "before", "--description", &secret()]);
    let value = format!("tag.token={}", secret());
    lab.ok(&["set", "web", &value]);
    for lock in [lab.store().join("vms/web/lock"), lab.store().join("store.lock")] {
        let text = std::fs::read_to_string(&lock).unwrap_or_default();
        assert!(!holds(text.as_bytes()), "{}: {text}", lock.display());
    }
    let shown = lab.json(&["undo", "--list"]).to_string();
    assert!(shown.contains("set web") && !holds(shown.as_bytes()), "{shown}");
}

#[test]
fn passwords_and_variables_come_in_without_being_in_the_process_list() {
    let mut lab = Lab::new();
    lab.needs_an_appliance();
    let disk = lab.path().join("disk.qcow2");
    std::fs::copy(PathBuf::from(guest("layouts").disk()).join("whole.qcow2"), &disk).unwrap();
    let file = lab.path().join("password");
    std::fs::write(&file, "from the file\n").unwrap();
    let ann = format!("ann:file:{}", file.display());
    let args = [
        "seal",
        text(&disk),
        "--operations",
        "customize",
        "--root-password",
        "stdin",
        "--password",
        &ann,
    ];
    let mut child = lab
        .command(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{}\n", secret()).as_bytes()).unwrap();
    Done::from(child.wait_with_output().unwrap()).ok();
    let look = "grep -c '^[a-z]*:[$]6[$]' /etc/shadow | grep -qx 2";
    lab.ok(&["seal", text(&disk), "--operations", "customize", "--run-command", look]);
    // At the end of standard input there is no password, and an empty one lets everybody in.
    lab.run(&args).fails(2, &["--root-password", "empty"]);
}

/// The command under limits of open files.
fn limited(lab: &Lab, limits: &str, args: &[&str]) -> Done {
    let inner = lab.command(args);
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("ulimit {limits} && exec \"$0\" \"$@\""))
        .arg(inner.get_program())
        .args(args);
    command
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null());
    command.output().unwrap().into()
}

#[test]
fn many_layers_start_where_the_hard_limit_lets_them_and_are_refused_with_the_number_where_not() {
    let lab = Lab::new();
    lab.ok(&["create", "web", "--size", "1M", "--size", "1M", "--size", "1M", "--size", "1M"]);
    for number in 1..31 {
        lab.ok(&["snapshot", "create", "web", &format!("s{number}")]);
    }
    let done = limited(&lab, "-S -n 64 && ulimit -H -n 128", &["start", "--paused", "web"]);
    done.fails(5, &["124 layers", "224 open files", "128", "LimitNOFILE"]);
    limited(&lab, "-S -n 128", &["start", "--paused", "web"]).ok();
    let open = std::fs::read_dir(format!("/proc/{}/fd", lab.pid("web"))).unwrap().count();
    assert!((129..224).contains(&open), "QEMU has {open} files open");
    kill(lab.pid("web"));
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn a_script_in_an_image_does_not_keep_a_seal_from_ending_or_fill_the_hosts_disk() {
        let mut lab = Lab::new();
        lab.needs_an_appliance();
        let disk = lab.path().join("disk.qcow2");
        std::fs::copy(PathBuf::from(guest("layouts").disk()).join("whole.qcow2"), &disk).unwrap();
        let before = std::fs::read(&disk).unwrap();
        // What is made once is there: the initramfs.
        let other = lab.path().join("other.qcow2");
        std::fs::copy(&disk, &other).unwrap();
        lab.ok(&["seal", text(&other), "--operations", "customize", "--run-command", "true"]);
        // It writes to everything that leads to the host: the console, the kernel's log, the port,
        // its own output.
        let script = "for out in /dev/ttyS0 /dev/console /dev/kmsg /dev/vport*; do \
                      (while :; do echo \
                      '{\"event\":\"warning\",\"text\":\"flood flood flood flood flood flood\"}'; \
                      done > $out) 2>/dev/null & done; \
                      while :; do echo flood flood flood flood flood; done";
        let args = ["seal", text(&disk), "--run-command", script, "--appliance-timeout", "40s"];
        let mut command = with_temporary_files(&lab, &args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text).unwrap()
        });
        let (mut most, mut memory) = (0, 0);
        while child.try_wait().unwrap().is_none() {
            let files = [lab.path().join("tmp"), lab.store()];
            let mut bytes = 0;
            for file in files
                .iter()
                .flat_map(|directory| std::fs::read_dir(directory).into_iter().flatten().flatten())
            {
                let name = file.file_name().to_string_lossy().into_owned();
                let is_ours = name.starts_with("appliance-") || name == "reserve";
                bytes += file
                    .metadata()
                    .map_or(0, |about| if is_ours { 0 } else { about.blocks() * 512 });
            }
            most = most.max(bytes);
            let status =
                std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let peak =
                status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
            memory = memory.max(peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0));
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        let mut out = String::new();
        stdout.read_to_string(&mut out).unwrap();
        let done = Done {
            code: child.wait().unwrap().code().unwrap_or(-1),
            out,
            err: reader.join().unwrap(),
        };
        eprintln!(
            "{} KiB of temporary files, {memory} KiB of memory, {} bytes of messages",
            most >> 10,
            done.err.len()
        );
        let done = done.fails(7, &["40 s", "nothing was changed", "--appliance-timeout"]);
        assert!(done.err.len() < 64 << 10, "{} bytes of messages", done.err.len());
        assert!(most < 32 << 20, "{most} bytes of files");
        assert!(memory < 200 << 10, "{memory} KiB of memory");
        assert!(std::fs::read(&disk).unwrap() == before);
        assert_eq!(files_in(&lab.store().join("sealing")), Vec::<String>::new());
        assert_eq!(files_in(&lab.path().join("tmp")), Vec::<String>::new());
    }

    #[test]
    fn a_link_in_place_of_an_overlay_does_not_make_root_overwrite_what_it_leads_to() {
        let Some(lab) =
            lab("a_link_in_place_of_an_overlay_does_not_make_root_overwrite_what_it_leads_to")
        else {
            return;
        };
        let (directory, disk) = theirs(&lab);
        let victim = lab.path().join("victim");
        std::fs::write(&victim, "root's").unwrap();
        let overlay = directory.join(".disk.qcow2.cowhand-sealing");
        // The other user puts it there over and over: whenever it was removed, before something
        // else comes into its place.
        let stop = lab.path().join("stop");
        std::fs::create_dir(directory.join("stop")).unwrap();
        let script = format!(
            "while [ ! -e {0} ]; do [ -L {1} ] || ln -sf {2} {1}; done",
            stop.display(),
            overlay.display(),
            victim.display()
        );
        let mut command = Command::new("sh");
        std::os::unix::process::CommandExt::uid(command.args(["-c", &script]), OTHER);
        let mut racer = command.spawn().unwrap();
        eventually("the link is there", || overlay.is_symlink());
        let done = lab.run(&["seal", text(&disk)]);
        std::fs::write(&stop, "").unwrap();
        racer.wait().unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "root's", "{done:?}");
        done.ok();
    }

    #[test]
    fn an_order_is_in_a_directory_that_nobody_else_can_look_into() {
        let Some(lab) = lab("an_order_is_in_a_directory_that_nobody_else_can_look_into") else {
            return;
        };
        let (_, disk) = theirs(&lab);
        lab.ok(&["seal", "--dry-run", text(&disk)]);
        let done: Done = lab
            .command(&["seal", text(&disk)])
            .env("COWHAND_FAULT", "2:die")
            .output()
            .unwrap()
            .into();
        assert_eq!(done.code, 137, "{done:?}");
        let sealing = lab.store().join("sealing");
        let order = sealing.join(&files_in(&sealing)[0]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&sealing), mode(&order)), (0o700, 0o700));
        for file in files_in(&order) {
            assert_eq!(mode(&order.join(&file)), 0o600, "{file}");
        }
        lab.run(&["doctor"]);
        lab.ok(&["seal", text(&disk)]);
        assert_eq!(files_in(&sealing), Vec::<String>::new());
    }
}
