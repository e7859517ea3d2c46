use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{App, local};
use crate::ephemeral::gitlab::Job;
use crate::ephemeral::make;
use crate::ephemeral::request::{Keep, Request, Warmth};
use crate::ephemeral::{discard, from_now};
use crate::error::{Error, IoContext, Kind, Result};
use crate::guest::exec::{self, Stream, Streams};
use crate::guest::outcome::Failure;
use crate::helper::frame;
use crate::model::{Ephemeral, Limits, Name, Network, PointRef, parse_age};

/// Serve as the custom executor of a GitLab runner, with one VM per job
///
/// The runner calls these commands one after another; see docs/ci.md for its config.toml.
#[derive(Debug, Subcommand)]
pub(super) enum Gitlab {
    Config(Config),
    Prepare(Prepare),
    Run(Run),
    Cleanup(Cleanup),
}

impl Gitlab {
    pub(super) async fn run(self, app: &App) -> u8 {
        match self {
            Self::Config(verb) => verb.run(app),
            Self::Prepare(verb) => system(app, verb.run(app).await),
            Self::Run(verb) => verb.run(app).await,
            Self::Cleanup(verb) => system(app, verb.run(app).await),
        }
    }
}

/// What the runner wants to hear when it is not the job's fault.
fn system(app: &App, result: Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            app.printer.error(&error);
            exit_code("SYSTEM_FAILURE_EXIT_CODE", 2)
        }
    }
}

fn exit_code(variable: &str, other: u8) -> u8 {
    std::env::var(variable).ok().and_then(|code| code.parse().ok()).unwrap_or(other)
}

fn job() -> Result<Job> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let response = match variable("JOB_RESPONSE_FILE").map(PathBuf::from) {
        Some(path) => Some(std::fs::read_to_string(&path).on("read", &path)?),
        None => None,
    };
    Ok(Job {
        response,
        id: variable("CUSTOM_ENV_CI_JOB_ID"),
        server: variable("CUSTOM_ENV_CI_SERVER_URL").or_else(|| variable("CI_SERVER_URL")),
        image: variable("CUSTOM_ENV_CI_JOB_IMAGE"),
    })
}

/// The VM of the job that is there: one that an earlier version made for it has the earlier name.
fn present(app: &App, job: &Job) -> Result<Name> {
    let (name, earlier) = (job.vm()?, job.earlier_vm()?);
    let there = |name: &Name| app.context.store.layout.vm(name).exists();
    Ok(if !there(&name) && there(&earlier) { earlier } else { name })
}

/// Print the directories for builds and caches, for `config_exec`
#[derive(Debug, Args)]
pub(super) struct Config {
    /// Directory for builds in the guest
    #[arg(long, value_name = "DIR", default_value = "/builds")]
    builds: String,
    /// Directory for caches in the guest
    #[arg(long, value_name = "DIR", default_value = "/cache")]
    cache: String,
}

impl Config {
    fn run(self, app: &App) -> u8 {
        let value = json!({
            "builds_dir": self.builds,
            "cache_dir": self.cache,
            "builds_dir_is_shared": false,
            "driver": {"name": "cowhand", "version": env!("CARGO_PKG_VERSION")},
        });
        app.printer.text(&value.to_string());
        0
    }
}

/// Create and start the job's VM, for `prepare_exec`
#[derive(Debug, Args)]
pub(super) struct Prepare {
    /// Template for jobs that name no image
    #[arg(long, value_name = "NAME")]
    template: Name,
    /// Template that a job may name as its image; can be repeated
    #[arg(long, value_name = "NAME")]
    allow: Vec<Name>,
    /// Boot the guest, even if the template is warm
    #[arg(long)]
    cold: bool,
    /// Use this network instead of the template's: user[,…] or restricted, as in `create --net`
    #[arg(long, value_name = "NETWORK")]
    net: Option<Network>,
    /// Use these limits instead of the template's: io=SIZE, iops=COUNT, or none
    #[arg(long, value_name = "LIMIT,…")]
    limit: Option<Limits>,
    /// Let `gc` or a `run` remove the VM after this time, whatever happens
    #[arg(long, value_name = "AGE", default_value = "1d", value_parser = parse_age)]
    ttl: Duration,
    /// Seconds to wait for the guest to boot and its agent to answer
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    agent_timeout: u64,
}

