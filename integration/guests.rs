//! The inside of a guest: commands with everything a terminal has, files and trees, through the
//! helper.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Done, Lab, PATIENCE, eventually};

#[test]
fn a_command_in_a_guest_is_as_if_it_ran_here() {
    let lab = Lab::new();
    lab.booted("a");
    let exec = |args: &[&str]| lab.run(&[&["exec"], args].concat());
    // Exit codes.
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143)] {
        assert_eq!(exec(&["a", "--", "sh", "-c", script]).code, code, "{script}");
    }
    exec(&["a", "--", "no-such-program"]).fails(127, &["no-such-program: not found in the guest"]);
    exec(&["a", "--", "/etc/passwd"]).fails(126, &["not executable in the guest"]);
    exec(&["--timeout", "1", "a", "--", "sleep", "1000"])
        .fails(124, &["did not end within 1 s and was ended"]);
    assert_eq!(
        exec(&["a", "--", "sh", "-c", "ps | grep -c '[s]leep 1000'"]).out.trim(),
        "0",
        "it goes on"
    );
    // Where, who, with what.
    let told = exec(&[
        "-w", "/tmp", "-u", "1000", "-e", "X=1 2", "a", "--", "sh", "-c",
        "pwd; id -u; echo $X; echo $HOME",
    ])
    .ok();
    assert_eq!(told, "/tmp\n1000\n1 2\n/\n");
    exec(&["-w", "/nowhere", "a", "--", "pwd"])
        .fails(125, &["the guest has no directory /nowhere"]);
    exec(&["-u", "nobody-such", "a", "--", "id"])
        .fails(125, &["the guest has no user nobody-such"]);
    exec(&["-e", "NOT_SET_HERE", "a", "--", "env"])
        .fails(125, &["there is no variable \"NOT_SET_HERE\" here"]);
    // Both streams, whole, more than the agent's 16 MiB.
    let done = exec(&[
        "a",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; head -c 20000000 /dev/zero | tr '\\0' x",
    ]);
    assert_eq!((done.out.len(), done.err.as_str()), (20_000_004, "err\n"));
    // Input: whole, and its end.
    let mut child = lab
        .command(&["exec", "-i", "a", "--", "md5sum"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let told = Done::from(child.wait_with_output().unwrap()).ok();
    let mut here =
        Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    here.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert_eq!(told.as_bytes(), here.wait_with_output().unwrap().stdout);
    // A signal passes input that nobody reads.
    let mut child = lab.command(&[
        "exec",
        "-i",
        "a",
        "--",
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo up; sleep 900 & wait",
    ]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || while stdin.write_all(&[0; 4096]).is_ok() {});
    let mut up = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
    crate::lab::terminate(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(9));
    // Output as it is written, not at the end.
    let began = Instant::now();
    let mut child = lab
        .command(&["exec", "a", "--", "sh", "-c", "echo first; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert!(began.elapsed() < PATIENCE);
    // Whoever hangs up hangs up the command.
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the command ends", || {
        exec(&["a", "--", "sh", "-c", "ps | grep -c '[s]leep 1000'"]).out.trim() == "0"
    });
    // Many at once, more than there are ports.
    let children: Vec<_> = (0..8)
        .map(|n| lab.spawn(&["exec", "a", "--", "sh", "-c", &format!("sleep 1; echo {n}")]))
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let done = Done::from(child.wait_with_output().unwrap());
        assert_eq!(done.ok().trim(), n.to_string());
    }
    // JSON.
    let told =
        lab.run(&["--format", "json", "exec", "a", "--", "sh", "-c", "echo o; echo e >&2; exit 4"]);
    let value: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(
        (told.code, &value["stdout"], &value["stderr"], &value["exit_code"]),
        (4, &"o\n".into(), &"e\n".into(), &4.into())
    );
    lab.ok(&["stop", "--force", "a"]);
}

