//! The guest-agent client against an agent that was interrupted, answers late, or says nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use cowhand::qemu::agent::{Agent, AgentError};
use cowhand::qemu::sockets::Sockets;
use qapi::qga::guest_ping;

use crate::fake::agent_pipes;

const MINUTE: Duration = Duration::from_secs(60);

/// An agent that first sends `leftovers`, then misses `lost` commands, then answers syncs, and
/// other commands with `answer`.
fn serve(directory: &Path, leftovers: &'static [u8], lost: usize, answer: Option<&'static [u8]>) {
    let (input, mut output) = agent_pipes(directory);
    output.write_all(leftovers).unwrap();
    answer_all(Vec::new(), input, output, lost, answer);
}

fn answer_all(
    mut buffer: Vec<u8>,
    mut input: File,
    mut output: File,
    mut lost: usize,
    answer: Option<&'static [u8]>,
) {
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = input.read(&mut chunk) {
            buffer.extend(&chunk[..read]);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                // QEMU's agent does that, too.
                for _ in line.iter().filter(|byte| **byte == 0xff) {
                    output
                        .write_all(
                            b"{\"error\": {\"class\": \"GenericError\", \
                              \"desc\": \"JSON parse error, stray\"}}\n",
                        )
                        .unwrap();
                }
                let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
                let command: serde_json::Value = serde_json::from_slice(&line).unwrap();
                if lost > 0 {
                    lost -= 1;
                } else if command["execute"] == "guest-sync-delimited" {
                    output.write_all(&[0xff]).unwrap();
                    writeln!(output, "{{\"return\": {}}}", command["arguments"]["id"]).unwrap();
                } else if let Some(answer) = answer {
                    output.write_all(answer).unwrap();
                }
            }
        }
    });
}

async fn ping(
    leftovers: &'static [u8],
    answer: Option<&'static [u8]>,
    limit: Duration,
) -> Result<(), AgentError> {
    let directory = tempfile::tempdir().unwrap();
    serve(directory.path(), leftovers, 0, answer);
    let pipes = Sockets::new(directory.path().to_owned()).agent();
    let mut agent = Agent::connect(&pipes, Duration::from_secs(20)).await?;
    agent.run(&guest_ping {}, limit).await.map(drop)
}

#[tokio::test]
async fn answers_to_somebody_elses_questions_are_thrown_away() {
    let leftovers =
        b"half a li\xff{\"return\": 17}\n{\"return\": {\"pid\": 3}}\n\xff{\"return\": 18}\n";
    ping(leftovers, Some(b"{\"return\": {}}\n"), MINUTE).await.unwrap();
}

#[tokio::test]
async fn silence_means_unknown_and_a_refusal_is_quoted() {
    let silent = ping(b"", None, Duration::from_millis(200)).await;
    assert!(matches!(silent, Err(AgentError::Timeout { .. })));
    let refused = ping(
        b"",
        Some(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"in frozen state\"}}\n"),
        MINUTE,
    )
    .await;
    assert!(refused.unwrap_err().to_string().contains("\"in frozen state\""));
}

#[tokio::test]
async fn what_was_lost_when_the_guest_rebooted_is_not_waited_for() {
    // A sync is asked again.
    let directory = tempfile::tempdir().unwrap();
    serve(directory.path(), b"", 1, Some(b"{\"return\": {}}\n"));
    let mut agent =
        Agent::connect(&Sockets::new(directory.path().to_owned()).agent(), MINUTE).await.unwrap();
    agent.run(&guest_ping {}, MINUTE).await.unwrap();
    // One that is answered late, with a complaint about the next behind it, does not bring us out
    // of step.
    let directory = tempfile::tempdir().unwrap();
    let pipes = Sockets::new(directory.path().to_owned()).agent();
    let (mut input, output) = agent_pipes(directory.path());
    let late = tokio::spawn(async move { Agent::connect(&pipes, MINUTE).await.unwrap() });
    let read = tokio::task::spawn_blocking(move || {
        let mut first = vec![0; 4096];
        let bytes = input.read(&mut first).unwrap();
        first.truncate(bytes);
        (input, first)
    });
    let (input, first) = read.await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    answer_all(first, input, output, 0, Some(b"{\"return\": {}}\n"));
    late.await.unwrap().run(&guest_ping {}, MINUTE).await.unwrap();
    // A command is not: it may have been carried out. Nor is a late answer to a sync taken for its
    // answer.
    let ending = ping(b"", None, MINUTE).await.unwrap_err();
    assert!(matches!(ending, AgentError::Restarted { .. }), "{ending}");
    let late = Some(&b"\xff{\"return\": 18}\n{\"return\": {}}\n"[..]);
    ping(b"", late, MINUTE).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_not_waited_for_longer_than_asked() {
    let directory = tempfile::tempdir().unwrap();
    let pipes = Sockets::new(directory.path().to_owned()).agent();
    assert!(matches!(
        Agent::connect(&pipes, Duration::from_secs(20)).await,
        Err(AgentError::Unreachable(_))
    ));
    let ends = agent_pipes(directory.path());
    assert!(matches!(
        Agent::connect(&pipes, Duration::from_millis(50)).await,
        Err(AgentError::Absent)
    ));
    // What nobody has read by then is nobody's business any more, however often it is tried.
    for _ in 0..2000 {
        assert!(matches!(Agent::connect(&pipes, Duration::ZERO).await, Err(AgentError::Absent)));
    }
    drop(ends);
    assert!(matches!(
        Agent::connect(&pipes, Duration::from_secs(20)).await,
        Err(AgentError::Unreachable(_))
    ));
}

/// The most memory that this process has had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// What an evil agent sends: the beginning, then the middle so often, then the end.
#[derive(Clone, Copy)]
struct Flood {
    head: &'static [u8],
    middle: &'static [u8],
    times: usize,
    tail: &'static [u8],
}

impl Flood {
    fn write(self, output: &mut File) {
        let many = self.middle.repeat(4096);
        output.write_all(self.head).unwrap();
        for _ in 0..self.times / 4096 {
            output.write_all(&many).unwrap();
        }
        output.write_all(self.tail).unwrap();
    }
}

/// An agent that sends `before` ahead of its answer to the first sync, and `after` as its answer to
/// everything else.
fn evil(directory: &Path, before: Option<Flood>, after: Flood) {
    let (mut input, mut output) = agent_pipes(directory);
    let mut before = before;
    std::thread::spawn(move || {
        let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = input.read(&mut chunk) {
            buffer.extend(chunk[..read].iter().filter(|byte| **byte != 0xff));
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let command: serde_json::Value = serde_json::from_slice(&line).unwrap();
                if command["execute"] == "guest-sync-delimited" {
                    before.take().inspect(|before| before.write(&mut output));
                    output.write_all(&[0xff]).unwrap();
                    writeln!(output, "{{\"return\": {}}}", command["arguments"]["id"]).unwrap();
                } else {
                    after.write(&mut output);
                }
            }
        }
    });
}

