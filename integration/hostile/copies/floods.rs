//! Guests that never stop.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cowhand::helper::frame::Kind;
use serde_json::{Value, json};

use super::fake_guest::{Conversation, FakeGuest, LARGEST, entry, framed, usage, with_ports_of};
use crate::hostile::victim::{Outcome, heading, row, seconds, watch};
use crate::lab::{Lab, PATIENCE};
use crate::tier;

/// The most memory that a copy may take, whatever comes.
const COPY_MEMORY: u64 = 64 << 20;
/// The same of a command whose output is kept: 16 MiB of two streams, and how a vector grows.
const KEPT_MEMORY: u64 = 160 << 20;
/// The most bytes that a flood sends while it lasts for seconds.
const SHORT: u64 = 256 << 20;

/// Bytes that a guest sends, the n-th piece.
type Piece = Arc<dyn Fn(u64) -> Vec<u8> + Send + Sync>;

fn flood(
    conversation: &mut Conversation,
    piece: &dyn Fn(u64) -> Vec<u8>,
    limit: Limit,
) -> std::io::Result<()> {
    let limit = match limit {
        Limit::Time => Duration::from_secs(seconds()),
        Limit::Refusal => PATIENCE,
    };
    let deadline = Instant::now() + limit;
    let (mut number, mut sent) = (0, 0);
    while Instant::now() < deadline && (seconds() > 10 || limit == PATIENCE || sent < SHORT) {
        let mut batch = Vec::new();
        while batch.len() < 128 << 10 {
            batch.extend(piece(number));
            number += 1;
        }
        sent += batch.len() as u64;
        conversation.raw(&batch)?;
    }
    // It hangs up.
    Err(std::io::ErrorKind::TimedOut.into())
}

/// What ends a flood.
#[derive(Clone, Copy)]
enum Limit {
    /// The time it may take.
    Time,
    /// The host, which refuses more than its budget, however slow it is.
    Refusal,
}

struct Attack {
    name: &'static str,
    piece: Piece,
    /// What the user typed.
    options: &'static [&'static str],
    /// What may be on the disk afterwards, in bytes and entries.
    disk: (u64, u64),
    /// How it ends: with one of these codes, and one of these words where the flood does not just
    /// stop.
    codes: &'static [i32],
    words: &'static str,
}

/// Raised so far that a flood lasts as long as it can.
const RAISED: &[&str] = &["--max-entries", "1000000000", "--max-bytes", "1000T"];

/// An entry that comes after the root.
fn below(path: &str, what: &Value) -> Vec<u8> {
    entry(path, what)
}

