use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::App;
use crate::error::{Error, Result};
use crate::guest::files;
use crate::model::{Name, human};

/// Copy a file into or out of a running guest, through its agent
///
/// One side is VM:PATH, the other a path of the host. Directories: pack them into an archive first.
#[derive(Debug, Args)]
pub struct Cp {
    /// FILE or VM:PATH
    source: String,
    /// FILE or VM:PATH; a directory of the host (or a path that ends in /) keeps the file's name
    target: String,
    /// How long the guest may take to boot as far as its agent, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    agent_timeout: u64,
}

impl Cp {
    pub async fn run(self, app: &App) -> Result<()> {
        let limit = Duration::from_secs(self.agent_timeout);
        let (context, source, target) = (&app.context, parse(&self.source), parse(&self.target));
        let bytes = match (&source, &target) {
            (Side::Guest(vm, from), Side::Host(to)) => {
                let to = if to.is_dir() { to.join(base_name(from)?) } else { to.clone() };
                files::copy_out(context, vm, from, &to, limit).await?
            }
            (Side::Host(from), Side::Guest(vm, to)) => {
                let name = from.file_name().unwrap_or_default().to_string_lossy();
                let to = if to.ends_with('/') { format!("{to}{name}") } else { to.clone() };
                files::copy_in(context, vm, from, &to, limit).await?
            }
            _ => {
                return Err(Error::usage("one side has to be VM:PATH, the other a file of the host")
                    .hint("cowhand cp web:/etc/hosts .    cowhand cp ./x web:/tmp/x"));
            }
        };
        app.printer.done(&format!("copied {}", human(bytes)), &json!({"bytes": bytes}));
        Ok(())
    }
}

enum Side {
    Guest(Name, String),
    Host(PathBuf),
}

/// `web:/etc/hosts` is in a guest; `./a:b` and `/a:b` are files of the host.
fn parse(text: &str) -> Side {
    match text.split_once(':') {
        Some((vm, path)) if path.starts_with('/') => match vm.parse() {
            Ok(vm) => Side::Guest(vm, path.to_owned()),
            Err(_) => Side::Host(text.into()),
        },
        _ => Side::Host(text.into()),
    }
}

fn base_name(path: &str) -> Result<String> {
    Path::new(path)
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .ok_or_else(|| Error::usage(format!("{path} is not the path of a file")))
}
