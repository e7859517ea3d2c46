//! The near ends of a guest's command: this process's input, output, terminal, variables and
//! signals.

use std::collections::HashSet;
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

use crate::error::{Error, IoContext, Result};
use crate::guest::exec::Control;
use crate::sys::inside;
use crate::sys::terminal::Raw;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// The most bytes a file with variables may have.
const VARIABLES: u64 = 1 << 20;

/// `K=V`, as it is; or `K`, with the value that it has here. The words that say what is wrong do
/// not repeat a value: it may be secret.
pub(super) fn variable(pair: &str) -> std::result::Result<String, String> {
    let (key, value) = pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value)));
    match (key, value) {
        ("", _) => Err("a variable has no name: it is written NAME or NAME=VALUE".to_owned()),
        (_, Some(value)) if value.contains('\0') => {
            Err(format!("the value of {key:?} contains a NUL"))
        }
        (_, Some(_)) => Ok(pair.to_owned()),
        (_, None) => match std::env::var(key) {
            Ok(value) => Ok(format!("{key}={value}")),
            Err(std::env::VarError::NotPresent) => {
                Err(format!("there is no variable {key:?} here; give it a value: {key}=VALUE"))
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(format!("the value of {key:?} is not UTF-8"))
            }
        },
    }
}

/// One value for each name, the last one: not every guest would take that.
pub(super) fn last_of_each(pairs: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let mut kept: Vec<String> =
        pairs.into_iter().rev().filter(|pair| seen.insert(name(pair))).collect();
    kept.reverse();
    kept
}

/// The variables in a file, one a line: `K=V` or `K`, without quotes. Empty lines and those that
/// begin with `#` are left out. `-` is standard input.
pub(super) fn variables(file: &Path) -> Result<Vec<String>> {
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().lock().take(VARIABLES + 1).read_to_string(&mut text),
        false => {
            File::open(file).and_then(|file| file.take(VARIABLES + 1).read_to_string(&mut text))
        }
    };
    read.on("read", file)?;
    if text.len() as u64 > VARIABLES {
        return Err(Error::usage(format!(
            "{} is too long for a file with variables (1 MiB)",
            file.display()
        )));
    }
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        let named = |why| Error::usage(format!("{}, line {number}: {why}", file.display()));
        all.push(variable(line).map_err(named)?);
    }
    Ok(all)
}

/// What comes on standard input, until its end.
pub(super) fn input() -> Receiver<Vec<u8>> {
    let (send, receive) = channel(4);
    // A thread, so that signals are heard while nothing comes; it ends with the process.
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match std::io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Ok(read) if send.blocking_send(buffer[..read].to_vec()).is_err() => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receive
}

/// Signals for us, which are meant for the command, and the terminal's size when it changes.
pub(super) fn control(terminal: bool) -> Result<Receiver<Control>> {
    let (send, receive) = channel(16);
    let cannot = |source| Error::failed("cannot listen to signals").because(source);
    let numbers = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    for kind in numbers {
        let (send, mut signals) = (send.clone(), signal(kind).map_err(cannot)?);
        let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
        tokio::spawn(async move {
            while signals.recv().await.is_some() && send.send(Control::Signal(number)).await.is_ok()
            {
            }
        });
    }
    if terminal {
        let mut changes = signal(SignalKind::window_change()).map_err(cannot)?;
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let Some((rows, columns)) = inside::terminal_size(std::io::stdin()) else {
                    continue;
                };
                if send.send(Control::Resize(rows, columns)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receive)
}

/// Our terminal, raw for as long as this lives, and its size.
pub(super) fn terminal() -> Result<(Raw, (u16, u16))> {
    let none = || {
        Error::usage("-t needs a terminal, and standard input is not one")
            .hint("leave out -t, or run it from a terminal")
    };
    if !std::io::stdin().is_terminal() {
        return Err(none());
    }
    let size = inside::terminal_size(std::io::stdin()).unwrap_or((24, 80));
    let raw = Raw::enter()
        .map_err(|source| Error::failed("cannot set up the terminal").because(source))?;
    raw.map(|raw| (raw, size)).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_podman_does() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("env");
        std::fs::write(&file, "# a comment\n\nA=1\nB=two words = 'quoted'\nPATH\nE=\n")
            .expect("written");
        let all = variables(&file).expect("good");
        let path = format!("PATH={}", std::env::var("PATH").expect("there"));
        assert_eq!(all, ["A=1", "B=two words = 'quoted'", path.as_str(), "E="]);
    }

    #[test]
    fn the_last_value_of_a_variable_wins() {
        let all = ["A=1", "B=2", "A=3=4"].map(str::to_owned).to_vec();
        assert_eq!(last_of_each(all), ["B=2", "A=3=4"]);
    }

    #[test]
    fn what_is_wrong_with_a_variable_is_said_without_its_value() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("env");
        for text in ["=sesame\n", "A=1\n=sesame", "A=sesame\0\n", "COWHAND_NO_SUCH_VARIABLE\n"] {
            std::fs::write(&file, text).expect("written");
            let error = variables(&file).expect_err(text).full_message();
            assert!(!error.contains("sesame") && error.contains("line "), "{error}");
        }
        File::create(&file).and_then(|file| file.set_len(VARIABLES + 1)).expect("long");
        assert!(variables(&file).is_err());
    }
}
