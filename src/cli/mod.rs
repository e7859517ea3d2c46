//! The command line: one file per verb, each of which parses, calls the library and renders what
//! comes back. The only room that reads the environment and decides exit codes.

mod autopkgtest;
mod cdrom;
mod clone;
mod cloud_init;
mod complete;
mod console;
mod cp;
mod create;
mod disk;
mod doctor;
mod exec;
mod export;
mod flatten;
mod gc;
mod generate;
mod gitlab;
mod global;
mod image;
mod import;
mod local;
mod logs;
mod ls;
mod plan;
mod pool;
mod reset;
mod rm;
mod run;
mod seal;
mod set;
mod show;
mod snapshot;
mod start;
mod stop;
mod template;
mod undo;
mod words;

use std::any::TypeId;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::change::recover::{self, Recovered};
use crate::context::Context;
use crate::ephemeral::discard;
use crate::error::{Error, Kind, Result};
use crate::helper;
use crate::model::{Name, PointRef};
use crate::output::{Format, Printer};
use crate::registry;
use crate::sys::{files, limiter, relay, started};
use global::Global;

/// Templates, clones and snapshots for QEMU virtual machines, without libvirt.
///
/// Each disk of a VM is a chain of layers (qcow2 overlays with backing files). A snapshot makes the
/// active layer read-only and puts a new overlay on it. There is no daemon: the store is a
/// directory, and cowhand starts QEMU itself.
#[derive(Debug, Parser)]
#[command(
    name = "cowhand", version = generate::VERSION, propagate_version = true, max_term_width = 110,
    arg_required_else_help = true,
)]
#[command(after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What the runtime, the signals and the locks of the smallest command take: with less, it would
/// fail in the middle of things.
const FILES: usize = 16;

const AFTER_HELP: &str = "\
                          Exit codes:
  0 done   1 failed   2 usage   3 not found   4 already exists   5 refused   6 locked
  7 QEMU or the guest agent failed or timed out   8 the store needs recovery or is damaged   130 \
                          interrupted
  exec and run exit with the command's own code; 124 time limit reached, 125 failure of cowhand \
                          itself, 126 not executable, 127 not found

Examples:
  cowhand create web --disk debian.qcow2 && cowhand start web
  cowhand snapshot create web before
  cowhand snapshot revert web@before";

#[derive(Debug, Subcommand)]
enum Command {
    Create(Box<create::Create>),
    Ls(ls::Ls),
    Show(show::Show),
    Plan(plan::Plan),
    Start(start::Start),
    Stop(stop::Stop),
    Pause(start::Pause),
    Resume(start::Resume),
    Rm(rm::Rm),
    Rename(set::Rename),
    Set(set::Set),
    Logs(logs::Logs),
    Console(console::Console),
    Exec(exec::Exec),
    Cp(cp::Cp),
    Clone(clone::Clone),
    #[command(subcommand)]
    Template(Box<template::Template>),
    Seal(Box<seal::Seal>),
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    #[command(subcommand)]
    Disk(disk::Disk),
    #[command(subcommand)]
    Cdrom(cdrom::Cdrom),
    Undo(undo::Undo),
    Flatten(flatten::Flatten),
    #[command(subcommand)]
    Image(image::Image),
    Import(import::Import),
    Export(export::Export),
    Run(Box<run::Run>),
    Reset(reset::Reset),
    #[command(subcommand)]
    Pool(pool::Pool),
    AutopkgtestVirt(autopkgtest::AutopkgtestVirt),
    #[command(subcommand)]
    Gitlab(gitlab::Gitlab),
    Gc(gc::Gc),
    Doctor(doctor::Doctor),
    Completions(generate::Completions),
    Man(generate::Man),
    Version(generate::Version),
}

/// What a verb works with.
pub struct App {
    context: Context,
    printer: Printer,
}

impl Command {
    /// Signals are for what it runs, not for us.
    fn takes_signals(&self) -> bool {
        match self {
            Self::Exec(_) | Self::Run(_) | Self::AutopkgtestVirt(_) | Self::Gitlab(_) => true,
            Self::Logs(verb) => verb.follow,
            _ => false,
        }
    }

