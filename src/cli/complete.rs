//! What a shell offers when TAB is pressed: verbs and flags, and the names of VMs, templates and
//! snapshots.
//!
//! The script of `cowhand completions SHELL` calls cowhand for each TAB, with
//! `COWHAND_COMPLETE=SHELL` and the words so far (`clap_complete::env`). Nothing is locked or
//! written.

use std::any::TypeId;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use super::{Cli, global};
use crate::error::{Error, Result};
use crate::image::catalogue::Catalogue;
use crate::model::{Name, PointRef};
use crate::store::Store;

/// What asks for completions; its value is the name of the shell.
const VARIABLE: &str = "COWHAND_COMPLETE";

/// To bash, `VM@SNAPSHOT` is three words, so its script has to put them together.
const BASH: &str = include_str!("cowhand.bash");

/// Answers a shell that asks for completions. `false`: it is no such question.
pub(super) fn answer() -> Result<bool> {
    let here = std::env::current_dir().ok();
    let env = CompleteEnv::with_factory(|| with_names(Cli::command())).var(VARIABLE);
    env.try_complete(std::env::args_os(), here.as_deref())
        .map_err(|error| Error::usage(error.to_string()))
}

/// The script that makes `shell` ask.
pub(super) fn script(shell: Shell) -> Result<Vec<u8>> {
    let mut script = Vec::new();
    if shell == Shell::Bash {
        script.extend(BASH.bytes());
        return Ok(script);
    }
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let completer =
        completer.ok_or_else(|| Error::usage(format!("there are no completions for {shell}")))?;
    completer
        .write_registration(VARIABLE, "cowhand", "cowhand", "cowhand", &mut script)
        .map_err(|source| Error::failed("cannot write completions").because(source))?;
    if shell == Shell::Zsh {
        // From a directory of `fpath`, zsh takes the file for the function itself when it is called
        // first.
        script.extend(
            b"if [ \"$funcstack[1]\" = _cowhand ]; then _clap_dynamic_completer_cowhand; fi\n",
        );
    }
    Ok(script)
}

/// Names are offered wherever one is asked for that exists.
fn with_names(command: Command) -> Command {
    let is_new = command.get_name() == "create";
    let names = move |arg: Arg| {
        let kind = arg.get_value_parser().type_id();
        let id = arg.get_id().as_str();
        if is_new || id.starts_with("new") {
            arg
        } else if kind == TypeId::of::<Name>() {
            arg.add(ArgValueCompleter::new(|current: &OsStr| candidates(current, false)))
        } else if id == "image" {
            arg.add(ArgValueCompleter::new(images))
        } else if kind == TypeId::of::<PointRef>() {
            arg.add(ArgValueCompleter::new(|current: &OsStr| candidates(current, true)))
        } else {
            arg
        }
    };
    command.mut_args(names).mut_subcommands(with_names)
}

/// The images of the store, and those of the catalogue, that begin with `current`.
fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    let (Some(current), Ok(store)) = (current.to_str(), store()) else { return Vec::new() };
    let records = store.records().unwrap_or_default().into_iter();
    let stored =
        records.filter(|(_, record)| record.image().is_some()).map(|(name, _)| name.to_string());
    let known = Catalogue::load(&store).map(|all| all.entries().to_vec()).unwrap_or_default();
    let known = known.iter().map(|entry| format!("{}:{}", entry.name, entry.version));
    stored
        .chain(known)
        .filter(|name| name.starts_with(current))
        .map(CompletionCandidate::new)
        .collect()
}

/// What begins with `current`; behind an `@`, the snapshots of that VM.
fn candidates(current: &OsStr, with_snapshots: bool) -> Vec<CompletionCandidate> {
    let (Some(current), Ok(store)) = (current.to_str(), store()) else { return Vec::new() };
    let names = match current.split_once('@') {
        Some((vm, _)) if with_snapshots => snapshots(&store, vm).unwrap_or_default(),
        _ => store.names().unwrap_or_default().iter().map(Name::to_string).collect(),
    };
    names
        .into_iter()
        .filter(|name| name.starts_with(current))
        .map(CompletionCandidate::new)
        .collect()
}

fn snapshots(store: &Store, vm: &str) -> Option<Vec<String>> {
    let record = store.load(&vm.parse().ok()?).ok()?;
    Some(record.snapshots.iter().map(|snapshot| format!("{vm}@{}", snapshot.name)).collect())
}

/// The store that the words so far name.
fn store() -> Result<Store> {
    // Behind the first `--` are the words; behind the next, a command for a guest.
    let words: Vec<_> = std::env::args_os().skip(2).take_while(|word| word != "--").collect();
    let named = words.iter().enumerate().rev().find_map(|(at, word)| {
        let word = Path::new(word).to_str()?;
        match word.strip_prefix("--store=") {
            Some(path) => Some(PathBuf::from(path)),
            None => words.get(at + 1).filter(|_| word == "--store").map(PathBuf::from),
        }
    });
    let named = named.or_else(|| std::env::var_os("COWHAND_STORE").map(PathBuf::from));
    Store::at(&global::store(named.as_deref())?)
}
