//! The connection to a running VM's QEMU. The caller holds the VM's lock: one client per QMP socket.

use std::time::Duration;

use super::status;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::Name;
use crate::qemu::qmp::Qmp;

/// How long QEMU may take to greet; under emulation on a busy host it can be slow.
const GREETING: Duration = Duration::from_secs(30);

/// Connects, if the VM runs.
pub async fn connect_if_running(context: &Context, name: &Name) -> Result<Option<Qmp>> {
    if !status::is_running(context, name)? {
        return Ok(None);
    }
    let sockets = status::sockets(context, name)
        .ok_or_else(|| Error::damaged(format!("{name} runs, but where its sockets are is not known")))?;
    match Qmp::connect(&sockets.qmp(), GREETING).await {
        Ok(qmp) => Ok(Some(qmp)),
        // It may have ended between the look and the call.
        Err(_) if !status::is_running(context, name)? => Ok(None),
        Err(error) => Err(Error::qemu(format!("{name} runs, but its QEMU does not answer"))
            .hint(format!("if it never does again: cowhand stop --force {name}"))
            .because(error)),
    }
}

/// Connects to a VM that has to be running.
pub async fn connect(context: &Context, name: &Name) -> Result<Qmp> {
    connect_if_running(context, name)
        .await?
        .ok_or_else(|| Error::refused(format!("{name} is not running")).hint(format!("start it: cowhand start {name}")))
}

/// Refuses while a block job is at work, naming it.
pub async fn refuse_job(name: &Name, qmp: &mut Qmp) -> Result<()> {
    match qmp.jobs().await?.into_iter().find(|job| job.status != "concluded") {
        Some(job) => Err(Error::refused(format!("a block job is at work on {name}: {} ({})", job.id, job.status))
            .hint("wait for its end, then run the command again")),
        None => Ok(()),
    }
}
