//! The step that seals overlays.

use serde::{Deserialize, Serialize};

use super::overlay;
use super::run::Sealing;
use crate::change::run::Run;
use crate::change::step::{Step, Touches};
use crate::error::{Error, Result};
use crate::model::Layer;

/// Lets the appliance seal the guest on overlays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seal {
    /// The overlays.
    pub disks: Vec<Sealed>,
    /// What is to be done. Not in the journal: it is done before the pivot or not at all.
    #[serde(skip)]
    pub sealing: Option<Box<Sealing>>,
}

/// One disk of a [`Seal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sealed {
    /// The VM's name for the disk.
    pub target: String,
    /// The overlay.
    pub layer: Layer,
}

impl Step for Seal {
    const TAG: &'static str = "seal";

    fn touches(&self) -> Touches {
        let layers: Vec<Layer> = self.disks.iter().map(|disk| disk.layer.clone()).collect();
        Touches::changed(&layers)
    }

    /// Tells the caller what was done, as a [`super::Report`].
    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let lost = || Error::failed("what is to be sealed is not known any more");
        let sealing = self.sealing.as_deref().ok_or_else(lost)?;
        let drive = |disk: &Sealed| overlay::drive(run.context, &disk.target, &disk.layer);
        let drives = self.disks.iter().map(drive).collect::<Result<Vec<_>>>()?;
        let report = sealing.carry_out(run.context, &drives, false).await?;
        run.report.tell(report);
        Ok(())
    }
}
