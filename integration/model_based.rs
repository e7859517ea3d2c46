//! The offline engine and the collapse planner against a model: whatever is done in whatever order,
//! every point keeps its bytes. The same, shorter, with a guest that runs and writes.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::lab::{Done, Lab, Random, is_about_the_host, qemu_img};
use crate::tier;

const DISK: usize = 4 << 20;
const BLOCK: usize = 64 << 10;
/// No disk grows beyond this.
const LARGEST: usize = 8 << 20;

/// What each point must contain, and what can be taken back.
#[derive(Default)]
struct Model {
    heads: BTreeMap<String, Vec<u8>>,
    points: BTreeMap<String, Vec<u8>>,
    reverted: BTreeMap<String, Vec<Vec<u8>>>,
    counts: BTreeMap<&'static str, (u32, u32)>,
}

impl Model {
    /// Counts an operation; true: it was done. Nothing may be refused but for a reason.
    #[track_caller]
    fn count(&mut self, what: &'static str, done: &Done) -> bool {
        assert!(
            [0, 5].contains(&done.code),
            "{what}: exit {}: {}{}",
            done.code,
            done.out,
            done.err
        );
        let counts = self.counts.entry(what).or_default();
        let worked = done.code == 0;
        if worked {
            counts.0 += 1
        } else {
            counts.1 += 1
        }
        worked
    }
}

impl Random {
    fn pick<'a>(&mut self, from: impl ExactSizeIterator<Item = &'a String>) -> Option<String> {
        let count = from.len();
        (count > 0).then(|| self.below(count)).and_then(|at| from.into_iter().nth(at)).cloned()
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn every_point_keeps_its_bytes_whatever_is_done_to_the_others() {
    let (seed, steps) =
        (number("COWHAND_SEED", 0x5eed_c0de), number("COWHAND_STEPS", tier::first_or(60, 200)));
    eprintln!("seed {seed}, {steps} steps (COWHAND_SEED, COWHAND_STEPS)");
    let (lab, mut random, mut model) = (Lab::new(), Random(seed), Model::default());
    lab.ok(&["create", "vm0", "--size", &DISK.to_string(), "--memory", "64M", "--net", "none"]);
    model.heads.insert("vm0".to_owned(), vec![0; DISK]);
    let raw = lab.path().join("raw.img");
    std::fs::write(&raw, vec![9; DISK]).unwrap();
    lab.ok(&["create", "vm1", "--disk", raw.to_str().unwrap(), "--memory", "64M", "--net", "none"]);
    model.heads.insert("vm1".to_owned(), vec![9; DISK]);
    for step in 0..steps {
        one_step(&lab, &mut random, &mut model, step);
        if step % 10 == 9 {
            compare(&lab, &mut model, &format!("seed {seed}, step {step}"));
        }
    }
    compare(&lab, &mut model, &format!("seed {seed}, the end"));
    lab.check_images();
    eprintln!("done and refused: {:?}", model.counts);
}

fn one_step(lab: &Lab, random: &mut Random, model: &mut Model, step: u64) {
    let vm = random.pick(model.heads.keys()).unwrap();
    let point = random.pick(model.points.keys());
    match (random.below(24), point) {
        (0..7, _) => write(lab, random, model, &vm),
        (7..11, _) => snapshot(lab, model, &vm, &format!("s{step}"), &[]),
        (11, _) => snapshot(lab, model, &vm, &format!("i{step}"), &["--internal"]),
        (12..14, Some(point)) => revert(lab, model, &point),
        (14, _) => {
            if let Some(old) = model.reverted.get_mut(&vm).and_then(Vec::pop)
                && model.count("undo", &lab.run(&["undo", &vm]))
            {
                model.heads.insert(vm, old);
            }
        }
        (15, Some(point)) if model.heads.len() < 5 => {
            let full = if random.below(2) == 0 { "--full" } else { "--thin" };
            if model.count("clone", &lab.run(&["clone", &point, &format!("vm{step}"), full])) {
                model.heads.insert(format!("vm{step}"), model.points[&point].clone());
            }
        }
        (16..20, Some(point)) => {
            let which = ["", "", "", "--children", "--children-only"][random.below(5)];
            let args: Vec<&str> = ["snapshot", "rm", &point, which]
                .into_iter()
                .filter(|arg| !arg.is_empty())
                .collect();
            let done = lab.run(&args);
            model.count("snapshot rm", &done);
            // Of several, some may have gone before one was refused: what is left is what is
            // listed.
            let vm = point.split('@').next().unwrap().to_owned();
            forget_gone(lab, model, &vm);
        }
        (20, _) => {
            let done = lab.run(&["disk", "commit", &vm, "vda"]);
            model.count("disk commit", &done);
            forget_gone(lab, model, &vm);
        }
        (21, _) => {
            let layers = lab.chain(&vm);
            let base = layers[random.below(layers.len())].clone();
            let all = random.below(2) == 0 || base == layers[0];
            let args = if all {
                vec!["flatten", &vm]
            } else {
                vec!["disk", "stream", &vm, "vda", "--base", &base]
            };
            model.count("stream", &lab.run(&args));
        }
        (22, _) => {
            let now = model.heads[&vm].len();
            let bytes = (now + BLOCK * random.below(8)).min(LARGEST);
            if model.count("resize", &lab.run(&["disk", "resize", &vm, "vda", &bytes.to_string()]))
            {
                model.heads.get_mut(&vm).unwrap().resize(bytes, 0);
            }
        }
        (_, _) if vm != "vm0" && model.heads.len() > 2 => {
            let keep = random.below(2) == 0;
            remove(lab, model, &vm, keep);
        }
        _ => {}
    }
}

fn revert(lab: &Lab, model: &mut Model, point: &str) {
    if model.count("revert", &lab.run(&["snapshot", "revert", point])) {
        let vm = point.split('@').next().unwrap().to_owned();
        let old = model.heads.insert(vm.clone(), model.points[point].clone()).unwrap();
        model.reverted.entry(vm).or_default().push(old);
    }
}

/// Removes a VM, and perhaps takes that back.
fn remove(lab: &Lab, model: &mut Model, vm: &str, keep: bool) {
    if !model.count("rm", &lab.run(&["rm", vm])) {
        return;
    }
    if keep {
        lab.ok(&["undo", vm]);
    } else {
        model.heads.remove(vm);
        model.reverted.remove(vm);
        model.points.retain(|point, _| !point.starts_with(&format!("{vm}@")));
    }
}

fn snapshot(lab: &Lab, model: &mut Model, vm: &str, name: &str, options: &[&str]) {
    let done = lab.run(&[&["snapshot", "create", vm, name], options].concat());
    if model.count(if options.is_empty() { "snapshot" } else { "snapshot --internal" }, &done) {
        model.points.insert(format!("{vm}@{name}"), model.heads[vm].clone());
    }
}

/// Drops the points that are not listed any more from the model.
fn forget_gone(lab: &Lab, model: &mut Model, vm: &str) {
    let listed = lab.json(&["snapshot", "ls", vm]);
    let names: Vec<String> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| format!("{vm}@{}", entry["name"].as_str().unwrap()))
        .collect();
    model.points.retain(|point, _| !point.starts_with(&format!("{vm}@")) || names.contains(point));
}

