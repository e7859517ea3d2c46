//! The steps of a snapshot of a running guest: freeze, add the overlays' nodes, switch to them (`blockdev-snapshot` in a `transaction`), thaw, go on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::apply::Executor;
use super::step::Switched;
use crate::error::{Error, Result};
use crate::guest::freeze::{self, NotFrozen};
use crate::instance::status;
use crate::model::{Layer, Quiesced};
use crate::qemu::nodes;
use crate::qemu::qmp::QmpError;

impl Executor<'_> {
    pub(super) async fn add_nodes(&mut self, layers: &[Layer]) -> Result<()> {
        let layout = self.context.store.layout.clone();
        let qmp = self.live().await?;
        for layer in layers {
            for node in nodes::overlay_nodes(layer, &layout.layer(layer)) {
                qmp.add_node(node).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn remove_nodes(&mut self, layers: &[Layer]) -> Result<()> {
        let Some(qmp) = self.qmp().await? else {
            return Ok(());
        };
        for node in layers.iter().flat_map(|layer| [layer.node(), layer.file_node()]) {
            match qmp.remove_node(&node).await {
                Ok(()) => {}
                // It was never added. Any other refusal means that it is in use, and its file must stay.
                Err(QmpError::Refused { message, .. }) if message.contains("Failed to find node") => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(super) async fn switch(&mut self, disks: &[Switched]) -> Result<()> {
        let action = |disk: &Switched| json!({"type": "blockdev-snapshot", "data": {"node": disk.head.node(), "overlay": disk.overlay.node()}});
        let actions: Vec<Value> = disks.iter().map(action).collect();
        let qmp = self.live().await?;
        qmp.call::<Value>("transaction", json!({"actions": actions})).await?;
        Ok(())
    }

    pub(super) async fn freeze(&mut self, required: bool, limit: Option<Duration>) -> Result<()> {
        let began = Instant::now();
        match freeze::freeze(self.context, &self.name, limit.unwrap_or(freeze::FREEZE)).await {
            Ok(()) => {
                self.frozen_at = Some(began);
                self.report.quiesced = true;
                self.report.freeze = Some(Quiesced::Frozen);
                Ok(())
            }
            Err(NotFrozen { error, .. }) if required => Err(error),
            Err(NotFrozen { how, error }) => {
                self.report.freeze = Some(how);
                let why = error.full_message();
                self.report.warnings.push(format!("the guest's file systems were not frozen: {why}"));
                Ok(())
            }
        }
    }

    pub(super) async fn thaw(&mut self) {
        // Whoever has ended is not frozen.
        if self.recovering && !status::is_running(self.context, &self.name).unwrap_or(true) {
            return;
        }
        let thawed = freeze::thaw(self.context, &self.name).await;
        if let Some(began) = self.frozen_at.take() {
            self.report.frozen = Some(began.elapsed());
        }
        if let Err(error) = thawed {
            self.report.freeze = Some(Quiesced::NotThawed);
            self.report.warnings.push(format!(
                "the guest's file systems may still be frozen: {}; {}",
                error.full_message(),
                freeze::how_to_thaw(&self.name)
            ));
        }
    }

    /// Thaws what this change has frozen, if it has.
    pub async fn thaw_ours(&mut self) {
        if self.frozen_at.is_some() {
            self.thaw().await;
        }
    }

    pub(super) async fn resume(&mut self) -> Result<()> {
        if let Some(qmp) = self.qmp().await? {
            qmp.cont().await?;
        }
        if let Some(began) = self.paused_at.take() {
            self.report.paused = Some(began.elapsed());
        }
        Ok(())
    }

    /// While QEMU lives it knows which layer its device is on. When it is dead, an overlay that was made and never switched to
    /// is empty, and one that was switched to may hold the guest's writes: standing on it is right either way.
    pub(super) async fn switched(&mut self, disks: &[Switched]) -> Result<bool> {
        // All of them have switched, or none: one tells for all.
        if let Some(qmp) = self.qmp().await?
            && let Some(disk) = disks.first()
        {
            let node = qmp.root_node(&disk.target).await?;
            let active = Layer::id_of_node(&node).ok_or_else(|| {
                Error::refused(format!(
                    "{} is on the block node {node:?}, which cowhand has not made, so what became of an earlier change cannot be seen",
                    disk.target
                ))
                .hint("if a block job made it (query-block-jobs), wait for its end; if another program did, let that take it away; then run the command again")
            })?;
            return Ok(active == disk.overlay.id);
        }
        Ok(disks.iter().all(|disk| self.context.store.layout.layer(&disk.overlay).exists()))
    }
}
