//! A fake QEMU: a VM directory whose run lock is held and whose sockets answer as a test says.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub const GREETING: &str = concat!(
    r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "#,
    r#""capabilities": ["oob"]}}"#,
);

/// What a fake does with a command.
pub enum Answer {
    /// `{"return": …}`
    Return(Value),
    /// `{"error": …}`
    Refuse(&'static str),
    /// Lines as they are.
    Lines(Vec<String>),
    /// Hang up without a word.
    HangUp,
}

/// The commands a fake was given, in order.
pub type Heard = Arc<Mutex<Vec<Value>>>;

/// Serves QMP on `path`, for every connection anew.
pub fn serve(
    path: &Path,
    answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static,
) -> Heard {
    let listener = UnixListener::bind(path).unwrap();
    let heard = Heard::default();
    let log = Arc::clone(&heard);
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
            std::thread::spawn(move || converse(stream.unwrap(), &*answer, &log));
        }
    });
    heard
}

fn converse(mut stream: UnixStream, answer: &dyn Fn(&str, &Value) -> Answer, log: &Heard) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    if writeln!(stream, "{GREETING}").is_err() {
        return;
    }
    for line in lines.map_while(Result::ok) {
        let command: Value = serde_json::from_str(&line).unwrap();
        log.lock().unwrap().push(command.clone());
        let (name, id) = (command["execute"].as_str().unwrap(), &command["id"]);
        let reply = match name {
            "qmp_capabilities" => Answer::Return(json!({})),
            name => answer(name, &command["arguments"]),
        };
        let text = match reply {
            Answer::Return(value) => json!({"return": value, "id": id}).to_string(),
            Answer::Refuse(words) => {
                json!({"error": {"class": "GenericError", "desc": words}, "id": id}).to_string()
            }
            Answer::Lines(lines) => lines.join("\n").replace("\"ID\"", &id.to_string()),
            Answer::HangUp => return,
        };
        if writeln!(stream, "{text}").is_err() {
            return;
        }
    }
}

/// A store with one VM that "runs" in a fake QEMU.
pub struct FakeVm {
    directory: tempfile::TempDir,
    lock: File,
    pub heard: Heard,
}

impl FakeVm {
    /// The VM `web` with two disks; `answer` gets its name of the first disk's layer, too. Until a
    /// transaction is sent, or a job is completed, the disks are on the layers of the record.
    pub fn new(answer: impl Fn(&str, &Value, &str) -> Answer + Send + Sync + 'static) -> Self {
        Self::after(&[], answer)
    }

    /// The same after these commands, which are run before it "runs".
    pub fn after(
        commands: &[&[&str]],
        answer: impl Fn(&str, &Value, &str) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::Builder::new().prefix("cwf").tempdir_in("/tmp").unwrap();
        let made = run(directory.path(), &["create", "web", "--size", "64M", "--size", "64M"]);
        assert!(made.0 == 0, "{}", made.2);
        for command in commands {
            let done = run(directory.path(), command);
            assert!(done.0 == 0, "{command:?}: {}", done.2);
        }
        let vm = directory.path().join("store/vms/web");
        let sockets = directory.path().join("sockets");
        std::fs::create_dir(&sockets).unwrap();
        std::os::unix::fs::symlink(&sockets, vm.join("run")).unwrap();
        let lock = File::create(vm.join("run.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let record: Value =
            serde_json::from_slice(&std::fs::read(vm.join("vm.json")).unwrap()).unwrap();
        let disks: Vec<(String, String)> =
            record["config"]["disks"].as_array().unwrap().iter().map(disk).collect();
        let was_sent = AtomicBool::new(false);
        let heard = serve(&sockets.join("qmp.sock"), move |name, arguments| match name {
            "query-named-block-nodes" => Answer::Return(json!([])),
            "qom-get" if !was_sent.load(Ordering::SeqCst) => {
                let path = arguments["path"].as_str().unwrap();
                let (_, layer) = disks.iter().find(|(target, _)| path.ends_with(target)).unwrap();
                Answer::Return(json!(format!("l-{layer}")))
            }
            name => {
                was_sent
                    .fetch_or(["transaction", "job-complete"].contains(&name), Ordering::SeqCst);
                answer(name, arguments, &disks[0].1)
            }
        });
        Self { directory, lock, heard }
    }

    /// Runs `cowhand …`: exit code, standard output, standard error.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        run(self.directory.path(), args)
    }

    /// The same with variables.
    pub fn run_with(&self, variables: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
        told(command(self.directory.path(), args).envs(variables.iter().copied()).output().unwrap())
    }

    /// Starts `cowhand …` and does not wait.
    pub fn spawn(&self, args: &[&str]) -> std::process::Child {
        command(self.directory.path(), args).spawn().unwrap()
    }

    /// What holds the VM's run lock: unlock it, and the VM is off.
    pub fn power(&self) -> File {
        self.lock.try_clone().unwrap()
    }

    /// The names of the commands QEMU was given.
    pub fn heard(&self) -> Vec<String> {
        self.heard
            .lock()
            .unwrap()
            .iter()
            .map(|command| command["execute"].as_str().unwrap().to_owned())
            .collect()
    }

    pub fn layers(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("store/layers")).unwrap().count()
    }

    pub fn record(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.file("vm.json")).unwrap()).unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("store/vms/web").join(name)
    }
}

/// The guest's name of a disk in a record, and its layer.
fn disk(disk: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&disk["target"]), text(&disk["layer"]["id"]))
}

/// The ends of a guest agent's pipes that QEMU holds: what comes in, what goes out.
pub fn agent_pipes(directory: &Path) -> (File, File) {
    let [input, output] = ["agent.in", "agent.out"].map(|name| {
        let path = directory.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    });
    (input, output)
}

/// Runs `cowhand …` with a store below `root`.
pub fn run(root: &Path, args: &[&str]) -> (i32, String, String) {
    told(command(root, args).output().unwrap())
}

fn told(output: std::process::Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// `cowhand …`, ready to be started. The QEMU it finds only knows its machine types.
fn command(root: &Path, args: &[&str]) -> Command {
    let qemu = root.join("qemu");
    if !qemu.exists() {
        let machines = r#"{"return": [{"name": "pc-q35-7.2", "alias": "q35"}]}"#;
        std::fs::write(
            &qemu,
            format!("#!/bin/sh\ncat >/dev/null\necho '{GREETING}'\necho '{machines}'\n"),
        )
        .unwrap();
        std::fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowhand"));
    command
        .args(args)
        .env("COWHAND_STORE", root.join("store"))
        .env("XDG_RUNTIME_DIR", root)
        .env("COWHAND_QEMU", &qemu)
        .env("COWHAND_ACCEL", "tcg");
    command
}
