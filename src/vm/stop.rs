//! Stopping a VM: the guest is asked, through its agent and then by the ACPI power button;
//! `--force` pulls the plug.

use std::time::Duration;

use qapi::qga::{GuestShutdownMode, guest_shutdown};
use tokio::time::Instant;

use crate::change::open;
use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::guest::session;
use crate::instance::{connect, sockets, status, terminate};
use crate::model::{Name, State};
use crate::qemu::process;
use crate::qemu::qmp::Qmp;
use crate::store::VmLock;
use crate::sys::pidfd::PidFd;

/// How long QEMU may take to answer when the plug is to be pulled: after that it is killed.
const PLUG: Duration = Duration::from_secs(10);
/// How long the guest agent may take to say that it is there before the power button is tried.
const AGENT: Duration = Duration::from_secs(10);
/// The power button is pressed again this often: a guest that is still booting does not see the
/// first time.
const PRESS_AGAIN: Duration = Duration::from_secs(10);

/// How a VM came to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// It did not run.
    Already,
    /// The guest agent shut it down.
    Agent,
    /// The guest shut down at the ACPI power button.
    Acpi,
    /// QEMU was ended without asking the guest.
    Forced,
    /// QEMU ended while the guest was asked, and not because the guest shut down: it was killed, or
    /// got a signal.
    Ended,
}

/// Stops `name` within `limit`. When the guest does not comply it goes on running, and the error
/// says so.
pub(crate) async fn stop(
    context: &Context,
    name: &Name,
    force: bool,
    limit: Duration,
) -> Result<Stopped> {
    // Held to the end: whoever changes the VM meanwhile waits.
    let _lock = lock(context, name, force).await?;
    let observed = status::observe(context, name).await?;
    if !observed.state.is_live() {
        if let Some(sockets) = sockets::of(context, name) {
            process::clear(&sockets);
        }
        return Ok(Stopped::Already);
    }
    if force {
        match connect::within(context, name, PLUG).await {
            Ok(Some(qmp)) => terminate::quit(context, name, qmp).await?,
            Ok(None) => {}
            Err(_) => terminate::kill(context, name).await?,
        }
        return Ok(Stopped::Forced);
    }
    if observed.state == State::Paused {
        return Err(Error::refused(format!("{name} is paused: its guest cannot shut down"))
            .hint(format!("let it go on first: cowhand resume {name}"))
            .hint(format!("or to end QEMU without a shutdown: cowhand stop --force {name}")));
    }
    let qmp = connect::within(context, name, limit.max(Duration::from_secs(1))).await?;
    let mut qmp = qmp.ok_or_else(|| connect::not_running(name))?;
    let process = terminate::process_of(&qmp, name)?;
    ask(context, name, &mut qmp, &process, limit).await
}

/// Takes the lock. A guest can be stopped when an earlier change cannot be put right, and when its
/// record cannot be read: that may be the way to mend it afterwards, and a host that shuts down
/// does not wait.
async fn lock(context: &Context, name: &Name, force: bool) -> Result<VmLock> {
    let store = &context.store;
    let lock = match context.lock_vm(name).await {
        // The store cannot be changed until it is repaired.
        Err(error) if error.kind() == Kind::Damaged && store.check_identity().is_err() => {
            context.ui.warn(&error.full_message());
            return context.lock_vm_unprepared(name).await;
        }
        other => other?,
    };
    if let Err(error) = recover::recover(context, &lock).await {
        context.ui.warn(&format!(
            "{name}: an earlier change is not put right yet: {}",
            error.full_message()
        ));
    }
    if let Ok(record) = context.store.load(name) {
        open::refuse_template(name, &record, "stop")?;
        if !force {
            open::refuse_unclaimed(name, &record)?;
        }
    }
    Ok(lock)
}

async fn ask(
    context: &Context,
    name: &Name,
    qmp: &mut Qmp,
    process: &PidFd,
    limit: Duration,
) -> Result<Stopped> {
    let deadline = Instant::now() + limit;
    let mut how = Stopped::Acpi;
    if qmp.agent_is_listening().await? && ask_agent(context, name).await.is_ok() {
        how = Stopped::Agent;
        let patience = limit / 2;
        if ended(context, name, process, patience).await? {
            return Ok(by_guest(qmp, how).await);
        }
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // It may be gone already: then there is nobody to press the button of.
        let _ = qmp.run(&qapi::qmp::system_powerdown {}).await;
        if ended(context, name, process, left.min(PRESS_AGAIN)).await? {
            return Ok(by_guest(qmp, how).await);
        }
    }
    Err(Error::qemu(format!(
        "the guest of {name} did not shut down within {} s; it is still running",
        limit.as_secs()
    ))
    .hint(format!("give it longer: cowhand stop --timeout {} {name}", limit.as_secs().max(1) * 3))
    .hint(format!("or to end QEMU without a shutdown: cowhand stop --force {name}")))
}

/// `how` if it was the guest that shut down.
async fn by_guest(qmp: &mut Qmp, how: Stopped) -> Stopped {
    if qmp.guest_has_shut_down().await { how } else { Stopped::Ended }
}

async fn ask_agent(context: &Context, name: &Name) -> Result<()> {
    let mut session = session::open(context, name, AGENT).await?;
    Ok(session.agent.tell(&guest_shutdown { mode: Some(GuestShutdownMode::Powerdown) }).await?)
}

async fn ended(context: &Context, name: &Name, process: &PidFd, limit: Duration) -> Result<bool> {
    let ended = process::wait_for_end(process, limit).await?;
    if ended && let Some(sockets) = sockets::of(context, name) {
        process::clear(&sockets);
    }
    Ok(ended)
}
