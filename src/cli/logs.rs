use std::io::IsTerminal;

use clap::Args;
use tokio::sync::mpsc;

use super::App;
use crate::error::{Error, IoContext, Result};
use crate::instance::{logs, status};
use crate::model::printable::LogEscape;
use crate::model::{Name, human};
use crate::sys::follow::Follow;
use crate::sys::rotated::Rotated;

/// Show the output of a guest's serial console
///
/// The host keeps the last 16 MiB to 32 MiB by default; `cowhand set VM log.max=SIZE` changes the
/// limit.
#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The VM
    name: Name,
    /// Follow the output until the VM ends or Ctrl-C; of a stopped VM, print the existing output
    #[arg(short, long)]
    pub follow: bool,
    /// Print the bytes unchanged, even on a terminal; they can contain any control sequence
    #[arg(long)]
    raw: bool,
    /// Show the messages of QEMU itself since the last start instead
    #[arg(long)]
    qemu: bool,
}

impl Logs {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let store = &app.context.store;
        if !store.exists(&self.name) {
            return Err(store.unknown(&self.name));
        }
        let path = if self.qemu {
            store.layout.qemu_log(&self.name)
        } else {
            store.layout.serial_log(&self.name)
        };
        if !path.exists() {
            return Err(Error::not_found(format!(
                "{} has never been started, so there is no log",
                self.name
            )));
        }
        let log = Rotated::open(&path).on("open", &path)?;
        let follows = self.follow && status::is_running(&app.context, &self.name)?;
        let follow = follows.then(|| Follow::new(&path)).transpose().on("watch", &path)?;
        // Of a QEMU that does not say who it is, the end cannot be seen. One that has ended by now
        // does not say it, either.
        let process = if follows { logs::process(&app.context, &self.name).await? } else { None };
        let mut has_ended =
            follows && process.is_none() && !status::is_running(&app.context, &self.name)?;
        let printer = app.printer;
        // On a terminal, what the guest prints must not command it.
        let mut escape = (!self.raw && std::io::stdout().is_terminal()).then(LogEscape::default);
        let mut show = move |bytes: &[u8]| match &mut escape {
            Some(escape) => printer.raw(escape.push(bytes).as_bytes()),
            None => printer.raw(bytes),
        };
        let (lost, mut lost_bytes) = mpsc::unbounded_channel();
        let work = move || -> std::io::Result<()> {
            let (mut position, end) = (log.begin()?, log.end()?);
            let mut buffer = vec![0; 64 << 10];
            loop {
                // Without --follow to where the log ends now: a guest that prints faster than it is
                // read would keep us for ever.
                let most = match follow {
                    None => usize::try_from(end.saturating_sub(position))
                        .unwrap_or(usize::MAX)
                        .min(buffer.len()),
                    Some(_) => buffer.len(),
                };
                let piece = log.read(position, &mut buffer[..most])?;
                position = piece.next;
                if piece.lost > 0 {
                    let _ = lost.send(piece.lost);
                }
                match (&follow, piece.bytes) {
                    (None, 0) => return Ok(()),
                    (Some(_), 0) if has_ended => return Ok(()),
                    // What it printed last is still read.
                    (Some(follow), 0) => has_ended = follow.wait(process.as_ref())?,
                    (_, read) => show(&buffer[..read]),
                }
            }
        };
        // In a thread, so that Ctrl-C is heard while nothing comes. There it is how one leaves, and
        // no error.
        let mut work = tokio::task::spawn_blocking(work);
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let result = loop {
            tokio::select! {
                biased;
                Some(bytes) = lost_bytes.recv() => app.context.ui.warn(&format!(
                    "the guest printed more than the log keeps: \
                     {} were dropped before they were read", human(bytes)
                )),
                result = &mut work => break result,
                _ = &mut interrupt, if follows => return Ok(()),
            }
        };
        result.map_err(|panic| Error::failed("cannot read").because(panic))?.on("read", &path)
    }
}