impl Prepare {
    async fn run(self, app: &App) -> Result<()> {
        let context = &app.context;
        let job = job()?;
        let (name, template) = (job.vm()?, job.template(&self.template, &self.allow)?);
        discard::reap(context).await?;
        // A runner tries again, and what an earlier try of this job has left is of no use.
        if let Ok(Some(left)) = context.store.load(&name).map(|record| record.ephemeral) {
            discard::discard(context, &name, &left).await?;
        }
        let limit = Duration::from_secs(self.agent_timeout);
        let request = Request {
            source: PointRef { vm: template.clone(), snapshot: None },
            name: Some(name.clone()),
            warmth: if self.cold { Warmth::Cold } else { Warmth::Either },
            // It outlives this process: the stages that follow are others.
            keep: Keep::Always,
            ttl: self.ttl,
            keep_for: None,
            copy_in: Vec::new(),
            copy_out: Vec::new(),
            copy_rules: Default::default(),
            copy_limit: limit,
            ports: Vec::new(),
            network: self.net,
            limits: self.limit,
            most: None,
            command: exec::Request { agent_limit: limit, ..Default::default() },
        };
        let ephemeral =
            Ephemeral { owner: None, expires: Some(from_now(self.ttl)), standby: false };
        let mut control = Some(local::control(false)?);
        let made = tokio::select! {
            made = make::make(context, &request, &name, &ephemeral, limit) => made,
            () = exec::interrupted(&mut control) => {
                Err(Error::new(Kind::Interrupted, "interrupted"))
            }
        };
        match made {
            Ok(made) => {
                app.printer.text(&format!("{name}: a {} clone of {template}", made.kind.as_str()));
                Ok(())
            }
            Err(error) => {
                // Only what this made: another VM of this name has another date.
                discard::discard(context, &name, &ephemeral).await?;
                Err(error)
            }
        }
    }
}

/// Run a script of the job in its VM, for `run_exec`
#[derive(Debug, Args)]
pub(super) struct Run {
    /// User to run the script as [default: root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The script, as the runner wrote it
    script: PathBuf,
    /// The name of the sub-stage
    stage: String,
}

impl Run {
    async fn run(self, app: &App) -> u8 {
        let result = self.script(app).await;
        match result {
            Ok(0) => 0,
            Ok(code) => {
                // Newer runners show it as the job's own exit code.
                if let Some(path) =
                    std::env::var_os("BUILD_EXIT_CODE_FILE").filter(|path| !path.is_empty())
                    && let Err(source) = std::fs::write(&path, code.to_string())
                {
                    app.context
                        .ui
                        .warn(&format!("cannot write {}: {source}", PathBuf::from(path).display()));
                }
                exit_code("BUILD_FAILURE_EXIT_CODE", 1)
            }
            Err(error) => system(app, Err(error)),
        }
    }

    async fn script(&self, app: &App) -> Result<u8> {
        let name = present(app, &job()?)?;
        let script = std::fs::read(&self.script).on("read", &self.script)?;
        let shell = "if command -v bash >/dev/null; then exec bash; else exec sh; fi";
        let request = exec::Request {
            exec: frame::Exec {
                command: ["/bin/sh", "-c", shell].map(str::to_owned).to_vec(),
                user: self.user.clone(),
                input: true,
                ..Default::default()
            },
            agent_limit: Duration::from_secs(120),
            limit: None,
            agent_only: false,
        };
        let (send, receive) = tokio::sync::mpsc::channel(1);
        let sending = async move {
            let _ = send.send(script).await;
        };
        let printer = &app.printer;
        let mut output = |stream: Stream, bytes: &[u8]| match stream {
            Stream::Output => printer.pass(bytes),
            Stream::Errors => printer.pass_error(bytes),
        };
        let streams = Streams {
            input: Some(receive),
            control: Some(local::control(false)?),
            output: &mut output,
        };
        let (result, ()) =
            tokio::join!(exec::exec(&app.context, &name, &request, streams), sending);
        match result {
            Ok(finished) => Ok(finished.code),
            Err(Failure::Ours(error)) => Err(error),
            Err(Failure::NotFound(words) | Failure::NotExecutable(words)) => {
                Err(Error::failed(words))
            }
            Err(Failure::TimedOut | Failure::GoesOn { .. }) => {
                Err(Error::qemu("the script did not end"))
            }
        }
    }
}

/// Remove the job's VM, for `cleanup_exec`
#[derive(Debug, Args)]
pub(super) struct Cleanup {}

impl Cleanup {
    async fn run(self, app: &App) -> Result<()> {
        let name = present(app, &job()?)?;
        if !app.context.store.layout.vm(&name).exists() {
            return Ok(());
        }
        // A VM that was kept under this name is not the job's.
        let record = app.context.store.load(&name)?;
        let Some(ephemeral) = record.ephemeral else {
            return Err(Error::refused(format!("{name} is not the VM of a job")));
        };
        discard::discard(&app.context, &name, &ephemeral).await.map(drop)
    }
}
