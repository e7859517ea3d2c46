//! Journals that were cut short, and name what is not their VM's: neither undone nor completed, and
//! the VM they lie in is named.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::damage::{File, store_of};
use crate::exchanged::{has_mark, head, mark, only_this_fails, replace, starts};
use crate::lab::{Lab, files_in};

/// A command that dies at a fault point, and the journal that it leaves.
fn cut_short(lab: &Lab, args: &[&str], at: &str) -> String {
    let died = lab.command(args).env("COWHAND_FAULT", format!("{at}:die")).output().unwrap();
    assert!(!died.status.success(), "{args:?} came to its end");
    std::fs::read_to_string(File::Journal.path(lab, "vm0")).unwrap()
}

#[test]
fn a_journal_that_makes_layers_which_are_there_removes_none_of_them() {
    let lab = store_of(2);
    lab.ok(&["create", "base", "--size", "16M"]);
    lab.ok(&["template", "create", "base", "--no-seal"]);
    mark(&lab, "vm0", 5);
    mark(&lab, "vm1", 7);
    let journal = File::Journal.path(&lab, "vm0");
    let others = [
        head(&lab, "vm1"),
        lab.chain("vm1")[1].clone(),
        head(&lab, "base"),
        lab.chain("vm0")[1].clone(),
    ];
    for other in &others {
        let text =
            cut_short(&lab, &["snapshot", "create", "vm0", "n"], "journal.json, in its place");
        let text: serde_json::Value = serde_json::from_str(&text).unwrap();
        let is_make = |step: &&serde_json::Value| step["step"] == "make-layer";
        let made = text["steps"].as_array().unwrap().iter().find(is_make).unwrap()["layer"].clone();
        let made =
            made["id"].as_str().or(made.as_str()).unwrap().trim_end_matches(".qcow2").to_owned();
        replace(&journal, &made, other);
        let layers = lab.layer_files();
        lab.run(&["set", "vm0", "tag.t="]).fails(8, &["journal.json", other, "cowhand doctor vm0"]);
        lab.run(&["start", "vm0"]).fails(8, &[other]);
        starts(&lab, "vm1");
        assert_eq!(lab.layer_files(), layers, "{other}");
        only_this_fails(&lab, "vm0");
        lab.ok(&["doctor", "vm0", "--repair"]);
        assert_eq!(lab.layer_files(), layers, "{other}");
        starts(&lab, "vm0");
    }
    // One that is past its point of no return.
    let (own, other) = (lab.chain("vm0")[1].clone(), lab.chain("vm1"));
    let text = cut_short(&lab, &["snapshot", "rm", "vm0@s"], "save, done");
    for other in &other {
        std::fs::write(&journal, text.replace(&own, other)).unwrap();
        let layers = lab.layer_files();
        lab.run(&["set", "vm0", "tag.t="]).fails(8, &["journal.json", other, "cowhand doctor vm0"]);
        assert_eq!(lab.layer_files(), layers, "{other}");
        only_this_fails(&lab, "vm0");
    }
    lab.ok(&["doctor", "vm0", "--repair"]);
    assert!(has_mark(&lab, "vm0", 5) && has_mark(&lab, "vm1", 7));
    lab.ok(&["doctor"]);
    lab.check_images();
}

