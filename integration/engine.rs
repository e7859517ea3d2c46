//! The offline engine and the collapse planner against a model: whatever is done in whatever order, every point keeps its bytes.

use std::collections::BTreeMap;
use std::process::Command;

use crate::lab::{Lab, qemu_img};

const DISK: usize = 4 << 20;
const BLOCK: usize = 64 << 10;

/// What each point must contain.
#[derive(Default)]
struct Model {
    heads: BTreeMap<String, Vec<u8>>,
    points: BTreeMap<String, Vec<u8>>,
}

/// A small generator of its own, so that a seed says all (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn pick<'a>(&mut self, from: impl ExactSizeIterator<Item = &'a String>) -> Option<String> {
        let count = from.len();
        (count > 0).then(|| self.below(count)).and_then(|at| from.into_iter().nth(at)).cloned()
    }
}

#[test]
fn every_point_keeps_its_bytes_whatever_is_done_to_the_others() {
    let seed = std::env::var("COWHAND_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_c0de);
    let steps = std::env::var("COWHAND_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(120);
    eprintln!("seed {seed}, {steps} steps (COWHAND_SEED, COWHAND_STEPS)");
    let (lab, mut random, mut model) = (Lab::new(), Random(seed), Model::default());
    lab.ok(&["create", "vm0", "--size", &DISK.to_string(), "--memory", "64M"]);
    model.heads.insert("vm0".to_owned(), vec![0; DISK]);
    for step in 0..steps {
        let vm = random.pick(model.heads.keys()).unwrap();
        match random.below(10) {
            0..4 => write(&lab, &mut random, &mut model, &vm),
            4..6 => {
                lab.ok(&["snapshot", "create", &vm, &format!("s{step}")]);
                let content = model.heads[&vm].clone();
                model.points.insert(format!("{vm}@s{step}"), content);
            }
            6 => {
                if let Some(point) = random.pick(model.points.keys()) {
                    lab.ok(&["snapshot", "revert", &point]);
                    let vm = point.split('@').next().unwrap();
                    model.heads.insert(vm.to_owned(), model.points[&point].clone());
                }
            }
            7 if model.heads.len() < 4 => {
                if let Some(point) = random.pick(model.points.keys()) {
                    let full = if random.below(2) == 0 { "--full" } else { "--thin" };
                    lab.ok(&["clone", &point, &format!("vm{step}"), full]);
                    model.heads.insert(format!("vm{step}"), model.points[&point].clone());
                }
            }
            _ => {
                if let Some(point) = random.pick(model.points.keys()) {
                    lab.ok(&["snapshot", "rm", &point]);
                    model.points.remove(&point);
                }
            }
        }
        if step % 10 == 9 {
            compare(&lab, &model, &format!("seed {seed}, step {step}"));
        }
    }
    compare(&lab, &model, &format!("seed {seed}, the end"));
    lab.check_images();
}

fn write(lab: &Lab, random: &mut Random, model: &mut Model, vm: &str) {
    let file = lab.json(&["disk", "ls", vm])[0]["file"].as_str().unwrap().to_owned();
    for _ in 0..=random.below(6) {
        let (at, blocks, value) = (random.below(DISK / BLOCK) * BLOCK, 1 + random.below(8), random.below(256));
        let length = (blocks * BLOCK).min(DISK - at);
        let command = format!("write -P {value} {at} {length}");
        let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", &command, &file]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        model.heads.get_mut(vm).unwrap()[at..at + length].fill(u8::try_from(value).unwrap());
    }
}

fn compare(lab: &Lab, model: &Model, when: &str) {
    let content = |file: &str| {
        let raw = lab.path().join("compare.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", file, raw.to_str().unwrap()]);
        std::fs::read(&raw).unwrap()
    };
    for (vm, expected) in &model.heads {
        let file = lab.json(&["disk", "ls", vm])[0]["file"].as_str().unwrap().to_owned();
        assert!(content(&file) == *expected, "{when}: the head of {vm} changed");
    }
    for (point, expected) in &model.points {
        // A point is looked at through a thin clone of it, which is thrown away again.
        lab.ok(&["clone", point, "look"]);
        let file = lab.json(&["disk", "ls", "look"])[0]["file"].as_str().unwrap().to_owned();
        assert!(content(&file) == *expected, "{when}: {point} changed");
        lab.ok(&["rm", "look"]);
    }
    lab.ok(&["gc", "--older-than", "0"]);
}

#[test]
fn merging_works_without_a_storage_daemon() {
    let lab = Lab::new();
    lab.ok(&["create", "vm", "--size", "64M"]);
    lab.ok(&["snapshot", "create", "vm", "s"]);
    // A directory that has QEMU and nothing else.
    let bin = lab.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let qemu = std::env::var("COWHAND_QEMU").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".to_owned());
    let wrapper = bin.join("qemu-system-x86_64");
    std::fs::write(&wrapper, format!("#!/bin/sh\nexec '{qemu}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = lab.command(&["snapshot", "rm", "vm@s"]);
    let done: crate::lab::Done = command.env("PATH", &bin).env_remove("COWHAND_QEMU").output().unwrap().into();
    assert!(done.ok().contains("merged"));
    assert_eq!(lab.chain("vm").len(), 1);
}
