use clap::{Args, Subcommand};

use super::App;
use crate::disk::check::{self, Found};
use crate::disk::merge::{self, Merged};
use crate::disk::resize;
use crate::error::{Error, Result};
use crate::model::{MergeKind, Name, human, parse_size};
use crate::output::{json, table};
use crate::vm::list;

/// List, merge, resize and check the disks of a VM
#[derive(Debug, Subcommand)]
pub(super) enum Disk {
    Ls(Ls),
    Chain(Chain),
    Check(Check),
    Resize(Resize),
    Commit(Commit),
    Stream(Stream),
}

impl Disk {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Ls(verb) => verb.run(app),
            Self::Chain(verb) => verb.run(app),
            Self::Check(verb) => verb.run(app).await,
            Self::Resize(verb) => verb.run(app).await,
            Self::Commit(verb) => verb.run(app).await,
            Self::Stream(verb) => verb.run(app).await,
        }
    }
}

/// List the disks of a VM with their files
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// The VM or template
    vm: Name,
}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::disks(&app.context, &self.vm)?;
        let entries: Vec<_> = rows.iter().map(json::Disk::from).collect();
        app.printer.result(&table::disks(&rows), &entries);
        Ok(())
    }
}

/// Show the backing chain of a disk: the active layer first, the base last
#[derive(Debug, Args)]
pub(super) struct Chain {
    /// The VM or template
    vm: Name,
    /// Only this disk [default: all disks]
    disk: Option<String>,
}

impl Chain {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::chains(&app.context, &self.vm, self.disk.as_deref())?;
        let entries: Vec<_> = rows.iter().map(json::Chain::from).collect();
        app.printer.result(&table::chains(&rows), &entries);
        Ok(())
    }
}

/// Check every layer that a VM uses (`qemu-img check`); exit code 8 if data may be lost
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The VM or template
    vm: Name,
    /// Only this disk [default: all disks]
    disk: Option<String>,
    /// Repair the active layers; the VM must be stopped
    #[arg(long)]
    repair: bool,
}

impl Check {
    async fn run(self, app: &App) -> Result<()> {
        let found = check::check(&app.context, &self.vm, self.disk.as_deref(), self.repair).await?;
        let entries: Vec<_> = found.iter().map(json::CheckedLayer::from).collect();
        app.printer.result(&table::checks(&found), &entries);
        let damaged: Vec<String> = found
            .iter()
            .filter(|found| found.is_damaged())
            .map(|found| found.layer.to_string())
            .collect();
        if damaged.is_empty() {
            return Ok(());
        }
        let error =
            Error::damaged(format!("{}: layers are damaged: {}", self.vm, damaged.join(", ")));
        let record = app.context.store.load(&self.vm)?;
        let is_active =
            |found: &Found| record.config.volumes().any(|disk| disk.layer == found.layer);
        Err(match found.iter().filter(|found| found.is_damaged()).all(is_active) && !self.repair {
            true => error.hint(format!(
                "cowhand disk check {} --repair    repairs the active layer as far as possible",
                self.vm
            )),
            false => {
                error.hint("restore the file from a backup, or revert to an undamaged snapshot")
            }
        })
    }
}

/// Resize a disk, running or stopped; the guest's partitions and file systems are not changed
#[derive(Debug, Args)]
pub(super) struct Resize {
    /// The VM
    vm: Name,
    /// The disk: vda, vdb, …
    disk: String,
    /// New size: 20G, or +5G to add to the current size
    #[arg(value_name = "SIZE")]
    size: String,
    /// Shrink the disk; refused if there is data beyond the new end
    #[arg(long)]
    shrink: bool,
}

