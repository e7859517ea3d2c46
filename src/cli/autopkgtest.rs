use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc::{Receiver, channel};

use super::{App, cp, local};
use crate::ephemeral::request::Warmth;
use crate::ephemeral::testbed::{self, Command, Testbed};
use crate::error::{Error, Kind, Result};
use crate::guest::exec;
use crate::model::{Name, Network, PointRef};

/// Be autopkgtest's virtualisation server: its testbeds are clones, `revert` is a reset
///
/// For `autopkgtest PACKAGE -- /usr/bin/cowhand autopkgtest-virt TEMPLATE`. It speaks the protocol
/// of Debian's autopkgtest on standard input and output: open, revert, reboot, copydown, copyup,
/// print-execute-command, close, quit. Whatever ends it, the testbed goes with it.
#[derive(Debug, Args)]
pub struct AutopkgtestVirt {
    /// By a boot, even from a warm template
    #[arg(long)]
    cold: bool,
    /// What the guest reaches instead of what the template says: user[,…] or restricted, as create
    /// takes it
    #[arg(long, value_name = "NETWORK")]
    net: Option<Network>,
    #[command(flatten)]
    limits: cp::Limits,
    /// How long the guest may take to boot as far as its agent, in seconds
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    agent_timeout: u64,
    /// A template, VM@SNAPSHOT, or a stopped VM
    source: PointRef,
}

/// What the protocol has a program exit with that could not run the command.
const FAILED: &str = "254";

impl AutopkgtestVirt {
    pub async fn run(self, app: &App) -> Result<()> {
        let limit = Duration::from_secs(self.agent_timeout);
        let warmth = if self.cold { Warmth::Cold } else { Warmth::Either };
        let asked = Testbed::new(&app.context, self.source, warmth, limit, self.limits.budget());
        let mut testbed = asked.with_network(self.net);
        let mut control = Some(local::control(false)?);
        let result = tokio::select! {
            result = serve(app, &mut testbed) => result,
            () = exec::interrupted(&mut control) => {
                Err(Error::new(Kind::Interrupted, "interrupted"))
            }
        };
        // However it ended, the testbed is put back: it goes.
        testbed.close().await?;
        result
    }
}

async fn serve(app: &App, testbed: &mut Testbed<'_>) -> Result<()> {
    let program = program(app)?;
    let program = |name: &Name| {
        let rest = ["exec", "-i", "--failure-code", FAILED, name.as_str(), "--"].map(str::to_owned);
        program.iter().cloned().chain(rest).collect()
    };
    let mut lines = lines();
    app.printer.text("ok");
    while let Some(line) = lines.recv().await {
        let command = testbed::parse(&line)?;
        let answer = testbed.answer(&command, &program).await?;
        app.printer.text(answer.trim_end());
        if command == Command::Quit {
            return Ok(());
        }
    }
    Err(Error::usage("standard input ended without `quit`"))
}

/// This program, with what it was told of its store.
fn program(app: &App) -> Result<Vec<String>> {
    let path = std::env::current_exe()
        .map_err(|source| Error::failed("where this program lies is not known").because(source))?;
    let store = app.context.store.layout.root();
    Ok(vec![
        path.to_string_lossy().into_owned(),
        "--store".to_owned(),
        store.to_string_lossy().into_owned(),
    ])
}

fn lines() -> Receiver<String> {
    let (send, receive) = channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receive
}
