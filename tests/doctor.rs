//! What `doctor` says while what it looks at changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::fake::{Answer, FakeVm, serve};

/// It looks twice, and says what it saw both times. The guest is paused only when it looks again.
#[test]
fn a_command_that_was_cut_short_is_told_whatever_the_guest_does_meanwhile() {
    let vm = FakeVm::new(|name, _: &Value, _| match name {
        "query-jobs" => Answer::Return(json!([])),
        "query-status" => Answer::Return(json!({"running": true, "status": "running"})),
        "query-chardev" => {
            Answer::Return(json!([{"label": "agent", "frontend-open": false, "filename": ""}]))
        }
        _ => Answer::Return(json!({})),
    });
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    serve(&vm.file("run").join("status.sock"), move |_, _| {
        let running = count.fetch_add(1, Ordering::SeqCst) == 0;
        Answer::Return(
            json!({"running": running, "status": if running { "running" } else { "paused" }}),
        )
    });
    let (code, _, error) = vm.run_with(
        &[("COWHAND_FAULT", "journal.json, in its place:die")],
        &["snapshot", "create", "web", "s"],
    );
    assert!(code < 0 && vm.file("journal.json").exists(), "{code}: {error}");
    asked.store(0, Ordering::SeqCst);
    let (code, found, error) = vm.run(&["doctor", "web"]);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert!(
        found.contains("`snapshot create web s` was cut short, and its guest is paused"),
        "{code}: {found}{error}"
    );
}
