//! The limit of the logs of a VM that runs: given to its limiter, or to a new one where there is
//! none.

use super::status::{self, Status};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::{LogLimit, Name, Record};
use crate::sys::limiter;
use crate::sys::pidfd::PidFd;

/// Limits the logs of `name` to `limit` from now on. The caller holds the lock of the VM. Of a VM
/// that does not run, nothing is to be done: its next start does it.
pub(crate) async fn limit_anew(context: &Context, name: &Name, limit: LogLimit) -> Result<()> {
    let log = context.store.layout.serial_log(name);
    let Some(process) = process(context, name).await? else { return Ok(()) };
    if limiter::is_running(&log).on("look at the lock of", &log)? {
        if limiter::change(&log, limit.bytes()).is_err() {
            context.ui.warn(&format!(
                "{name} runs, and its file system has no extended attributes: log.max takes effect \
                 at its next start"
            ));
        }
        return Ok(());
    }
    let (Some(bytes), Some(directory)) = (limit.bytes(), log.parent()) else { return Ok(()) };
    limiter::start(directory, bytes, &process).map_err(|source| {
        Error::failed(format!("cannot start the process that limits the logs of {name}"))
            .because(source)
    })
}

/// Starts another limiter for a VM that runs without one: its own was killed, or the command that
/// started QEMU before it could start the limiter. The caller holds the lock of the VM. What fails
/// here does not stop the caller; `doctor` says it.
pub(crate) async fn keep_limited(context: &Context, name: &Name, record: &Record) {
    if !are_limited(context, name, record) && status::is_running(context, name).unwrap_or(false) {
        let _ = limit_anew(context, name, record.config.log_limit).await;
    }
}

/// Are the logs of a running VM limited, as far as they are to be?
pub(crate) fn are_limited(context: &Context, name: &Name, record: &Record) -> bool {
    let log = context.store.layout.serial_log(name);
    record.config.log_limit.bytes().is_none() || limiter::is_running(&log).unwrap_or(true)
}

/// The process of its QEMU. Looked up twice: between the first answer and the descriptor the
/// process may have ended, and its number may be another's.
pub(crate) async fn process(context: &Context, name: &Name) -> Result<Option<PidFd>> {
    let Status { pid: Some(pid), .. } = status::observe(context, name).await? else {
        return Ok(None);
    };
    let Ok(process) = PidFd::open(pid) else { return Ok(None) };
    let again = status::observe(context, name).await?;
    Ok((again.pid == Some(pid)).then_some(process))
}