    async fn run(self, app: &App) -> Result<u8> {
        let done = |()| 0;
        match self {
            Self::Create(verb) => verb.run(app).await.map(done),
            Self::Ls(verb) => verb.run(app).await.map(done),
            Self::Show(verb) => verb.run(app).await.map(done),
            Self::Plan(verb) => verb.run(app).map(done),
            Self::Start(verb) => verb.run(app).await.map(done),
            Self::Stop(verb) => verb.run(app).await.map(done),
            Self::Pause(verb) => verb.run(app).await.map(done),
            Self::Resume(verb) => verb.run(app).await.map(done),
            Self::Rm(verb) => verb.run(app).await.map(done),
            Self::Rename(verb) => verb.run(app).await.map(done),
            Self::Set(verb) => verb.run(app).await.map(done),
            Self::Logs(verb) => verb.run(app).await.map(done),
            Self::Console(verb) => verb.run(app).await.map(done),
            Self::Exec(verb) => Ok(verb.run(app).await),
            Self::Cp(verb) => verb.run(app).await.map(done),
            Self::Clone(verb) => verb.run(app).await.map(done),
            Self::Template(verb) => verb.run(app).await.map(done),
            Self::Seal(verb) => verb.run(app).await.map(done),
            Self::Snapshot(verb) => verb.run(app).await.map(done),
            Self::Disk(verb) => verb.run(app).await.map(done),
            Self::Cdrom(verb) => verb.run(app).await.map(done),
            Self::Flatten(verb) => verb.run(app).await.map(done),
            Self::Image(verb) => verb.run(app).await.map(done),
            Self::Import(verb) => verb.run(app).await.map(done),
            Self::Export(verb) => verb.run(app).await.map(done),
            Self::Undo(verb) => verb.run(app).await.map(done),
            Self::Run(verb) => Ok(verb.run(app).await),
            Self::Reset(verb) => verb.run(app).await.map(done),
            Self::Pool(verb) => verb.run(app).await.map(done),
            Self::AutopkgtestVirt(verb) => verb.run(app).await.map(done),
            Self::Gitlab(verb) => Ok(verb.run(app).await),
            Self::Gc(verb) => verb.run(app).await.map(done),
            Self::Doctor(verb) => verb.run(app).await,
            Self::Completions(verb) => verb.run(app).map(done),
            Self::Man(verb) => verb.run(app).map(done),
            Self::Version(verb) => verb.run(app).map(done),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    started::can_be_waited_for();
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some((verb, rest)) = words.split_first()
        && verb == relay::VERB
    {
        return match relay::Orders::parse(rest).map(|orders| relay::run(&orders)) {
            Some(Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
    }
    if let Some((verb, rest)) = words.split_first()
        && verb == limiter::VERB
    {
        return match limiter::Orders::parse(rest).map(|orders| limiter::run(&orders)) {
            Some(Ok(())) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        };
    }
    if let Some((verb, rest)) = words.split_first()
        && verb == helper::VERB
    {
        return helper::main(rest);
    }
    match complete::answer() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::FAILURE,
    }
    let mut program = Cli::command();
    let parsed = program
        .try_get_matches_from_mut(std::env::args_os())
        .and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) if error.use_stderr() && global::wants_json(&words) => {
            let text = error.render().to_string();
            let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let printer = Printer { format: Format::Json, quiet: false };
            printer.error(&Error::usage(message).hint("see cowhand --help"));
            return ExitCode::from(Kind::Usage.exit_code());
        }
        Err(error) => error.exit(),
    };
    let operation = operation(&program, &matches);
    drop((program, matches));
    global::arm_faults(|line| {
        Printer { format: Format::Table, quiet: false }.raw_error(line.as_bytes())
    });
    cli.global.color.apply();
    global::trace(cli.global.verbose);
    let printer = Printer { format: cli.global.format, quiet: cli.global.quiet };
    files::raise_limit();
    if let Err(source) = files::can_open(FILES) {
        printer.error(
            &Error::failed("cannot start")
                .hint("let it open more files: ulimit -n 1024")
                .because(source),
        );
        return ExitCode::FAILURE;
    }
    // In these, all other codes are the command's in the guest.
    let unwritten = match &cli.command {
        Command::Exec(_) | Command::Run(_) => exec::OURS,
        _ => Kind::Failed.exit_code(),
    };
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::failed("cannot start").because(source))
        .and_then(|runtime| {
            let result = runtime.block_on(run(cli, printer, operation));
            // A thread that waits for a lock or for input must not keep us.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(code) => match printer.unwritten() {
            None => ExitCode::from(code),
            Some(error) => {
                printer.error(&error);
                ExitCode::from(unwritten)
            }
        },
        Err(error) => {
            printer.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

async fn run(cli: Cli, printer: Printer, operation: String) -> Result<u8> {
    registry::install_steps();
    let settings = cli.global.settings()?;
    let context = Context::open(settings, cli.global.ui(), operation)?;
    let app = App { context, printer };
    let interrupted = || Error::new(Kind::Interrupted, "interrupted");
    if cli.command.takes_signals() {
        return cli.command.run(&app).await;
    }
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|source| Error::failed("cannot listen to signals").because(source))?;
    let [interrupt, terminate, hangup] = &mut signals[..] else {
        return Err(interrupted());
    };
    tokio::select! {
        result = cli.command.run(&app) => return result,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    // The operation's future is gone and its locks are free: put right what it was in the middle
    // of, as after a crash.
    let mut error = interrupted();
    let recovered = tokio::select! {
        recovered = recover::after_interrupt(&app.context) => recovered?,
        _ = interrupt.recv() => return Err(error.hint(UNFINISHED)),
        _ = terminate.recv() => return Err(error.hint(UNFINISHED)),
    };
    discard::reap_own(&app.context).await?;
    for (name, outcome) in recovered {
        if outcome == Recovered::Left {
            error = error.hint(format!(
                "{name}: the change cannot be undone; the next command on {name} completes it"
            ));
        }
    }
    Err(error)
}

/// What is said when the clean-up after an interruption is interrupted itself.
const UNFINISHED: &str = "cleanup was interrupted; the next command on that VM finishes it";

/// The longest [`operation`], in characters.
const OPERATION: usize = 200;

/// The command for those who wait for its lock: verb, names of VMs and snapshots, and which options
/// were given.
///
/// Locks, journals and the trash keep it, where others may read it. Of values, only those are in it
/// whose type is a name: no password, variable or command of the user can be one.
fn operation(program: &clap::Command, matches: &clap::ArgMatches) -> String {
    let (mut command, mut matches) = (program, matches);
    let mut words: Vec<String> = Vec::new();
    while let Some((verb, below)) = matches.subcommand() {
        words.push(verb.to_owned());
        let Some(subcommand) = command.find_subcommand(verb) else { break };
        (command, matches) = (subcommand, below);
    }
    let given = |arg: &&clap::Arg| {
        let id = arg.get_id().as_str();
        // What concerns every command (`--store`, `--wait`) says nothing of this one.
        !program.get_arguments().any(|global| global.get_id() == arg.get_id())
            && matches.try_contains_id(id).unwrap_or(false)
            && matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine)
    };
    let is_name = |arg: &clap::Arg| {
        let kind = arg.get_value_parser().type_id();
        kind == TypeId::of::<Name>() || kind == TypeId::of::<PointRef>()
    };
    let values = |arg: &clap::Arg| -> Vec<String> {
        let raw = matches.try_get_raw(arg.get_id().as_str()).ok().flatten().into_iter().flatten();
        raw.filter(|_| is_name(arg)).map(|value| value.to_string_lossy().into_owned()).collect()
    };
    let (positional, options): (Vec<&clap::Arg>, Vec<&clap::Arg>) =
        command.get_arguments().filter(given).partition(|arg| arg.is_positional());
    words.extend(positional.into_iter().flat_map(values));
    for option in options {
        words.extend(option.get_long().map(|long| format!("--{long}")));
        words.extend(values(option));
    }
    words.join(" ").replace(|c: char| c.is_control(), " ").chars().take(OPERATION).collect()
}

/// Does the same to each name. All are tried and every error is shown; the last one decides the
/// exit code.
async fn each<T>(
    app: &App,
    names: &[T],
    mut verb: impl AsyncFnMut(&T) -> Result<()>,
) -> Result<()> {
    let mut failed: Option<Error> = None;
    for name in names {
        if let Err(error) = verb(name).await
            && let Some(earlier) = failed.replace(error)
        {
            app.printer.error(&earlier);
        }
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
