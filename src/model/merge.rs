//! A merge of two layers, as data that can be written to a journal.

use serde::{Deserialize, Serialize};

use super::Layer;

/// One merge of two layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// The guest's name for the disk.
    pub target: String,
    /// Which way the data moves.
    pub kind: MergeKind,
    /// The upper layer.
    pub top: Layer,
    /// The lower layer.
    pub base: Layer,
    /// What `base` stands on.
    pub below: Option<Layer>,
    /// What stands on `top`; `None` when it is an active layer.
    pub overlay: Option<Layer>,
    /// About how many bytes move.
    pub bytes: u64,
}

/// Which way the data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeKind {
    /// `top` is written into `base`, and vanishes.
    Commit,
    /// `base` is copied into `top`, and vanishes.
    Stream,
}

impl Merge {
    /// The layer that is there no more afterwards.
    pub fn vanishing(&self) -> &Layer {
        match self.kind {
            MergeKind::Commit => &self.top,
            MergeKind::Stream => &self.base,
        }
    }

    /// The name of its block job.
    pub fn job(&self) -> String {
        let verb = match self.kind {
            MergeKind::Commit => "commit",
            MergeKind::Stream => "stream",
        };
        format!("cw-{verb}-{}", self.top.id)
    }

    /// Does it merge the layer the guest writes to, so that QEMU's device has to switch?
    pub fn is_active(&self) -> bool {
        self.kind == MergeKind::Commit && self.overlay.is_none()
    }
}