async fn asked<C: qapi::Command>(
    before: Option<Flood>,
    after: Flood,
    command: &C,
) -> Result<C::Ok, AgentError> {
    let directory = tempfile::tempdir().unwrap();
    evil(directory.path(), before, after);
    let mut agent =
        Agent::connect(&Sockets::new(directory.path().to_owned()).agent(), MINUTE).await?;
    agent.run(command, MINUTE).await
}

/// Each test has a process of its own, so what is measured is what this one takes.
#[tokio::test]
async fn an_agent_that_sends_what_nobody_asked_for_takes_the_memory_of_the_host() {
    let flood = |head, middle, times, tail| Flood { head, middle, times, tail };
    let fine = flood(b"{\"return\": {}}\n", b"", 0, b"");
    let budget = 200 << 20;
    // Before it is in step: a line without an end, brackets, answers that nobody waits for.
    for middle in [&b"x"[..], b"[", b"{},", b"\xff", b"\xff{\"return\": 17}\n"] {
        asked(Some(flood(b"", middle, (64 << 20) / middle.len(), b"\n")), fine, &guest_ping {})
            .await
            .unwrap();
        assert!(
            peak() < 32 << 20,
            "{} MiB for {:?}",
            peak() >> 20,
            String::from_utf8_lossy(middle)
        );
    }
    // In its answer to a command that has a short one.
    for middle in [&b"x"[..], b"[", b"{},", b"\"a\":{},"] {
        let error =
            asked(None, flood(b"{\"return\": [", middle, 64 << 20, b"]}\n"), &guest_ping {})
                .await
                .unwrap_err();
        assert!(matches!(error, AgentError::TooLong { .. }), "{error}");
        assert!(
            peak() < 32 << 20,
            "{} MiB for {:?}",
            peak() >> 20,
            String::from_utf8_lossy(middle)
        );
    }
    // Words without end in an error.
    let long = flood(b"{\"error\": {\"class\": \"x\", \"desc\": \"", b"x", 100 << 10, b"\"}}\n");
    let refused = asked(None, long, &guest_ping {}).await.unwrap_err().to_string();
    assert!(refused.len() < 4096, "{} bytes", refused.len());
    // In the answer to a command whose output comes with it: what the answer has no place for takes
    // none.
    let status = qapi::qga::guest_exec_status { pid: 1 };
    let head = &b"{\"return\": {\"exited\": true, \"exitcode\": 0, \"x\": ["[..];
    let answer = asked(None, flood(head, b"{},", 15 << 20, b"0]}}\n"), &status).await.unwrap();
    assert!(answer.exited && peak() < budget, "{} MiB", peak() >> 20);
    let error = asked(None, flood(head, b"[", 40 << 20, b"]}}\n"), &status).await.unwrap_err();
    assert!(
        matches!(error, AgentError::Decode { .. }) && peak() < budget,
        "{error}: {} MiB",
        peak() >> 20
    );
    let error = asked(None, flood(head, b"{},", 64 << 20, b"0]}}\n"), &status).await.unwrap_err();
    assert!(
        matches!(error, AgentError::TooLong { .. }) && peak() < budget,
        "{error}: {} MiB",
        peak() >> 20
    );
    // Output that is none is not quoted.
    let head = &b"{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \""[..];
    let error = asked(None, flood(head, b"!!!!", 4 << 20, b"\"}}\n"), &status).await.unwrap_err();
    let words = cowhand::error::Error::from(error).full_message();
    assert!(words.len() < 8192, "{} bytes", words.len());
    // As much as QEMU's agent keeps of both streams.
    let (head, answer) =
        (&b"{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \""[..], b"QUJD");
    let kept = asked(None, flood(head, answer, 5 << 20, b"\"}}\n"), &status).await.unwrap();
    assert_eq!(kept.out_data.unwrap().len(), 15 << 20);
    assert!(peak() < budget, "{} MiB", peak() >> 20);
}