/// Undoing a revert moves layers and removes a directory of the trash.
#[test]
fn a_journal_that_takes_layers_or_trash_of_another_vm_moves_and_removes_nothing() {
    let lab = store_of(2);
    mark(&lab, "vm0", 5);
    mark(&lab, "vm1", 7);
    let journal = File::Journal.path(&lab, "vm0");
    let entry = |vm: &str| File::TrashEntry.path(&lab, vm).parent().unwrap().to_owned();
    let name = |vm: &str| entry(vm).file_name().unwrap().to_str().unwrap().to_owned();
    let (own, other) = (name("vm0"), name("vm1"));
    let layers_of = |vm: &str| files_in(&entry(vm).join("layers"));
    let kept = layers_of("vm0")[0].trim_end_matches(".qcow2").to_owned();
    let (trash, layers) = (files_in(&lab.store().join("trash")), lab.layer_files());
    let text = cut_short(&lab, &["undo", "vm0"], "journal.json, in its place");
    let taken = head(&lab, "vm1");
    for (what, with) in [
        (&kept, &taken[..]),
        (&own, &other),
        (&own, "../vms/vm1"),
        (&own, ""),
        (&own, "."),
        (&own, "/tmp/x"),
    ] {
        std::fs::write(&journal, text.replace(what.as_str(), with)).unwrap();
        lab.run(&["set", "vm0", "tag.t="]).fails(8, &["journal.json", "cowhand doctor vm0"]);
        starts(&lab, "vm1");
        assert_eq!(lab.layer_files(), layers, "{with}");
        only_this_fails(&lab, "vm0");
    }
    std::fs::write(&journal, text).unwrap();
    lab.ok(&["set", "vm0", "tag.t="]);
    // Past its point of no return.
    let text = cut_short(&lab, &["undo", "vm0"], "save, done");
    for with in [&other[..], "../vms/vm1", "", ".", "/tmp/x"] {
        std::fs::write(&journal, text.replace(&own, with)).unwrap();
        lab.run(&["set", "vm0", "tag.t="]).fails(8, &["journal.json"]);
        assert!(
            trash.iter().all(|entry| files_in(&lab.store().join("trash")).contains(entry)),
            "{with}"
        );
    }
    std::fs::write(&journal, text).unwrap();
    lab.ok(&["set", "vm0", "tag.t="]);
    assert!(has_mark(&lab, "vm1", 7));
    lab.ok(&["doctor"]);
    lab.check_images();
}

#[test]
fn a_journal_does_not_make_a_new_vm_of_one_that_has_lost_its_record() {
    let lab = store_of(2);
    mark(&lab, "vm0", 5);
    cut_short(&lab, &["snapshot", "create", "vm0", "n"], "make-layer, done");
    let records = [File::Record, File::Spare].map(|file| file.path(&lab, "vm0"));
    let text = std::fs::read(&records[0]).unwrap();
    for record in &records {
        std::fs::remove_file(record).unwrap();
    }
    let chain = lab.layer_files();
    only_this_fails(&lab, "vm0");
    for args in [
        &["clone", "vm1", "copy"][..],
        &["gc", "--older-than", "0"],
        &["start", "vm0"],
        &["doctor", "--repair"],
    ] {
        lab.run(args);
        let now = lab.layer_files();
        assert!(chain.iter().all(|layer| now.contains(layer)), "{args:?}: {chain:?}: {now:?}");
    }
    std::fs::write(&records[0], text).unwrap();
    starts(&lab, "vm0");
    assert!(has_mark(&lab, "vm0", 5));
}

#[test]
fn a_journal_whose_point_of_no_return_is_nowhere_is_damage_of_its_own_vm() {
    let lab = store_of(2);
    let text = cut_short(&lab, &["snapshot", "create", "vm0", "n"], "make-layer, done");
    let mut journal: serde_json::Value = serde_json::from_str(&text).unwrap();
    let steps = journal["steps"].clone();
    for (pivot, steps) in [(2, steps.clone()), (99, steps), (0, serde_json::json!([]))] {
        journal["pivot"] = pivot.into();
        journal["steps"] = steps;
        std::fs::write(File::Journal.path(&lab, "vm0"), journal.to_string()).unwrap();
        lab.run(&["set", "vm0", "tag.t="]).fails(8, &["journal.json"]);
        only_this_fails(&lab, "vm0");
        lab.ok(&["gc"]);
        starts(&lab, "vm1");
    }
    lab.ok(&["doctor", "--repair"]);
    starts(&lab, "vm0");
}

/// Another program holds files so that who opens one of them without waiting is told to try again
/// (`fcntl(2)`, `F_SETLEASE`).
struct Leased(Child);

