use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc::{Receiver, channel};

use super::{App, cp, local};
use crate::ephemeral::request::Warmth;
use crate::ephemeral::testbed::{self, Command, Testbed};
use crate::error::{Error, Kind, Result};
use crate::guest::exec;
use crate::model::{Name, Network, PointRef};

/// Serve as autopkgtest's virtualisation server: testbeds are clones, `revert` is a reset
///
/// For `autopkgtest PACKAGE -- /usr/bin/cowhand autopkgtest-virt TEMPLATE`. Speaks the protocol of
/// Debian's autopkgtest on standard input and output: open, revert, reboot, copydown, copyup,
/// print-execute-command, close, quit. The testbed is removed when this command ends, for whatever
/// reason.
#[derive(Debug, Args)]
pub(super) struct AutopkgtestVirt {
    /// Boot the guest, even if the template is warm
    #[arg(long)]
    cold: bool,
    /// Use this network instead of the template's: user[,…] or restricted, as in `create --net`
    #[arg(long, value_name = "NETWORK")]
    net: Option<Network>,
    #[command(flatten)]
    limits: cp::Limits,
    /// Seconds to wait for the guest to boot and its agent to answer
    #[arg(long, value_name = "SECS", default_value_t = 300)]
    agent_timeout: u64,
    /// A template, a snapshot (VM@SNAPSHOT), or a stopped VM
    source: PointRef,
}

/// What the protocol has a program exit with that could not run the command.
const FAILED: &str = "254";

impl AutopkgtestVirt {
    pub(super) async fn run(self, app: &App) -> Result<()> {
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
    let path = std::env::current_exe().map_err(|source| {
        Error::failed("cannot determine the path of this program").because(source)
    })?;
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
