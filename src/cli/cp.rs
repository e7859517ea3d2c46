use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tempfile::TempDir;

use super::App;
use crate::error::{Error, IoContext, Result};
use crate::guest::install::{self, Reached};
use crate::guest::port::Client;
use crate::guest::{copy, files, session};
use crate::helper::tree::Budget;
use crate::model::{Name, human, parse_size};
use crate::output::json;

/// Standard input, where it is the source, and standard output, where it is the target.
const STANDARD: &str = "-";
/// How much is written to standard output at once.
const CHUNK: usize = 1 << 20;

/// Copy files and directories into or out of a running guest
///
/// One side is VM:PATH, the other is a path of the host, or - for a single file from standard input
/// or to standard output, which is kept in $TMPDIR during the copy. Modes, times, links and holes
/// are preserved; owners are not, nor are the set-user-ID, set-group-ID and sticky bits of a
/// guest's files. A file appears under its name only when it is complete. Files from a guest are
/// written below the target and nowhere else: no link there is followed. With a guest that cannot
/// run the helper (see `exec`), only single files can be copied, through its agent.
#[derive(Debug, Args)]
pub(super) struct Cp {
    /// Source: PATH or VM:PATH, or - for standard input
    source: String,
    /// Target: PATH or VM:PATH, or - for standard output. An existing directory, or a path that
    /// ends in /, gets the source under its own name
    target: String,
    #[command(flatten)]
    rules: Rules,
    /// Seconds to wait for the guest to boot and its agent to answer
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    agent_timeout: u64,
}

/// How copies come out of a guest.
#[derive(Debug, Args)]
pub(super) struct Rules {
    /// If the source in the guest is a symbolic link, copy what it points to in the guest; without
    /// this, a link is refused
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    budget: Limits,
}

/// How much a guest may send.
#[derive(Debug, Args)]
pub(super) struct Limits {
    /// Limit the total length of the files copied out of the guest; holes count, too
    #[arg(
        long, value_name = "SIZE", env = "COWHAND_MAX_BYTES", hide_env_values = true,
        default_value = "64G", value_parser = parse_size,
    )]
    max_bytes: u64,
    /// Limit the number of files, directories and links copied out of the guest
    #[arg(
        long, value_name = "COUNT", env = "COWHAND_MAX_ENTRIES", hide_env_values = true,
        default_value_t = Budget::default().entries,
    )]
    max_entries: u64,
}

impl Rules {
    pub(super) fn rules(&self) -> copy::Rules {
        copy::Rules { follow: self.follow, budget: self.budget.budget() }
    }
}

impl Limits {
    pub(super) fn budget(&self) -> Budget {
        Budget { bytes: self.max_bytes, entries: self.max_entries }
    }
}

