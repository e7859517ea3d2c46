//! The merge of a running VM's active layers when QEMU cannot flush what was copied: before the
//! switch nothing has happened; after it both layers stay and the guest stands still, until the
//! flush succeeds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};

use crate::fake::{Answer, FakeVm};

const FAILED: &str = "Error flushing drive: Input/output error";

/// What a QEMU knows of its block jobs.
#[derive(Default)]
struct Qemu {
    jobs: Mutex<BTreeMap<String, Value>>,
    paused: AtomicBool,
    switched: AtomicBool,
    /// Flushes fail before the switch.
    fails_before: AtomicBool,
    /// Flushes fail after it.
    fails_after: AtomicBool,
    /// The layer that each disk is on after the switch.
    bases: OnceLock<BTreeMap<String, String>>,
}

impl Qemu {
    fn answer(&self, name: &str, arguments: &Value) -> Answer {
        let set = |status: &str, error: Option<&str>| {
            let id =
                ["job-id", "id", "device"].iter().find_map(|key| arguments[key].as_str()).unwrap();
            let mut job = json!({
                "id": id, "type": "commit", "status": status, "current-progress": 1,
                "total-progress": 1,
            });
            if let Some(error) = error {
                job["error"] = error.into();
            }
            self.jobs.lock().unwrap().insert(id.to_owned(), job);
        };
        match name {
            "query-jobs" => {
                return Answer::Return(self.jobs.lock().unwrap().values().cloned().collect());
            }
            "query-status" => {
                let running = !self.paused.load(Ordering::SeqCst);
                let status = if running { "running" } else { "paused" };
                return Answer::Return(json!({"running": running, "status": status}));
            }
            "qom-get" => {
                let path = arguments["path"].as_str().unwrap();
                let (_, base) = self
                    .bases
                    .get()
                    .unwrap()
                    .iter()
                    .find(|(target, _)| path.ends_with(*target))
                    .unwrap();
                return Answer::Return(json!(format!("l-{base}")));
            }
            "blockdev-reopen" => {
                let switched = self.switched.load(Ordering::SeqCst);
                let fails = if switched { &self.fails_after } else { &self.fails_before };
                if fails.load(Ordering::SeqCst) {
                    return Answer::Refuse(FAILED);
                }
            }
            "block-commit" => set("ready", None),
            "block-job-cancel" => set("concluded", Some("Operation canceled")),
            "job-complete" => {
                self.switched.store(true, Ordering::SeqCst);
                set("concluded", None);
            }
            "job-dismiss" => {
                drop(self.jobs.lock().unwrap().remove(arguments["id"].as_str().unwrap()))
            }
            "stop" => self.paused.store(true, Ordering::SeqCst),
            "cont" => self.paused.store(false, Ordering::SeqCst),
            _ => {}
        }
        Answer::Return(json!({}))
    }
}

/// A VM with two disks, each with a layer below its active one.
fn vm() -> (FakeVm, Arc<Qemu>) {
    let qemu = Arc::new(Qemu::default());
    let answering = Arc::clone(&qemu);
    let vm = FakeVm::after(&[&["snapshot", "create", "web", "s"]], move |name, arguments, _| {
        answering.answer(name, arguments)
    });
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let disks = vm.record()["snapshots"][0]["config"]["disks"].as_array().unwrap().clone();
    qemu.bases
        .set(disks.iter().map(|disk| (text(&disk["target"]), text(&disk["layer"]["id"]))).collect())
        .unwrap();
    (vm, qemu)
}

#[test]
fn a_flush_that_fails_before_the_switch_leaves_everything_as_it_was() {
    let (vm, qemu) = vm();
    qemu.fails_before.store(true, Ordering::SeqCst);
    let heads = vm.record()["config"]["disks"].clone();
    let (code, out, error) = vm.run(&["snapshot", "rm", "web@s"]);
    assert_eq!(code, 0, "{error}");
    assert!(
        out.contains("did not reach the disk") && out.contains("Input/output error"),
        "{out} {error}"
    );
    assert_eq!((vm.record()["config"]["disks"].clone(), vm.layers()), (heads, 4));
    assert!(!vm.file("journal.json").exists());
    assert!(!qemu.paused.load(Ordering::SeqCst) && !qemu.switched.load(Ordering::SeqCst));
    assert!(qemu.jobs.lock().unwrap().is_empty());
}

/// The command dies while its jobs are at work, and one of them fails before the next command
/// comes.
#[test]
fn a_job_that_has_failed_meanwhile_is_called_off_with_the_others() {
    let (vm, qemu) = vm();
    let dies = [("COWHAND_FAULT", "a merged layer, about to be flushed:die")];
    assert_ne!(vm.run_with(&dies, &["snapshot", "rm", "web@s"]).0, 0);
    assert_eq!(qemu.jobs.lock().unwrap().len(), 2);
    for job in qemu.jobs.lock().unwrap().values_mut().take(1) {
        job["status"] = "concluded".into();
        job["error"] = "No space left on device".into();
    }
    let (code, _, error) = vm.run(&["set", "web", "tag.t=1"]);
    assert!(code == 0 && error.contains("No space left on device"), "{error}");
    assert_eq!(vm.layers(), 4);
    assert!(qemu.jobs.lock().unwrap().is_empty() && !qemu.switched.load(Ordering::SeqCst));
}

#[test]
fn a_flush_that_fails_after_the_switch_keeps_both_layers_until_it_succeeds() {
    let (vm, qemu) = vm();
    qemu.fails_after.store(true, Ordering::SeqCst);
    let (code, _, error) = vm.run(&["snapshot", "rm", "web@s"]);
    assert_eq!(code, 7, "{error}");
    for word in [
        "did not reach the disk",
        "Input/output error",
        "the guest is paused until the merge is done",
        "cowhand stop --force web",
    ] {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    assert_eq!(vm.layers(), 4, "a layer was removed whose data is nowhere else");
    assert!(qemu.paused.load(Ordering::SeqCst), "the guest writes to a layer that no record names");
    // As long as it fails, the next command does no better.
    let (code, _, error) = vm.run(&["set", "web", "tag.t=1"]);
    assert_eq!(code, 7, "{error}");
    assert_eq!(vm.layers(), 4);
    qemu.fails_after.store(false, Ordering::SeqCst);
    let (code, _, error) = vm.run(&["set", "web", "tag.t=1"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(vm.layers(), 2);
    assert!(!qemu.paused.load(Ordering::SeqCst) && !vm.file("journal.json").exists());
    let bases = qemu.bases.get().unwrap();
    for disk in vm.record()["config"]["disks"].as_array().unwrap() {
        assert_eq!(disk["layer"]["id"].as_str().unwrap(), bases[disk["target"].as_str().unwrap()]);
    }
}
