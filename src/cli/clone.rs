use clap::Args;
use serde_json::Value;

use super::App;
use crate::clone::{self, Kind, Request};
use crate::error::{Error, Result};
use crate::model::{Name, PointRef, PortForward};
use crate::output::{json, time};

/// Make new VMs of a template, a snapshot or a stopped VM
///
/// A thin clone is a copy-on-write overlay on the source's layers and takes milliseconds; a full clone is an independent copy. Each
/// has a UUID, network addresses and a generation id of its own.
#[derive(Debug, Args)]
pub struct Clone {
    /// A template, VM@SNAPSHOT, or a stopped VM (which takes a snapshot for a thin clone to stand on)
    source: PointRef,
    /// What to call it; with -n, NEW-1, NEW-2, …
    new: Name,
    /// Copy-on-write overlays (the default)
    #[arg(long, conflicts_with = "full")]
    thin: bool,
    /// Independent copies
    #[arg(long)]
    full: bool,
    /// How many
    #[arg(short = 'n', long = "count", value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: Option<u32>,
    /// Start them
    #[arg(long)]
    start: bool,
    /// Forward a port of the host into the clone; can be repeated: HOST:GUEST
    #[arg(short, long = "port", value_name = "HOST:GUEST", conflicts_with = "count")]
    port: Vec<PortForward>,
}

impl Clone {
    pub async fn run(self, app: &App) -> Result<()> {
        let names = match self.count {
            None => vec![self.new],
            Some(count) => (1..=count)
                .map(|n| format!("{}-{n}", self.new).parse())
                .collect::<Result<_>>()
                .map_err(|error: Error| error.hint("the numbered names would be too long"))?,
        };
        let kind = if self.full { Kind::Full } else { Kind::Thin };
        let request = Request { source: self.source.clone(), names, kind, ports: self.port };
        let clones = clone::clone(&app.context, &request).await?;
        if self.start {
            clone::start_all(&app.context, &clones).await?;
        }
        let lines: Vec<String> = clones
            .iter()
            .map(|clone| {
                format!(
                    "cloned {} to {} ({}, {})",
                    self.source,
                    clone.name,
                    clone.kind.as_str(),
                    time::short(clone.took)
                )
            })
            .collect();
        app.printer.done(&lines.join("\n"), &Value::Array(clones.iter().map(json::cloned).collect()));
        Ok(())
    }
}
