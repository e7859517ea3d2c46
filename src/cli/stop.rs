use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::App;
use crate::error::{Error, Kind, Result};
use crate::model::Name;
use crate::output::json;
use crate::vm::select::{self, Selected};
use crate::vm::stop::{self, Stopped};

/// Stop VMs: ask the guests to shut down, and wait until they have
///
/// The guest agent, if it is connected, is asked first; then the ACPI power button is pressed. A
/// guest that ignores both keeps running, and the command fails with exit code 7. Several VMs are
/// stopped at the same time.
#[derive(Debug, Args)]
pub(super) struct Stop {
    /// The VMs
    #[arg(required_unless_present = "all")]
    names: Vec<Name>,
    /// Stop all running VMs, except those of `run` and similar commands, and standby clones of the
    /// pool
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// End QEMU without shutting down the guest
    #[arg(short, long)]
    force: bool,
    /// Seconds to wait for each guest
    #[arg(long, value_name = "SECS", default_value_t = 120)]
    timeout: u64,
}

/// The most names in one line of progress.
const SHOWN: usize = 4;

impl Stop {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        if !self.all {
            let mut names = Vec::new();
            for name in &self.names {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            let (failed, _) = self.stop(app, &names).await;
            return last(app, failed.into_iter().map(|(_, error)| error));
        }
        let Selected { names, owned, abandoned, unclear } = select::running(&app.context)?;
        if names.is_empty() && unclear.is_empty() {
            app.context.ui.note("no VM runs");
        }
        let (failed, stopped) = self.stop(app, &names).await;
        if !owned.is_empty() {
            let names = listed(&owned);
            app.context
                .ui
                .note(&format!("not stopped, because their commands are still running: {names}"));
        }
        if !abandoned.is_empty() {
            let names = listed(&abandoned);
            app.context.ui.note(&format!(
                "not stopped, because their commands were killed: {names}; `cowhand \
                 gc` removes them"
            ));
        }
        if failed.is_empty() {
            return last(app, unclear);
        }
        unclear.iter().for_each(|error| app.printer.error(error));
        let (names, errors): (Vec<Name>, Vec<Error>) = failed.into_iter().unzip();
        errors.iter().for_each(|error| app.printer.error(error));
        let kind = errors.last().map_or(Kind::Failed, Error::kind);
        let total = names.len() + stopped;
        let text: Vec<&str> = names.iter().map(Name::as_str).collect();
        Err(Error::new(
            kind,
            format!("{} of {total} VMs have not been stopped: {}", names.len(), text.join(", ")),
        )
        .hint(format!("to end QEMU without a shutdown: cowhand stop --force {}", text.join(" "))))
    }

    /// Stops all of `names` at the same time. Returns those that failed, and how many did not.
    async fn stop(&self, app: &App, names: &[Name]) -> (Vec<(Name, Error)>, usize) {
        let limit = Duration::from_secs(self.timeout);
        let stop = async |name: &Name| {
            (name.clone(), stop::stop(&app.context, name, self.force, limit).await)
        };
        let mut stopping: FuturesUnordered<_> = names.iter().map(stop).collect();
        let mut waiting = names.to_vec();
        let (mut failed, mut stopped) = (Vec::new(), 0);
        loop {
            // Taken off the screen before anything is printed.
            let task = app.context.ui.task(&progress(&waiting, names.len()), 0);
            let Some((name, result)) = stopping.next().await else { break };
            drop(task);
            waiting.retain(|waiting| *waiting != name);
            match result {
                Ok(how) => {
                    stopped += 1;
                    say(app, &name, how);
                }
                // Removed meanwhile: there is nothing left to stop.
                Err(_) if self.all && !app.context.store.exists(&name) => stopped += 1,
                Err(error) => failed.push((name, error)),
            }
        }
        failed.sort_by_key(|(name, _)| names.iter().position(|other| other == name));
        (failed, stopped)
    }
}

fn say(app: &App, name: &Name, how: Stopped) {
    let (text, word) = match how {
        Stopped::Already => (format!("{name} was not running"), "already"),
        Stopped::Agent => (format!("stopped {name} (shut down by its guest agent)"), "agent"),
        Stopped::Acpi => (format!("stopped {name} (shut down by the ACPI power button)"), "acpi"),
        Stopped::Forced => (format!("stopped {name} (forced, without a shutdown)"), "forced"),
        Stopped::Ended => (
            format!("{name} has stopped (its QEMU was ended, the guest had not shut down)"),
            "ended",
        ),
    };
    app.printer.done(&text, &json::State::stopped(name, word));
}

/// Prints all errors but the last, which decides the exit code.
fn last(app: &App, errors: impl IntoIterator<Item = Error>) -> Result<()> {
    let mut last = None;
    for error in errors {
        if let Some(earlier) = last.replace(error) {
            app.printer.error(&earlier);
        }
    }
    last.map_or(Ok(()), Err)
}

fn progress(waiting: &[Name], total: usize) -> String {
    match total {
        1 => format!("waiting for {}", listed(waiting)),
        _ => {
            format!("{} of {total} stopped, waiting for {}", total - waiting.len(), listed(waiting))
        }
    }
}

fn listed(names: &[Name]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).map(Name::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