impl Cp {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let (source, target) = (parse(&self.source), parse(&self.target));
        let bytes = match (self.source.as_str(), self.target.as_str()) {
            (_, STANDARD) => return self.copy_to_standard_output(app, &source).await,
            (STANDARD, _) => self.copy_standard_input(app, &target).await?,
            _ => self.copy(app, &source, &target, &self.rules.rules()).await?,
        };
        app.printer.done(&format!("copied {}", human(bytes)), &json::Copied::new(bytes));
        Ok(())
    }

    /// Copies to a file that nobody else can read, and from there to standard output: of a copy
    /// that fails half-way nothing is shown.
    async fn copy_to_standard_output(&self, app: &App, source: &Side) -> Result<()> {
        let (_directory, path) = private_file()?;
        let rules = self.rules.rules();
        // A file is one entry; of a directory no more than itself comes.
        let alone = copy::Rules { budget: Budget { entries: 1, ..rules.budget }, ..rules };
        let copied = self.copy(app, source, &Side::Host(path.clone()), &alone).await;
        if path.is_dir() {
            return Err(Error::refused(format!(
                "{} is a directory, and standard output takes a file",
                self.source
            ))
            .hint("name a file; or as an archive: cowhand exec VM -- tar -c PATH"));
        }
        copied?;
        // Its mode is that of the file in the guest.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).on("read", &path)?;
        let mut file = File::open(&path).on("read", &path)?;
        let mut bytes = vec![0; CHUNK];
        loop {
            match file.read(&mut bytes).on("read", &path)? {
                0 => return Ok(()),
                length => app.printer.pass(&bytes[..length]).map_err(|source| {
                    Error::failed("standard output cannot be written to").because(source)
                })?,
            }
        }
    }

    /// Reads standard input to its end; from there on it is a file like any other.
    async fn copy_standard_input(&self, app: &App, target: &Side) -> Result<u64> {
        let Side::Guest(vm, to) = target else { return Err(no_guest()) };
        if to.ends_with('/') {
            return Err(Error::usage(format!(
                "{} is a directory; standard input needs a file name",
                self.target
            ))
            .hint(format!("name the file: cowhand cp - {}NAME", self.target)));
        }
        let limit = Duration::from_secs(self.agent_timeout);
        // Before anything is read: is there such a guest?
        drop(self.reach(app, vm, limit).await?);
        let (_directory, path) = private_file()?;
        let mut file = File::create(&path).on("write", &path)?;
        // On a thread of its own, because a signal has to end the wait for it.
        let read = tokio::task::spawn_blocking(move || {
            std::io::copy(&mut std::io::stdin().lock(), &mut file)
        })
        .await;
        read.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
            .on("copy standard input to", &path)?;
        match self.reach(app, vm, limit).await? {
            Some(mut client) => copy::put_as(&app.context, &mut client, &path, to).await,
            None => files::copy_in(&app.context, vm, &path, to, limit).await,
        }
    }

    async fn copy(
        &self,
        app: &App,
        source: &Side,
        target: &Side,
        rules: &copy::Rules,
    ) -> Result<u64> {
        let limit = Duration::from_secs(self.agent_timeout);
        let context = &app.context;
        match (source, target) {
            (Side::Guest(vm, from), Side::Host(to)) => {
                if let Some(mut client) = self.reach(app, vm, limit).await? {
                    let target = copy::target(from, to)?;
                    return copy::get(context, &mut client, from, target, rules).await;
                }
                let to = if to.is_dir() { to.join(base_name(from)?) } else { to.clone() };
                files::copy_out(context, vm, from, &to, limit, rules.budget.bytes).await
            }
            (Side::Host(from), Side::Guest(vm, to)) => {
                from.metadata().on("read", from)?;
                if let Some(mut client) = self.reach(app, vm, limit).await? {
                    return copy::put(context, &mut client, from, to).await;
                }
                let name = from.file_name().unwrap_or_default().to_string_lossy();
                let to = if to.ends_with('/') { format!("{to}{name}") } else { to.clone() };
                files::copy_in(context, vm, from, &to, limit).await
            }
            _ => Err(no_guest()),
        }
    }

    /// The helper of the guest, if it can have one.
    async fn reach(&self, app: &App, vm: &Name, limit: Duration) -> Result<Option<Client>> {
        session::ensure_recovered(&app.context, vm).await?;
        session::refuse_paused(&app.context, vm).await?;
        match install::reach(&app.context, vm, limit).await? {
            Reached::Helper(client) => Ok(Some(client)),
            Reached::AgentOnly(_) => Ok(None),
        }
    }
}

fn no_guest() -> Error {
    Error::usage("one side has to be VM:PATH, the other a file of the host")
        .hint("cowhand cp web:/etc/hosts .    cowhand cp ./x web:/tmp/x")
}

/// A place for a file that nobody else can read, in a directory that goes when it is dropped.
fn private_file() -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir().on("write in", &std::env::temp_dir())?;
    let path = directory.path().join("file");
    Ok((directory, path))
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
