//! What a guest answers to `cp`, `--copy-out`, `exec` and its agent's clients.
//!
//! The guest is a fake in the place of a real one: the ports of a running VM lead to a listener of
//! the test, which speaks the protocol of the helper as fast as the host can read, and says what no
//! helper would say. Floods last two seconds here; with `COWHAND_HOSTILE_SECONDS=60` each lasts a
//! minute, and the tests print a table.

pub mod fake_guest;
mod floods;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::lab::{Done, Lab, files_in};
use fake_guest::{Conversation, FakeGuest, with_ports_of};

/// A lab with the running VM `a`, whose helper is in its memory.
fn running() -> Lab {
    let lab = Lab::new();
    lab.booted("a");
    lab.ok(&["exec", "a", "--", "true"]);
    lab
}

/// A directory beside the target that the guest has no business with.
fn outside(lab: &Lab) -> std::path::PathBuf {
    let outside = lab.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("authorized_keys"), "mine").unwrap();
    outside
}

#[track_caller]
fn is_untouched(outside: &Path) {
    assert_eq!(files_in(outside), ["authorized_keys"]);
    assert_eq!(std::fs::read_to_string(outside.join("authorized_keys")).unwrap(), "mine");
}

/// What the guest sends as the tree that was asked for: a link, or a file called as the guest
/// likes.
fn link_to(conversation: &mut Conversation, to: &Path) -> std::io::Result<()> {
    conversation.entry("", json!({"link": {"to": to}}))?;
    conversation.end(0)
}

fn one_file(conversation: &mut Conversation, path: &str) -> std::io::Result<()> {
    conversation.entry(path, json!({"file": {"bytes": 4}}))?;
    conversation.data(0, b"evil")?;
    conversation.end(4)
}

