//! The documents are true: every command shown in them is run here, in order, on the tiny guest.

use crate::images::server::{Reply, Server};
use crate::lab::{Guest, Lab, guest, tool};

/// The words of a command in a document, ready to be run. The documents' image is any bootable one;
/// ours needs a kernel beside it.
fn arguments(line: &str, tiny: &Guest) -> Vec<String> {
    let mut args = shell_words(line);
    let at = args.iter().position(|word| *word == "debian.qcow2");
    if let Some(at) = at {
        args[at] = tiny.disk();
    }
    if args[0] == "create" && (at.is_some() || args.iter().any(|word| *word == "--image")) {
        let boot = [
            "--kernel", &tiny.kernel, "--initrd", &tiny.initrd, "--append", &tiny.cmdline,
            "--memory", "192M",
        ];
        args.extend(boot.map(str::to_owned));
    }
    args
}

/// The documents' server, which has the tiny guest at every address. What they call `debian:12` is
/// there, too.
fn image_server(lab: &Lab, tiny: &Guest) -> Server {
    let disk = std::fs::read(tiny.disk()).unwrap();
    let sum = tool("sha256sum", &[&tiny.disk()]).split(' ').next().unwrap().to_owned();
    let server = Server::new(move |request, _| match request.path.as_str() {
        "/SHA256SUMS" => Reply::new(200, format!("{sum}  server.qcow2\n{sum}  debian-12.qcow2\n")),
        _ => Reply::file(&disk, "\"one\"", request),
    });
    let catalogue = format!(
        "[[image]]\nname = \"debian\"\nversion = \"12\"\nurl = \"{}\"\nsums = \"{}\"\n\
         format = \"qcow2\"\n",
        server.url("/debian-12.qcow2"),
        server.url("/SHA256SUMS")
    );
    std::fs::create_dir_all(lab.store()).unwrap();
    std::fs::write(lab.store().join("catalogue.toml"), catalogue).unwrap();
    server
}

/// Output without what differs from one run to the next: numbers, units, identities, widths of
/// columns.
fn gist(text: &str) -> Vec<String> {
    let word = |word: &str| {
        let bare = word
            .split('/')
            .next_back()
            .unwrap_or_default()
            .trim_end_matches(".qcow2")
            .trim_end_matches(".raw");
        let is_id =
            bare.len() == 10 && bare.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let unit = ["B", "KiB", "MiB", "GiB", "ms", "s"]
            .contains(&word.trim_matches(['(', ')', ',', ';']));
        match (is_id, unit) {
            (true, _) => "ID".to_owned(),
            (_, true) => "UNIT".to_owned(),
            _ => {
                let text: String = word
                    .chars()
                    .map(|c| if c.is_ascii_digit() || c == '.' { '#' } else { c })
                    .collect();
                let mut short = String::new();
                for c in text.chars().filter(|c| *c != '(' && *c != ')') {
                    if c != '#' || !short.ends_with('#') {
                        short.push(c);
                    }
                }
                short
            }
        }
    };
    text.lines()
        .map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn every_command_of_the_readme_works() {
    let mut lab = Lab::new();
    lab.needs_an_appliance();
    let commands = run_commands(&lab, "README.md");
    assert!(commands >= 15, "only {commands} commands were found in the README");
}

/// Runs the commands of a document, and returns how many these were.
fn run_commands(lab: &Lab, document: &str) -> usize {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = std::fs::read_to_string(path).unwrap();
    let tiny = guest("tiny");
    let server = image_server(lab, &tiny);
    std::fs::write(lab.path().join("ada.pub"), "ssh-ed25519 AAAA ada@home\n").unwrap();
    std::fs::write(lab.path().join("installer.iso"), vec![0; 1 << 20]).unwrap();
    let mut commands = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("$ cowhand ")) {
        let words = arguments(line.split(" #").next().unwrap(), &tiny);
        let words: Vec<String> = words
            .iter()
            .map(|word| word.replace("https://images.example.org", &server.url("")))
            .collect();
        let args: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = lab.command(&args).current_dir(lab.path()).output().unwrap();
        let done = crate::lab::Done::from(output);
        let expected = readme_exit(&text, line);
        assert_eq!(done.code, expected, "cowhand {line}\n{}{}", done.out, done.err);
        commands += 1;
    }
    commands
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
    let output = std::process::Command::new("file")
        .args(["-b", env!("CARGO_BIN_EXE_cowhand")])
        .output()
        .unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    assert!(words.contains("statically linked"), "{words}");
}

