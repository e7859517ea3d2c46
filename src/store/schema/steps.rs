//! What only the steps of a journal hold: merges, and which file it is.

use serde::{Deserialize, Serialize};

use super::form::Saved;
use crate::model::{FileId, Layer, Merge, MergeKind};

/// A merge, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Merge", deny_unknown_fields)]
pub(crate) struct MergeForm {
    target: String,
    kind: MergeKindForm,
    top: Layer,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    between: Vec<Layer>,
    base: Layer,
    below: Option<Layer>,
    overlay: Option<Layer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kept: Vec<Layer>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename = "MergeKind", rename_all = "lowercase")]
enum MergeKindForm {
    Commit,
    Stream,
}

/// A file on this host, as written.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename = "FileId")]
pub(crate) struct FileIdForm {
    device: u64,
    inode: u64,
}

impl Saved for Merge {
    type Form = MergeForm;

    fn to_form(&self) -> MergeForm {
        let Merge { target, kind, top, between, base, below, overlay, kept, bytes } = self.clone();
        let kind = match kind {
            MergeKind::Commit => MergeKindForm::Commit,
            MergeKind::Stream => MergeKindForm::Stream,
        };
        MergeForm { target, kind, top, between, base, below, overlay, kept, bytes }
    }

    fn from_form(form: MergeForm) -> Self {
        let MergeForm { target, kind, top, between, base, below, overlay, kept, bytes } = form;
        let kind = match kind {
            MergeKindForm::Commit => MergeKind::Commit,
            MergeKindForm::Stream => MergeKind::Stream,
        };
        Self { target, kind, top, between, base, below, overlay, kept, bytes }
    }
}

impl Saved for FileId {
    type Form = FileIdForm;

    fn to_form(&self) -> FileIdForm {
        FileIdForm { device: self.device, inode: self.inode }
    }

    fn from_form(FileIdForm { device, inode }: FileIdForm) -> Self {
        Self { device, inode }
    }
}
