use clap::Args;

use super::App;
use crate::doctor::{self, Level};
use crate::error::Result;
use crate::model::Name;
use crate::output::{json, table};

/// Check the store, its VMs and the host, and report problems
///
/// Compares records, layers and running QEMUs with each other, in the whole store or for one VM or
/// template. The exit code is 1 if a check has failed; warnings do not count. --repair repairs what
/// can be repaired without losing data, and reports the rest. Nothing that may contain data is
/// deleted: it is moved to the trash.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Check only this VM or template
    name: Option<Name>,
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Also read all files: check each image (`qemu-img check`), and compare the layers of
    /// templates with the checksums that the first --deep has recorded
    #[arg(long)]
    deep: bool,
    /// Only check how QEMU is confined: what this host supports, and what applies to each running
    /// VM
    #[arg(long, conflicts_with_all = ["repair", "deep"])]
    security: bool,
}

impl Doctor {
    pub(super) async fn run(self, app: &App) -> Result<u8> {
        let name = self.name.as_ref();
        let mut findings = match (self.security, self.repair) {
            (true, _) => doctor::look_at_confinement(&app.context, name).await?,
            (false, true) => doctor::treat(&app.context, name).await?,
            (false, false) => doctor::examine(&app.context, name).await?,
        };
        if self.deep {
            findings.extend(doctor::look_into_files(&app.context, name).await?);
        }
        let entries: Vec<_> = findings.iter().map(json::Finding::from).collect();
        app.printer.result(&table::findings(&findings, app.printer.quiet), &entries);
        Ok(u8::from(findings.iter().any(|finding| finding.level == Level::Fail)))
    }
}
