use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;

use super::App;
use crate::change::open;
use crate::error::{Error, IoContext, Result};
use crate::instance::{sockets, status};
use crate::model::Name;
use crate::sys::terminal::Raw;

/// Ctrl-], as telnet and virsh have it.
const ESCAPE: u8 = 0x1d;
/// How long the guest may take to say anything to the end of piped input. A terminal echoes at
/// once, but a busy host may be slow.
const FIRST: Duration = Duration::from_secs(30);

/// Connect to a guest's serial console; Ctrl-] disconnects
///
/// One client at a time. Input can be piped: at its end the guest has 30 seconds to answer, and
/// cowhand disconnects once the guest has been silent for a second (`--linger`).
#[derive(Debug, Args)]
pub(super) struct Console {
    /// After piped input has ended, disconnect after this many seconds of silence; with 0,
    /// disconnect at once without waiting for an answer
    #[arg(long, value_name = "SECS", default_value_t = 1)]
    linger: u64,
    /// The VM
    name: Name,
}

impl Console {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let store = &app.context.store;
        open::refuse_template(&self.name, &store.load(&self.name)?, "open the console of")?;
        if !status::is_running(&app.context, &self.name)? {
            return Err(Error::refused(format!("{} is not running", self.name))
                .hint(format!("start it: cowhand start {}", self.name))
                .hint(format!("what it printed before: cowhand logs {}", self.name)));
        }
        let path = sockets::of(&app.context, &self.name)
            .ok_or_else(|| Error::damaged("cannot find its console socket"))?
            .console();
        let socket = UnixStream::connect(&path).on("connect to", &path)?;
        let raw = Raw::enter().on("set up the terminal for", &path)?;
        if raw.is_some() {
            app.context.ui.note(&format!("connected to {}; Ctrl-] disconnects\r", self.name));
        }
        let printer = app.printer;
        let from_guest = socket.try_clone().on("use", &path)?;
        let (hears, heard) = watch::channel(0);
        // Whichever thread ends first ends the console; the other one dies with the process.
        let mut output = tokio::task::spawn_blocking(move || {
            copy_output(from_guest, &hears, |bytes| printer.raw(bytes))
        });
        let interactive = raw.is_some();
        let counts = heard.clone();
        let input = tokio::task::spawn_blocking(move || copy_input(socket, &counts, interactive));
        tokio::select! {
            _ = &mut output => {}
            ended = input => {
                if !interactive && let Ok(Ok(before)) = ended {
                    silence(heard, before, Duration::from_secs(self.linger)).await;
                }
            }
        }
        Ok(())
    }
}

/// Waits until the guest has nothing more to say: it may take long for its first word to the last
/// input, before which `before` bytes had been heard, and `linger` for each one after.
async fn silence(mut heard: watch::Receiver<u64>, before: Option<u64>, linger: Duration) {
    let has_answered = before.is_none_or(|before| *heard.borrow_and_update() > before);
    let mut limit = if has_answered || linger.is_zero() { linger } else { linger.max(FIRST) };
    while let Ok(Ok(())) = tokio::time::timeout(limit, heard.changed()).await {
        limit = linger;
    }
}

/// Prints what the guest says, and tells how many bytes that were.
fn copy_output(mut socket: UnixStream, heard: &watch::Sender<u64>, print: impl Fn(&[u8])) {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                print(&buffer[..read]);
                heard.send_modify(|bytes| *bytes += read as u64);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Gives the guest what is typed or piped, to its end. Returns how many bytes had been heard before
/// the last of it, if there was any.
fn copy_input(
    mut socket: UnixStream,
    heard: &watch::Receiver<u64>,
    interactive: bool,
) -> std::io::Result<Option<u64>> {
    let (mut buffer, mut before) = ([0; 4096], None);
    loop {
        let read = std::io::stdin().read(&mut buffer)?;
        let bytes = &buffer[..read];
        let escape = bytes.iter().position(|byte| interactive && *byte == ESCAPE);
        if read > 0 {
            before = Some(*heard.borrow());
        }
        socket.write_all(&bytes[..escape.unwrap_or(read)])?;
        if read == 0 || escape.is_some() {
            return Ok(before);
        }
    }
}
