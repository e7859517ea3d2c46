//! Stores that earlier releases have left, with commands that were cut short in them: this version
//! opens, recovers and uses them, and loses nothing. `scripts/old-store` makes them, and says what
//! is in them and what the lines of the facts mean.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::lab::{Lab, files_in, is_about_the_host, tool};
use crate::tier;

/// Longer than any release has been there: the trash stays.
const KEEP: [&str; 4] = ["gc", "--yes", "--older-than", "36500d"];
const EMPTY: [&str; 4] = ["gc", "--yes", "--older-than", "0"];

/// One VM: what `show` says of it, if it is there, and a line for each disk of each of its points.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct State {
    about: Option<Value>,
    disks: BTreeSet<String>,
}

/// What must be read, by VM and outcome.
type Facts = BTreeMap<String, BTreeMap<String, State>>;

/// The store of a release, unpacked.
struct Old {
    lab: Lab,
    release: String,
    facts: Facts,
    /// The VMs that something was done to which the facts tell of, with the outcome.
    outcomes: BTreeMap<String, &'static str>,
}

impl Old {
    fn unpack(archive: &Path) -> Self {
        let lab = Lab::new();
        let (from, to) = (archive.to_str().unwrap(), lab.path().to_str().unwrap());
        tool(
            "tar",
            &[
                "--extract", "--xz", "--xattrs", "--xattrs-include=user.*", "--file", from,
                "--directory", to,
            ],
        );
        let stem = from.strip_suffix(".tar.xz").unwrap();
        let release = Path::new(stem).file_name().unwrap().to_str().unwrap().to_owned();
        let facts = facts(&std::fs::read_to_string(format!("{stem}.facts")).unwrap());
        Self { lab, release, facts, outcomes: BTreeMap::new() }
    }

    /// The VMs of which there is such an outcome.
    fn with(&self, outcomes: &[&str]) -> Vec<String> {
        let has = |states: &BTreeMap<String, State>| {
            outcomes.iter().any(|outcome| states.contains_key(*outcome))
        };
        self.facts.iter().filter(|(_, states)| has(states)).map(|(vm, _)| vm.clone()).collect()
    }

    /// Those whose command was cut short.
    fn cut_short(&self) -> Vec<String> {
        self.with(&["before", "after"])
    }

    /// What must be read of a VM now, if it has been recovered.
    fn expected(&self, vm: &str) -> &State {
        let states = &self.facts[vm];
        let later = self.outcomes.get(vm).and_then(|outcome| states.get(*outcome));
        later
            .or_else(|| ["now", "before", "after"].iter().find_map(|outcome| states.get(*outcome)))
            .unwrap()
    }

    /// These VMs are what the facts say.
    fn check(&self, vms: &[String], when: &str) {
        of_each(vms, |vm| {
            let (expected, found) = (self.expected(vm), state(&self.lab, vm));
            let what = format!("{} {vm}, {when}", self.release);
            assert_eq!(found.disks, expected.disks, "{what}");
            assert_eq!(
                found.about.is_some(),
                expected.about.is_some(),
                "{what}: {:?}",
                found.about
            );
            let (Some(expected), Some(found)) = (&expected.about, &found.about) else { return };
            for (key, value) in expected.as_object().unwrap() {
                assert_eq!(&found[key], value, "{what}: {key}");
            }
        });
    }

    fn check_all(&self, when: &str) {
        self.check(&self.facts.keys().cloned().collect::<Vec<_>>(), when);
    }

    /// Nobody but these VMs has anything wrong with it.
    fn doctor(&self, except: &[String], when: &str) {
        let done = self.lab.run(&["--format", "json", "doctor"]);
        let found: Vec<Value> =
            serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        let has_failed = found.iter().any(|finding| finding["level"] == "fail");
        assert_eq!(done.code, i32::from(has_failed), "{}, {when}: {done:?}", self.release);
        let is_bad = |finding: &&Value| finding["level"] == "warn" || finding["level"] == "fail";
        // Whether this host's QEMU has the machine still is another question.
        let is_hosts = |finding: &Value| finding["check"] == "start" || is_about_the_host(finding);
        let is_expected = |finding: &Value| except.iter().any(|vm| finding["vm"] == vm.as_str());
        let bad: Vec<_> =
            found.iter().filter(is_bad).filter(|one| !is_hosts(one) && !is_expected(one)).collect();
        assert!(bad.is_empty(), "{}, {when}: {bad:?}", self.release);
        for vm in except {
            assert!(
                found.iter().any(|finding| finding["vm"] == vm.as_str()),
                "{}: nothing of {vm}",
                self.release
            );
        }
    }

