use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{App, each};
use crate::change::OpenVm;
use crate::error::{Error, Result};
use crate::merge::outcome::{Removed, What};
use crate::model::printable;
use crate::model::{Name, PointRef, human, parse_age};
use crate::output::{Format, json, table, time, tree};
use crate::snapshot::plan::Quiesce;
use crate::snapshot::plan::Which;
use crate::snapshot::revert::Then;
use crate::snapshot::{create, delete, list, rename, revert};
use crate::store::journal;

/// Create, list, revert to and remove snapshots
#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
    Create(Create),
    Ls(Ls),
    Tree(Tree),
    Show(Show),
    Rename(Rename),
    Revert(Revert),
    Rm(Rm),
}

impl Snapshot {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Create(verb) => verb.run(app).await,
            Self::Ls(verb) => verb.run(app),
            Self::Tree(verb) => verb.run(app),
            Self::Show(verb) => verb.run(app),
            Self::Rename(verb) => verb.run(app).await,
            Self::Revert(verb) => verb.run(app).await,
            Self::Rm(verb) => verb.run(app).await,
        }
    }
}

/// `5`, `0.5`.
fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .filter(|limit| !limit.is_zero())
        .ok_or_else(|| Error::usage(format!("{text:?} is not a number of seconds")))
}

/// The snapshot of a point that has to name one.
fn snapshot_of(point: &PointRef) -> Result<&Name> {
    point.snapshot.as_ref().ok_or_else(|| {
        Error::usage(format!("{point} names no snapshot"))
            .hint(format!("write VM@SNAPSHOT; see what there is: cowhand snapshot ls {}", point.vm))
    })
}

/// Create a snapshot of all disks of a VM, running or stopped, at one instant
///
/// The active layers become read-only and get new overlays, either all of them or none (except with
/// --internal). The file systems of a running guest are frozen for that instant if its guest agent
/// is connected.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// The VM
    vm: Name,
    /// Name of the snapshot [default: generated from the time]
    name: Option<Name>,
    /// Whether to freeze the guest's file systems first
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    quiesce: QuiesceArg,
    /// Seconds to wait for the guest to freeze its file systems [default: 5]
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    quiesce_timeout: Option<Duration>,
    /// Create an internal snapshot, inside the qcow2 images; of a running VM, with its memory
    #[arg(long)]
    internal: bool,
    /// Also save the guest's memory, so that a revert resumes the guest. Pauses the guest briefly
    #[arg(long)]
    memory: bool,
    /// Compress the memory, which is slower
    #[arg(long, value_name = "METHOD", requires = "memory")]
    compress: Option<Compress>,
    /// Description
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Let `gc` remove the snapshot after this time: 12h, 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    expires: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compress {
    Zstd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum QuiesceArg {
    /// Freeze if the guest agent is connected; warn if the freeze fails
    Auto,
    /// Fail unless the file systems can be frozen
    Require,
    /// Do not freeze
    Never,
}

impl Create {
    async fn run(self, app: &App) -> Result<()> {
        let made_up = self.name.is_none();
        let request = create::Request {
            name: self.name,
            description: self.description,
            quiesce: match self.quiesce {
                QuiesceArg::Auto => Quiesce::Auto,
                QuiesceArg::Require => Quiesce::Require,
                QuiesceArg::Never => Quiesce::Never,
            },
            quiesce_limit: self.quiesce_timeout,
            internal: self.internal,
            memory: self.memory,
            compress: self.compress.is_some(),
            expires: self.expires.map(|age| jiff::Timestamp::now() + age),
        };
        let taken = create::create(&app.context, &self.vm, &request).await?;
        let row = list::show(&app.context, &self.vm, &taken.name)?;
        let frozen = if taken.frozen.is_zero() {
            String::new()
        } else {
            format!(", frozen {}", time::short(taken.frozen))
        };
        let paused = if taken.paused.is_zero() {
            String::new()
        } else {
            format!(", paused {}", time::short(taken.paused))
        };
        let text = format!(
            "took {}@{} in {}{frozen}{paused}",
            self.vm,
            taken.name,
            time::short(taken.total)
        );
        match (app.printer.format, app.printer.quiet && made_up) {
            // The name is news to whoever asked.
            (Format::Table, true) => app.printer.text(taken.name.as_str()),
            _ => app.printer.done(&text, &json::TakenSnapshot::new(&row, &taken)),
        }
        match taken.memory_lost {
            None => Ok(()),
            Some(why) => Err(Error::qemu(format!(
                "{}@{} contains the disks only: its memory was not saved",
                self.vm, taken.name
            ))
            .hint(format!("to remove it: cowhand snapshot rm {}@{}", self.vm, taken.name))
            .because(why)),
        }
    }
}

/// List the snapshots of a VM, oldest first; * marks the one that its current state is based on
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// The VM
    vm: Name,
}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::list(&app.context, &self.vm)?;
        match (app.printer.format, app.printer.quiet) {
            (Format::Table, true) => {
                rows.iter().for_each(|row| app.printer.text(row.snapshot.name.as_str()))
            }
            _ => {
                let entries: Vec<_> = rows.iter().map(json::Snapshot::from).collect();
                app.printer.result(&table::snapshots(&rows), &entries);
            }
        }
        Ok(())
    }
}

