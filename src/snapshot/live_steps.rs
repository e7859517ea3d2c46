//! The steps of a snapshot of a running guest: freeze, add the overlays' nodes, switch to them
//! (`blockdev-snapshot` in a `transaction`), thaw.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::change::run::Run;
use crate::change::step::{Pivot, Step, Touches};
use crate::error::{Error, Result};
use crate::guest::freeze::{self, NotFrozen};
use crate::instance::status;
use crate::model::{Layer, Quiesced};
use crate::qemu::qmp::QmpError;
use crate::qemu::{confinement, nodes};

/// Makes overlays known to the running QEMU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddNodes {
    /// The overlays.
    pub layers: Vec<Layer>,
}

impl Step for AddNodes {
    const TAG: &'static str = "add-nodes";

    fn touches(&self) -> Touches {
        Touches::changed(&self.layers)
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let layout = &run.store().layout;
        let qmp = run.live().await?;
        for layer in &self.layers {
            let path = confinement::show(qmp, &layout.layer(layer))?;
            for node in nodes::overlay_nodes(layer, &path) {
                qmp.add_node(node).await?;
            }
        }
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        let Some(qmp) = run.qmp().await? else {
            return Ok(());
        };
        for node in self.layers.iter().flat_map(|layer| [layer.node(), layer.file_node()]) {
            match qmp.remove_node(&node).await {
                Ok(()) => {}
                // It was never added. Any other refusal means that it is in use, and its file must
                // stay.
                Err(QmpError::Refused { message, .. })
                    if message.contains("Failed to find node") => {}
                Err(error) => return Err(error.into()),
            }
        }
        run.hide(&self.layers);
        Ok(())
    }
}

/// Puts overlays on top of the heads of the running VM, all or none (QMP `transaction`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switch {
    /// Which.
    pub disks: Vec<Switched>,
}

/// One disk of a [`Switch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Switched {
    /// The guest's name for the disk.
    pub target: String,
    /// The layer that was the head.
    pub head: Layer,
    /// The layer that becomes the head.
    pub overlay: Layer,
}

impl Pivot for Switch {}

impl Step for Switch {
    const TAG: &'static str = "switch";

    fn touches(&self) -> Touches {
        let layers: Vec<Layer> =
            self.disks.iter().flat_map(|disk| [disk.head.clone(), disk.overlay.clone()]).collect();
        Touches::pinned(&layers)
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let action = |disk: &Switched| {
            json!({
                "type": "blockdev-snapshot",
                "data": {"node": disk.head.node(), "overlay": disk.overlay.node()},
            })
        };
        let actions: Vec<Value> = self.disks.iter().map(action).collect();
        run.live().await?.call::<Value>("transaction", json!({"actions": actions})).await?;
        Ok(())
    }

    /// While QEMU lives it knows which layer its device is on. When it is dead, an overlay that was
    /// made and never switched to is empty, and one that was switched to may hold the guest's
    /// writes: depending on it is right either way.
    async fn happened(&self, run: &mut Run<'_>) -> Result<Option<bool>> {
        // All of them have switched, or none: one tells for all.
        if let Some(qmp) = run.qmp().await?
            && let Some(disk) = self.disks.first()
        {
            let node = qmp.root_node(&disk.target).await?;
            let active =
                Layer::id_of_node(&node).ok_or_else(|| {
                    Error::refused(format!(
                    "{} is on the block node {node:?}, which cowhand has not made, so what became \
                     of an earlier change cannot be seen",
                    disk.target
                ))
                .hint("if a block job made it (query-block-jobs), wait for its end; \
                       if another program did, let that take it away; then run the command again")
                })?;
            return Ok(Some(active == disk.overlay.id));
        }
        Ok(Some(self.disks.iter().all(|disk| run.store().layout.layer(&disk.overlay).exists())))
    }
}

/// Freezes the guest's file systems through the guest agent; undone by a thaw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Freeze {
    /// The change fails when this does.
    pub required: bool,
    /// How long it may take, in milliseconds.
    #[serde(default)]
    pub limit_ms: Option<u64>,
}

impl Step for Freeze {
    const TAG: &'static str = "freeze";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let began = Instant::now();
        let limit = self.limit_ms.map_or(freeze::FREEZE, Duration::from_millis);
        match freeze::freeze(run.context, &run.name, limit).await {
            Ok(()) => {
                run.frozen_at = Some(began);
                run.report.quiesced = true;
                run.report.freeze = Some(Quiesced::Frozen);
                Ok(())
            }
            Err(NotFrozen { error, .. }) if self.required => Err(error),
            Err(NotFrozen { how, error }) => {
                run.report.freeze = Some(how);
                let why = error.full_message();
                run.report
                    .warnings
                    .push(format!("the guest's file systems were not frozen: {why}"));
                Ok(())
            }
        }
    }

    /// What another program has frozen is not ours to thaw. After a crash nobody knows who it was,
    /// and a thaw is the lesser evil.
    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        thaw_ours(run).await;
        Ok(())
    }
}

/// Thaws the guest's file systems, where this change has frozen them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Thaw {}

impl Step for Thaw {
    const TAG: &'static str = "thaw";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        thaw_ours(run).await;
        Ok(())
    }

    fn shows_nowhere(&self) -> bool {
        true
    }
}

async fn thaw_ours(run: &mut Run<'_>) {
    if run.frozen_at.is_none() && !run.recovering {
        return;
    }
    // A guest that has ended is not frozen.
    if run.recovering && !status::is_running(run.context, &run.name).unwrap_or(true) {
        return;
    }
    let thawed = freeze::thaw(run.context, &run.name).await;
    if let Some(began) = run.frozen_at.take() {
        run.report.frozen = Some(began.elapsed());
    }
    if let Err(error) = thawed {
        run.report.freeze = Some(Quiesced::NotThawed);
        run.report.warnings.push(format!(
            "the guest's file systems may still be frozen: {}; {}",
            error.full_message(),
            freeze::how_to_thaw(&run.name)
        ));
    }
}
