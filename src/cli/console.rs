use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use clap::Args;

use super::App;
use crate::error::{Error, IoContext, Result};
use crate::model::Name;
use crate::sys::terminal::Raw;
use crate::vm::{open, status};

/// Ctrl-], as telnet and virsh have it.
const ESCAPE: u8 = 0x1d;
/// How long the guest may stay silent after the end of piped input before we hang up.
const LINGER: Duration = Duration::from_millis(1000);

/// Talk to a guest's serial console; Ctrl-] ends it
///
/// One client at a time. Input may be piped; then the console is left a second after the guest's last word.
#[derive(Debug, Args)]
pub struct Console {
    /// The VM
    name: Name,
}

impl Console {
    pub async fn run(self, app: &App) -> Result<()> {
        let store = &app.context.store;
        open::refuse_template(&self.name, &store.load(&self.name)?, "open the console of")?;
        if !status::is_running(&app.context, &self.name)? {
            return Err(Error::refused(format!("{} is not running", self.name))
                .hint(format!("start it: cowhand start {}", self.name))
                .hint(format!("what it printed before: cowhand logs {}", self.name)));
        }
        let path = status::sockets(&app.context, &self.name)
            .ok_or_else(|| Error::damaged("where its console is is not known"))?
            .console();
        let socket = UnixStream::connect(&path).on("connect to", &path)?;
        let raw = Raw::enter().on("set up the terminal for", &path)?;
        if raw.is_some() {
            app.context.ui.note(&format!("connected to {}; Ctrl-] ends it\r", self.name));
        }
        let printer = app.printer;
        let from_guest = socket.try_clone().on("use", &path)?;
        // Whichever thread ends first ends the console; the other one dies with the process.
        let output = tokio::task::spawn_blocking(move || copy_output(from_guest, |bytes| printer.raw(bytes)));
        let interactive = raw.is_some();
        let input = tokio::task::spawn_blocking(move || copy_input(socket, interactive));
        tokio::select! {
            _ = output => {}
            ended = input => {
                if !interactive && let Ok(Ok(socket)) = ended {
                    let printer = app.printer;
                    socket.set_read_timeout(Some(LINGER)).on("use", &path)?;
                    let _ = tokio::task::spawn_blocking(move || copy_output(socket, |bytes| printer.raw(bytes))).await;
                }
            }
        }
        Ok(())
    }
}

fn copy_output(mut socket: UnixStream, print: impl Fn(&[u8])) {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) => print(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn copy_input(mut socket: UnixStream, interactive: bool) -> std::io::Result<UnixStream> {
    let mut buffer = [0; 4096];
    loop {
        let read = std::io::stdin().read(&mut buffer)?;
        let bytes = &buffer[..read];
        let escape = bytes.iter().position(|byte| interactive && *byte == ESCAPE);
        socket.write_all(&bytes[..escape.unwrap_or(read)])?;
        if read == 0 || escape.is_some() {
            return Ok(socket);
        }
    }
}