fn attacks() -> Vec<Attack> {
    let directory = || json!("directory");
    let attack = |name, piece: Piece, options, disk, codes, words| Attack {
        name,
        piece,
        options,
        disk,
        codes,
        words,
    };
    let small = (64 << 20, 12_000);
    vec![
        attack(
            "links with long targets",
            Arc::new(move |n| {
                below(&format!("l{}", n % 1000), &json!({"link": {"to": "x".repeat(4000)}}))
            }),
            RAISED,
            small,
            &[7],
            "ended",
        ),
        attack(
            "directories side by side",
            Arc::new(move |n| below(&format!("d{}", n % 10_000), &directory())),
            RAISED,
            small,
            &[7],
            "ended",
        ),
        attack(
            "directories in directories",
            Arc::new(move |n| {
                below(&vec!["d"; usize::try_from(n % 1000).unwrap() + 1].join("/"), &directory())
            }),
            RAISED,
            small,
            &[7],
            "ended",
        ),
        attack(
            "empty files with long names",
            Arc::new(|n| {
                below(&format!("{}{}", "f".repeat(240), n % 1000), &json!({"file": {"bytes": 0}}))
            }),
            RAISED,
            small,
            &[7],
            "ended",
        ),
        attack(
            "entries, with a budget of 1,000",
            Arc::new(|n| below(&format!("l{n}"), &json!({"link": {"to": "x"}}))),
            &["--max-entries", "1000"],
            (64 << 20, 1001),
            &[5],
            "--max-entries",
        ),
        attack(
            "files full of data, with a budget of 64 MiB",
            Arc::new(|n| {
                let mut all = below(&format!("f{n}"), &json!({"file": {"bytes": LARGEST - 8}}));
                all.extend(framed(Kind::Data as u8, &[&[0; 8][..], &[7; LARGEST - 8]].concat()));
                all
            }),
            &["--max-bytes", "64M"],
            (80 << 20, 4000),
            &[5],
            "--max-bytes",
        ),
        attack(
            "sparse files of a tebibyte each",
            Arc::new(|n| below(&format!("s{n}"), &json!({"file": {"bytes": 1_u64 << 40}}))),
            &[],
            (1 << 20, 10),
            &[5],
            "--max-bytes",
        ),
        attack(
            "one file of 8 EiB",
            Arc::new(|n| below(&format!("s{n}"), &json!({"file": {"bytes": u64::MAX}}))),
            &[],
            (1 << 20, 10),
            &[5],
            "--max-bytes",
        ),
        attack(
            "data over data",
            Arc::new(|n| match n {
                0 => below("f", &json!({"file": {"bytes": 1 << 20}})),
                _ => framed(Kind::Data as u8, &vec![0; LARGEST]),
            }),
            RAISED,
            (2 << 20, 10),
            &[7],
            "no file or directory",
        ),
        attack(
            "pongs",
            Arc::new(|_| framed(Kind::Pong as u8, b"")),
            &[],
            (1 << 20, 10),
            &[7],
            "no file or directory",
        ),
        attack(
            "ends",
            Arc::new(|_| framed(Kind::End as u8, b"")),
            &[],
            (1 << 20, 10),
            &[7],
            "no file or directory",
        ),
        attack(
            "no frames at all",
            Arc::new(|_| vec![0; 4096]),
            &[],
            (1 << 20, 10),
            &[7],
            "no answer",
        ),
        attack(
            "brackets for an entry",
            Arc::new(|_| framed(Kind::Entry as u8, &vec![b'['; LARGEST])),
            &[],
            (1 << 20, 10),
            &[7],
            "no file or directory",
        ),
        attack(
            "entries with much that nobody asked for",
            Arc::new(|n| {
                let waste = "{},".repeat(10_000);
                let rest = r#""what":"directory","mode":493,"modified_ns":0"#;
                let text = format!(r#"{{"path":"d{}",{rest},"x":[{waste}0]}}"#, n % 100);
                framed(Kind::Entry as u8, text.as_bytes())
            }),
            RAISED,
            small,
            &[7],
            "ended",
        ),
        attack(
            "a reply of brackets",
            Arc::new(|_| framed(Kind::Reply as u8, &vec![b'['; LARGEST])),
            &[],
            (1 << 20, 10),
            &[7],
            "cannot be read",
        ),
    ]
}

impl Attack {
    fn limit(&self) -> Limit {
        if self.codes == [5] { Limit::Refusal } else { Limit::Time }
    }
}

#[track_caller]
fn holds(attack: &Attack, outcome: &Outcome, disk: (u64, u64), codes: &[i32], limit: u64) {
    let Outcome { done, peak, .. } = outcome;
    let name = attack.name;
    assert!(codes.contains(&done.code) && done.err.contains(attack.words), "{name}: {done:?}");
    assert!(*peak > 0 && *peak <= limit, "{name}: {} MiB of memory", peak >> 20);
    assert!(disk.0 <= attack.disk.0 && disk.1 <= attack.disk.1, "{name}: {disk:?} on the disk");
}

/// A fake that answers requests to copy with what `now` holds.
fn answering(
    now: &Arc<Mutex<Option<(Piece, Limit)>>>,
) -> impl Fn(&Value, &mut Conversation) -> std::io::Result<()> + use<> {
    let now = Arc::clone(now);
    move |request, conversation| {
        if request["request"] != "get" {
            return Ok(());
        }
        let (piece, limit) = now.lock().unwrap().clone().unwrap();
        conversation.entry("", json!("directory"))?;
        flood(conversation, &*piece, limit)
    }
}

#[test]
fn a_guest_that_floods_cp_takes_the_memory_or_the_disk_of_the_host() {
    let lab = super::running();
    let now = Arc::new(Mutex::new(None));
    let guest = with_ports_of(&lab, "a", answering(&now));
    heading();
    // In the first tier those that are most unlike each other.
    for attack in attacks().into_iter().step_by(tier::first_or(3, 1)) {
        *now.lock().unwrap() = Some((Arc::clone(&attack.piece), attack.limit()));
        let out = lab.path().join("out");
        let words = [&["cp"], attack.options, &["a:/x", out.to_str().unwrap()]].concat();
        guest.sent();
        let outcome = watch(&lab, lab.command(&words));
        let disk = usage(&out);
        row(&format!("cp: {}", attack.name), &outcome, guest.sent(), disk);
        holds(&attack, &outcome, disk, attack.codes, COPY_MEMORY);
        let _ = std::fs::remove_dir_all(&out);
    }
}

/// A guest that writes to both streams of a command for ever, and hears no signal.
fn writing(text: &'static [u8]) -> impl Fn(&Value, &mut Conversation) -> std::io::Result<()> {
    move |request, conversation| {
        if request["request"] != "exec" {
            return Ok(());
        }
        let streams = [Kind::Output, Kind::Errors];
        let line: Vec<u8> = text.iter().copied().cycle().take(LARGEST).collect();
        let pieces = streams.map(|kind| framed(kind as u8, &line));
        flood(conversation, &|n| pieces[usize::try_from(n % 2).unwrap()].clone(), Limit::Time)?;
        Ok(())
    }
}

/// A row for an attack on the output of a command.
#[track_caller]
fn told(lab: &Lab, name: &str, outcome: &Outcome, sent: u64, limit: u64) {
    row(name, outcome, sent, usage(&lab.path().join("victim.out")));
    assert!(
        outcome.peak > 0 && outcome.peak <= limit,
        "{name}: {} MiB of memory",
        outcome.peak >> 20
    );
}

#[test]
fn a_command_that_writes_without_end_takes_the_memory_of_the_host() {
    let lab = super::running();
    heading();
    let texts = [("what is no text", &b"\xff"[..]), ("zeros", b"\0"), ("text", b"line\n")];
    for (name, text) in texts.into_iter().take(tier::first_or(1, 3)) {
        let guest = with_ports_of(&lab, "a", writing(text));
        // As it comes. Nobody has to keep it.
        let mut command = lab.command(&["sh"]);
        let words = ["exec", "--timeout", "1", "a", "--", "yes"];
        let inner = lab.command(&words);
        command = passing(command, &inner, &words);
        let outcome = watch(&lab, command);
        told(&lab, &format!("exec: {name}"), &outcome, guest.sent(), COPY_MEMORY);
        // A flood keeps neither the deadline nor a signal away.
        assert!(matches!(outcome.done.code, 124 | 125), "{:?}", outcome.done.code);
        assert!(
            seconds() < 30 || outcome.took < Duration::from_secs(seconds() - 10),
            "{:?}",
            outcome.took
        );
        for (verb, options) in [("16 MiB", &[][..]), ("1 MiB", &["--max-output", "1M"])] {
            let words = [&["--format", "json", "exec"], options, &["a", "--", "yes"]].concat();
            let outcome = watch(&lab, lab.command(&words));
            told(
                &lab,
                &format!("exec --format json, {verb}: {name}"),
                &outcome,
                guest.sent(),
                KEPT_MEMORY,
            );
            assert_eq!(outcome.done.code, 125, "{:?}", outcome.done.err);
        }
        // With a deadline it says what it has.
        let words = ["--format", "json", "exec", "--timeout", "1", "a", "--", "yes"];
        let outcome = watch(&lab, lab.command(&words));
        let sent = guest.sent();
        told(&lab, &format!("exec --format json --timeout: {name}"), &outcome, sent, KEPT_MEMORY);
        if outcome.done.code == 124 {
            let value: Value = serde_json::from_str(&outcome.done.out).unwrap();
            let kept = value["stdout"].as_str().unwrap().chars().count();
            assert_eq!(
                (value["truncated"].as_bool(), value["timed_out"].as_bool()),
                (Some(true), Some(true))
            );
            // A character that the limit has cut in two is left out.
            assert!(kept <= 16 << 20 && kept + 3 >= 16 << 20, "{kept} characters");
        }
    }
}

/// The same command with its output to nowhere.
fn passing(
    _: std::process::Command,
    inner: &std::process::Command,
    words: &[&str],
) -> std::process::Command {
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "exec \"$@\" >/dev/null 2>/dev/null", "sh"])
        .arg(inner.get_program())
        .args(words);
    shell.envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shell
}

