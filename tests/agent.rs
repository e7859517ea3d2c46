//! The guest-agent client against an agent that was interrupted, answers late, or says nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use cowhand::qemu::agent::{Agent, AgentError};
use cowhand::qemu::cmdline::Sockets;
use qapi::qga::guest_ping;

use crate::fake::agent_pipes;

const MINUTE: Duration = Duration::from_secs(60);

/// An agent that first sends `leftovers`, then misses `lost` commands, then answers syncs, and other commands with `answer`.
fn serve(directory: &Path, leftovers: &'static [u8], lost: usize, answer: Option<&'static [u8]>) {
    let (input, mut output) = agent_pipes(directory);
    output.write_all(leftovers).unwrap();
    answer_all(Vec::new(), input, output, lost, answer);
}

fn answer_all(mut buffer: Vec<u8>, mut input: File, mut output: File, mut lost: usize, answer: Option<&'static [u8]>) {
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
                            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error, stray\"}}\n",
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

async fn ping(leftovers: &'static [u8], answer: Option<&'static [u8]>, limit: Duration) -> Result<(), AgentError> {
    let directory = tempfile::tempdir().unwrap();
    serve(directory.path(), leftovers, 0, answer);
    let pipes = Sockets::new(directory.path().to_owned()).agent();
    let mut agent = Agent::connect(&pipes, Duration::from_secs(20)).await?;
    agent.run(&guest_ping {}, limit).await.map(drop)
}

#[tokio::test]
async fn answers_to_somebody_elses_questions_are_thrown_away() {
    let leftovers = b"half a li\xff{\"return\": 17}\n{\"return\": {\"pid\": 3}}\n\xff{\"return\": 18}\n";
    ping(leftovers, Some(b"{\"return\": {}}\n"), MINUTE).await.unwrap();
}

#[tokio::test]
async fn silence_means_unknown_and_a_refusal_is_quoted() {
    let silent = ping(b"", None, Duration::from_millis(200)).await;
    assert!(matches!(silent, Err(AgentError::Timeout { .. })));
    let refused =
        ping(b"", Some(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"in frozen state\"}}\n"), MINUTE).await;
    assert!(refused.unwrap_err().to_string().contains("\"in frozen state\""));
}

#[tokio::test]
async fn what_was_lost_when_the_guest_rebooted_is_not_waited_for() {
    // A sync is asked again.
    let directory = tempfile::tempdir().unwrap();
    serve(directory.path(), b"", 1, Some(b"{\"return\": {}}\n"));
    let mut agent = Agent::connect(&Sockets::new(directory.path().to_owned()).agent(), MINUTE).await.unwrap();
    agent.run(&guest_ping {}, MINUTE).await.unwrap();
    // One that is answered late, with a complaint about the next behind it, does not bring us out of step.
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
    // A command is not: it may have been carried out. Nor is a late answer to a sync taken for its answer.
    let ending = ping(b"", None, MINUTE).await.unwrap_err();
    assert!(matches!(ending, AgentError::Restarted { .. }), "{ending}");
    let late = Some(&b"\xff{\"return\": 18}\n{\"return\": {}}\n"[..]);
    ping(b"", late, MINUTE).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_not_waited_for_longer_than_asked() {
    let directory = tempfile::tempdir().unwrap();
    let pipes = Sockets::new(directory.path().to_owned()).agent();
    assert!(matches!(Agent::connect(&pipes, Duration::from_secs(20)).await, Err(AgentError::Unreachable(_))));
    let ends = agent_pipes(directory.path());
    assert!(matches!(Agent::connect(&pipes, Duration::from_millis(50)).await, Err(AgentError::Absent)));
    // What nobody has read by then is nobody's business any more, however often it is tried.
    for _ in 0..2000 {
        assert!(matches!(Agent::connect(&pipes, Duration::ZERO).await, Err(AgentError::Absent)));
    }
    drop(ends);
    assert!(matches!(Agent::connect(&pipes, Duration::from_secs(20)).await, Err(AgentError::Unreachable(_))));
}
