//! Sealing the disks of a stopped VM: the appliance works on overlays, which are merged into the
//! disks when it has done everything. Until then nothing has changed, and overlays that were left
//! are removed by the next command.

use super::Report;
use super::overlay::{Scratch, overlay_nodes};
use super::run::Sealing;
use super::step::{Seal, Sealed};
use crate::appliance::boot::Drive;
use crate::change::{Plan, Planned};
use crate::context::Context;
use crate::error::Result;
use crate::layer::{chain, create, info};
use crate::merge::plan::{self, LayerChanges};
use crate::model::{Disk, Format, Layer, Merge, MergeKind, Name, Record};
use crate::qemu::nodes;
use crate::steps::layers::CreateOverlay;
use crate::store::{Store, trash};

/// The disks that are worked on.
fn disks(record: &Record) -> impl Iterator<Item = &Disk> {
    record.config.disks.iter().filter(|disk| !disk.read_only)
}

/// The plan that seals the disks of `record`, and the record that it leads to.
pub(crate) fn plan(
    context: &Context,
    vm: &Name,
    record: &Record,
    sealing: &Sealing,
) -> Result<(Record, Plan)> {
    let mut before: Vec<Planned> = Vec::new();
    let mut sealed = Vec::new();
    let mut changes = LayerChanges::default();
    let mut on_overlays = record.clone();
    // The guest's disks are not what it knew. And once the overlays are merged, nothing else would
    // tell this record from the one before, by which recovery sees how far things have got.
    on_overlays.config.generation = uuid::Uuid::new_v4();
    for disk in on_overlays.config.disks.iter_mut().filter(|disk| !disk.read_only) {
        let below = disk.layer.clone();
        let virtual_bytes = info::inspect(&context.store, &below)?.virtual_bytes;
        disk.layer = Layer::new(Format::Qcow2);
        before.push(
            CreateOverlay {
                layer: disk.layer.clone(),
                backing: Some(below.clone()),
                virtual_bytes,
            }
            .into(),
        );
        sealed.push(Sealed { target: disk.target.clone(), layer: disk.layer.clone() });
        changes.merges.push(Merge::pair(&disk.target, MergeKind::Commit, &disk.layer, &below, 0));
    }
    before.push(Seal { disks: sealed, sealing: Some(Box::new(sealing.clone())) }.into());
    let trash = Store::trash_name(&trash::Kind::Seal, vm);
    let merge = plan::collapse(record, &on_overlays, changes, false, trash::Kind::Seal, trash);
    let after = Record {
        config: crate::model::Config { disks: record.config.disks.clone(), ..on_overlays.config },
        ..on_overlays
    };
    Ok((after, merge.behind(before)))
}

/// What sealing `record` would do. The appliance writes to overlays nobody will see.
pub(crate) async fn dry_run(
    context: &Context,
    record: &Record,
    sealing: &Sealing,
) -> Result<Report> {
    let scratch = Scratch::new()?;
    let mut drives = Vec::new();
    for (number, disk) in disks(record).enumerate() {
        let chain = chain::read(&context.store, &disk.layer)?;
        let overlay = scratch.path(number);
        create::empty_at(
            &overlay,
            None,
            info::inspect(&context.store, &disk.layer)?.virtual_bytes,
        )?;
        let top = format!("top{number}");
        let mut nodes = nodes::chain_nodes(&chain, false);
        nodes.extend(overlay_nodes(&top, &overlay, &disk.layer.node()));
        drives.push(Drive { target: disk.target.clone(), nodes, top });
    }
    sealing.carry_out(context, &drives, true).await
}
