//! The steps of a merge: the data moves, then the layers go that are not needed any more.

use serde::{Deserialize, Serialize};

use crate::change::run::Run;
use crate::change::step::{Abandoned, Step, Touches};
use crate::error::Result;
use crate::layer::{create, merge};
use crate::model::{Layer, Merge, MergeKind, RamImage};
use crate::store::schema::form;

/// Merges layers, in the VM's QEMU or offline. A guest whose active layer is merged is left paused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MergeLayers {
    /// All of them: they switch together.
    #[serde(with = "form")]
    pub merges: Vec<Merge>,
}

impl Step for MergeLayers {
    const TAG: &'static str = "merge";

    fn touches(&self) -> Touches {
        let (mut changes, mut consumes) = (Vec::new(), Vec::new());
        for merge in &self.merges {
            changes.extend(merge.vanishing().into_iter().chain([merge.written()]).cloned());
            consumes.extend(merge.vanishing().into_iter().cloned());
            consumes.extend((merge.kind == MergeKind::Commit).then(|| merge.base.clone()));
        }
        Touches {
            pins: self.merges.iter().flat_map(Merge::layers).cloned().collect(),
            changes,
            consumes,
            merges: self.merges.clone(),
            ..Touches::default()
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        if run.report.unmerged.is_some() {
            return Ok(());
        }
        let (context, mut paused_at) = (run.context, run.paused_at);
        let merged = merge::run(context, run.qmp().await?, &self.merges, &mut paused_at).await;
        run.paused_at = paused_at;
        match merged {
            Err(merge::Failure::Untouched(error)) => {
                run.report.unmerged = Some(error.full_message());
                Ok(())
            }
            // A QEMU that has failed to flush a file once may fail at it for ever.
            Err(merge::Failure::Halfway(error)) if run.paused_at.is_some() => {
                let hint = format!(
                    "the guest is paused until the merge is done; if that never succeeds: cowhand \
                     stop --force {}",
                    run.name
                );
                Err(error.hint(hint))
            }
            Err(merge::Failure::Halfway(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }

    async fn abandon(&self, run: &mut Run<'_>) -> Result<Abandoned> {
        let context = run.context;
        if !merge::call_off(context, run.qmp().await?, &self.merges).await? {
            return Ok(Abandoned::GoesOn);
        }
        run.report.unmerged = Some("it was interrupted".to_owned());
        Ok(Abandoned::CalledOff)
    }
}

/// Removes layers for good: those whose data was merged into another one, or that were never to
/// stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveLayers {
    /// Which.
    pub layers: Vec<Layer>,
}

impl Step for RemoveLayers {
    const TAG: &'static str = "remove-merged";

    fn touches(&self) -> Touches {
        Touches { consumes: self.layers.clone(), removes: true, ..Touches::pinned(&self.layers) }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        if run.report.unmerged.is_some() {
            return Ok(());
        }
        if run.recovering
            && let Some(qmp) = run.qmp().await?
        {
            merge::release(qmp, &self.layers).await;
        }
        run.hide(&self.layers);
        self.layers.iter().try_for_each(|layer| create::unmake(run.store(), layer))
    }
}

/// Removes memory that no snapshot has any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoveMemory {
    /// The files.
    #[serde(with = "form")]
    pub images: Vec<RamImage>,
}

impl Step for RemoveMemory {
    const TAG: &'static str = "remove-memory";

    fn touches(&self) -> Touches {
        let images = self.images.iter().map(|image| image.id.clone()).collect();
        Touches { images, removes: true, ..Touches::default() }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        if run.report.unmerged.is_some() {
            return Ok(());
        }
        self.images.iter().try_for_each(|image| run.store().remove_ram(image))
    }
}
