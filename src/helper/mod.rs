//! The helper: what runs in a guest for us, and the words it is spoken to with. It is this same
//! program, sent into the guest's memory when it is first needed (`guest/install.rs`), where it
//! answers on virtio-serial ports. Nothing of it is on the guest's disks.
//!
//! | part | what it does |
//! |---|---|
//! | [`frame`] | the protocol: frames, requests, replies (pure) |
//! | [`tree`] | files and directories on their way, either way (both ends) |
//! | `port` | a port's end in the guest |
//! | `command` | runs commands, with or without a terminal |
//! | `identity` | makes a guest somebody else |
//! | `users` | reads the guest's user database |

mod command;
pub mod frame;
mod identity;
mod port;
pub(crate) mod tree;
mod users;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use frame::{Kind, Reply, Request, Why};
use port::Port;
use tree::{Piece, Target, Writer};

/// The verb under which this program is the helper.
pub const VERB: &str = "guest-helper";
/// Where it lies in the guest: a file system of its own, in memory.
pub const DIRECTORY: &str = "/run/cowhand";

/// How soon a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Is the helper: a process for each port, so that no conversation is in another's way.
pub fn main(words: &[String]) -> ExitCode {
    match words {
        [device] => serve(Path::new(device)),
        _ => {
            let program = std::env::current_exe().unwrap_or_default();
            let start = |device: &Path| {
                let mut command = Command::new(&program);
                command
                    .arg(VERB)
                    .arg(device)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                command.spawn()
            };
            let children: Vec<_> =
                port::devices().iter().filter_map(|(_, device)| start(device).ok()).collect();
            for mut child in children {
                let _ = child.wait();
            }
            ExitCode::SUCCESS
        }
    }
}

fn serve(device: &Path) -> ExitCode {
    let mut port = loop {
        match Port::open(device) {
            Ok(port) => break port,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return ExitCode::FAILURE,
            Err(_) => std::thread::sleep(AGAIN),
        }
    };
    loop {
        port.begin();
        while let Some((kind, payload)) = port.next() {
            match kind {
                Kind::Request => {
                    let Some(reply) = answer(&mut port, &payload) else { break };
                    port.say(Kind::Reply, &reply);
                }
                Kind::Ping => port.send(Kind::Pong, &[]),
                // What was on its way when the request it belonged to ended.
                _ => {}
            }
        }
    }
}

fn answer(port: &mut Port, request: &[u8]) -> Option<Reply> {
    let request = match serde_json::from_slice(request) {
        Ok(request) => request,
        Err(error) => return Some(other(format!("the request cannot be read: {error}"))),
    };
    match request {
        Request::Exec(exec) => command::run(port, &exec),
        Request::Prepare => {
            Some(Reply::Became(frame::Became { reseeded: false, problems: identity::prepare() }))
        }
        Request::Become(identity) => Some(Reply::Became(identity::become_(&identity))),
        Request::Put { path, name } => {
            take(port, &tree::destination(Path::new(&path), OsStr::new(&name)))
        }
        Request::Get { path, follow } => give(port, Path::new(&path), follow),
    }
}

fn other(message: String) -> Reply {
    Reply::Failed { why: Why::Other, message }
}

fn failed(path: &Path, error: &io::Error) -> Reply {
    let why = if error.kind() == io::ErrorKind::NotFound { Why::NotFound } else { Why::Other };
    Reply::Failed { why, message: format!("{}: {error}", path.display()) }
}

fn take(port: &mut Port, target: &Path) -> Option<Reply> {
    let mut writer = Target::at(target).map(Writer::trusted);
    // What follows has to be heard out, whatever became of what came before.
    loop {
        let (kind, payload) = port.next()?;
        let result = match (&mut writer, kind) {
            (_, Kind::End) => break,
            (Err(_), _) => continue,
            (Ok(writer), Kind::Entry) => serde_json::from_slice(&payload)
                .map_err(io::Error::from)
                .and_then(|entry| writer.entry(&entry)),
            (Ok(writer), Kind::Data) => match payload.split_first_chunk() {
                Some((offset, bytes)) => writer.data(u64::from_le_bytes(*offset), bytes),
                None => Err(io::ErrorKind::InvalidData.into()),
            },
            _ => continue,
        };
        if let Err(error) = result {
            writer = Err(error);
        }
    }
    Some(match writer.and_then(Writer::finish) {
        Ok(bytes) => Reply::Done { bytes },
        Err(error) => failed(target, &error),
    })
}

fn give(port: &mut Port, path: &Path, follow: bool) -> Option<Reply> {
    let mut sent = 0;
    let result = tree::read(path, follow, &mut |piece| {
        match piece {
            Piece::Entry(entry) => port.say(Kind::Entry, entry),
            Piece::Data(offset, bytes) => {
                sent += bytes.len() as u64;
                port.send(Kind::Data, &[&offset.to_le_bytes()[..], bytes].concat());
            }
        }
        if port.has_room() { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    });
    match result {
        Ok(_) => {
            port.send(Kind::End, &[]);
            Some(Reply::Done { bytes: sent })
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => None,
        Err(error) => Some(failed(path, &error)),
    }
}
