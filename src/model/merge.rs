//! A merge of layers that depend on each other.

use super::Layer;

/// One merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The guest's name for the disk.
    pub target: String,
    /// Which way the data moves.
    pub kind: MergeKind,
    /// The uppermost layer.
    pub top: Layer,
    /// The layers between `top` and `base`, from above to below.
    pub between: Vec<Layer>,
    /// The lowest layer.
    pub base: Layer,
    /// The backing file of `base`.
    pub below: Option<Layer>,
    /// The overlay on `top`; `None` when it is an active layer.
    pub overlay: Option<Layer>,
    /// Layers that stay although their data was copied: another VM needs them.
    pub kept: Vec<Layer>,
    /// About how many bytes move.
    pub bytes: u64,
}

/// Which way the data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeKind {
    /// `top` and what is between are written into `base`, and vanish.
    Commit,
    /// `base` and what is between are copied into `top`, and vanish.
    Stream,
}

impl MergeKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Stream => "stream",
        }
    }
}

impl Merge {
    /// A merge of two layers of which one backs the other.
    pub fn pair(target: &str, kind: MergeKind, top: &Layer, base: &Layer, bytes: u64) -> Self {
        Self {
            target: target.to_owned(),
            kind,
            top: top.clone(),
            between: Vec::new(),
            base: base.clone(),
            below: None,
            overlay: None,
            kept: Vec::new(),
            bytes,
        }
    }

    /// The layers it concerns, from above to below.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.overlay.iter().chain([&self.top]).chain(&self.between).chain([&self.base])
    }

    /// The layers that are there no more afterwards.
    pub fn vanishing(&self) -> Vec<&Layer> {
        let gone: Vec<&Layer> = match self.kind {
            MergeKind::Commit => [&self.top].into_iter().chain(&self.between).collect(),
            MergeKind::Stream => self.between.iter().chain([&self.base]).collect(),
        };
        gone.into_iter().filter(|layer| !self.kept.contains(layer)).collect()
    }

    /// The layer that the data is copied into.
    pub fn written(&self) -> &Layer {
        match self.kind {
            MergeKind::Commit => &self.base,
            MergeKind::Stream => &self.top,
        }
    }

    /// The layer whose header says something else afterwards: it depends on another one. The commit
    /// of an active layer changes none.
    pub fn relinked(&self) -> Option<&Layer> {
        match self.kind {
            MergeKind::Commit => self.overlay.as_ref(),
            MergeKind::Stream => Some(&self.top),
        }
    }

    /// The backing file of [`Self::relinked`] before.
    pub fn backing_before(&self) -> &Layer {
        match self.kind {
            MergeKind::Commit => &self.top,
            MergeKind::Stream => self.between.first().unwrap_or(&self.base),
        }
    }

    /// The backing file of [`Self::relinked`] afterwards.
    pub fn backing_after(&self) -> Option<&Layer> {
        match self.kind {
            MergeKind::Commit => Some(&self.base),
            MergeKind::Stream => self.below.as_ref(),
        }
    }

    /// The name of its block job.
    pub fn job(&self) -> String {
        format!("cw-{}-{}", self.kind.as_str(), self.top.id)
    }

    /// Does it merge the layer the guest writes to, so that QEMU's device has to switch?
    pub fn is_active(&self) -> bool {
        self.kind == MergeKind::Commit && self.overlay.is_none()
    }
}
