//! What real QEMUs answered, decoded: transcripts of 7.2 and 10.0, replayed.

use std::time::Duration;

use cowhand::qemu::qmp::Qmp;
use serde_json::Value;

use crate::fake::{Answer, serve};

async fn replay(transcript: &str) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    let answers: Value = serde_json::from_str(transcript).unwrap();
    serve(&socket, move |name, _| match answers.get(name) {
        Some(answer) => Answer::Return(answer.clone()),
        None => Answer::Refuse("not in the transcript"),
    });
    let mut qmp = Qmp::connect(&socket, Duration::from_secs(20)).await.unwrap();
    assert!(qmp.status(Duration::from_secs(20)).await.unwrap().running);
    let job = qmp.job("cw-backup").await.unwrap().unwrap();
    assert_eq!((job.status.as_str(), job.error), ("running", None));
    assert!(job.total >= job.current);
    assert!(!qmp.agent_is_listening().await.unwrap());
    assert!(qmp.active_layer("vda").await.unwrap().is_some());
    let refused = qmp.call::<Value>("no-such-command", Value::Null).await.unwrap_err();
    assert!(!refused.is_unknown() && refused.to_string().contains("not in the transcript"));
}

#[tokio::test]
async fn the_answers_of_qemu_7_2_are_understood() {
    replay(include_str!("transcripts/qemu-7.2.json")).await;
}

#[tokio::test]
async fn the_answers_of_qemu_10_0_are_understood() {
    replay(include_str!("transcripts/qemu-10.0.json")).await;
}

#[tokio::test]
async fn a_qemu_that_never_greets_is_given_up_on() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let Err(error) = Qmp::connect(&socket, Duration::from_millis(50)).await else {
        panic!("nobody greeted")
    };
    assert!(error.is_unknown(), "{error}");
}

#[tokio::test]
async fn giving_up_on_a_command_does_not_confuse_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    serve(&socket, |name, _| match name {
        "query-status" => {
            std::thread::sleep(Duration::from_millis(300));
            Answer::Return(serde_json::json!({"running": true, "status": "late"}))
        }
        _ => Answer::Return(serde_json::json!([])),
    });
    let mut qmp = Qmp::connect(&socket, Duration::from_secs(20)).await.unwrap();
    assert!(qmp.status(Duration::from_millis(20)).await.unwrap_err().is_unknown());
    assert!(qmp.jobs().await.unwrap().is_empty(), "the late answer was taken for this one's");
}

#[tokio::test]
async fn a_guest_runs_from_the_event_on_and_not_only_from_the_reply() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    // The reply comes late, behind the next command's.
    serve(&socket, |name, _| match name {
        "cont" => Answer::Lines(vec![r#"{"event": "RESUME", "data": {}}"#.to_owned()]),
        _ => Answer::Return(serde_json::json!({"running": true, "status": "running"})),
    });
    let mut qmp = Qmp::connect(&socket, Duration::from_secs(20)).await.unwrap();
    qmp.cont_until_running().await.unwrap();
    assert!(qmp.status(Duration::from_secs(20)).await.unwrap().running);
}

#[tokio::test]
async fn a_guest_that_may_not_go_on_is_an_error_with_the_words_of_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qmp.sock");
    serve(&socket, |_, _| Answer::Refuse("Resetting the Virtual Machine is required"));
    let mut qmp = Qmp::connect(&socket, Duration::from_secs(20)).await.unwrap();
    let error = qmp.cont_until_running().await.unwrap_err();
    assert!(
        !error.is_unknown() && error.to_string().contains("Resetting the Virtual Machine"),
        "{error}"
    );
}