    /// The store is opened and looked at, which changes nothing.
    fn open(&self) {
        let before = self.lab.fingerprint();
        let listed = self.lab.json(&["ls", "-a"]);
        for vm in self.with(&["now"]) {
            let listed = listed.as_array().unwrap().iter().find(|one| one["name"] == vm.as_str());
            let is_there = self.facts[&vm]["now"].about.is_some();
            assert_eq!(listed.is_some(), is_there, "{} {vm}", self.release);
            assert!(
                listed.is_none_or(|one| one["reason"].is_null()),
                "{} {listed:?}",
                self.release
            );
        }
        let with_journal =
            |vm: &String| self.lab.store().join("vms").join(vm).join("journal.json").exists();
        let journals: Vec<String> = self.cut_short().into_iter().filter(with_journal).collect();
        assert!(journals.len() >= 10, "{}: {journals:?}", self.release);
        self.doctor(&journals, "as it was left");
        assert!(self.lab.fingerprint() == before, "{}: looking changed something", self.release);
        if tier::first_or(false, true) {
            self.check(&self.with(&["now"]), "as it was left");
        }
    }

    /// All changes are undone that the facts tell of.
    fn undo(&mut self) {
        let undone = self.with(&["undone"]);
        for vm in &undone {
            self.lab.ok(&["undo", vm]);
            self.outcomes.insert(vm.clone(), "undone");
        }
        self.check(&undone, "after undoing");
    }

    /// VMs go on as any other, and are what they were afterwards: in the first tier every third.
    fn go_on(&self) {
        let is_there = |vm: &&String| self.expected(vm).about.is_some();
        let there: Vec<String> = self.facts.keys().filter(is_there).cloned().collect();
        let some: Vec<String> = there.into_iter().step_by(tier::first_or(3, 1)).collect();
        of_each(&some, |vm| self.use_one(vm));
    }

    fn use_one(&self, vm: &str) {
        let State { about, disks } = self.expected(vm);
        let is_template = about.as_ref().unwrap()["template"] == true;
        let commands = if is_template && self.lab.json(&["show", vm])["image"].is_object() {
            "create VM-copy --image VM; rm VM-copy"
        } else if is_template {
            "clone VM VM-copy; rm VM-copy"
        } else if disks.iter().any(|disk| disk.contains(" internal ")) {
            // They stay in a layer that nothing could be merged with.
            "snapshot create VM later --internal; snapshot revert VM@later; snapshot rm VM@later"
        } else {
            "snapshot create VM later; clone VM@later VM-copy; snapshot revert VM@later; rm \
             VM-copy; snapshot rm VM@later"
        };
        for command in commands.replace("VM", vm).split("; ") {
            let done = self.lab.run(&command.split(' ').collect::<Vec<_>>());
            assert_eq!(done.code, 0, "{} {command}: {done:?}", self.release);
        }
    }

    /// The trash is emptied, and all is well.
    fn clean_up(&mut self) {
        self.lab.ok(&["rm", "two"]);
        self.facts.get_mut("two").unwrap().insert("removed".to_owned(), State::default());
        self.outcomes.insert("two".to_owned(), "removed");
        self.outcomes.extend(self.with(&["collected"]).into_iter().map(|vm| (vm, "collected")));
        // What is nobody's goes into the trash, and with the trash at the next time.
        for _ in 0..3 {
            self.lab.ok(&EMPTY);
        }
        let left = self.lab.json(&[&EMPTY[..], &["--dry-run"]].concat());
        assert_eq!(left["removed"], serde_json::json!([]), "{}", self.release);
        assert_eq!(files_in(&self.lab.store().join("trash")), [""; 0], "{}", self.release);
        self.check_all("in the end");
        self.doctor(&[], "in the end");
        self.lab.ok(&["doctor", "--deep"]);
        self.lab.check_images();
    }

