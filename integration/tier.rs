//! How much of a long walk is walked: a handful of places where a change is to land
//! (`scripts/test`), more where there is time (`scripts/test --full`, `scripts/faults --short`),
//! and every one (`scripts/faults`). docs/testing.md says which test is in which tier.

use std::env::var;

use crate::{faults, faults_running, faults_warm};

/// What goes wrong while an operation is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Killed,
    Failing,
    QemuKilled,
    BothKilled,
    QemuHanging,
    PowerOnExt4,
    PowerOnXfs,
    DiskFailing,
    NoRoom,
    NoDescriptors,
}

impl Class {
    /// All of them, with the words of the table in docs/testing.md.
    const ALL: [(Self, &str); 10] = [
        (Self::Killed, "command killed"),
        (Self::Failing, "step fails"),
        (Self::QemuKilled, "QEMU killed"),
        (Self::BothKilled, "both killed"),
        (Self::QemuHanging, "QEMU hangs"),
        (Self::PowerOnExt4, "power cut, ext4"),
        (Self::PowerOnXfs, "power cut, xfs"),
        (Self::DiskFailing, "disk fails"),
        (Self::NoRoom, "no room"),
        (Self::NoDescriptors, "no descriptors"),
    ];
}

/// The verb that a command line begins with.
pub fn verb(args: &[&str]) -> String {
    let nouns = ["snapshot", "disk", "template", "pool", "image"];
    args[..if nouns.contains(&args[0]) { 2 } else { 1 }].join(" ")
}

/// Which of several operations, given by their verbs, are tried: in the first tier one of each
/// verb, under another class another one; else all.
pub fn picked(verbs: &[String], class: Class) -> Vec<usize> {
    match var("COWHAND_FAULTS") {
        Ok(_) => (0..verbs.len()).collect(),
        Err(_) => picked_first(verbs, class),
    }
}

fn picked_first(verbs: &[String], class: Class) -> Vec<usize> {
    let all = verbs.iter().enumerate();
    let is_first = all.filter(|(at, verb)| !verbs[..*at].contains(verb));
    is_first
        .map(|(_, verb)| {
            let same: Vec<usize> = (0..verbs.len()).filter(|at| verbs[*at] == *verb).collect();
            same[class as usize % same.len()]
        })
        .collect()
}

/// From which place on, and every how manieth place, a walk is to try for the `at`th of several
/// operations, where `more` is the distance of the second tier. 0: only one place.
///
/// The operations begin at different places, because in the lower tiers many have none but the
/// first.
pub fn sample(at: usize, class: Class, more: u32) -> (u32, u32) {
    match var("COWHAND_FAULTS").as_deref() {
        Ok("all") => (1, 1),
        Ok("more") => (1 + u32::try_from(at * 5 % 7).unwrap(), more),
        _ => (1 + u32::try_from((at * 11 + class as usize * 17) % 36).unwrap(), 0),
    }
}

/// Tries the places from `first` on, every `stride`th of them, until `hit` says that there is none
/// of that number. Where there are fewer than `first`, it begins at an earlier one.
pub fn walk((first, stride): (u32, u32), mut hit: impl FnMut(u32) -> bool) {
    let mut number = first;
    while !hit(number) {
        if number == 1 {
            return;
        }
        number /= 2;
    }
    number += stride;
    while stride > 0 && hit(number) {
        number += stride;
    }
}

/// Is every place to be tried?
pub fn is_all() -> bool {
    var("COWHAND_FAULTS").is_ok_and(|value| value == "all")
}

/// `first` in the first tier, `second` in the others.
pub fn first_or<T>(first: T, second: T) -> T {
    if var("COWHAND_FAULTS").is_ok() { second } else { first }
}

/// The table in docs/testing.md: how many operations of each verb are tried in the first tier, of
/// how many in the second.
fn table() -> String {
    let mut table = format!("| | {} |\n|---|", Class::ALL.map(|(_, words)| words).join(" | "));
    table.push_str(&"---|".repeat(Class::ALL.len()));
    for (what, verbs, tried) in [
        ("a stopped VM", faults::verbs(), &faults::TRIED[..]),
        ("a running VM", faults_running::verbs(), &faults_running::TRIED),
        ("a warm template", faults_warm::verbs(), &faults_warm::TRIED),
    ] {
        for (at, verb) in verbs.iter().enumerate().filter(|(at, verb)| !verbs[..*at].contains(verb))
        {
            let cells = Class::ALL.map(|(class, _)| {
                let count =
                    |picked: Vec<usize>| picked.iter().filter(|at| verbs[**at] == *verb).count();
                match tried.contains(&class)
                    && (!what.contains("warm") || faults_warm::is_tried(verb, class))
                {
                    true => format!(
                        "{}/{}",
                        count(picked_first(&verbs, class)),
                        count((0..verbs.len()).collect())
                    ),
                    false => String::new(),
                }
            });
            let what = if at == 0 { format!(" ({what}, and the next)") } else { String::new() };
            table.push_str(&format!("\n| `{verb}`{what} | {} |", cells.join(" | ")));
        }
    }
    table
}

/// With `COWHAND_UPDATE=1` it is written anew.
#[test]
fn the_document_says_which_verb_is_tried_under_which_fault_and_none_is_left_out() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/testing.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once("<!-- faults -->\n").unwrap();
    let (shown, after) = rest.split_once("\n<!-- end -->").unwrap();
    let table = table();
    if var("COWHAND_UPDATE").is_ok() {
        std::fs::write(path, format!("{before}<!-- faults -->\n{table}\n<!-- end -->{after}"))
            .unwrap();
    } else {
        assert_eq!(shown, table);
    }
    assert!(!table.contains(" 0/"), "{table}");
}
