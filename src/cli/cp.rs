use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::App;
use crate::error::{Error, IoContext, Result};
use crate::guest::install::{self, Reached};
use crate::guest::port::Client;
use crate::guest::{copy, files, session};
use crate::helper::tree::Budget;
use crate::model::{Name, human, parse_size};

/// Copy files and directories into or out of a running guest
///
/// One side is VM:PATH, the other a path of the host. Modes, times, links and holes come along; owners do not, nor do set-uid bits out of a guest. Files appear when they are whole. What a guest sends
/// is put below the target and nowhere else: no link there is followed. A guest that cannot run the helper (see `exec`) takes and gives single files, through its agent.
#[derive(Debug, Args)]
pub struct Cp {
    /// A file or directory: PATH or VM:PATH
    source: String,
    /// Where to: PATH or VM:PATH; into a directory that is there, or a path that ends in /
    target: String,
    #[command(flatten)]
    rules: Rules,
    /// How long the guest may take to boot as far as its agent, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    agent_timeout: u64,
}

/// How copies come out of a guest.
#[derive(Debug, Args)]
pub struct Rules {
    /// If what is copied out of the guest is a symbolic link, copy what it points to in the guest; without it, a link is refused
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    budget: Limits,
}

/// How much a guest may send.
#[derive(Debug, Args)]
pub struct Limits {
    /// Copy files of at most this length together out of the guest; holes count, too
    #[arg(long, value_name = "SIZE", env = "COWHAND_MAX_BYTES", hide_env_values = true, default_value = "64G", value_parser = parse_size)]
    max_bytes: u64,
    /// Copy at most so many files, directories and links out of the guest
    #[arg(long, value_name = "COUNT", env = "COWHAND_MAX_ENTRIES", hide_env_values = true, default_value_t = Budget::default().entries)]
    max_entries: u64,
}

impl Rules {
    pub fn rules(&self) -> copy::Rules {
        copy::Rules { follow: self.follow, budget: self.budget.budget() }
    }
}

impl Limits {
    pub fn budget(&self) -> Budget {
        Budget { bytes: self.max_bytes, entries: self.max_entries }
    }
}

impl Cp {
    pub async fn run(self, app: &App) -> Result<()> {
        let limit = Duration::from_secs(self.agent_timeout);
        let (context, source, target) = (&app.context, parse(&self.source), parse(&self.target));
        let rules = self.rules.rules();
        let bytes = match (&source, &target) {
            (Side::Guest(vm, from), Side::Host(to)) => {
                if let Some(mut client) = self.reach(app, vm, limit).await? {
                    let target = copy::target(from, to)?;
                    let bytes = copy::get(context, &mut client, from, target, &rules).await?;
                    return done(app, bytes);
                }
                let to = if to.is_dir() { to.join(base_name(from)?) } else { to.clone() };
                files::copy_out(context, vm, from, &to, limit, rules.budget.bytes).await?
            }
            (Side::Host(from), Side::Guest(vm, to)) => {
                from.metadata().on("read", from)?;
                if let Some(mut client) = self.reach(app, vm, limit).await? {
                    let bytes = copy::put(context, &mut client, from, to).await?;
                    return done(app, bytes);
                }
                let name = from.file_name().unwrap_or_default().to_string_lossy();
                let to = if to.ends_with('/') { format!("{to}{name}") } else { to.clone() };
                files::copy_in(context, vm, from, &to, limit).await?
            }
            _ => {
                return Err(Error::usage("one side has to be VM:PATH, the other a file of the host")
                    .hint("cowhand cp web:/etc/hosts .    cowhand cp ./x web:/tmp/x"));
            }
        };
        done(app, bytes)
    }

    /// The helper of the guest, if it can have one.
    async fn reach(&self, app: &App, vm: &Name, limit: Duration) -> Result<Option<Client>> {
        session::settle(&app.context, vm).await?;
        session::refuse_paused(&app.context, vm).await?;
        match install::reach(&app.context, vm, limit).await? {
            Reached::Helper(client) => Ok(Some(client)),
            Reached::AgentOnly(_) => Ok(None),
        }
    }
}

fn done(app: &App, bytes: u64) -> Result<()> {
    app.printer.done(&format!("copied {}", human(bytes)), &json!({"bytes": bytes}));
    Ok(())
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
