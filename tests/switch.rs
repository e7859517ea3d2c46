//! A snapshot of a running VM when QEMU refuses, hangs up or dies in the middle: nothing is
//! switched, or all of it is kept.

use serde_json::{Value, json};

use crate::fake::{Answer, FakeVm};

fn ordinary(name: &str, layer: &str) -> Answer {
    match name {
        "query-jobs" => Answer::Return(json!([])),
        "query-status" => {
            Answer::Return(json!({"running": true, "status": "running", "something-new": 1}))
        }
        "query-chardev" => {
            Answer::Return(json!([{"label": "agent", "frontend-open": false, "filename": ""}]))
        }
        "qom-get" => Answer::Return(json!(format!("l-{layer}"))),
        _ => Answer::Return(json!({})),
    }
}

#[test]
fn a_snapshot_whose_group_has_one_bad_disk_switches_none_and_leaves_nothing() {
    let vm = FakeVm::new(|name, _: &Value, layer| match name {
        "transaction" => Answer::Refuse("Cannot find device='l-second'"),
        name => ordinary(name, layer),
    });
    let before = (vm.record(), vm.layers());
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 7, "{error}");
    assert!(
        error.contains("QEMU refused transaction: \"Cannot find device='l-second'\""),
        "{error}"
    );
    assert_eq!((vm.record(), vm.layers()), before);
    assert!(!vm.file("journal.json").exists());
    // Both overlays had been added to QEMU; both are taken out again, the format before the file.
    let removed = vm.heard().iter().filter(|name| *name == "blockdev-del").count();
    assert_eq!(removed, 4);
}

#[test]
fn an_overlay_qemu_cannot_open_leaves_nothing_behind() {
    let vm = FakeVm::new(|name, arguments, layer| match (name, arguments["driver"].as_str()) {
        ("blockdev-add", Some("qcow2")) => {
            Answer::Refuse("Could not open: No space left on device")
        }
        ("blockdev-del", _) => Answer::Refuse("Failed to find node"),
        _ => ordinary(name, layer),
    });
    let before = (vm.record(), vm.layers());
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 7, "{error}");
    assert!(error.contains("No space left on device"), "{error}");
    assert_eq!((vm.record(), vm.layers()), before);
    assert!(!vm.heard().contains(&"transaction".to_owned()));
}

/// QEMU hangs up when the transaction is sent: whether it happened is unknown. `qom-get` is the
/// truth afterwards.
fn hangs_up(switched: bool) -> FakeVm {
    let overlay = std::sync::Mutex::new(String::new());
    FakeVm::new(move |name, arguments, layer| match name {
        "transaction" => {
            *overlay.lock().unwrap() =
                arguments["actions"][0]["data"]["overlay"].as_str().unwrap().to_owned();
            Answer::HangUp
        }
        "qom-get" if switched => Answer::Return(json!(overlay.lock().unwrap().clone())),
        name => ordinary(name, layer),
    })
}

#[test]
fn a_snapshot_without_an_answer_is_completed_when_qemu_did_switch() {
    let vm = hangs_up(true);
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(vm.record()["snapshots"][0]["name"], "s");
    assert_eq!(vm.layers(), 4);
    assert!(!vm.file("journal.json").exists());
}

#[test]
fn a_snapshot_without_an_answer_is_undone_when_qemu_did_not_switch() {
    let vm = hangs_up(false);
    let before = (vm.record(), vm.layers());
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 7, "{error}");
    assert!(error.contains("closed the connection"), "{error}");
    assert_eq!((vm.record(), vm.layers()), before);
    assert!(!vm.file("journal.json").exists());
}

#[test]
fn an_overlay_that_may_be_in_use_is_never_removed() {
    // After the hang-up a filter of somebody's job hides which layer the device is on: nothing may
    // be concluded, nothing unlinked.
    let filtered = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let hidden = std::sync::Arc::clone(&filtered);
    let vm = FakeVm::new(move |name, _: &Value, layer| match name {
        "transaction" => Answer::HangUp,
        "qom-get" if hidden.load(std::sync::atomic::Ordering::Relaxed) => {
            Answer::Return(json!("#block123"))
        }
        name => ordinary(name, layer),
    });
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 7, "{error}");
    assert!(error.contains("unknown"), "{error}");
    assert_eq!(vm.layers(), 4);
    assert_eq!(vm.run(&["resume", "web"]).0, 5, "still nothing can be concluded");
    assert_eq!(vm.layers(), 4);
    filtered.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(vm.run(&["resume", "web"]).0, 0);
    assert_eq!(vm.layers(), 2, "it did not switch, so it was undone");
}

#[test]
fn events_old_replies_and_noise_between_are_passed_over() {
    let vm = FakeVm::new(|name, _: &Value, layer| match name {
        "query-status" => Answer::Lines(vec![
            json!({
                "event": "A_NEW_EVENT",
                "data": {"x": [1]},
                "timestamp": {"seconds": 1, "microseconds": 2},
            })
            .to_string(),
            r#"{"return": {"running": false, "status": "from another time"}, "id": 999999}"#.into(),
            "this is no JSON".into(),
            r#"{"return": {"running": true, "status": "running"}, "id": "ID"}"#.into(),
        ]),
        name => ordinary(name, layer),
    });
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(vm.record()["snapshots"][0]["vm_state"], "running");
}

/// The socket of a QEMU that ends goes before its process does.
#[test]
fn a_qemu_that_is_just_ending_is_waited_for() {
    let vm = FakeVm::new(|name, _: &Value, layer| ordinary(name, layer));
    let socket = vm.file("run").join("qmp.sock");
    std::fs::remove_file(&socket).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let power = vm.power();
    std::thread::spawn(move || {
        // It is called, hangs up, and is called again while its lock is held: only then is it gone.
        drop(listener.accept());
        let called_again = listener.accept();
        rustix::fs::flock(&power, rustix::fs::FlockOperation::Unlock).unwrap();
        drop(called_again);
    });
    let (code, _, error) = vm.run(&["snapshot", "create", "web", "s"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(vm.record()["snapshots"][0]["vm_state"], "stopped");
}
