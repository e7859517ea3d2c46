use clap::Args;

use super::App;
use crate::doctor::{self, Level};
use crate::error::Result;
use crate::model::Name;
use crate::output::{json, table};

/// Compare records, layers and running QEMUs with each other, look at the host, and say what is
/// wrong
///
/// Looks at all of the store, or at one VM or template. Exit code 1 only when something has failed.
/// With --repair, what can be put right without losing anything is put right; what is in doubt
/// stays as it is, and is said. Nothing that may hold data is removed: it goes into the trash.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Only this VM or template
    name: Option<Name>,
    /// Put right what can be put right
    #[arg(long)]
    repair: bool,
    /// Also read all files: check each image (`qemu-img check`), and compare what the layers of
    /// templates hold with what they held before
    #[arg(long)]
    deep: bool,
    /// Only how far QEMU is confined: what this host allows, and what each VM that runs has of its
    /// own
    #[arg(long, conflicts_with_all = ["repair", "deep"])]
    security: bool,
}

impl Doctor {
    pub async fn run(self, app: &App) -> Result<u8> {
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
