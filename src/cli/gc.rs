use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::App;
use crate::error::{Error, Result};
use crate::model::human;
use crate::vm::remove;

/// Empty the trash, and put into it what dead commands have left
///
/// Removed VMs, the heads that reverts left, and removed snapshots stay in the trash until then.
#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Only what has been there for that long: 30m, 12h, 7d; 0 for everything
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = age)]
    older_than: Duration,
}

impl Gc {
    pub async fn run(self, app: &App) -> Result<()> {
        let collected = remove::collect(&app.context, self.older_than, self.dry_run).await?;
        let total: u64 = collected.iter().map(|item| item.bytes).sum();
        let verb = if self.dry_run { "would free" } else { "freed" };
        let mut text: String = collected.iter().map(|item| format!("{}  {}\n", item.what, human(item.bytes))).collect();
        text.push_str(&format!("{verb} {}", human(total)));
        let items: Vec<_> = collected.iter().map(|item| json!({"what": item.what, "bytes": item.bytes})).collect();
        app.printer.done(&text, &json!({"bytes": total, "dry_run": self.dry_run, "removed": items}));
        Ok(())
    }
}

/// `90s`, `30m`, `12h`, `7d`, or seconds.
fn age(text: &str) -> Result<Duration> {
    let bad = || Error::usage(format!("{text:?} is not an age")).hint("write a number with s, m, h or d: 30m, 12h, 7d");
    let (number, unit) = match text.chars().last() {
        Some('s') => (&text[..text.len() - 1], 1),
        Some('m') => (&text[..text.len() - 1], 60),
        Some('h') => (&text[..text.len() - 1], 3600),
        Some('d') => (&text[..text.len() - 1], 86400),
        _ => (text, 1),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(bad)
}
