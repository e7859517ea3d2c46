//! Generalising Windows from the inside: its own `sysprep.exe`, run by the guest agent, takes out
//! what clones must not share and switches the guest off. Source: Microsoft's "Sysprep command-line
//! options".

use std::time::Duration;

use crate::change::open;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::guest::agent_exec::{self, Finished, Request};
use crate::guest::outcome::Failure;
use crate::instance::status;
use crate::model::Name;

/// Where it is, on every Windows since Vista.
const SYSPREP: &str = r"C:\Windows\System32\Sysprep\sysprep.exe";
/// How often it is looked whether the guest is off.
const TICK: Duration = Duration::from_millis(200);

/// Runs it in the running VM `name` and waits until the guest is off; the agent may take
/// `agent_limit` to answer, all of it `limit`.
pub(crate) async fn generalise(
    context: &Context,
    name: &Name,
    agent_limit: Duration,
    limit: Duration,
) -> Result<()> {
    open::refuse_template(name, &context.store.load(name)?, "generalise")?;
    if !status::is_running(context, name)? {
        return Err(Error::refused(format!(
            "{name} is not running, and Windows generalises itself"
        ))
        .hint(format!("start it first: cowhand start {name}")));
    }
    let command =
        [SYSPREP, "/generalize", "/oobe", "/shutdown", "/quiet"].map(str::to_owned).to_vec();
    let request = Request { command, agent_limit, limit: Some(limit), ..Request::default() };
    let told = agent_exec::exec(context, name, &request).await;
    // The guest may be off before its agent can say how it went.
    let off = || status::is_running(context, name).map(|running| !running);
    match told {
        Ok(Finished { code: 0, .. }) => {}
        _ if off()? => {}
        Ok(Finished { code, stdout, stderr, .. }) => {
            let words = String::from_utf8_lossy(&[stdout, stderr].concat()).trim().to_owned();
            return Err(Error::refused(format!(
                "sysprep.exe failed in {name} (exit code {code}); it is still running"
            ))
            .hint(r"Windows says why in C:\Windows\System32\Sysprep\Panther\setuperr.log")
            .because(words));
        }
        Err(Failure::NotFound(why) | Failure::NotExecutable(why)) => {
            return Err(Error::refused(format!("{name} does not seem to be Windows: {why}")).hint(
                format!(
                    "other systems are sealed from the outside: cowhand stop {name} && cowhand \
                     template create {name}"
                ),
            ));
        }
        Err(Failure::TimedOut | Failure::GoesOn { .. }) => return Err(late(name, limit)),
        Err(Failure::Ours(error)) => return Err(error),
    }
    let waited = tokio::time::timeout(limit, async {
        while !off()? {
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    });
    waited.await.unwrap_or_else(|_| Err(late(name, limit)))
}

fn late(name: &Name, limit: Duration) -> Error {
    Error::qemu(format!(
        "{name} was not off {} s after sysprep.exe was started; it is still running",
        limit.as_secs()
    ))
    .hint(format!("when it is off: cowhand template create {name} --no-seal"))
}