/// Show the snapshots of a VM as a tree, with its current position
#[derive(Debug, Args)]
pub(super) struct Tree {
    /// The VM
    vm: Name,
}

impl Tree {
    fn run(self, app: &App) -> Result<()> {
        let drawn = list::tree(&app.context, &self.vm)?;
        let entries: Vec<_> = drawn.rows.iter().map(json::Snapshot::from).collect();
        app.printer.result(&tree::snapshots(&drawn), &entries);
        Ok(())
    }
}

/// Show one snapshot; VM@current is the one that the current state is based on
#[derive(Debug, Args)]
pub(super) struct Show {
    /// VM@SNAPSHOT
    point: PointRef,
}

impl Show {
    fn run(self, app: &App) -> Result<()> {
        let row = list::show(&app.context, &self.point.vm, snapshot_of(&self.point)?)?;
        app.printer
            .result(&table::snapshot(&self.point.vm, &row), &json::SnapshotInFull::from(&row));
        Ok(())
    }
}

/// Rename a snapshot
#[derive(Debug, Args)]
pub(super) struct Rename {
    /// VM@SNAPSHOT
    point: PointRef,
    /// New name
    new: Name,
}

impl Rename {
    async fn run(self, app: &App) -> Result<()> {
        rename::rename(&app.context, &self.point.vm, snapshot_of(&self.point)?, &self.new).await?;
        let text = format!("renamed {} to {}@{}", self.point, self.point.vm, self.new);
        app.printer.done(&text, &json::Named::new(&self.new));
        Ok(())
    }
}

/// Revert the disks and the configuration of a VM to a snapshot
///
/// The current state is moved to the trash, and `undo` restores it; other snapshots stay. After a
/// revert to a snapshot with memory, the guest resumes from that moment, or stays paused if it was
/// paused then. Otherwise the guest boots if the VM was running, and starts paused if the VM was
/// paused.
#[derive(Debug, Args)]
pub(super) struct Revert {
    /// VM@SNAPSHOT
    point: PointRef,
    /// Start the VM afterwards
    #[arg(long, group = "then")]
    running: bool,
    /// Start the VM paused; continue with `resume`
    #[arg(long, group = "then")]
    paused: bool,
    /// Do not start the VM
    #[arg(long, group = "then")]
    stopped: bool,
    /// Ignore the snapshot's memory; the guest boots if the VM was running
    #[arg(long)]
    cold: bool,
}

impl Revert {
    async fn run(self, app: &App) -> Result<()> {
        let then = match (self.running, self.paused, self.stopped) {
            (true, _, _) => Some(Then::Running),
            (_, true, _) => Some(Then::Paused),
            (_, _, true) => Some(Then::Stopped),
            _ => None,
        };
        let reverted = revert::revert(
            &app.context,
            &self.point.vm,
            snapshot_of(&self.point)?,
            revert::Request { then, cold: self.cold },
        )
        .await?;
        let (name, state) = (&reverted.name, reverted.state.as_str());
        let text = format!("{vm} is back at {vm}@{name}, {state}", vm = self.point.vm);
        app.printer.done(&text, &json::Reverted::new(&self.point.vm, &reverted));
        Ok(())
    }
}