    /// No command is under way any more.
    fn is_recovered(&self) {
        for vm in self.lab.vm_directories() {
            let is_cut_short = self.lab.store().join("vms").join(&vm).join("journal.json").exists();
            assert!(!is_cut_short, "{}: the journal of {vm} is still there", self.release);
        }
    }
}

/// What the lines of a file say.
fn facts(text: &str) -> Facts {
    let mut facts = Facts::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let state =
            facts.entry(words[2].to_owned()).or_default().entry(words[1].to_owned()).or_default();
        match words[..] {
            ["none", ..] => {}
            ["about", _, _, about] => state.about = Some(serde_json::from_str(about).unwrap()),
            ["disk", _, _, disk] => assert!(state.disks.insert(disk.to_owned()), "{line}"),
            _ => panic!("{line}"),
        }
    }
    facts
}

/// What is there of a VM.
fn state(lab: &Lab, vm: &str) -> State {
    let done = lab.run(&["--format", "json", "show", vm]);
    if done.code == 3 {
        return State::default();
    }
    let about: Value = serde_json::from_str(&done.ok()).unwrap();
    let mut points = vec![format!("{vm} vm {}", about["head"].as_str().unwrap_or("-"))];
    if about["template"] == false {
        let snapshots = lab.json(&["snapshot", "ls", vm]);
        points.extend(snapshots.as_array().unwrap().iter().map(|snapshot| {
            let [name, kind] = ["name", "kind"].map(|key| snapshot[key].as_str().unwrap());
            format!("{vm}@{name} {kind} {}", snapshot["parent"].as_str().unwrap_or("-"))
        }));
    }
    let disks =
        about["disks"].as_array().unwrap().iter().map(|disk| disk["target"].as_str().unwrap());
    let disks =
        disks.flat_map(|disk| points.iter().map(move |point| line(lab, point, disk))).collect();
    State { about: Some(about), disks }
}

/// What a guest reads from a disk at a point.
fn line(lab: &Lab, point: &str, disk: &str) -> String {
    let name = point.split(' ').next().unwrap();
    let raw = lab.path().join(format!("{name}.{disk}.raw"));
    lab.ok(&["image", "export", name, raw.to_str().unwrap(), "--disk", disk]);
    let sum = Sha256::digest(std::fs::read(&raw).unwrap());
    std::fs::remove_file(&raw).unwrap();
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{point} {disk} {sum}")
}

/// Does something to each VM, some at a time.
fn of_each(vms: &[String], work: impl Fn(&str) + Sync) {
    const AT_ONCE: usize = 4;
    thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let work = &work;
            scope.spawn(move || vms.iter().skip(first).step_by(AT_ONCE).for_each(|vm| work(vm)));
        }
    });
}

/// Does it to the store of each release.
fn for_each_release(recover: fn(&mut Old)) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores");
    let is_archive = |file: &PathBuf| file.to_str().unwrap().ends_with(".tar.xz");
    let archives: Vec<PathBuf> =
        files_in(&directory).iter().map(|name| directory.join(name)).filter(is_archive).collect();
    assert!(!archives.is_empty());
    for archive in archives {
        let mut old = Old::unpack(&archive);
        old.open();
        recover(&mut old);
        old.is_recovered();
        old.check_all("after recovery");
        old.undo();
        old.go_on();
        old.clean_up();
    }
}

#[test]
fn a_store_of_an_earlier_release_is_recovered_by_the_next_command_on_each_vm_and_used() {
    for_each_release(|old| {
        for vm in old.cut_short() {
            // Some never came to be, others are no more, and some are templates.
            let done = old.lab.run(&["set", &vm, "tag.t="]);
            assert!([0, 3, 5].contains(&done.code), "{} {vm}: {done:?}", old.release);
        }
    });
}

mod full {
    use super::{KEEP, for_each_release};

    #[test]
    fn a_store_of_an_earlier_release_is_recovered_by_gc_alone_and_used() {
        for_each_release(|old| {
            old.lab.ok(&KEEP);
            old.outcomes.extend(old.with(&["collected"]).into_iter().map(|vm| (vm, "collected")));
        });
    }
}
