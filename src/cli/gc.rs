use std::time::Duration;

use clap::Args;

use super::App;
use crate::error::Result;
use crate::maintenance::gc;
use crate::model::{human, parse_age};
use crate::output::json;

/// Remove old trash, expired snapshots and expired clones, and merge unneeded layers
///
/// Also cleans up after commands that were killed. Until `gc` removes them from the trash, `undo`
/// can restore removed VMs, and the disks as they were before a revert or a reset.
#[derive(Debug, Args)]
pub(super) struct Gc {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Remove only trash, and leftovers of interrupted commands, that are older than this: 30m,
    /// 12h, 7d; 0 means any age
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = parse_age)]
    older_than: Duration,
    /// Confirm that the clock of this host is right; otherwise `gc` refuses if the clock seems to
    /// be more than a day ahead
    #[arg(long)]
    yes: bool,
}

impl Gc {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let request =
            gc::Request { age: self.older_than, trust_clock: self.yes, dry_run: self.dry_run };
        let collected = gc::collect(&app.context, request).await?;
        let total: u64 = collected.iter().map(|item| item.bytes).sum();
        let verb = if self.dry_run { "would free" } else { "freed" };
        let mut text: String = collected
            .iter()
            .map(|item| format!("{}  {}  {}\n", item.what, item.why, human(item.bytes)))
            .collect();
        text.push_str(&format!("{verb} {}", human(total)));
        app.printer.done(&text, &json::Collected::new(&collected, self.dry_run));
        Ok(())
    }
}
