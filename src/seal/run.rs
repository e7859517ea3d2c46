//! Running the appliance: what it is told, and what it answers.

use super::customise::{Customisation, Wish};
use super::{Plan, Report};
use crate::appliance::boot::{self, Boot, Drive};
use crate::appliance::kernel::Wanted;
use crate::appliance::protocol::Job;
use crate::context::Context;
use crate::error::Result;

/// What is to be done, with the files it needs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sealing {
    /// What.
    pub plan: Plan,
    /// The files.
    pub payload: Option<std::path::PathBuf>,
    /// The guest's programs may use the network.
    pub network: bool,
    /// The appliance's kernel.
    pub kernel: Wanted,
    /// How long the appliance may take.
    pub limit: std::time::Duration,
}

impl Sealing {
    /// Boots the appliance on these disks.
    pub(crate) async fn carry_out(
        &self,
        context: &Context,
        drives: &[Drive],
        dry_run: bool,
    ) -> Result<Report> {
        let kernel = &self.kernel;
        let programs = self.plan.runs_programs() && !dry_run;
        let boot =
            Boot { kernel, drives, payload: self.payload.as_deref(), programs, limit: self.limit };
        let does = |name: &str| self.plan.operations.iter().any(|other| other == name);
        if (does("ssh-hostkeys") || does("hostname")) && !does("first-boot") {
            context.ui.warn(
                "without the operation first-boot nothing gives a clone host keys and a name",
            );
        }
        let job = Job {
            plan: self.plan.clone(),
            dry_run,
            network: self.network && boot.programs,
            disks: drives.iter().map(|drive| drive.target.clone()).collect(),
        };
        let fetches = |wish: &Wish| {
            matches!(wish.what, Customisation::Install { .. } | Customisation::Update)
        };
        let offline = !self.network && self.plan.wishes.iter().any(fetches);
        boot::run(context, &boot, &job).await.map_err(|error| match offline {
            true => error.hint("to let package managers reach their sources: --network"),
            false => error,
        })
    }
}