#[test]
fn a_run_whose_output_never_ends_takes_the_memory_of_the_host() {
    let lab = Lab::warm();
    let guest = FakeGuest::listen(&lab, writing(b"\0"));
    heading();
    let words = ["--format", "json", "run", "--timeout", "1", "t", "--", "yes"];
    let outcome = watch(&lab, guest.command(&lab, &words));
    let sent = guest.sent();
    told(&lab, "run --format json --timeout: zeros", &outcome, sent, KEPT_MEMORY);
    let outcome = watch(&lab, guest.command(&lab, &["--format", "json", "run", "t", "--", "yes"]));
    told(&lab, "run --format json: zeros", &outcome, guest.sent(), KEPT_MEMORY);
    assert_eq!(lab.vm_directories(), ["t"]);
}

#[test]
fn a_real_command_that_writes_without_end_is_cut_and_goes_on_to_its_end() {
    let lab = super::running();
    let script =
        "head -c 300000 /dev/zero | tr '\\0' x; head -c 5 /dev/zero | tr '\\0' y >&2; exit 3";
    let words = ["--format", "json", "exec", "--max-output", "100K", "a", "--", "sh", "-c", script];
    let done = lab.run(&words);
    let value: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, value["exit_code"].as_u64()), (3, Some(3)));
    assert_eq!(value["stdout"].as_str().unwrap().len(), 100 << 10);
    assert_eq!(
        (value["stderr"].as_str(), value["truncated"].as_bool()),
        (Some("yyyyy"), Some(true))
    );
    let words = [
        "--format", "json", "exec", "--agent-only", "--max-output", "100K", "a", "--", "sh", "-c",
        script,
    ];
    let value: Value = serde_json::from_str(&lab.run(&words).out).unwrap();
    assert_eq!(
        (value["stdout"].as_str().unwrap().len(), value["truncated"].as_bool()),
        (100 << 10, Some(true))
    );
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn a_guest_that_floods_a_copy_out_takes_the_memory_or_the_disk_of_the_host_and_stays() {
        let lab = Lab::warm();
        let now = Arc::new(Mutex::new(None));
        let guest = FakeGuest::listen(&lab, answering(&now));
        heading();
        // In a minute's version all of them; in seconds, those that last.
        for attack in attacks().iter().filter(|attack| seconds() > 10 || attack.options == RAISED) {
            *now.lock().unwrap() = Some((Arc::clone(&attack.piece), attack.limit()));
            let out = lab.path().join("out");
            let copy = format!("/x:{}", out.display());
            let words =
                [&["run"], attack.options, &["--copy-out", &copy, "t", "--", "true"]].concat();
            guest.sent();
            let outcome = watch(&lab, guest.command(&lab, &words));
            let disk = usage(&out);
            row(&format!("run --copy-out: {}", attack.name), &outcome, guest.sent(), disk);
            holds(attack, &outcome, disk, &[125], COPY_MEMORY);
            let _ = std::fs::remove_dir_all(&out);
            assert_eq!(lab.vm_directories(), ["t"], "{}", attack.name);
        }
        // The time for copies is over before the flood is.
        *now.lock().unwrap() = Some((Arc::clone(&attacks()[0].piece), Limit::Time));
        let copy = format!("/x:{}", lab.path().join("out").display());
        let words =
            [&["run", "--copy-timeout", "1"], RAISED, &["--copy-out", &copy, "t", "--", "true"]]
                .concat();
        let outcome = watch(&lab, guest.command(&lab, &words));
        outcome.done.fails(125, &["the copies after the command did not end within 1 s"]);
        assert_eq!(lab.vm_directories(), ["t"]);
    }
}
