//! A conversation with the guest agent of one VM. The agent's port serves one client at a time, so
//! there is a lock for it, held for one conversation only: a long-running command in the guest
//! keeps nobody else out.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::change::open;
use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::{sockets, status};
use crate::model::{Name, State};
use crate::qemu::agent::{Agent, AgentError};
use crate::store::open_lock;
use crate::sys::{flock, owner};

/// How soon a socket that is not there yet is looked for again.
const RETRY: Duration = Duration::from_millis(20);

/// A conversation, and the right to have it.
pub(crate) struct Session {
    /// The agent, in step with us.
    pub agent: Agent,
    _lock: File,
}

/// Begins a conversation; the agent may take `limit` to answer for the first time (it may still be
/// booting).
pub(crate) async fn open(context: &Context, name: &Name, limit: Duration) -> Result<Session> {
    let store = &context.store;
    refuse_not_running(context, name)?;
    let sockets = sockets::of(context, name).ok_or_else(|| {
        Error::damaged(format!("{name} runs, but where its sockets are is not known"))
    })?;
    let deadline = Instant::now() + limit;
    let lock = take_turn(
        store.layout.agent_lock(name),
        deadline.saturating_duration_since(Instant::now()),
    )
    .await?;
    loop {
        match Agent::connect(&sockets.agent(), deadline.saturating_duration_since(Instant::now()))
            .await
        {
            Ok(agent) => return Ok(Session { agent, _lock: lock }),
            Err(_) if !status::is_running(context, name)? => {
                return Err(Error::qemu(format!("{name} ended while it was spoken to")));
            }
            // QEMU is only just starting, and its sockets are not there yet.
            // Or it hung up, and is about to end.
            Err(AgentError::Unreachable(_) | AgentError::Absent) if Instant::now() < deadline => {
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(no_answer(name, limit, error)),
        }
    }
}

/// Nobody can be spoken to in a guest that does not run.
pub(crate) fn refuse_not_running(context: &Context, name: &Name) -> Result<()> {
    let store = &context.store;
    if !store.exists(name) {
        return Err(store.unknown(name));
    }
    if !status::is_running(context, name)? {
        open::refuse_template(name, &store.load(name)?, "run something in")?;
        return Err(Error::refused(format!("{name} is not running"))
            .hint(format!("start it: cowhand start {name}")));
    }
    Ok(())
}

fn no_answer(name: &Name, limit: Duration, error: AgentError) -> Error {
    Error::qemu(format!(
        "the guest agent of {name} did not answer within {} s",
        limit.as_secs().max(1)
    ))
    .hint("is qemu-guest-agent installed and running in the guest? It may also still be booting")
    .hint(format!("look at its console: cowhand console {name}"))
    .because(error)
}

/// Puts right what a command that died has left, such as a frozen guest; a change that is under way
/// is left alone. While a guest that goes on from memory is not yet one of its own, that is waited
/// for.
pub(crate) async fn ensure_recovered(context: &Context, name: &Name) -> Result<()> {
    let store = &context.store;
    let record = store.load(name).ok();
    record.as_ref().map_or(Ok(()), |record| open::refuse_unclaimed(name, record))?;
    let owner = record.and_then(|record| record.ephemeral).and_then(|ephemeral| ephemeral.owner);
    let is_made = owner.is_some() && owner != owner::ours();
    if !is_made && !store.has_journal(name) {
        return Ok(());
    }
    match store.try_lock_vm(name, &context.operation)? {
        Some(lock) => recover::recover(context, &lock).await.map(drop),
        None if is_made || recover::holds_guest(store, name)? => {
            context.lock_vm(name).await.map(drop)
        }
        None => Ok(()),
    }
}

/// A guest whose CPUs stand still answers nobody.
pub(crate) async fn refuse_paused(context: &Context, name: &Name) -> Result<()> {
    if !context.store.exists(name) {
        return Ok(());
    }
    let now = status::observe(context, name).await?;
    match now.state {
        State::Paused if now.has_io_error() => {
            Err(Error::refused(format!("{name} is paused: one of its disks cannot be written"))
                .hint(format!(
                    "make room, or mend what is wrong with the disk; then: cowhand resume {name}"
                )))
        }
        State::Paused => Err(Error::refused(format!("{name} is paused"))
            .hint(format!("let it go on first: cowhand resume {name}"))),
        _ => Ok(()),
    }
}

async fn take_turn(path: PathBuf, limit: Duration) -> Result<File> {
    let lock = open_lock(&path)?;
    if flock::try_exclusive(&lock).on("lock", &path)? {
        return Ok(lock);
    }
    let wait = tokio::task::spawn_blocking({
        let lock = lock.try_clone().on("open the lock", &path)?;
        move || flock::exclusive(&lock)
    });
    match timeout(limit, wait).await {
        Ok(Ok(result)) => result.on("lock", &path).map(|()| lock),
        _ => Err(Error::locked("another command is talking to the guest agent")
            .hint("run the command again later")),
    }
}
