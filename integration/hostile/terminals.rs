//! What reaches the terminal of the person who looks: control sequences from guests, images and
//! file names rename its window, move its cursor, or make it answer as if somebody had typed.
//!
//! The commands run on a terminal of their own (script(1)); what comes out of it is compared byte
//! for byte.

use std::process::Command;

use serde_json::json;

use super::copies::fake_guest::with_ports_of;
use crate::lab::{Done, Lab, eventually, qemu_img};

/// Renames the window of a terminal (xterm, "operating system command" 0).
const ATTACK: &str = "\x1b]0;owned\x07";
/// What is to be seen of it.
const SHOWN: &str = "\\x1b]0;owned\\x07";
/// The same in quotation marks.
const QUOTED: &str = "\"\\u{1b}]0;owned\\u{7}\"";

/// What `cowhand …` sends to its terminal.
fn on_terminal(lab: &Lab, args: &[&str]) -> Done {
    let inner = lab.command(args);
    let quote = |word: &str| format!("'{}'", word.replace('\'', "'\\''"));
    let program = quote(inner.get_program().to_str().unwrap());
    let line = [program]
        .into_iter()
        .chain(args.iter().map(|word| quote(word)))
        .collect::<Vec<_>>()
        .join(" ");
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("SHELL", "/bin/sh").env("TERM", "xterm");
    script
        .envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .stdin(std::process::Stdio::null());
    script.output().expect("script(1)").into()
}

#[track_caller]
fn is_shown(what: &str, done: &Done) {
    assert!(!done.out.contains("\x1b]"), "{what}: {:?}", done.out);
    assert!(done.out.contains(SHOWN) || done.out.contains(QUOTED), "{what}: {:?}", done.out);
}

#[test]
fn an_image_or_a_file_name_commands_the_terminal() {
    let lab = Lab::new();
    let path = |name: &str| lab.path().join(name).to_str().unwrap().to_owned();
    // An internal snapshot whose tag its author has chosen.
    let image = path("image.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", &image, "16M"]);
    qemu_img(&["snapshot", "-c", ATTACK, &image]);
    is_shown("image info", &on_terminal(&lab, &["image", "info", &image]));
    lab.ok(&["create", "a", "--disk", &image, "--net", "none"]);
    // A file that the user did not name, in a directory that somebody else has filled.
    let named = path(&format!("{ATTACK}.qcow2"));
    let missing = on_terminal(&lab, &["image", "info", &named]);
    is_shown("a file that is not there", &missing);
    assert_ne!(missing.code, 0);
    qemu_img(&["create", "-q", "-f", "qcow2", &named, "16M"]);
    is_shown("image info", &on_terminal(&lab, &["image", "info", &named]));
    lab.ok(&["create", "b", "--disk", &format!("{named},use"), "--net", "none"]);
    for words in
        [&["disk", "chain", "b"][..], &["disk", "ls", "b"], &["show", "b"], &["ls"], &["doctor"]]
    {
        let done = on_terminal(&lab, words);
        assert!(!done.out.contains("\x1b]"), "{words:?}: {:?}", done.out);
    }
    // A backing file that the image names.
    let naming = path("naming.qcow2");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", ATTACK, &naming, "16M"]);
    let refused = on_terminal(&lab, &["create", "c", "--disk", &naming]);
    is_shown("a backing file", &refused);
    assert_ne!(refused.code, 0);
    assert_eq!(lab.vm_directories(), ["a", "b"]);
}

#[test]
fn a_guest_commands_the_terminal_through_its_log_its_answers_and_its_errors() {
    let lab = Lab::new();
    lab.booted("a");
    lab.ok(&["exec", "a", "--", "true"]);
    let print = r"printf 'before\033]0;owned\007after\n'";
    // A program on a terminal is meant to reach it: it is the user who runs it.
    let program = on_terminal(&lab, &["exec", "a", "--", "sh", "-c", print]);
    assert!(program.out.contains(&format!("before{ATTACK}after")), "{:?}", program.out);
    lab.sh("a", &format!("{print} >/dev/ttyS0"));
    eventually("the line in the log", || lab.ok(&["logs", "a"]).contains("after"));
    let log = on_terminal(&lab, &["logs", "a"]);
    is_shown("logs", &log);
    let raw = on_terminal(&lab, &["logs", "--raw", "a"]);
    assert!(raw.out.contains(&format!("before{ATTACK}after")), "{:?}", raw.out);
    // In a pipe the bytes are the guest's.
    assert!(lab.ok(&["logs", "a"]).contains(&format!("before{ATTACK}after")));
    // From here on a fake answers.
    let _fake = with_ports_of(&lab, "a", |request, conversation| {
        let message = format!("no {ATTACK} here\nerror: the host is gone");
        match request["request"].as_str() {
            Some("get" | "exec") => {
                conversation.reply(&json!({"reply": "failed", "why": "other", "message": message}))
            }
            _ => Ok(()),
        }
    });
    let out = lab.path().join("out");
    for words in [&["cp", "a:/x", out.to_str().unwrap()][..], &["exec", "a", "--", "true"]] {
        let done = on_terminal(&lab, words);
        is_shown(&words.join(" "), &done);
        assert!(done.code != 0 && !done.out.contains("\nerror: the host"), "{done:?}");
    }
}

/// Whoever pastes what a hint says into a shell runs one command, on that file, whatever its name
/// is.
#[test]
fn a_second_command_through_the_name_of_a_file_in_a_hint() {
    let lab = Lab::new();
    let victim = lab.path().join("victim");
    for name in [
        "a; rm victim; b", "a\nrm victim\nb", "$(rm victim)", "a' ; rm victim ; 'b",
        "a\u{202e}`rm victim`\n\\",
    ] {
        let file = lab.path().join(format!("{name}.raw"));
        std::fs::write(&file, "x").unwrap();
        std::fs::write(&victim, "precious").unwrap();
        let said = lab.run(&["create", "c", "--disk", file.to_str().unwrap()]);
        said.clone().fails(5, &["fill it up first: "]);
        let (_, hint) = said.err.split_once("fill it up first: ").unwrap();
        let pasted = Command::new("bash")
            .args(["-c", hint.trim_end()])
            .current_dir(lab.path())
            .output()
            .unwrap();
        assert!(pasted.status.success(), "{hint}: {pasted:?}");
        assert_eq!(file.metadata().unwrap().len(), 512, "{hint}");
        assert!(victim.exists(), "{hint}");
        // The other hints, which depend on the header.
        let image = lab.path().join(format!("{name}.img"));
        qemu_img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "1M"]);
        let said = lab.run(&["create", "c", "--disk", image.to_str().unwrap()]);
        said.clone().fails(5, &[",format=qcow2"]);
        let (_, hint) = said.err.rsplit_once("hint: if it was made as qcow2: ").unwrap();
        let echo = format!("printf %s {}", hint.trim_end());
        let pasted =
            Command::new("bash").args(["-c", &echo]).current_dir(lab.path()).output().unwrap();
        assert_eq!(
            String::from_utf8(pasted.stdout).unwrap(),
            format!("--disk{},format=qcow2", image.display())
        );
        assert!(victim.exists(), "{hint}");
    }
}
