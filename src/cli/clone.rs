use std::time::Duration;

use clap::Args;

use super::App;
use crate::clone::{self, Kind, Request};
use crate::ephemeral;
use crate::error::{Error, Result};
use crate::instance::ports;
use crate::model::{Ephemeral, Limits, Name, Network, PointRef, PortForward, parse_age};
use crate::output::{json, time};

/// Create VMs from a template, a snapshot or a stopped VM
///
/// A thin clone is a copy-on-write overlay on the source's layers and takes milliseconds; a full
/// clone is an independent copy. Each clone gets its own UUID, network addresses and generation ID.
#[derive(Debug, Args)]
pub(super) struct Clone {
    /// A template, a snapshot (VM@SNAPSHOT), or a stopped VM; for a thin clone of a stopped VM,
    /// cowhand first creates a snapshot
    source: PointRef,
    /// Name of the clone; with -n, the clones are called NEW-1, NEW-2, …
    new: Name,
    /// Create copy-on-write overlays (the default)
    #[arg(long, conflicts_with = "full")]
    thin: bool,
    /// Create overlays and resume each clone from the memory of the warm template, with its own
    /// identity
    #[arg(long, conflicts_with_all = ["thin", "full"])]
    warm: bool,
    /// Let `gc` remove the clones after this time: 30m, 12h, 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    expires: Option<Duration>,
    /// Create independent copies
    #[arg(long)]
    full: bool,
    /// Number of clones
    #[arg(
        short = 'n', long = "count", value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(1..=10_000),
    )]
    count: Option<u32>,
    /// Start the clones
    #[arg(long)]
    start: bool,
    /// Forward a port of the host to the clone: HOST:GUEST; can be repeated
    #[arg(short, long = "port", value_name = "HOST:GUEST", conflicts_with = "count")]
    port: Vec<PortForward>,
    /// Use this network instead of the source's: user[,…] or restricted, as in `create --net`
    #[arg(long, value_name = "NETWORK")]
    net: Option<Network>,
    /// Use these limits instead of the source's: io=SIZE, iops=COUNT, or none
    #[arg(long, value_name = "LIMIT,…")]
    limit: Option<Limits>,
}

/// How long a warm clone belongs to us at most, until it is a guest of its own.
const WARMING: Duration = Duration::from_secs(3600);

impl Clone {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let names = match self.count {
            None => vec![self.new],
            Some(count) => (1..=count)
                .map(|n| format!("{}-{n}", self.new).parse())
                .collect::<Result<_>>()
                .map_err(|error: Error| error.hint("the numbered names would be too long"))?,
        };
        let kind = match (self.full, self.warm) {
            (true, _) => Kind::Full,
            (_, true) => Kind::Warm,
            _ => Kind::Thin,
        };
        let ephemeral = self.expires.map(|age| Ephemeral {
            owner: None,
            expires: Some(ephemeral::from_now(age)),
            standby: false,
        });
        let ephemeral_at_first = match self.warm {
            true => Some(ephemeral::ours(WARMING)),
            false => ephemeral.clone(),
        };
        let request = Request {
            source: self.source.clone(),
            names,
            kind,
            ports: self.port,
            network: self.net,
            limits: self.limit,
            ephemeral: ephemeral_at_first,
        };
        if self.warm || self.start {
            ports::refuse_taken(&app.context, &request.ports)?;
        }
        let mut clones = clone::clone(&app.context, &request).await?;
        if self.warm {
            clone::start_warm(&app.context, &self.source.vm, &mut clones, ephemeral.as_ref())
                .await?;
        } else if self.start {
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
        let entries: Vec<_> = clones.iter().map(json::Cloned::from).collect();
        app.printer.done(&lines.join("\n"), &entries);
        Ok(())
    }
}
