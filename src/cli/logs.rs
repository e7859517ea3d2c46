use std::fs::File;
use std::io::Read;

use clap::Args;

use super::App;
use crate::error::{Error, IoContext, Result};
use crate::model::Name;
use crate::sys::follow::Follow;

/// Show what a guest has printed on its serial console
#[derive(Debug, Args)]
pub struct Logs {
    /// The VM
    name: Name,
    /// Go on as more comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// What QEMU itself said at the last start, instead
    #[arg(long)]
    qemu: bool,
}

impl Logs {
    pub async fn run(self, app: &App) -> Result<()> {
        let store = &app.context.store;
        if !store.exists(&self.name) {
            return Err(store.unknown(&self.name));
        }
        let path = if self.qemu { store.layout.qemu_log(&self.name) } else { store.layout.serial_log(&self.name) };
        if !path.exists() {
            return Err(Error::not_found(format!("{} has never been started, so there is no log", self.name)));
        }
        let mut file = File::open(&path).on("open", &path)?;
        let follow = self.follow.then(|| Follow::new(&path)).transpose().on("watch", &path)?;
        let printer = app.printer;
        let work = move || -> std::io::Result<()> {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = file.read(&mut buffer)?;
                match (&follow, read) {
                    (None, 0) => return Ok(()),
                    (Some(follow), 0) => follow.wait()?,
                    _ => printer.raw(&buffer[..read]),
                }
            }
        };
        // In a thread, so that Ctrl-C is heard while nothing comes.
        let result =
            tokio::task::spawn_blocking(work).await.map_err(|panic| Error::failed("cannot read").because(panic))?;
        result.on("read", &path)
    }
}
