use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::exec::{self, ExecOptions, Near, OURS};
use super::{App, cp, local};
use crate::ephemeral::request::{Keep, Request, Warmth};
use crate::ephemeral::run;
use crate::error::{Error, Result};
use crate::guest;
use crate::model::{Limits, Name, Network, PointRef, PortForward, parse_age, parse_time};
use crate::output::json;

/// Run a command in a new VM, which is removed afterwards
///
/// From a warm template (`template warm`) the guest resumes from memory in well under a second. The
/// guest gets a new machine-id, host name, SSH host keys, network addresses and random seed, and
/// the current time. The exit codes are those of `exec`. If this command is killed, QEMU ends, too
/// (unless it came from the pool or the VM is to be kept), and `gc` or the next `run` cleans up.
#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    how: ExecOptions,
    /// Fail unless the guest can resume from the memory of a warm template
    #[arg(long, conflicts_with = "cold")]
    warm: bool,
    /// Boot the guest, even if the template is warm
    #[arg(long)]
    cold: bool,
    /// Copy a file or directory into the guest before the command: HOST:GUEST; can be repeated
    #[arg(long, value_name = "HOST:GUEST", value_parser = host_guest)]
    copy_in: Vec<(PathBuf, String)>,
    /// Copy a file or directory out of the guest after the command, even if it failed: GUEST:HOST;
    /// can be repeated
    #[arg(long, value_name = "GUEST:HOST", value_parser = guest_host)]
    copy_out: Vec<(String, PathBuf)>,
    #[command(flatten)]
    rules: cp::Rules,
    /// Time limit for all copies before the command, and for all copies after it: seconds, or 90s,
    /// 10m, 2h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_time)]
    copy_timeout: Duration,
    /// Time limit for the command: seconds, or 90s, 10m, 2h. At the limit it gets SIGTERM, and
    /// SIGKILL 5 s later
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<Duration>,
    /// Keep the VM, under this name if one is given
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true)]
    keep: Option<Option<Name>>,
    /// Keep the VM if the command fails
    #[arg(long)]
    keep_on_failure: bool,
    /// Let `gc` or another `run` remove the VM after this time, whatever happens: 30m, 12h, 7d
    /// [default: 1d; with --keep: never]
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    ttl: Option<Duration>,
    /// Maximum number of simultaneous runs in this store; others wait. The host's memory can lower
    /// this
    #[arg(
        long, value_name = "COUNT", env = "COWHAND_MAX_PARALLEL", hide_env_values = true,
        value_parser = clap::value_parser!(u32).range(1..),
    )]
    max_parallel: Option<u32>,
    /// Forward a port of the host to the guest: HOST:GUEST; can be repeated
    #[arg(short, long = "port", value_name = "HOST:GUEST")]
    port: Vec<PortForward>,
    /// Use this network instead of the template's: user[,…] or restricted, as in `create --net`
    #[arg(long, value_name = "NETWORK")]
    net: Option<Network>,
    /// Use these limits instead of the template's: io=SIZE, iops=COUNT, or none
    #[arg(long, value_name = "LIMIT,…")]
    limit: Option<Limits>,
    /// Seconds to wait for the guest to boot and its agent to answer
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    agent_timeout: u64,
    /// A template, a snapshot (VM@SNAPSHOT), or a stopped VM
    source: PointRef,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// How long a VM may be there at most, unless it is said.
const TTL: Duration = Duration::from_secs(86_400);

impl Run {
    pub(super) async fn run(self, app: &App) -> u8 {
        let limit = self.timeout;
        let (_raw, size) = match self.how.tty.then(local::terminal).transpose() {
            Ok(terminal) => terminal.unzip(),
            Err(error) => return exec::fail(app, OURS, &error),
        };
        let command = match self.how.command(self.command, size) {
            Ok(exec) => guest::exec::Request {
                exec,
                agent_limit: Duration::from_secs(self.agent_timeout),
                limit,
                agent_only: false,
            },
            Err(error) => return exec::fail(app, OURS, &error),
        };
        let near = match Near::new(&app.printer, &command, &self.how) {
            Ok(near) => near,
            Err(error) => return exec::fail(app, OURS, &error),
        };
        // A name behind a blank is taken for the source.
        if self.keep == Some(None) && !app.context.store.exists(&self.source.vm) {
            let error = app.context.store.unknown(&self.source.vm);
            return exec::fail(
                app,
                OURS,
                &error.hint(format!(
                    "if {0} is the name for the kept VM: --keep={0}",
                    self.source.vm
                )),
            );
        }
        let request = Request {
            source: self.source,
            name: self.keep.clone().flatten(),
            warmth: match (self.warm, self.cold) {
                (true, _) => Warmth::Warm,
                (_, true) => Warmth::Cold,
                _ => Warmth::Either,
            },
            keep: match (&self.keep, self.keep_on_failure) {
                (Some(_), _) => Keep::Always,
                (None, true) => Keep::OnFailure,
                (None, false) => Keep::Never,
            },
            ttl: self.ttl.unwrap_or(TTL),
            // What was kept on purpose stays; what only failed is looked at soon or never.
            keep_for: if self.keep.is_some() { self.ttl } else { self.ttl.or(Some(TTL)) },
            copy_in: self.copy_in,
            copy_out: self.copy_out,
            copy_rules: self.rules.rules(),
            copy_limit: self.copy_timeout,
            ports: self.port,
            network: self.net,
            limits: self.limit,
            most: self.max_parallel,
            command,
        };
        let (mut kept, mut made, mut teardown) = (None, None, Duration::ZERO);
        let (result, captured) = near
            .attend(async |streams| {
                let ran = run::run(&app.context, &request, streams).await;
                (kept, made, teardown) = (ran.kept, ran.made, ran.teardown);
                ran.result
            })
            .await;
        if let Some(name) = &kept {
            app.context.ui.note(&format!(
                "{name} was kept: cowhand exec -it {name} -- sh    cowhand rm -f {name}"
            ));
        }
        let about = json::Run::new(kept.as_ref(), made, teardown);
        exec::code(app, "the guest", limit, result, &captured, Some(&about))
    }
}

fn host_guest(text: &str) -> Result<(PathBuf, String)> {
    match text.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok((host.into(), guest.to_owned()))
        }
        _ => Err(Error::usage(format!(
            "{text:?} is not HOST:GUEST with an absolute path in the guest"
        ))),
    }
}

fn guest_host(text: &str) -> Result<(String, PathBuf)> {
    match text.split_once(':') {
        Some((guest, host)) if !host.is_empty() && guest.starts_with('/') => {
            Ok((guest.to_owned(), host.into()))
        }
        _ => Err(Error::usage(format!(
            "{text:?} is not GUEST:HOST with an absolute path in the guest"
        ))),
    }
}