/// Remove snapshots and merge their layers; the current state, clones and other snapshots keep
/// their content
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// VM@SNAPSHOT
    #[arg(required = true)]
    points: Vec<PointRef>,
    /// Also remove their descendants
    #[arg(long, conflicts_with = "children_only")]
    children: bool,
    /// Remove only their descendants
    #[arg(long)]
    children_only: bool,
    /// Keep the layers that `undo` of an earlier revert or removal needs; they are merged when the
    /// trash is emptied
    #[arg(long)]
    keep_undo: bool,
    /// Only show what would be merged, how much data would be copied, and which change could no
    /// longer be undone
    #[arg(long)]
    dry_run: bool,
}

impl Rm {
    async fn run(self, app: &App) -> Result<()> {
        let which = match (self.children, self.children_only) {
            (true, _) => Which::WithChildren,
            (_, true) => Which::ChildrenOnly,
            _ => Which::Alone,
        };
        let request = delete::Request { which, keep_undo: self.keep_undo, dry_run: self.dry_run };
        // A slip of the pen in the last one must not leave the first one removed; and `current`
        // means what it means now.
        let mut points: Vec<PointRef> = Vec::new();
        for point in &self.points {
            let cut_short = journal::cut_short(&app.context.store, &point.vm);
            if cut_short.is_some() {
                drop(OpenVm::open(&app.context, &point.vm).await?);
            }
            if cut_short.as_ref() == Some(&app.context.operation)
                && app
                    .context
                    .store
                    .load(&point.vm)?
                    .snapshot(&point.vm, snapshot_of(point)?)
                    .is_err()
            {
                // It was this very command, and now it is done.
                continue;
            }
            let record = app.context.store.load(&point.vm)?;
            let snapshot = Some(record.snapshot(&point.vm, snapshot_of(point)?)?.name.clone());
            let point = PointRef { vm: point.vm.clone(), snapshot };
            if !points.contains(&point) {
                points.push(point);
            }
        }
        each(app, &points, async |point| {
            let gone = app
                .context
                .store
                .load(&point.vm)?
                .snapshot(&point.vm, snapshot_of(point)?)
                .is_err();
            if gone && self.children {
                // It depended on another one of them.
                return Ok(());
            }
            let removed =
                delete::remove(&app.context, &point.vm, snapshot_of(point)?, request).await?;
            let verb = if self.dry_run { "would remove" } else { "removed" };
            if removed.is_empty() {
                app.printer.done(&format!("nothing depends on {point}"), &[(); 0]);
            }
            for removed in &removed {
                let mut text = removed_text(verb, &point.vm, removed);
                // Else it was said before it was done.
                for lost in removed.lost_undo.iter().filter(|_| self.dry_run) {
                    let lost = printable::line(lost);
                    text.push_str(&format!(
                        "\n  {lost} could no longer be undone; to prevent that: --keep-undo"
                    ));
                }
                app.printer.done(&text, &json::RemovedSnapshot::new(removed, self.dry_run));
            }
            Ok(())
        })
        .await
    }
}

fn removed_text(verb: &str, vm: &Name, removed: &Removed) -> String {
    let mut text = format!("{verb} {vm}@{}", removed.name);
    for outcome in &removed.outcomes {
        let bytes = human(outcome.bytes);
        let what = match &outcome.what {
            What::Committed => format!("merged: {bytes} committed down"),
            What::Streamed => format!("merged: {bytes} streamed up"),
            What::Trashed => "moved to the trash".to_owned(),
            What::Internal => format!("removed from the image: {bytes} freed"),
            What::Kept(why) => format!("its layer is kept, hidden: {why}"),
        };
        text.push_str(&format!("\n  {}  {what}", outcome.target));
    }
    text
}
