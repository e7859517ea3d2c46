//! A cowhand under attack: how long it lives, and how much memory it takes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{Done, Lab, PATIENCE};

/// How long each flood lasts.
pub fn seconds() -> u64 {
    std::env::var("COWHAND_HOSTILE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| crate::tier::first_or(1, 2))
}

pub struct Outcome {
    pub done: Done,
    /// The most memory it had, in bytes (`VmHWM`).
    pub peak: u64,
    pub took: Duration,
}

/// Runs it to its end, with its output in a file.
pub fn watch(lab: &Lab, mut command: Command) -> Outcome {
    let file = |name: &str| std::fs::File::create(lab.path().join(name)).unwrap();
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file("victim.out"))
        .stderr(file("victim.err"))
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        if let Ok(text) = std::fs::read_to_string(&status)
            && let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:"))
        {
            peak = peak.max(line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10);
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status.code().unwrap_or(-1);
        }
        if began.elapsed() > PATIENCE + Duration::from_secs(seconds()) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = |name: &str| {
        String::from_utf8_lossy(&std::fs::read(lab.path().join(name)).unwrap()).into_owned()
    };
    let done = Done { code, out: text("victim.out"), err: text("victim.err") };
    Outcome { done, peak, took: began.elapsed() }
}

/// A row of the table.
pub fn row(attack: &str, outcome: &Outcome, sent: u64, disk: (u64, u64)) {
    let mib = |bytes: u64| bytes >> 20;
    eprintln!(
        "| {attack} | {:.1} | {} MiB | {} MiB | {} MiB in {} | exit {} |",
        outcome.took.as_secs_f64(),
        mib(sent),
        mib(outcome.peak),
        mib(disk.0),
        disk.1,
        outcome.done.code
    );
}

pub fn heading() {
    eprintln!(
        "| attack | seconds | bytes sent | peak memory | on disk, in entries | outcome \
         |\n|---|---|---|---|---|---|"
    );
}
