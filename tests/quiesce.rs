//! A snapshot of a running guest whose agent is absent, hangs, answers late or says no: each has an
//! outcome of its own, the snapshot is what was asked for or nothing at all, and whatever was
//! frozen is thawed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

use crate::fake::{Answer, FakeVm, agent_pipes};

/// What the fake agent does with a command.
#[derive(Clone, Copy)]
enum Reply {
    /// `{"return": …}`
    Value(i64),
    /// `{"return": "thawed"}` and the like.
    Word(&'static str),
    /// `{"error": …}`
    No(&'static str),
    /// Is deaf until whoever asked has given up and begins anew.
    Hang,
    /// The same, and then says it: too late.
    Late(i64),
}

type Heard = Arc<Mutex<Vec<String>>>;

/// A guest agent that answers syncs, and everything else as `reply` says.
fn agent(vm: &FakeVm, reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Heard {
    let (input, output) = agent_pipes(&vm.file("run"));
    let heard = Heard::default();
    let log = Arc::clone(&heard);
    std::thread::spawn(move || converse(input, output, &reply, &log));
    heard
}

fn converse(mut input: File, mut output: File, reply: &dyn Fn(&str) -> Reply, log: &Heard) {
    let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
    let mut hung = None;
    while let Ok(read @ 1..) = input.read(&mut chunk) {
        buffer.extend(&chunk[..read]);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            // Whoever begins anew says so with this byte.
            let begins = line.contains(&0xff);
            match hung.take_if(|_| begins) {
                Some(Reply::Late(value)) => {
                    writeln!(output, "{}", json!({"return": value})).unwrap()
                }
                _ if hung.is_some() => continue,
                _ => {}
            }
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
            let command: Value = serde_json::from_slice(&line).unwrap();
            let name = command["execute"].as_str().unwrap();
            let answer = if name == "guest-sync-delimited" {
                output.write_all(&[0xff]).unwrap();
                json!({"return": command["arguments"]["id"]})
            } else {
                log.lock().unwrap().push(name.to_owned());
                match reply(name) {
                    Reply::Value(value) => json!({"return": value}),
                    Reply::Word(word) => json!({"return": word}),
                    Reply::No(words) => json!({"error": {"class": "GenericError", "desc": words}}),
                    reply @ (Reply::Hang | Reply::Late(_)) => {
                        hung = Some(reply);
                        continue;
                    }
                }
            };
            if writeln!(output, "{answer}").is_err() {
                return;
            }
        }
    }
}

/// A VM with a running guest; `listening` says whether somebody in it has the agent's port open.
fn vm(listening: bool) -> FakeVm {
    let switched = Arc::new(Mutex::new(None::<String>));
    FakeVm::new(move |name, arguments, layer| match name {
        "query-jobs" => Answer::Return(json!([])),
        "query-status" => Answer::Return(json!({"running": true, "status": "running"})),
        "query-chardev" => Answer::Return(json!([{"label": "agent", "frontend-open": listening}])),
        "transaction" => {
            let overlay = arguments["actions"][0]["data"]["overlay"].as_str().unwrap().to_owned();
            *switched.lock().unwrap() = Some(overlay);
            Answer::Return(json!({}))
        }
        "qom-get" => {
            let head = switched.lock().unwrap().clone().unwrap_or_else(|| format!("l-{layer}"));
            Answer::Return(json!(head))
        }
        _ => Answer::Return(json!({})),
    })
}

fn ordinary(name: &str) -> Reply {
    match name {
        "guest-fsfreeze-status" => Reply::Word("thawed"),
        _ => Reply::Value(2),
    }
}

fn take(vm: &FakeVm, quiesce: &str) -> (i32, Value, String) {
    take_within(vm, quiesce, "30")
}

/// For agents that do not answer: that many seconds have to pass.
fn take_within(vm: &FakeVm, quiesce: &str, seconds: &str) -> (i32, Value, String) {
    let (code, out, error) = vm.run(&[
        "--format", "json", "snapshot", "create", "web", "s", "--quiesce", quiesce,
        "--quiesce-timeout", seconds,
    ]);
    (code, serde_json::from_str(&out).unwrap_or_default(), error)
}

fn snapshots(vm: &FakeVm) -> usize {
    vm.record()["snapshots"].as_array().map_or(0, Vec::len)
}

fn count(heard: &Heard, name: &str) -> usize {
    heard.lock().unwrap().iter().filter(|heard| *heard == name).count()
}

#[test]
fn a_freeze_that_works_is_noted_and_thawed() {
    let vm = vm(true);
    let heard = agent(&vm, ordinary);
    let (code, taken, error) = take(&vm, "require");
    assert_eq!(code, 0, "{error}");
    assert_eq!((&taken["quiesced"], &taken["quiesce"]), (&true.into(), &"frozen".into()));
    assert!(taken["freeze_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(
        (count(&heard, "guest-fsfreeze-freeze"), count(&heard, "guest-fsfreeze-thaw")),
        (1, 1)
    );
}

#[test]
fn an_agent_that_is_absent_leaves_a_snapshot_only_if_nothing_else_was_asked_for() {
    let vm = vm(false);
    let (code, _, error) = take(&vm, "require");
    assert_eq!((code, snapshots(&vm)), (7, 0), "{error}");
    assert!(error.contains("not there") && error.contains("--quiesce never"), "{error}");
    let (code, taken, _) = take(&vm, "auto");
    assert_eq!((code, &taken["quiesced"], &taken["quiesce"]), (0, &false.into(), &"absent".into()));
}

#[test]
fn an_agent_that_hangs_on_freeze_is_given_up_on_and_thawed() {
    let vm = vm(true);
    let heard =
        agent(
            &vm,
            |name| if name == "guest-fsfreeze-freeze" { Reply::Hang } else { ordinary(name) },
        );
    let (code, _, error) = take_within(&vm, "require", "3");
    assert_eq!((code, snapshots(&vm)), (7, 0), "{error}");
    assert!(
        error.contains("did not freeze within") && error.contains("--quiesce-timeout"),
        "{error}"
    );
    assert_eq!(
        count(&heard, "guest-fsfreeze-thaw"),
        1,
        "it may have frozen something all the same"
    );
    assert!(!vm.file("journal.json").exists());
    let (code, taken, error) = take_within(&vm, "auto", "3");
    assert_eq!(
        (code, &taken["quiesced"], &taken["quiesce"]),
        (0, &false.into(), &"hung".into()),
        "{error}"
    );
    assert!(error.contains("were not frozen"), "{error}");
    assert_eq!(count(&heard, "guest-fsfreeze-thaw"), 2);
}

#[test]
fn an_agent_that_answers_late_does_not_leave_the_guest_frozen() {
    let vm = vm(true);
    let late = |name: &str| match name {
        "guest-fsfreeze-freeze" => Reply::Late(3),
        name => ordinary(name),
    };
    let heard = agent(&vm, late);
    let (code, _, error) = take_within(&vm, "require", "3");
    assert_eq!((code, snapshots(&vm)), (7, 0), "{error}");
    assert_eq!(count(&heard, "guest-fsfreeze-thaw"), 1);
}

#[test]
fn a_thaw_that_hangs_is_reported_beside_the_snapshot_which_exists() {
    let vm = vm(true);
    let _heard = agent(&vm, |name| match name {
        "guest-fsfreeze-thaw" => Reply::No("the thaw failed"),
        name => ordinary(name),
    });
    let (code, taken, error) = take(&vm, "require");
    assert_eq!((code, snapshots(&vm)), (0, 1), "it has switched, so it is there: {error}");
    assert_eq!((&taken["quiesced"], &taken["quiesce"]), (&true.into(), &"not-thawed".into()));
    assert!(
        error.contains("may still be frozen")
            && error.contains("the thaw failed")
            && error.contains("fsfreeze --unfreeze"),
        "{error}"
    );
}

#[test]
fn a_hook_that_says_no_and_a_guest_frozen_by_somebody_else_are_told_apart() {
    let refusing = vm(true);
    let _heard = agent(&refusing, |name| match name {
        "guest-fsfreeze-freeze" => Reply::No("hook 'mysql-flush' failed"),
        name => ordinary(name),
    });
    let (code, _, error) = take(&refusing, "require");
    assert_eq!((code, snapshots(&refusing)), (7, 0));
    assert!(error.contains("hook 'mysql-flush' failed"), "{error}");
    let (_, taken, _) = take(&refusing, "auto");
    assert_eq!(taken["quiesce"], "refused");

    let frozen = vm(true);
    let heard = agent(&frozen, |name| {
        if name == "guest-fsfreeze-status" { Reply::Word("frozen") } else { ordinary(name) }
    });
    let (code, _, error) = take(&frozen, "require");
    assert_eq!((code, snapshots(&frozen)), (5, 0));
    assert!(error.contains("already frozen"), "{error}");
    let (_, taken, _) = take(&frozen, "auto");
    assert_eq!(taken["quiesce"], "already-frozen");
    assert_eq!(
        count(&heard, "guest-fsfreeze-thaw"),
        0,
        "what another program has frozen is not ours to thaw"
    );
}

#[test]
fn never_means_that_the_agent_is_not_spoken_to() {
    let vm = vm(true);
    let heard = agent(&vm, ordinary);
    let (code, taken, _) = take(&vm, "never");
    assert_eq!((code, &taken["quiesce"]), (0, &"not-asked".into()));
    assert!(heard.lock().unwrap().is_empty());
}

#[test]
fn a_guest_left_frozen_by_a_killed_snapshot_is_thawed_by_the_next_command() {
    let (sent, arrived) = std::sync::mpsc::channel();
    let sent = Mutex::new(sent);
    let vm = FakeVm::new(move |name, _, layer| match name {
        "query-jobs" => Answer::Return(json!([])),
        "query-status" => Answer::Return(json!({"running": true, "status": "running"})),
        "query-chardev" => Answer::Return(json!([{"label": "agent", "frontend-open": true}])),
        "qom-get" => Answer::Return(json!(format!("l-{layer}"))),
        // The guest is frozen by now. It is sent, and nobody will hear the answer.
        "transaction" => {
            sent.lock().unwrap().send(()).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            Answer::HangUp
        }
        _ => Answer::Return(json!({})),
    });
    let heard = agent(&vm, ordinary);
    let mut child = vm.spawn(&["snapshot", "create", "web", "s", "--quiesce", "require"]);
    arrived.recv_timeout(Duration::from_secs(60)).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        (count(&heard, "guest-fsfreeze-freeze"), count(&heard, "guest-fsfreeze-thaw")),
        (1, 0)
    );
    let (code, _, error) = vm.run(&["pause", "web"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(count(&heard, "guest-fsfreeze-thaw"), 1, "{error}");
    assert_eq!(snapshots(&vm), 0, "it had not switched, so it never happened");
}

/// The agent starts no program in a frozen guest, and whoever has frozen it needs the agent.
#[test]
fn the_agent_is_free_for_a_thaw_while_a_program_waits_to_be_started() {
    let vm = vm(true);
    let is_frozen = Arc::new(AtomicBool::new(true));
    let frozen = Arc::clone(&is_frozen);
    let heard = agent(&vm, move |name| match name {
        "guest-get-osinfo" => Reply::No("not known"),
        "guest-exec" if frozen.load(Ordering::SeqCst) => Reply::No("the agent is in frozen state"),
        "guest-exec" => Reply::No("no programs here"),
        name => ordinary(name),
    });
    let _port = UnixListener::bind(vm.file("run").join("port0.sock")).unwrap();
    let (code, _, error) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.run(&["exec", "web", "--", "true"]));
        let deadline = Instant::now() + Duration::from_secs(60);
        let wait = |what: &str| {
            assert!(Instant::now() < deadline, "{what} did not come about");
            std::thread::sleep(Duration::from_millis(5));
        };
        while count(&heard, "guest-exec") == 0 {
            wait("a first try");
        }
        let lock = File::options().write(true).open(vm.file("agent.lock")).unwrap();
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            wait("a free agent");
        }
        is_frozen.store(false, Ordering::SeqCst);
        drop(lock);
        waiting.join().unwrap()
    });
    assert!(code != 0 && error.contains("no programs here"), "{code}: {error}");
}