impl Resize {
    async fn run(self, app: &App) -> Result<()> {
        let bytes = match self.size.strip_prefix('+') {
            None => parse_size(&self.size)?,
            Some(more) => {
                let rows = list::disks(&app.context, &self.vm)?;
                let now = rows
                    .iter()
                    .find(|row| row.target == self.disk)
                    .map_or(0, |row| row.virtual_bytes);
                now.checked_add(parse_size(more)?)
                    .ok_or_else(|| Error::usage(format!("{} is too much", self.size)))?
            }
        };
        let resized =
            resize::resize(&app.context, &self.vm, &self.disk, bytes, self.shrink).await?;
        let text = format!(
            "{} of {}: {} → {}",
            self.disk,
            self.vm,
            human(resized.before),
            human(resized.after)
        );
        app.printer.done(&text, &json::Resized::new(&self.disk, &resized));
        Ok(())
    }
}

/// Merge a layer into its backing file, or further down into --base
///
/// Snapshots of the base, and of the layers between, are removed; --dry-run lists them. Refused if
/// clones, templates or other branches depend on these layers. To remove one snapshot and keep all
/// others, use `snapshot rm`.
#[derive(Debug, Args)]
pub(super) struct Commit {
    /// The VM
    vm: Name,
    /// The disk: vda, vdb, …
    disk: String,
    /// The layer to merge: an id, a file name, or a snapshot's name [default: the active layer]
    #[arg(long, value_name = "LAYER")]
    top: Option<String>,
    /// The layer to merge into [default: its backing file]
    #[arg(long, value_name = "LAYER")]
    base: Option<String>,
    /// Only show what would be merged
    #[arg(long)]
    dry_run: bool,
}

impl Commit {
    async fn run(self, app: &App) -> Result<()> {
        let (top, base) = (self.top.as_deref(), self.base.as_deref());
        let merged =
            merge::commit(&app.context, &self.vm, &self.disk, top, base, self.dry_run).await?;
        tell(app, &self.vm, &merged, self.dry_run);
        Ok(())
    }
}

/// Copy data from backing files into the active layer
///
/// The active layer is then backed by --base, or has no backing file. Snapshots, clones and
/// templates keep their layers and their content, and `undo` stays possible.
#[derive(Debug, Args)]
pub(super) struct Stream {
    /// The VM
    vm: Name,
    /// The disk: vda, vdb, …
    disk: String,
    /// The layer to keep as the backing file: an id, a file name, or a snapshot's name [default:
    /// none]
    #[arg(long, value_name = "LAYER")]
    base: Option<String>,
    /// Only show what would be copied
    #[arg(long)]
    dry_run: bool,
}

impl Stream {
    async fn run(self, app: &App) -> Result<()> {
        let merged =
            merge::stream(&app.context, &self.vm, &self.disk, self.base.as_deref(), self.dry_run)
                .await?;
        tell(app, &self.vm, &merged, self.dry_run);
        Ok(())
    }
}

/// What was merged, or would be.
pub(super) fn tell(app: &App, vm: &Name, merged: &Merged, dry_run: bool) {
    let would = if dry_run { "would be " } else { "" };
    let mut lines = Vec::new();
    for merge in &merged.merges {
        let layers = merge.between.len() + 1;
        let layers = if layers == 1 { "1 layer".to_owned() } else { format!("{layers} layers") };
        lines.push(match merge.kind {
            MergeKind::Commit => {
                format!(
                    "{}: {layers} ({}) {would}committed down into {}",
                    merge.target,
                    human(merge.bytes),
                    merge.base
                )
            }
            MergeKind::Stream => {
                format!(
                    "{}: {layers} ({}) {would}streamed up into {}",
                    merge.target,
                    human(merge.bytes),
                    merge.top
                )
            }
        });
    }
    if !merged.given_up.is_empty() {
        let names: Vec<String> =
            merged.given_up.iter().map(|name| format!("{vm}@{name}")).collect();
        let verb = if would.is_empty() { "removed" } else { "that would be removed" };
        lines.push(format!("snapshots {verb}: {}", names.join(", ")));
    }
    if merged.merges.is_empty() {
        lines.push(format!("{vm}: there is nothing to merge"));
    }
    app.printer.done(&lines.join("\n"), &json::Merged::new(vm, merged, dry_run));
}
