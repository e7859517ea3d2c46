//! Steps that end QEMU, or let its guest go on.

use serde::{Deserialize, Serialize};

use crate::change::run::Run;
use crate::change::step::{Step, Touches};
use crate::error::Result;
use crate::instance::terminate;

/// Ends QEMU (QMP `quit`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopQemu {}

impl Step for StopQemu {
    const TAG: &'static str = "stop-qemu";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        match run.take_qmp().await? {
            Some(qmp) => terminate::quit(run.context, &run.name, qmp).await,
            None => Ok(()),
        }
    }

    fn ends_guest(&self) -> bool {
        true
    }
}

/// Lets the guest's CPUs go on after a merge or a revert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Resume {}

impl Step for Resume {
    const TAG: &'static str = "resume";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        run.resume().await
    }
}
