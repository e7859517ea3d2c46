//! The README is true: every command shown in it is run here, in order, on the tiny guest.

use crate::lab::{Lab, guest};

#[test]
fn every_command_of_the_readme_works() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let lab = Lab::new();
    let tiny = guest("tiny");
    let mut commands = 0;
    for line in readme.lines().filter_map(|line| line.strip_prefix("$ cowhand ")) {
        // The README's image is any bootable one; ours needs a kernel beside it and fits into less memory.
        let words = shell_words(line.split(" #").next().unwrap());
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        let disk = tiny.disk();
        if let Some(at) = args.iter().position(|word| *word == "debian.qcow2") {
            args[at] = &disk;
            args.extend(["--kernel", &tiny.kernel, "--initrd", &tiny.initrd, "--append", &tiny.cmdline]);
        }
        let done = lab.run(&args);
        let expected = readme_exit(&readme, line);
        assert_eq!(done.code, expected, "cowhand {line}\n{}{}", done.out, done.err);
        commands += 1;
    }
    assert!(commands >= 15, "only {commands} commands were found in the README");
}

/// A command whose output in the README is an error is expected to fail as such.
fn readme_exit(readme: &str, line: &str) -> i32 {
    let after = readme.split(&format!("$ cowhand {line}\n")).nth(1).unwrap_or_default();
    if after.starts_with("error:") { 5 } else { 0 }
}

/// Words as a shell would split them, as far as the README needs it.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (String::new(), None);
    for c in line.trim().chars().chain([' ']) {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) if !word.is_empty() => words.push(std::mem::take(&mut word)),
            (' ', None) => {}
            (c, _) => word.push(c),
        }
    }
    words
}

#[test]
fn the_binary_needs_no_library_of_the_host() {
    let output = std::process::Command::new("file").args(["-b", env!("CARGO_BIN_EXE_cowhand")]).output().unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains("statically linked"), "{words}");
}
