//! The step that resumes a guest from the memory of a warm template.

use serde::{Deserialize, Serialize};

use super::resume;
use crate::change::run::Run;
use crate::change::step::{Pivot, Step, Touches};
use crate::error::{Error, Result};
use crate::instance::{status, terminate};
use crate::model::Warm;

/// Starts QEMU from the memory of a warm template and makes its guest one of its own. Undone by
/// ending it, because until then it is another's double.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResumeWarm {
    /// What it goes on from. Not in the journal: it happens as long as this process lives, or not
    /// at all.
    #[serde(skip)]
    warm: Option<Box<Warm>>,
}

impl ResumeWarm {
    /// From this memory.
    pub(crate) fn from(warm: &Warm) -> Self {
        Self { warm: Some(Box::new(warm.clone())) }
    }
}

impl Pivot for ResumeWarm {}

impl Step for ResumeWarm {
    const TAG: &'static str = "wake";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let context = run.context;
        let lost = || Error::failed("the warm guest that it resumes is no longer known");
        let warm = self.warm.as_deref().ok_or_else(lost)?;
        let record = context.store.load(&run.name)?;
        let qmp = resume::wake(context, &run.name, &record, warm, false).await?;
        resume::go_on(context, &run.name, qmp).await?;
        resume::adopt_identity(context, &run.name, &record, warm).await.map(drop)
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        match status::is_running(run.context, &run.name)? {
            true => terminate::kill(run.context, &run.name).await,
            false => Ok(()),
        }
    }

    /// As long as it was not applied to its end, it has not happened.
    async fn happened(&self, _: &mut Run<'_>) -> Result<Option<bool>> {
        Ok(Some(false))
    }

    fn holds_guest(&self) -> bool {
        true
    }
}