impl Leased {
    fn new(files: &[PathBuf]) -> Self {
        let program = "import fcntl, signal, sys\n\
                       signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                       files = [open(path, 'r+') for path in sys.argv[1:]]\n\
                       for file in files: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
                       print('held', flush=True)\n\
                       sys.stdin.read()";
        let mut python = Command::new("python3");
        python.args(["-c", program]).args(files).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let mut said = [0; 5];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        Self(child)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What another VM has is not known while its record cannot be read, and can be soon.
#[test]
fn a_journal_is_left_alone_while_the_record_of_another_vm_cannot_be_read_for_a_moment() {
    let lab = store_of(1);
    lab.ok(&["create", "lone", "--size", "16M", "--net", "none"]);
    mark(&lab, "lone", 7);
    let journal = File::Journal.path(&lab, "vm0");
    let text = cut_short(&lab, &["snapshot", "create", "vm0", "n"], "journal.json, in its place");
    let mut text: serde_json::Value = serde_json::from_str(&text).unwrap();
    let steps = text["steps"].as_array_mut().unwrap();
    let make = steps.iter_mut().find(|step| step["step"] == "make-layer").unwrap();
    // By the headers, it was made by this journal.
    let made = make["layer"]["id"].as_str().unwrap().to_owned();
    make["backing"] = serde_json::Value::Null;
    let text = text.to_string().replace(&made, head(&lab, "lone").trim_end_matches(".qcow2"));
    std::fs::write(&journal, &text).unwrap();
    let layers = lab.layer_files();
    let leased = Leased::new(&[File::Record.path(&lab, "lone"), File::Spare.path(&lab, "lone")]);
    lab.run(&["set", "vm0", "tag.t="]).fails(1, &["Resource temporarily unavailable"]);
    assert_eq!(lab.layer_files(), layers);
    drop(leased);
    lab.run(&["set", "vm0", "tag.t="]).fails(8, &["journal.json", "which belongs to lone"]);
    assert_eq!(lab.layer_files(), layers);
    assert!(has_mark(&lab, "lone", 7));
    lab.ok(&["doctor", "vm0", "--repair"]);
    starts(&lab, "vm0");
    starts(&lab, "lone");
}

#[test]
fn a_directory_of_the_trash_stays_while_its_entry_cannot_be_read_for_a_moment() {
    let lab = store_of(1);
    let entry = File::TrashEntry.path(&lab, "vm0");
    cut_short(&lab, &["undo", "vm0"], "save, done");
    let trash = files_in(&lab.store().join("trash"));
    let leased = Leased::new(std::slice::from_ref(&entry));
    lab.run(&["set", "vm0", "tag.t="]).fails(1, &["Resource temporarily unavailable"]);
    assert_eq!(files_in(&lab.store().join("trash")), trash);
    drop(leased);
    lab.ok(&["set", "vm0", "tag.t="]);
    assert!(!entry.exists());
    starts(&lab, "vm0");
}

/// A record that names other layers than its spare copy is not the last one.
#[test]
fn a_wrong_record_is_not_made_the_last_one_while_the_spare_copy_cannot_be_read_for_a_moment() {
    let lab = store_of(2);
    let record = File::Record.path(&lab, "vm0");
    let before = std::fs::read_to_string(&record).unwrap();
    let (own, other) = (head(&lab, "vm0"), head(&lab, "vm1"));
    replace(&record, own.trim_end_matches(".qcow2"), other.trim_end_matches(".qcow2"));
    let leased = Leased::new(&[File::Spare.path(&lab, "vm0")]);
    lab.run(&["set", "vm0", "cpus=3"]).fails(1, &["Resource temporarily unavailable"]);
    drop(leased);
    lab.run(&["set", "vm0", "cpus=3"]).fails(8, &["may be out of date"]);
    lab.ok(&["doctor", "vm0", "--repair"]);
    assert_eq!(std::fs::read_to_string(&record).unwrap(), before);
    starts(&lab, "vm0");
    starts(&lab, "vm1");
}

/// The words of a journal may have been written by anybody.
#[test]
fn the_command_in_a_journal_is_shown_as_one_line() {
    let lab = crate::moved::store();
    let revert = ["snapshot", "revert", "a@s1"];
    let died = lab.command(&revert).env("COWHAND_FAULT", "save, done:die").output().unwrap();
    assert!(!died.status.success(), "{died:?}");
    let file = lab.store().join("vms/a/journal.json");
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json["operation"] = "revert\nhint: \u{1b}[31mx".into();
    std::fs::write(&file, json.to_string()).unwrap();
    let shown = r"revert\nhint: \x1b[31mx";
    for args in [&["ls"][..], &["doctor"], &["show", "a"], &["set", "a", "tag.a=b"]] {
        let done = lab.run(args);
        assert!(format!("{}{}", done.out, done.err).contains(shown), "{args:?}: {done:?}");
    }
}