#[test]
fn a_terminal_in_a_guest_has_a_size_and_a_line_discipline() {
    let lab = Lab::new();
    lab.booted("a");
    lab.run(&["exec", "-it", "a", "--", "tty"]).fails(125, &["standard input is not one"]);
    // script(1) gives it a terminal.
    let program = lab.command(&[
        "exec",
        "-it",
        "a",
        "--",
        "sh",
        "-c",
        "tty; stty size; read line; echo got $line; sleep 1000",
    ]);
    let words: Vec<String> = [program.get_program()]
        .into_iter()
        .chain(program.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let mut script = Command::new("script");
    script.args(["-qefc", &format!("stty rows 33 cols 77; {}", words.join(" ")), "/dev/null"]);
    script.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = std::io::Read::read(&mut output, &mut buffer) {
            send.send(String::from_utf8_lossy(&buffer[..read]).into_owned()).unwrap();
        }
    });
    let mut text = String::new();
    let mut wait = |words: &str| {
        let deadline = Instant::now() + PATIENCE;
        while !text.contains(words) {
            assert!(Instant::now() < deadline, "{words:?} is not in {text:?}");
            if let Ok(more) = receive.recv_timeout(Duration::from_millis(100)) {
                text.push_str(&more);
            }
        }
    };
    wait("/dev/pts/0");
    wait("33 77");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\r").unwrap();
    wait("got hello");
    // Ctrl-C is for the command.
    stdin.write_all(&[3]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    lab.ok(&["stop", "--force", "a"]);
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn trees_go_both_ways_whole() {
        let lab = Lab::new();
        lab.booted("a");
        let (tree, back) = (lab.path().join("tree"), lab.path().join("back"));
        std::fs::create_dir_all(tree.join("deep/er")).unwrap();
        for n in 0..50 {
            std::fs::write(tree.join(format!("deep/{n}")), vec![n; 3000 * usize::from(n)]).unwrap();
        }
        std::fs::write(tree.join("deep/er/run me"), "#!/bin/sh\necho ran\n").unwrap();
        std::fs::set_permissions(tree.join("deep/er/run me"), PermissionsExt::from_mode(0o755))
            .unwrap();
        symlink("er/run me", tree.join("deep/link")).unwrap();
        std::fs::File::create(tree.join("hole")).unwrap().set_len(3 << 30).unwrap();
        let (tree, back) = (tree.to_str().unwrap(), back.to_str().unwrap());
        // 3 GiB of hole into a guest with 192 MiB of everything.
        lab.ok(&["cp", tree, "a:/tmp/"]);
        assert_eq!(
            lab.sh(
                "a",
                "'/tmp/tree/deep/link'; stat -c '%s %a' '/tmp/tree/hole' '/tmp/tree/deep/er/run \
                 me' | tr '\\n' ' '"
            ),
            "ran\n3221225472 644 19 755 "
        );
        lab.ok(&["cp", "a:/tmp/tree", back]);
        let same =
            Command::new("diff").args(["-r", "--no-dereference", tree, back]).output().unwrap();
        assert!(same.status.success(), "{}", Done::from(same).out);
        // Into a directory that is there; over a file that is there.
        let inside = lab.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        lab.ok(&["cp", "a:/tmp/tree/deep/7", inside.to_str().unwrap()]);
        lab.ok(&["cp", "a:/tmp/tree/deep/7", inside.to_str().unwrap()]);
        assert_eq!(std::fs::read(inside.join("7")).unwrap(), vec![7; 21_000]);
        // What cannot be, and leaves nothing.
        lab.run(&["cp", "a:/nowhere", back]).fails(3, &["in the guest", "/nowhere"]);
        lab.run(&["cp", "/nowhere", "a:/tmp/"]).fails(3, &["/nowhere"]);
        lab.run(&["cp", tree, "a:/nowhere/x"]).fails(3, &["in the guest", "/nowhere"]);
        // No room in the guest: an error, and no half of a file.
        let large = lab.path().join("large");
        std::fs::write(&large, vec![1; 400 << 20]).unwrap();
        lab.run(&["cp", large.to_str().unwrap(), "a:/tmp/"]).fails(1, &["in the guest"]);
        assert_eq!(lab.sh("a", "ls -A /tmp"), "tree\n");
        lab.ok(&["stop", "--force", "a"]);
    }
}
