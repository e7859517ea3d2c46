use std::time::Duration;

use clap::Args;

use super::App;
use crate::error::Result;
use crate::maintenance::gc;
use crate::model::{human, parse_age};
use crate::output::json;

/// Remove expired snapshots and old trash, merge what need not stay hidden, clear up after dead
/// commands
///
/// Removed VMs and the heads that reverts left stay in the trash until then, for `undo`.
#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Only what has been there for that long: 30m, 12h, 7d; 0 for everything
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = parse_age)]
    older_than: Duration,
    /// The clock of this host is right; without this, `gc` refuses when it is more than a day ahead
    /// of the newest record
    #[arg(long)]
    yes: bool,
}

impl Gc {
    pub async fn run(self, app: &App) -> Result<()> {
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