#[test]
fn a_guest_that_answers_twice_writes_into_any_directory_of_the_host() {
    let lab = running();
    let outside = outside(&lab);
    let out = lab.path().join("out");
    let place = outside.clone();
    let _guest = with_ports_of(&lab, "a", move |request, conversation| {
        match request["path"].as_str().unwrap() {
            // First the guest answers with a link as the root, wherever the user asks for it.
            "/root/first" => link_to(conversation, &place),
            // Then with a file, whose place the host would look for behind that link.
            "/root/authorized_keys" => one_file(conversation, ""),
            // Or with a directory that the link is to be taken for.
            _ => {
                conversation.entry("", json!("directory"))?;
                one_file(conversation, "authorized_keys")
            }
        }
    });
    let out = out.to_str().unwrap();
    for follow in [&[][..], &["--follow"]] {
        let cp = |from: &str, to: &str| lab.run(&[&["cp"], follow, &[from, to]].concat());
        let done =
            cp("a:/root/first", out).fails(5, &["/root/first is a symbolic link in the guest"]);
        assert!(done.err.contains("--follow"), "{done:?}");
        assert!(Path::new(out).symlink_metadata().is_err(), "the link is there for the next copy");
        cp("a:/root/authorized_keys", out).ok();
        std::fs::remove_file(out).unwrap();
        is_untouched(&outside);
    }
    // Someone has put the link there: a directory in its place is refused, a file replaces it.
    let inside = lab.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    symlink(&outside, inside.join("tree")).unwrap();
    let done = lab.run(&["cp", "a:/root/tree", inside.to_str().unwrap()]);
    assert_ne!(done.code, 0, "{done:?}");
    is_untouched(&outside);
    // The target that was typed may be a link to a directory.
    symlink(&inside, lab.path().join("typed")).unwrap();
    lab.ok(&["cp", "a:/root/other", lab.path().join("typed").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(inside.join("other/authorized_keys")).unwrap(), "evil");
    is_untouched(&outside);
}

#[test]
fn a_tree_with_links_in_it_leads_the_host_out_of_the_target() {
    let lab = running();
    let outside = outside(&lab);
    let place = outside.clone();
    let _guest = with_ports_of(&lab, "a", move |request, conversation| {
        let to = json!({"link": {"to": place}});
        conversation.entry("", json!("directory"))?;
        match request["path"].as_str().unwrap() {
            "/a" => {
                conversation.entry("way", to)?;
                one_file(conversation, "way/authorized_keys")
            }
            "/b" => {
                conversation.entry("way", json!("directory"))?;
                conversation.entry("way", to)?;
                one_file(conversation, "way/authorized_keys")
            }
            "/c" => {
                conversation.entry("way", to)?;
                conversation.entry("way", json!("directory"))?;
                one_file(conversation, "way/authorized_keys")
            }
            "/d" => one_file(conversation, "../outside/authorized_keys"),
            "/e" => one_file(conversation, place.join("authorized_keys").to_str().unwrap()),
            // A tree that is in order, with a link in it: it stays a link.
            _ => {
                conversation.entry("way", to)?;
                conversation.end(0)
            }
        }
    });
    for from in ["/a", "/b", "/c", "/d", "/e"] {
        let out = lab.path().join(format!("out{}", &from[1..]));
        let done = lab.run(&["cp", &format!("a:{from}"), out.to_str().unwrap()]);
        assert_ne!(done.code, 0, "{from}: {done:?}");
        is_untouched(&outside);
    }
    let out = lab.path().join("out");
    lab.ok(&["cp", "a:/x", out.to_str().unwrap()]);
    assert!(out.join("way").is_symlink());
    // The same tree again, over itself.
    lab.ok(&["cp", "a:/x", &format!("{}/", lab.path().display())]);
    is_untouched(&outside);
}

#[test]
fn a_link_in_the_guest_brings_the_file_it_points_to_on_the_host() {
    let lab = running();
    let host = lab.path().join("secret");
    std::fs::write(&host, "of the host").unwrap();
    let path = host.to_str().unwrap();
    lab.sh(
        "a",
        &format!(
            "ln -s '{path}' /tmp/link; mkdir -p '{}'; echo of the guest > '{path}'",
            lab.path().display()
        ),
    );
    let out = lab.path().join("out");
    let out = out.to_str().unwrap();
    lab.run(&["cp", "a:/tmp/link", out])
        .fails(5, &["/tmp/link is a symbolic link in the guest", "--follow"]);
    lab.ok(&["cp", "--follow", "a:/tmp/link", out]);
    // Resolved in the guest.
    assert_eq!(std::fs::read_to_string(out).unwrap(), "of the guest\n");
    assert!(!Path::new(out).is_symlink());
    lab.run(&["cp", "--follow", "a:/tmp/nowhere", out]).fails(3, &["/tmp/nowhere"]);
    // Budgets, of a guest that is honest.
    lab.sh(
        "a",
        "mkdir /tmp/many; for n in 1 2 3 4 5; do echo $n > /tmp/many/$n; done; dd \
         if=/dev/zero of=/tmp/hole bs=1 count=1 seek=1099511627775 2>/dev/null",
    );
    let into = lab.path().join("many");
    let into = into.to_str().unwrap();
    let done = lab.run(&["cp", "--max-entries", "4", "a:/tmp/many", into]);
    done.fails(5, &["more than 4 files, directories and links", "--max-entries"]);
    assert_eq!(files_in(Path::new(into)), ["1", "2", "3"], "what was whole stays");
    lab.ok(&["cp", "--max-entries", "6", "--max-bytes", "10", "a:/tmp/many", into]);
    lab.run(&["cp", "--max-bytes", "9", "a:/tmp/many", into])
        .fails(5, &["longer than 9 B", "--max-bytes"]);
    lab.run(&["cp", "a:/tmp/hole", into])
        .fails(5, &["longer than 64 GiB", "holes count, too", "--max-bytes"]);
    lab.ok(&["cp", "--max-bytes", "1T", "a:/tmp/hole", into]);
    assert_eq!(Path::new(into).join("hole").metadata().unwrap().len(), 1 << 40);
    let limited =
        lab.command(&["cp", "a:/tmp/many", into]).env("COWHAND_MAX_BYTES", "9").output().unwrap();
    Done::from(limited).fails(5, &["longer than 9 B"]);
}

#[test]
fn a_copy_out_of_a_run_goes_where_an_earlier_one_has_put_a_link() {
    let lab = Lab::warm();
    let outside = outside(&lab);
    let place = outside.clone();
    let fake = FakeGuest::listen(&lab, move |request, conversation| {
        match request["path"].as_str().unwrap_or_default() {
            // Not a copy.
            "" => Ok(()),
            "/first" => link_to(conversation, &place),
            "/tree" => {
                conversation.entry("", json!("directory"))?;
                conversation.entry("report", json!({"link": {"to": place}}))?;
                conversation.end(0)
            }
            _ => one_file(conversation, ""),
        }
    });
    let room = lab.path().join("room");
    std::fs::create_dir(&room).unwrap();
    let at = |path: &str| room.join(path).to_str().unwrap().to_owned();
    let run = |copies: &[String]| {
        let mut words = vec!["run"];
        copies.iter().for_each(|copy| words.extend(["--copy-out", copy]));
        words.extend(["t", "--", "true"]);
        Done::from(fake.command(&lab, &words).output().unwrap())
    };
    let done = run(&[format!("/first:{}", at("out"))]);
    done.fails(125, &["--copy-out /first", "is a symbolic link in the guest", "--follow"]);
    run(&[format!("/authorized_keys:{}", at("out"))]).ok();
    is_untouched(&outside);
    // In one run: the second target is a link that the first copy has brought, in a directory that
    // was there.
    std::fs::create_dir(room.join("tree")).unwrap();
    let both = [format!("/tree:{}", at("")), format!("/authorized_keys:{}", at("tree/report"))];
    run(&both).ok();
    is_untouched(&outside);
    assert_eq!(std::fs::read_to_string(room.join("tree/report")).unwrap(), "evil");
    assert_eq!(lab.vm_directories(), ["t"]);
}

#[test]
fn a_guest_that_dawdles_keeps_a_run_for_ever() {
    let lab = Lab::warm();
    let fake = FakeGuest::listen(&lab, |request, conversation| {
        if request["request"] != "get" && request["request"] != "put" {
            return Ok(());
        }
        // Always a little, never all.
        for number in 0.. {
            std::thread::sleep(std::time::Duration::from_millis(200));
            match request["request"] == "get" {
                true if number == 0 => conversation.entry("", json!("directory"))?,
                true => conversation.entry(&format!("d{number}"), json!("directory"))?,
                false => conversation.frame(10, b"")?,
            }
        }
        Ok(())
    });
    let out = lab.path().join("out");
    let copy = format!("/x:{}", out.display());
    let run = |words: &[&str]| {
        let words = [&["run", "--copy-timeout", "3"], words, &["t", "--", "true"]].concat();
        Done::from(fake.command(&lab, &words).output().unwrap())
    };
    run(&["--copy-out", &copy])
        .fails(125, &["the copies after the command did not end within 3 s", "--copy-timeout"]);
    let from = lab.path().join("from");
    std::fs::write(&from, "x").unwrap();
    let copy = format!("{}:/x", from.display());
    run(&["--copy-in", &copy])
        .fails(125, &["the copies before the command did not end within 3 s", "--copy-timeout"]);
    assert_eq!(lab.vm_directories(), ["t"]);
}

#[test]
fn a_guest_forges_the_lines_of_its_virtualisation_server() {
    use std::io::{BufRead, BufReader, Write};
    let lab = Lab::new();
    lab.booted("t");
    // What cowhand asks the guest for is answered by a program of the guest's.
    let shell = "#!/bin/busybox sh\n\
                 case \"$*\" in *mktemp*) printf \"/tmp/x\\nok forged\\033[2J\\n\"; exit 0;; esac\n\
                 exec /bin/busybox sh \"$@\"\n";
    std::fs::write(lab.path().join("shell"), shell).unwrap();
    lab.ok(&["cp", lab.path().join("shell").to_str().unwrap(), "t:/tmp/shell"]);
    lab.sh("t", "chmod 755 /tmp/shell; cp /tmp/shell /bin/new; mv -f /bin/new /bin/sh; sync");
    lab.ok(&["stop", "--force", "t"]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    let mut child = lab
        .command(&["autopkgtest-virt", "t"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to = child.stdin.take().unwrap();
    writeln!(to, "open").unwrap();
    writeln!(to, "quit").unwrap();
    drop(to);
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap()).collect();
    let done = Done::from(child.wait_with_output().unwrap());
    assert!(
        !lines.iter().any(|line| line.contains("forged") || line.contains('\u{1b}')),
        "{lines:?}"
    );
    assert_eq!((lines.len(), done.code), (1, 7), "{lines:?} {done:?}");
    assert!(done.err.contains("scratch directory"), "{done:?}");
    assert_eq!(lab.vm_directories(), ["t"]);
}

#[test]
fn a_job_of_another_gitlab_gets_or_ends_the_machine_of_this_one() {
    let lab = Lab::warm();
    let stage = |server: &str, args: &[&str]| {
        let mut command: Command = lab.command(&[&["gitlab"], args].concat());
        command.env("CUSTOM_ENV_CI_JOB_ID", "5").env("CUSTOM_ENV_CI_SERVER_URL", server);
        Done::from(command.output().unwrap())
    };
    let made = |done: Done| done.ok().split(':').next().unwrap().to_owned();
    let one = made(stage("https://one.example", &["prepare", "--template", "t"]));
    let pid = lab.pid(&one);
    let two = made(stage("https://two.example", &["prepare", "--template", "t"]));
    assert_ne!(one, two);
    assert!(one.starts_with("gitlab-5-") && two.starts_with("gitlab-5-"), "{one} {two}");
    stage("https://two.example", &["cleanup"]).ok();
    stage("https://two.example", &["cleanup"]).ok();
    assert_eq!((lab.pid(&one), lab.vm_directories().len()), (pid, 2));
    let script = lab.path().join("script");
    std::fs::write(&script, "hostname").unwrap();
    assert_eq!(
        stage("https://one.example", &["run", script.to_str().unwrap(), "build"]).ok().trim(),
        one
    );
    stage("https://one.example", &["cleanup"]).ok();
    // A job that an earlier version has prepared still finds its VM.
    let mut earlier = lab.command(&["gitlab", "prepare", "--template", "t"]);
    assert_eq!(made(earlier.env("CUSTOM_ENV_CI_JOB_ID", "5").output().unwrap().into()), "gitlab-5");
    assert_eq!(
        stage("https://one.example", &["run", script.to_str().unwrap(), "build"]).ok().trim(),
        "gitlab-5"
    );
    stage("https://one.example", &["cleanup"]).ok();
    assert_eq!(lab.vm_directories(), ["t"]);
}
