//! Killed, or failing, at every fault point of every operation that a stopped VM knows: afterwards
//! everything is as it was before or as it would have been, nothing is left behind, and a second
//! recovery finds nothing to do.
//!
//! The points are in `sys/fault.rs`; an operation is run again and again, hit at its first point,
//! its second, … until it has none left. `scripts/faults` prints what comes of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use serde_json::Value;

use crate::content;
use crate::lab::{Done, Lab, copy_tree, is_about_the_host};
use crate::tier::{self, Class};

/// One store before an operation, and the operation.
pub struct Case {
    pub name: &'static str,
    pub prepare: fn(&Lab),
    args: &'static [&'static str],
}

impl Case {
    /// The command's words; `LAB` is the directory that the lab is in.
    pub fn args(&self, lab: &Lab) -> Vec<String> {
        self.args.iter().map(|word| word.replace("LAB", lab.path().to_str().unwrap())).collect()
    }

    /// The command, ready to be started.
    pub fn command(&self, lab: &Lab) -> Command {
        let args = self.args(lab);
        lab.command(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs the command to its end.
    pub fn run(&self, lab: &Lab) -> Done {
        self.command(lab).output().unwrap().into()
    }
}

/// Every point a user could go to, with its content and what is said of it.
pub type State = BTreeMap<String, String>;

fn write(lab: &Lab, vm: &str, target: usize, value: u8) {
    let disks = lab.json(&["disk", "ls", vm]);
    let file = disks[target]["file"].as_str().unwrap();
    let place = format!("write -P {value} {}k 64k", 64 * u32::from(value));
    let output =
        Command::new("qemu-io").args(["-f", "qcow2", "-c", &place, file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// `web` with two disks and the snapshots a, b, c in a row; what is written after each of them is
/// another thing.
fn line(lab: &Lab) {
    lab.ok(&["create", "web", "--size", "16M", "--size", "16M"]);
    for (value, name) in (1..).zip(["a", "b", "c"]) {
        write(lab, "web", 0, value);
        write(lab, "web", 1, value + 8);
        lab.ok(&["snapshot", "create", "web", name]);
    }
    write(lab, "web", 0, 5);
}

fn lone(lab: &Lab) {
    lab.ok(&["create", "web", "--size", "16M"]);
    write(lab, "web", 0, 1);
}

fn inner(lab: &Lab) {
    lone(lab);
    lab.ok(&["snapshot", "create", "web", "a", "--internal"]);
    write(lab, "web", 0, 2);
}

fn template(lab: &Lab) {
    lone(lab);
    lab.ok(&["template", "create", "web", "--no-seal"]);
}

fn cloned(lab: &Lab) {
    template(lab);
    lab.ok(&["clone", "web", "copy"]);
    write(lab, "copy", 0, 3);
}

fn reverted(lab: &Lab) {
    line(lab);
    lab.ok(&["snapshot", "revert", "web@b"]);
    write(lab, "web", 0, 6);
}

fn removed(lab: &Lab) {
    line(lab);
    lab.ok(&["rm", "web"]);
}

fn image(lab: &Lab) {
    let disk = lab.path().join("disk.qcow2");
    crate::lab::qemu_img(&["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "16M"]);
    let done = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 9 1M 2M"])
        .arg(disk)
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

fn domain(lab: &Lab) {
    image(lab);
    crate::libvirt_snapshots::on_top_of(lab, &lab.path().join("disk.qcow2"));
}

fn stored(lab: &Lab) {
    image(lab);
    lab.ok(&["image", "add", lab.path().join("disk.qcow2").to_str().unwrap(), "base"]);
}

pub const CASES: [Case; 33] = [
    Case {
        name: "create from an image",
        prepare: image,
        args: &["create", "web", "--disk", "LAB/disk.qcow2"],
    },
    Case {
        name: "create on an image",
        prepare: image,
        args: &["create", "web", "--disk", "LAB/disk.qcow2,use"],
    },
    Case {
        name: "create",
        prepare: |_| {},
        args: &["create", "web", "--size", "16M", "--size", "16M"],
    },
    Case {
        name: "create beside another",
        prepare: lone,
        args: &["create", "other", "--size", "16M"],
    },
    Case { name: "clone, thin", prepare: template, args: &["clone", "web", "copy"] },
    Case { name: "clone, full", prepare: template, args: &["clone", "web", "copy", "--full"] },
    Case { name: "clone of a stopped VM", prepare: line, args: &["clone", "web", "copy"] },
    Case { name: "clone of a snapshot", prepare: line, args: &["clone", "web@b", "copy"] },
    Case {
        name: "template create",
        prepare: lone,
        args: &["template", "create", "web", "--no-seal"],
    },
    Case { name: "snapshot create", prepare: line, args: &["snapshot", "create", "web", "d"] },
    Case {
        name: "snapshot create, internal",
        prepare: inner,
        args: &["snapshot", "create", "web", "b", "--internal"],
    },
    Case { name: "snapshot revert", prepare: line, args: &["snapshot", "revert", "web@b"] },
    Case {
        name: "snapshot revert, internal",
        prepare: inner,
        args: &["snapshot", "revert", "web@a"],
    },
    Case { name: "snapshot rename", prepare: line, args: &["snapshot", "rename", "web@b", "x"] },
    Case { name: "snapshot rm, first", prepare: line, args: &["snapshot", "rm", "web@a"] },
    Case { name: "snapshot rm, middle", prepare: line, args: &["snapshot", "rm", "web@b"] },
    Case { name: "snapshot rm, last", prepare: line, args: &["snapshot", "rm", "web@c"] },
    Case { name: "snapshot rm, internal", prepare: inner, args: &["snapshot", "rm", "web@a"] },
    Case { name: "disk commit", prepare: line, args: &["disk", "commit", "web", "vda"] },
    Case {
        name: "disk commit, several layers",
        prepare: line,
        args: &["disk", "commit", "web", "vda", "--base", "a"],
    },
    Case { name: "disk stream", prepare: line, args: &["disk", "stream", "web", "vda"] },
    Case { name: "flatten", prepare: cloned, args: &["flatten", "copy"] },
    Case { name: "disk resize", prepare: line, args: &["disk", "resize", "web", "vda", "32M"] },
    Case { name: "set", prepare: line, args: &["set", "web", "cpus=3", "tag.x=y"] },
    Case { name: "rename", prepare: line, args: &["rename", "web", "other"] },
    Case { name: "rm", prepare: line, args: &["rm", "web"] },
    Case { name: "undo of a revert", prepare: reverted, args: &["undo", "web"] },
    Case { name: "undo of a removal", prepare: removed, args: &["undo"] },
    Case { name: "gc", prepare: reverted, args: &["gc", "--older-than", "0"] },
    Case { name: "image add", prepare: image, args: &["image", "add", "LAB/disk.qcow2", "base"] },
    Case { name: "image rm", prepare: stored, args: &["image", "rm", "base"] },
    Case {
        name: "create on an image of the store",
        prepare: stored,
        args: &["create", "web", "--image", "base"],
    },
    Case {
        name: "import with snapshots",
        prepare: domain,
        args: &["import", "LAB/web.xml", "--snapshots", "LAB/snapshots"],
    },
];

/// What goes wrong while they are under way, here and in `exhaustion.rs`.
pub const TRIED: [Class; 6] = [
    Class::Killed,
    Class::Failing,
    Class::PowerOnExt4,
    Class::PowerOnXfs,
    Class::NoRoom,
    Class::NoDescriptors,
];

/// Their verbs.
pub fn verbs() -> Vec<String> {
    CASES.iter().map(|case| tier::verb(case.args)).collect()
}

/// What the guest would see at each point: the bytes of its disks, its machine, its place in the
/// tree.
pub fn state(lab: &Lab) -> State {
    let mut state = State::new();
    let mut note = |lab: &Lab, point: String, facts: String, config: &Value| {
        let disks = config["disks"].as_array().unwrap();
        let contents: Vec<u64> = disks.iter().map(|disk| content::of(lab, &point, disk)).collect();
        state.insert(point, format!("{facts} {contents:x?}"));
    };
    for vm in lab.json(&["ls", "-a"]).as_array().unwrap() {
        let name = vm["name"].as_str().unwrap();
        assert!(vm["reason"].is_null(), "{vm}");
        let about = lab.json(&["show", name]);
        let facts = format!(
            "{} {} {} {} {}",
            about["state"], about["memory_bytes"], about["cpus"], about["head"], about["template"]
        );
        let record = std::fs::read(lab.store().join("vms").join(name).join("vm.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        note(lab, name.to_owned(), facts, &record["config"]);
        for snapshot in record["snapshots"].as_array().into_iter().flatten() {
            let point = format!("{name}@{}", snapshot["name"].as_str().unwrap());
            note(lab, point, snapshot["parent"].to_string(), &snapshot["config"]);
        }
    }
    state
}

/// The stores that operations begin with, each made once for all operations that begin with the
/// same one.
pub struct Pristine {
    directory: tempfile::TempDir,
    known: BTreeMap<usize, State>,
}

impl Pristine {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), known: BTreeMap::new() }
    }

    /// Puts the store of `case` into the lab, and says what is in it.
    pub fn put(&mut self, lab: &Lab, case: &Case) -> State {
        // Made by the same function.
        let which = case.prepare as usize;
        if let Some(state) = self.known.get(&which) {
            self.put_back(lab, case);
            return state.clone();
        }
        (case.prepare)(lab);
        // What is not in the store is of this lab alone. Whoever asks QEMU for the first time keeps
        // the answer in the store.
        let is_alone = !lab.store().exists();
        if !is_alone {
            lab.run(&["ls"]);
            copy_tree(&lab.store(), &self.directory.path().join(which.to_string()));
        }
        let state = state(lab);
        if !is_alone {
            self.known.insert(which, state.clone());
        }
        state
    }

    /// Puts it there once more.
    pub fn put_back(&self, lab: &Lab, case: &Case) {
        let _ = std::fs::remove_dir_all(lab.store());
        let pristine = self.directory.path().join((case.prepare as usize).to_string());
        if pristine.exists() {
            lab.copy_tree(&pristine, &lab.store());
        }
    }
}

/// Runs the operation until none of its points is left; returns how many were tried. With `power`,
/// the host's fails in the same instant.
fn walk(
    lab: &Lab,
    pristine: &mut Pristine,
    case: &Case,
    fault: &str,
    (first, stride): (u32, u32),
    power: bool,
) -> u32 {
    let before = pristine.put(lab, case);
    case.run(lab).ok();
    if power {
        // What was reported as done is done.
        let after = state(lab);
        lab.cut_power();
        lab.run(&["doctor", "--repair"]);
        assert_eq!(
            state(lab),
            after,
            "{}: it was reported as done, and a power cut has undone it",
            case.name
        );
    }
    let after = state(lab);
    let allowed = |now: &State| {
        // A clone of a stopped VM takes a snapshot of it on the way, which may be all that has
        // happened.
        now == &before
            || now == &after
            || (case.name == "clone of a stopped VM"
                && now.iter().all(|(point, fact)| {
                    after.get(point) == Some(fact) || before.get(point) == Some(fact)
                }))
    };
    let (mut number, mut walked) = (first, 0);
    loop {
        pristine.put_back(lab, case);
        let output =
            case.command(lab).env("COWHAND_FAULT", format!("{number}:{fault}")).output().unwrap();
        let done = Done::from(output);
        let Some(line) =
            done.err.lines().find(|line| line.starts_with("fault ")).map(str::to_owned)
        else {
            assert_eq!(done.code, 0, "{}: {done:?}", case.name);
            if walked == 0 && number > 1 {
                // It has fewer than that.
                number /= 2;
                continue;
            }
            break;
        };
        if power {
            lab.cut_power();
        }
        let what = format!("{}, {line}", case.name);
        assert!(fault == "fail" || done.code == 137, "{what}: {done:?}");
        // Commands that change something recover, which one does not matter; so does the doctor,
        // and finds no other fault.
        if number % 2 == 1 {
            let repaired = lab.run(&["--format", "json", "doctor", "--repair"]);
            let found: Vec<Value> = serde_json::from_str(&repaired.out)
                .unwrap_or_else(|error| panic!("{error}: {repaired:?}"));
            // Where it was the first command of all, there is no store.
            let is_store = lab.store().join("store.json").exists();
            let expected = |finding: &Value| {
                is_about_the_host(finding) || (finding["check"] == "store" && !is_store)
            };
            let bad = |finding: &&Value| {
                (finding["level"] == "warn" || finding["level"] == "fail") && !expected(finding)
            };
            let bad: Vec<_> = found.iter().filter(bad).collect();
            assert!(bad.is_empty(), "{what}: {bad:?}");
        }
        for vm in ["web", "copy", "other", "base"] {
            let done = lab.run(&["set", vm, "tag.t=1"]);
            assert!([0, 3, 5].contains(&done.code), "{what}: {done:?}");
        }
        lab.ok(&["create", "later", "--size", "16M"]);
        lab.ok(&["rm", "later"]);
        if ["rm", "image rm", "undo of a removal"].contains(&case.name) {
            // What either has left half-way goes where `undo` looks for it.
            lab.ok(&["gc"]);
            if lab.vm_directories().is_empty() {
                let is_image = case.name == "image rm";
                lab.ok(&["undo", if is_image { "base" } else { "web" }]);
                let back = state(lab);
                let is_removal = case.name != "undo of a removal";
                assert!(
                    back == if is_removal { before.clone() } else { after.clone() },
                    "{what}: {back:?}"
                );
                lab.ok(if is_image { &["image", "rm", "base"] } else { &["rm", "web"] });
            }
        }
        let now = state(lab);
        assert!(allowed(&now), "{what}:\nnow    {now:?}\nbefore {before:?}\nafter  {after:?}");
        for vm in lab.vm_directories() {
            assert!(
                !lab.store().join("vms").join(&vm).join("journal.json").exists(),
                "{what}: a journal is left of {vm}"
            );
        }
        assert!(
            !lab.layer_files().iter().any(|file| file.ends_with(".part")),
            "{what}: {:?}",
            lab.layer_files()
        );
        for file in lab.layer_files() {
            let path = lab.store().join("layers").join(&file);
            content::check(&path).unwrap_or_else(|checked| panic!("{what}: {file}: {checked:?}"));
        }
        let stray = lab.run(&["gc", "--dry-run"]);
        assert!(!stray.err.contains("unused"), "{what}: {}", stray.err);
        let once = lab.fingerprint();
        lab.run(&["set", "web", "tag.t=1"]);
        assert_eq!(lab.fingerprint(), once, "{what}: a second recovery did something");
        walked += 1;
        if stride == 0 {
            break;
        }
        number += stride;
    }
    walked
}

/// Walks through all operations; some of their points, see [`tier::sample`].
fn all(lab: &dyn Fn() -> Lab, class: Class, stride: u32) {
    assert!(TRIED.contains(&class));
    let power = matches!(class, Class::PowerOnExt4 | Class::PowerOnXfs);
    let fault = if class == Class::Failing { "fail" } else { "die" };
    let death = if power { "power" } else { fault };
    let (mut pristine, mut hit, mut lines) = (Pristine::new(), 0, String::new());
    for at in tier::picked(&verbs(), class) {
        let case = &CASES[at];
        let walked =
            walk(&lab(), &mut pristine, case, fault, tier::sample(at, class, stride), power);
        assert!(walked > 0, "{} has no fault points", case.name);
        hit += walked;
        lines.push_str(&format!("{:<28} {death:<5} {walked:>3} of {walked} survived\n", case.name));
    }
    eprintln!("{lines}{} operations, {hit} fault points, {death}: 0 lost", lines.lines().count());
}

#[test]
fn an_operation_killed_at_any_of_its_fault_points_loses_nothing() {
    all(&Lab::in_memory, Class::Killed, 9);
}

#[test]
fn an_operation_failing_at_any_of_its_fault_points_loses_nothing() {
    all(&Lab::in_memory, Class::Failing, 17);
}

/// The cut itself: without it the others would prove nothing.
#[test]
fn a_power_cut_drops_what_was_not_flushed() {
    for file_system in ["ext4", "xfs"] {
        let Some(lab) = Lab::with_power("a_power_cut_drops_what_was_not_flushed", file_system, 400)
        else {
            return;
        };
        let (kept, lost) =
            (lab.beside_the_store().join("kept"), lab.beside_the_store().join("lost"));
        std::fs::write(&kept, "old").unwrap();
        File::open(&kept).unwrap().sync_all().unwrap();
        File::open(lab.beside_the_store()).unwrap().sync_all().unwrap();
        std::fs::write(&lost, "new").unwrap();
        std::fs::write(lab.beside_the_store().join("tmp"), "new").unwrap();
        std::fs::rename(lab.beside_the_store().join("tmp"), &kept).unwrap();
        lab.cut_power();
        assert!(!lost.exists(), "{file_system}: a file that was never flushed has survived");
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "old", "{file_system}");
    }
}

#[test]
fn a_power_cut_at_any_fault_point_loses_nothing_on_ext4() {
    const NAME: &str = "a_power_cut_at_any_fault_point_loses_nothing_on_ext4";
    if Lab::with_power(NAME, "ext4", 300).is_some() {
        all(&|| Lab::with_power(NAME, "ext4", 300).unwrap(), Class::PowerOnExt4, 19);
    }
}

#[test]
fn a_power_cut_at_any_fault_point_loses_nothing_on_xfs() {
    const NAME: &str = "a_power_cut_at_any_fault_point_loses_nothing_on_xfs";
    if Lab::with_power(NAME, "xfs", 400).is_some() {
        all(&|| Lab::with_power(NAME, "xfs", 400).unwrap(), Class::PowerOnXfs, 19);
    }
}
