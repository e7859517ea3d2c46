//! A guest that is none: a listener in the place of a VM's ports, which speaks the helper's
//! protocol and says what a test likes.

use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowhand::helper::frame::{self, Decoder, Kind, Next, START, VERSION, WELCOME};
use serde_json::{Value, json};

use crate::lab::Lab;

/// Answers a request, as JSON. What it does not answer is answered as a helper would.
pub type Script = dyn Fn(&Value, &mut Conversation) -> io::Result<()> + Send + Sync;

/// One end of a port.
pub struct Conversation {
    stream: UnixStream,
    sent: Arc<AtomicU64>,
    answered: bool,
}

impl Conversation {
    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.answered = true;
        self.stream.write_all(bytes)?;
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// A frame of any kind.
    pub fn frame(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        self.raw(&framed(kind, payload))
    }

    pub fn entry(&mut self, path: &str, what: Value) -> io::Result<()> {
        self.raw(&entry(path, &what))
    }

    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.frame(Kind::Data as u8, &[&offset.to_le_bytes(), bytes].concat())
    }

    pub fn reply(&mut self, reply: &Value) -> io::Result<()> {
        self.frame(Kind::Reply as u8, reply.to_string().as_bytes())
    }

    /// The tree is whole.
    pub fn end(&mut self, bytes: u64) -> io::Result<()> {
        self.frame(Kind::End as u8, b"")?;
        self.reply(&json!({"reply": "done", "bytes": bytes}))
    }
}

pub fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes.extend(payload);
    bytes
}

pub fn entry(path: &str, what: &Value) -> Vec<u8> {
    let entry = json!({"path": path, "what": what, "mode": 0o755, "modified_ns": 0});
    framed(Kind::Entry as u8, entry.to_string().as_bytes())
}

/// A listener; it serves as many ports and conversations as come, until the test ends.
pub struct FakeGuest {
    socket: PathBuf,
    sent: Arc<AtomicU64>,
}

/// Puts a fake in the place of the helper of `vm`, which runs and has opened its ports.
pub fn with_ports_of(
    lab: &Lab,
    vm: &str,
    script: impl Fn(&Value, &mut Conversation) -> io::Result<()> + Send + Sync + 'static,
) -> FakeGuest {
    let fake = FakeGuest::listen(lab, script);
    let run = std::fs::canonicalize(lab.store().join("vms").join(vm).join("run")).unwrap();
    for port in 0..cowhand::model::PORTS {
        let path = run.join(format!("port{port}.sock"));
        std::fs::remove_file(&path).unwrap();
        symlink(&fake.socket, path).unwrap();
    }
    fake
}

impl FakeGuest {
    pub fn listen(
        lab: &Lab,
        script: impl Fn(&Value, &mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let socket = (0..)
            .map(|n| lab.path().join(format!("f{n}.sock")))
            .find(|path| !path.exists())
            .unwrap();
        let (listener, sent) = (UnixListener::bind(&socket).unwrap(), Arc::new(AtomicU64::new(0)));
        let (counter, script): (_, Arc<Script>) = (Arc::clone(&sent), Arc::new(script));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sent, script) = (Arc::clone(&counter), Arc::clone(&script));
                let conversation = Conversation { stream: stream.unwrap(), sent, answered: false };
                // It ends when the other end hangs up.
                std::thread::spawn(move || converse(conversation, &*script));
            }
        });
        Self { socket, sent }
    }

    /// The bytes it has sent since this was last asked.
    pub fn sent(&self) -> u64 {
        self.sent.swap(0, Ordering::Relaxed)
    }

    /// `cowhand …`, whose QEMUs have this fake at their ports: the real ports get another name.
    pub fn command(&self, lab: &Lab, args: &[&str]) -> Command {
        let qemu =
            std::env::var("COWHAND_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
        let (wrapper, fake) = (lab.path().join("qemu"), self.socket.display());
        let text = format!(
            "#!/bin/sh\nfor word; do\n  shift\n  \
             case \"$word\" in socket,id=port[0-9],path=*)\n    \
             path=${{word#*path=}}; path=${{path%%,*}}\n    \
             rm -f \"$path\"; ln -s '{fake}' \"$path\"\n    \
             word=\"${{word%%path=*}}path=${{path%.sock}}.real,server=on,wait=off\";;\n  esac\n  \
             set -- \"$@\" \"$word\"\ndone\nexec {qemu} \"$@\"\n"
        );
        std::fs::write(&wrapper, text).unwrap();
        std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = lab.command(args);
        // It stands before a QEMU that has been taken over, and plays the part of the guest alone.
        command.env("COWHAND_QEMU", wrapper).env("COWHAND_CONFINE", "off");
        command
    }
}

fn converse(mut conversation: Conversation, script: &Script) -> Option<()> {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 65536];
    let mut reader = conversation.stream.try_clone().ok()?;
    let mut receive = |decoder: &mut Decoder| match reader.read(&mut buffer) {
        Ok(read @ 1..) => {
            decoder.push(&buffer[..read]);
            Some(())
        }
        _ => None,
    };
    let token = loop {
        if let Some(token) = decoder.find::<16>(&START) {
            break token;
        }
        receive(&mut decoder)?;
    };
    conversation.raw(&[&WELCOME[..], &token, &VERSION.to_le_bytes()].concat()).ok()?;
    loop {
        match decoder.cut() {
            Next::Frame(Kind::Request, payload) => {
                let request: Value = serde_json::from_slice(&payload).unwrap();
                conversation.answered = false;
                script(&request, &mut conversation).ok()?;
                if !conversation.answered {
                    let reply = match request["request"].as_str().unwrap() {
                        "exec" => json!({"reply": "exited", "code": 0}),
                        "become" => json!({"reply": "became", "reseeded": true, "problems": []}),
                        _ => json!({"reply": "done"}),
                    };
                    conversation.reply(&reply).ok()?;
                }
            }
            Next::Frame(Kind::Ping, _) => conversation.frame(Kind::Pong as u8, b"").ok()?,
            Next::Frame(..) => {}
            Next::More => receive(&mut decoder)?,
            Next::Lost => return None,
        }
    }
}

/// The largest payload of a frame.
pub const LARGEST: usize = frame::LARGEST;

/// What a directory takes on the disk, in bytes and in entries.
pub fn usage(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(about) = path.symlink_metadata() else { return (0, 0) };
    let mut sum = (about.blocks() * 512, 1);
    if about.is_dir() {
        for entry in std::fs::read_dir(path).unwrap().flatten() {
            let inner = usage(&entry.path());
            sum = (sum.0 + inner.0, sum.1 + inner.1);
        }
    }
    sum
}