fn write(lab: &Lab, random: &mut Random, model: &mut Model, vm: &str) {
    let disk = lab.json(&["disk", "ls", vm])[0].clone();
    let (file, format) = (disk["file"].as_str().unwrap(), disk["format"].as_str().unwrap());
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    let content = model.heads.get_mut(vm).unwrap();
    for _ in 0..=random.below(6) {
        let (at, blocks, value) =
            (random.below(content.len() / BLOCK) * BLOCK, 1 + random.below(8), random.below(256));
        let length = (blocks * BLOCK).min(content.len() - at);
        command.arg("-c").arg(format!("write -P {value} {at} {length}"));
        content[at..at + length].fill(u8::try_from(value).unwrap());
    }
    let output = command.arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn compare(lab: &Lab, model: &mut Model, when: &str) {
    doctor_is_content(lab, when);
    let raw = lab.path().join("compare.raw");
    for (vm, expected) in &model.heads {
        let disk = lab.json(&["disk", "ls", vm])[0].clone();
        let (file, format) = (disk["file"].as_str().unwrap(), disk["format"].as_str().unwrap());
        qemu_img(&["convert", "-f", format, "-O", "raw", file, raw.to_str().unwrap()]);
        assert!(std::fs::read(&raw).unwrap() == *expected, "{when}: the head of {vm} changed");
    }
    for (point, expected) in &model.points {
        lab.ok(&["image", "export", point, raw.to_str().unwrap(), "--force"]);
        assert!(std::fs::read(&raw).unwrap() == *expected, "{when}: {point} changed");
    }
    lab.ok(&["gc", "--older-than", "0"]);
    model.reverted.clear();
}

/// The guest writes to its second disk; what it reads there, and what each point holds, is compared
/// with the model.
#[test]
fn every_point_keeps_its_bytes_while_the_guest_runs() {
    let (seed, steps) =
        (number("COWHAND_SEED", 0x0ddba11), number("COWHAND_LIVE_STEPS", tier::first_or(10, 30)));
    eprintln!("seed {seed}, {steps} steps (COWHAND_SEED, COWHAND_LIVE_STEPS)");
    let (lab, mut random) = (Lab::new(), Random(seed));
    lab.tiny("web", &["--size", &DISK.to_string()]);
    lab.ok(&["start", "web"]);
    lab.sh("web", "true");
    let mut model = Model::default();
    let mut head = vec![0; DISK];
    for step in 0..steps {
        let point = random.pick(model.points.keys());
        match (random.below(12), point) {
            (0..5, _) => {
                let (at, blocks, value) =
                    (random.below(DISK / BLOCK), 1 + random.below(8), 33 + random.below(90));
                let blocks = blocks.min(DISK / BLOCK - at);
                let octal = format!("\\{value:o}");
                lab.sh("web", &format!(
                    "dd if=/dev/zero bs=64k count={blocks} 2>/dev/null | tr '\\0' '{octal}' | dd \
                     of=/dev/vdb bs=64k seek={at} conv=fsync,notrunc 2>/dev/null"
                ));
                head[at * BLOCK..(at + blocks) * BLOCK].fill(u8::try_from(value).unwrap());
            }
            (5..8, _) => {
                let memory: &[&str] = if random.below(3) == 0 { &["--memory"] } else { &[] };
                let name = format!("s{step}");
                lab.ok(&[&["snapshot", "create", "web", &name], memory].concat());
                model.points.insert(format!("web@{name}"), head.clone());
            }
            (8, Some(point)) => {
                lab.ok(&["snapshot", "revert", &point, "--running"]);
                head.clone_from(&model.points[&point]);
                lab.sh("web", "echo 3 > /proc/sys/vm/drop_caches");
            }
            (9 | 10, Some(point)) => {
                lab.ok(&["snapshot", "rm", &point]);
                model.points.remove(&point);
            }
            (11, _) => {
                let done = lab.run(&["disk", ["commit", "stream"][random.below(2)], "web", "vdb"]);
                model.count("commit or stream", &done);
                forget_gone(&lab, &mut model, "web");
            }
            _ => {}
        }
        if step % 10 == 9 {
            same_while_running(&lab, &model, &head, &format!("seed {seed}, step {step}"));
        }
    }
    same_while_running(&lab, &model, &head, &format!("seed {seed}, the end"));
    lab.ok(&["stop", "web"]);
    lab.check_images();
}

/// Whatever has been done, as long as nothing was damaged there is nothing to find, and nothing to
/// repair.
fn doctor_is_content(lab: &Lab, when: &str) {
    let found = lab.json(&["doctor", "--repair"]);
    for finding in found.as_array().unwrap() {
        let bad =
            finding["level"] == "warn" || finding["level"] == "fail" || finding["repaired"] == true;
        let expected = is_about_the_host(finding)
            || finding["check"] == "leftovers"
            || finding["message"].as_str().unwrap().contains("slows down reading");
        assert!(!bad || expected, "{when}: {finding}");
    }
}

fn same_while_running(lab: &Lab, model: &Model, head: &[u8], when: &str) {
    doctor_is_content(lab, when);
    let raw = lab.path().join("compare.raw");
    std::fs::write(&raw, head).unwrap();
    let output = Command::new("md5sum").arg(&raw).output().unwrap();
    let expected = String::from_utf8(output.stdout).unwrap();
    let seen = lab.sh("web", "md5sum /dev/vdb");
    assert_eq!(
        seen.split(' ').next(),
        expected.split(' ').next(),
        "{when}: the guest reads something else"
    );
    for (point, expected) in &model.points {
        lab.ok(&["image", "export", point, raw.to_str().unwrap(), "--disk", "vdb", "--force"]);
        assert!(std::fs::read(&raw).unwrap() == *expected, "{when}: {point} changed");
    }
    let rows: Value = lab.json(&["disk", "check", "web"]);
    assert!(rows.as_array().unwrap().iter().all(|row| row["damaged"] == false), "{when}: {rows}");
}

#[test]
fn merging_works_without_a_storage_daemon() {
    let lab = Lab::new();
    lab.ok(&["create", "vm", "--size", "64M"]);
    lab.ok(&["snapshot", "create", "vm", "s"]);
    // A directory that has QEMU and nothing else.
    let bin = lab.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let qemu =
        std::env::var("COWHAND_QEMU").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".to_owned());
    // A link and no script: a script would start a QEMU whose directory the cage does not know.
    std::os::unix::fs::symlink(&qemu, bin.join("qemu-system-x86_64")).unwrap();
    let mut command = lab.command(&["snapshot", "rm", "vm@s"]);
    let done: crate::lab::Done =
        command.env("PATH", &bin).env_remove("COWHAND_QEMU").output().unwrap().into();
    assert!(done.ok().contains("  merged: "));
    assert_eq!(lab.chain("vm").len(), 1);
}
