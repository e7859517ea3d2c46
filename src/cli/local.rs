//! The near ends of a guest's command: this process's input, output, terminal and signals.

use std::io::{IsTerminal, Read};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

use crate::error::{Error, Result};
use crate::guest::exec::Control;
use crate::sys::inside;
use crate::sys::terminal::Raw;

/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// What comes on standard input, until its end.
pub fn input() -> Receiver<Vec<u8>> {
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
pub fn control(terminal: bool) -> Result<Receiver<Control>> {
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
            while signals.recv().await.is_some() && send.send(Control::Signal(number)).await.is_ok() {}
        });
    }
    if terminal {
        let mut changes = signal(SignalKind::window_change()).map_err(cannot)?;
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                let Some((rows, columns)) = inside::terminal_size(std::io::stdin()) else { continue };
                if send.send(Control::Resize(rows, columns)).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receive)
}

/// Our terminal, raw for as long as this lives, and its size.
pub fn terminal() -> Result<(Raw, (u16, u16))> {
    let none = || {
        Error::usage("a terminal was asked for (-t), and standard input is none")
            .hint("leave out -t, or run it from a terminal")
    };
    if !std::io::stdin().is_terminal() {
        return Err(none());
    }
    let size = inside::terminal_size(std::io::stdin()).unwrap_or((24, 80));
    let raw = Raw::enter().map_err(|source| Error::failed("cannot set up the terminal").because(source))?;
    raw.map(|raw| (raw, size)).ok_or_else(none)
}
