//! Windows generalises itself: a fake agent stands for it.

use std::fs::File;
use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::fake::{Answer, FakeVm, agent_pipes};

/// A guest in which sysprep.exe ends with `code`, or is not there; with 0 it is switched off
/// afterwards. Returns what was to be run.
fn windows(vm: &FakeVm, code: Option<i64>) -> std::sync::mpsc::Receiver<Value> {
    let (mut input, mut output) = agent_pipes(&vm.file("run"));
    let power: File = vm.power();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut buffer, mut chunk, mut asked) = (Vec::new(), [0; 4096], 0);
        while let Ok(read @ 1..) = input.read(&mut chunk) {
            buffer.extend(&chunk[..read]);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).filter(|byte| *byte != 0xff).collect();
                let command: Value = serde_json::from_slice(&line).unwrap();
                let answer = match (command["execute"].as_str().unwrap(), code) {
                    ("guest-sync-delimited", _) => {
                        output.write_all(&[0xff]).unwrap();
                        json!({"return": command["arguments"]["id"]})
                    }
                    ("guest-exec", None) => {
                        let desc = "No such file or directory";
                        json!({"error": {"class": "GenericError", "desc": desc}})
                    }
                    ("guest-exec", _) => {
                        tell.send(command["arguments"].clone()).unwrap();
                        json!({"return": {"pid": 7}})
                    }
                    (_, Some(code)) => {
                        asked += 1;
                        match asked {
                            1 => json!({"return": {"exited": false}}),
                            _ => json!({"return": {"exited": true, "exitcode": code}}),
                        }
                    }
                    other => panic!("{other:?}"),
                };
                writeln!(output, "{answer}").unwrap();
                if asked > 1 && code == Some(0) {
                    std::thread::sleep(std::time::Duration::from_millis(300));
                    rustix::fs::flock(&power, rustix::fs::FlockOperation::Unlock).unwrap();
                }
            }
        }
    });
    told
}

fn vm() -> FakeVm {
    FakeVm::new(|name, _, _| match name {
        "query-status" => Answer::Return(json!({"running": true, "status": "running"})),
        _ => Answer::Return(json!({})),
    })
}

const CREATE: [&str; 6] = ["--format", "json", "template", "create", "web", "--windows"];

#[test]
fn windows_is_generalised_by_its_own_sysprep_and_frozen_when_it_is_off() {
    let vm = vm();
    let told = windows(&vm, Some(0));
    let (code, out, error) = vm.run(&CREATE);
    assert_eq!(code, 0, "{error}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["sealed"], true);
    let asked = told.recv().unwrap();
    assert!(asked["path"].as_str().unwrap().ends_with(r"\sysprep.exe"));
    assert_eq!(asked["arg"], json!(["/generalize", "/oobe", "/shutdown", "/quiet"]));
    assert_eq!(vm.run(&["-q", "template", "ls"]).1.trim(), "web");
}

#[test]
fn a_sysprep_that_fails_or_is_not_there_makes_no_template() {
    for (code, words) in [(Some(31), "exit code 31"), (None, "does not seem to be Windows")] {
        let vm = vm();
        let _told = windows(&vm, code);
        let (exit, _, error) = vm.run(&CREATE);
        assert_eq!(exit, 5, "{error}");
        assert!(error.contains(words), "{error}");
        assert_eq!(vm.run(&["-q", "template", "ls"]).1.trim(), "");
    }
}