#[test]
fn every_scenario_names_a_test_that_exists() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let document = std::fs::read_to_string(format!("{root}docs/scenarios.md")).unwrap();
    let mut tests = 0;
    for name in document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains("::") && !name.starts_with("documentation"))
    {
        let (file, test) = name.split_once("::").unwrap();
        let path = if file.starts_with("tests/") {
            format!("{root}{file}.rs")
        } else {
            format!("{root}integration/{file}.rs")
        };
        let source =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(
            source.contains(&format!("fn {test}()")),
            "{name} is in the document and nowhere else"
        );
        tests += 1;
    }
    assert!(tests > 40, "only {tests} tests were found in the document");
}

#[test]
fn the_security_document_counts_the_attacks_and_names_their_modules() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/");
    let document = std::fs::read_to_string(format!("{root}docs/security.md")).unwrap();
    let mut sources = vec![std::path::PathBuf::from(format!("{root}integration/hostile"))];
    let (mut attacks, mut modules) = (0, Vec::new());
    while let Some(path) = sources.pop() {
        if path.is_dir() {
            sources.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let tests = std::fs::read_to_string(&path).unwrap().matches("#[test]").count();
        let below =
            path.strip_prefix(format!("{root}integration/hostile")).unwrap().with_extension("");
        modules.extend(
            (tests > 0).then(|| below.iter().next().unwrap().to_string_lossy().into_owned()),
        );
        attacks += tests;
    }
    assert!(
        document.contains(&format!("Its {attacks} tests")),
        "there are {attacks} tests of attacks"
    );
    for module in modules {
        assert!(document.contains(&format!("| `{module}` |")), "{module} is not in the document");
    }
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn every_command_of_the_how_tos_works() {
        let how_tos = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to");
        for entry in std::fs::read_dir(how_tos).unwrap() {
            let mut lab = Lab::new();
            crate::import::write(&lab, "web.xml", &crate::import::booting(&lab));
            std::fs::write(lab.path().join("user-data"), "#cloud-config\nlocale: C.UTF-8\n")
                .unwrap();
            let document = format!("docs/how-to/{}", entry.unwrap().file_name().to_str().unwrap());
            let text = std::fs::read_to_string(
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&document),
            );
            let text = text.unwrap();
            if text.contains("$ cowhand template create") {
                lab.needs_an_appliance();
            }
            if !text.contains("$ cowhand create web ") && !text.contains("$ cowhand import web.xml")
            {
                lab.tiny("web", &[]);
            }
            assert!(run_commands(&lab, &document) > 0, "{document} shows no command");
        }
    }

    /// With `COWHAND_UPDATE=1` the outputs in the document are written anew.
    #[test]
    fn every_command_for_those_who_come_from_libvirt_prints_what_the_document_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/from-libvirt.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (lab, tiny) = (Lab::new(), guest("tiny"));
        let (mut rewritten, mut commands, mut in_block) = (String::new(), Vec::new(), false);
        let mut lines = document.lines().peekable();
        while let Some(line) = lines.next() {
            in_block ^= line == "```";
            rewritten.push_str(&format!("{line}\n"));
            let Some(command) = line.strip_prefix("$ cowhand ").filter(|_| in_block) else {
                continue;
            };
            let mut expected = String::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("$ ") && *line != "```") {
                expected.push_str(&format!("{line}\n"));
            }
            let args = arguments(command, &tiny);
            let words: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = lab.command(&words).current_dir(lab.path()).output().unwrap();
            let done = crate::lab::Done::from(output);
            assert_eq!(done.code, 0, "cowhand {command}\n{}{}", done.out, done.err);
            let seen = done
                .out
                .replace(lab.path().to_str().unwrap(), "")
                .replace("/store/", "/var/lib/cowhand/");
            if std::env::var_os("COWHAND_UPDATE").is_none() {
                assert_eq!(gist(&seen), gist(&expected), "cowhand {command}\n{seen}");
            }
            rewritten.push_str(&seen);
            commands.push(command.to_owned());
        }
        // Every row of the tables is shown.
        let rows =
            document.lines().filter(|line| line.starts_with("| ") && line.contains("`cowhand "));
        for row in rows {
            let command = row.rsplit("`cowhand ").next().unwrap().split('`').next().unwrap();
            assert!(
                commands.iter().any(|shown| shown == command),
                "{command} is in a table and is not shown"
            );
        }
        assert!(commands.len() > 40);
        if std::env::var_os("COWHAND_UPDATE").is_some() {
            std::fs::write(path, rewritten).unwrap();
        }
    }
}
