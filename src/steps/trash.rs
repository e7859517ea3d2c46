//! Steps that move layers into the trash, and that remove a directory of it.

use serde::{Deserialize, Serialize};

use crate::change::run::Run;
use crate::change::step::{Step, Touches};
use crate::error::Result;
use crate::layer::{stamp, trashed};
use crate::model::{Layer, Record};
use crate::store::schema::{RecordV1, form};
use crate::store::trash::{Entry, Kind};

/// Moves layers that no record names any more into the trash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrashLayers {
    /// The directory in the trash.
    pub directory: String,
    /// The verb.
    #[serde(with = "form")]
    pub what: Kind,
    /// Which layers.
    pub layers: Vec<Layer>,
    /// The record before the change, for `undo`.
    pub before: Box<RecordV1>,
    /// The internal snapshot in the head's layers that holds what they were.
    #[serde(rename = "way_back", default, skip_serializing_if = "Option::is_none")]
    pub undo_snapshot: Option<String>,
}

impl TrashLayers {
    /// The step that keeps what a change takes out of use, for `undo`.
    pub(crate) fn of(
        before: &Record,
        directory: String,
        what: Kind,
        layers: Vec<Layer>,
        undo_snapshot: Option<String>,
    ) -> Self {
        Self { directory, what, layers, before: Box::new(RecordV1::from(before)), undo_snapshot }
    }
}

impl Step for TrashLayers {
    const TAG: &'static str = "trash";

    fn touches(&self) -> Touches {
        Touches {
            consumes: self.layers.clone(),
            puts_heads_away: self.what.keeps_a_head(),
            trash: Some(self.directory.clone()),
            vm: Some(self.before.uuid()),
            ..Touches::pinned(&self.layers)
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let store = run.store();
        let record = Record::try_from((*self.before).clone())?;
        let mut entry =
            Entry::new(self.what.clone(), &run.name, &run.context.operation).of(&record);
        entry.layers.clone_from(&self.layers);
        entry.undo_snapshot.clone_from(&self.undo_snapshot);
        // Of layers that have been moved already, the entry of the first attempt tells. What a
        // merge leaves cannot be undone.
        if entry.can_be_undone() {
            for layer in self.layers.iter().filter(|layer| store.layout.layer(layer).exists()) {
                // Of a damaged chain nothing can be noted; that is no reason to stop half-way.
                entry.below.extend(stamp::below(store, layer).unwrap_or_default());
            }
        }
        run.hide(&self.layers);
        let trash = store.open_trash(&self.directory, &entry)?;
        store.save_record(&trash.join("vm.json"), &run.name, &record)?;
        store.trash_layers(&trash, &self.layers)
    }
}

/// Removes a directory of the trash that has served its purpose.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DropTrash {
    /// Which.
    pub directory: String,
}

impl Step for DropTrash {
    const TAG: &'static str = "drop-trash";

    fn touches(&self) -> Touches {
        Touches { trash: Some(self.directory.clone()), drops_trash: true, ..Touches::default() }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        trashed::drop(&run.store().layout.trash().join(&self.directory))
    }
}
