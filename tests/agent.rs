//! The guest-agent client against an agent that was interrupted, answers late, or says nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use cowhand::qemu::agent::{Agent, AgentError};
use qapi::qga::guest_ping;

/// An agent that first sends `leftovers`, then answers syncs, and other commands with `answer`.
fn serve(socket: &Path, leftovers: &'static [u8], answer: Option<&'static [u8]>) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(leftovers).unwrap();
        let (mut buffer, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = stream.read(&mut chunk) {
            buffer.extend(&chunk[..read]);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).filter(|byte| *byte != 0xff).collect();
                let command: serde_json::Value = serde_json::from_slice(&line).unwrap();
                if command["execute"] == "guest-sync-delimited" {
                    stream.write_all(&[0xff]).unwrap();
                    writeln!(stream, "{{\"return\": {}}}", command["arguments"]["id"]).unwrap();
                } else if let Some(answer) = answer {
                    stream.write_all(answer).unwrap();
                }
            }
        }
    });
}

async fn ping(leftovers: &'static [u8], answer: Option<&'static [u8]>) -> Result<(), AgentError> {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    serve(&socket, leftovers, answer);
    let mut agent = Agent::connect(&socket, Duration::from_secs(20)).await?;
    agent.run(&guest_ping {}, Duration::from_millis(200)).await.map(drop)
}

#[tokio::test]
async fn answers_to_somebody_elses_questions_are_thrown_away() {
    let leftovers = b"half a li\xff{\"return\": 17}\n{\"return\": {\"pid\": 3}}\n\xff{\"return\": 18}\n";
    ping(leftovers, Some(b"{\"return\": {}}\n")).await.unwrap();
}

#[tokio::test]
async fn silence_means_unknown_and_a_refusal_is_quoted() {
    assert!(matches!(ping(b"", None).await, Err(AgentError::Timeout { .. })));
    let refused = ping(b"", Some(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"in frozen state\"}}\n")).await;
    assert!(refused.unwrap_err().to_string().contains("\"in frozen state\""));
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_not_waited_for_longer_than_asked() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    assert!(matches!(Agent::connect(&socket, Duration::from_secs(20)).await, Err(AgentError::Unreachable(_))));
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(matches!(Agent::connect(&socket, Duration::from_millis(50)).await, Err(AgentError::Absent)));
}
