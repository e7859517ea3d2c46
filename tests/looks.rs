//! How help, errors and lists look.

use crate::fake::run;

fn store() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("cwl").tempdir_in("/tmp").unwrap()
}

#[test]
fn the_help_names_every_verb() {
    let root = store();
    let (code, help, _) = run(root.path(), &["--help"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!(help);
}

#[test]
fn an_error_says_what_why_and_what_to_type_in_words_and_in_json() {
    let root = store();
    let vms = |args: &[&str]| run(root.path(), args);
    assert_eq!(vms(&["create", "base", "--size", "64M"]).0, 0);
    assert_eq!(vms(&["template", "create", "base", "--no-seal"]).0, 0);
    assert_eq!(vms(&["clone", "base", "t", "-n", "2"]).0, 0);
    let (code, out, words) = vms(&["template", "rm", "base"]);
    assert_eq!((code, out.as_str()), (5, ""));
    insta::assert_snapshot!("error_in_words", words);
    let (code, out, json) = vms(&["--format", "json", "template", "rm", "base"]);
    assert_eq!((code, out.as_str()), (5, ""));
    insta::assert_snapshot!("error_in_json", json);
}

#[test]
fn a_list_of_no_store_at_all_says_so_beside_it() {
    let root = store();
    let list = |args: &[&str]| run(root.path(), args);
    let (code, _, words) = list(&["ls"]);
    assert_eq!(code, 0);
    assert!(words.contains("there is no store at"), "{words}");
    assert_eq!(list(&["-q", "ls"]), (0, String::new(), String::new()));
    assert!(!root.path().join("store").exists());
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut version = std::process::Command::new(env!("CARGO_BIN_EXE_cowhand"));
    let done = version.arg("version").stdout(full).output().unwrap();
    let words = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.code() == Some(1) && words.contains("No space left on device"), "{words}");
}

#[test]
fn lists_are_tables_without_colour_in_a_pipe_and_names_alone_when_quiet() {
    let root = store();
    let vms = |args: &[&str]| run(root.path(), args);
    vms(&["create", "base", "--size", "20G", "--memory", "2G"]);
    vms(&["template", "create", "base", "--no-seal"]);
    vms(&["clone", "base", "web"]);
    vms(&["snapshot", "create", "web", "one"]);
    let (_, table, _) = vms(&["ls", "-a"]);
    // What a file takes on the disk is the file system's business: attributes have room in its
    // inode, or take a block.
    let without_own = |line: &str| match line.split_once(" KiB / ") {
        Some((before, after)) => {
            format!("{}NN KiB / {after}", before.trim_end_matches(|c: char| c.is_ascii_digit()))
        }
        None => line.to_owned(),
    };
    insta::assert_snapshot!("ls", table.lines().map(without_own).collect::<Vec<_>>().join("\n"));
    assert_eq!(vms(&["ls", "-q"]).1, "web\n");
    let (_, colourful, _) = vms(&["--color", "always", "template", "rm", "base"]);
    assert_eq!(colourful, "");
    assert!(vms(&["--color", "always", "rm", "base"]).2.contains("\u{1b}["));
    assert!(!vms(&["rm", "base"]).2.contains('\u{1b}'));
    assert!(vms(&["snapshot", "tree", "web"]).1.contains("● you are here"));
}

#[test]
fn every_json_list_has_the_keys_of_the_contract() {
    let root = store();
    let json = |args: &[&str]| -> serde_json::Value {
        let (code, out, err) = run(root.path(), &[&["--format", "json"], args].concat());
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).unwrap()
    };
    json(&["create", "base", "--size", "64M"]);
    json(&["template", "create", "base", "--no-seal"]);
    json(&["clone", "base", "web"]);
    json(&["snapshot", "create", "web", "one"]);
    let has = |value: &serde_json::Value, keys: &str| {
        for key in keys.split_whitespace() {
            assert!(value.get(key).is_some(), "{key} is not in {value}");
        }
    };
    has(
        &json(&["ls"])[0],
        "name state memory_bytes cpus template from snapshots disk_bytes expires",
    );
    let show = json(&["show", "web"]);
    has(&show, "name state uuid machine accel memory_bytes cpus from disks nics head pid");
    has(&show["disks"][0], "target format virtual_bytes allocated_bytes chain");
    has(&show["nics"][0], "mac mode ports");
    let chain = json(&["disk", "chain", "web"]);
    has(&chain[0], "target layers");
    has(&chain[0]["layers"][0], "id file format virtual_bytes allocated_bytes snapshots shared_by");
    has(&json(&["disk", "ls", "web"])[0], "target bus format file virtual_bytes allocated_bytes");
    has(
        &json(&["snapshot", "ls", "web"])[0],
        "name parent kind memory vm_state created current description quiesced bytes children",
    );
    has(&json(&["snapshot", "create", "web", "two"]), "name pause_ms freeze_ms total_ms");
    has(&json(&["clone", "base", "again"])[0], "name kind ms reason");
    has(&json(&["template", "ls"])[0], "name sealed warm dependents bytes");
    assert!(json(&["plan", "web"]).as_array().unwrap().len() > 20);
}
