//! Getting the helper into a guest: through the guest agent a few lines of shell are started there,
//! which read this program from a port into a file system in memory and run it. Nothing of it
//! touches the guest's disks.

use std::path::Path;
use std::time::Duration;

use qapi::qga::{GuestExecCaptureOutput, guest_exec, guest_exec_status, guest_get_osinfo};
use tokio::time::Instant;

use super::port::{self, Client, Wire};
use super::session;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::helper::{DIRECTORY, VERB};
use crate::instance::sockets;
use crate::model::{Name, PORTS, port_name};
use crate::qemu::agent::{AgentError, REPLY};
use crate::qemu::qmp::Qmp;
use crate::sys::elf;

/// How long the program may take on its way.
const SENDING: Duration = Duration::from_secs(120);
/// How often the agent is asked whether the script has ended.
const LOOK: Duration = Duration::from_millis(10);

/// The longest answer about the script, in bytes: it prints one line, if any.
const ANSWER: usize = 64 << 10;

/// The program is sent in blocks of this size, the last one filled up with zeros.
const BLOCK: usize = 64 << 10;

/// `sh -c SCRIPT sh DIRECTORY VERB PORT BLOCKS`. `head -c` would take the exact size, but busybox's
/// goes byte by byte.
const SCRIPT: &str = r#"
set -e
directory=$1 verb=$2 wanted=$3 blocks=$4
port=
for candidate in /sys/class/virtio-ports/*; do
    read -r name < "$candidate/name" || continue
    [ "$name" = "$wanted" ] && port=/dev/${candidate##*/}
done
[ -n "$port" ] || { echo "the guest shows no port $wanted" >&2; exit 3; }
mkdir -p "$directory"
grep -q " $directory " /proc/mounts ||
    mount -t tmpfs -o mode=700,nosuid,nodev,size=128m cowhand "$directory"
dd bs=65536 count="$blocks" iflag=fullblock if="$port" of="$directory/new" 2>/dev/null
chmod 700 "$directory/new"
mv "$directory/new" "$directory/helper"
if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
    systemd-run --quiet --collect --unit=cowhand-helper -p KillMode=process \
        "$directory/helper" "$verb" && exit 0
fi
setsid "$directory/helper" "$verb" </dev/null >/dev/null 2>&1 &
"#;

/// What there is to talk to in a guest.
pub(crate) enum Reached {
    /// The helper.
    Helper(Client),
    /// No helper runs there, and none can: for this reason.
    AgentOnly(String),
}

/// Begins a conversation with the helper of `name`, which is sent there first if need be. The guest
/// has `limit` to come up as far as its agent.
pub(crate) async fn reach(context: &Context, name: &Name, limit: Duration) -> Result<Reached> {
    let deadline = Instant::now() + limit;
    session::refuse_not_running(context, name)?;
    let lock = port::lock_port(context, name, deadline).await?;
    let sockets = sockets::of(context, name).ok_or_else(|| {
        Error::damaged(format!("{name} runs, but where its sockets are is not known"))
    })?;
    match Qmp::open_ports(&sockets.status()).await {
        Some(open) if open.len() < PORTS => {
            return Ok(Reached::AgentOnly(
                "it was started by another version of cowhand".to_owned(),
            ));
        }
        Some(open) if open.get(lock.index()).is_some_and(|open| *open) => {
            let wire = Wire::connect(context, name, lock).await?;
            return wire.begin(name, Instant::now() + REPLY).await.map(Reached::Helper);
        }
        _ => {}
    }
    send(context, name, lock, deadline).await
}

/// Waits for the end of the script, which may come before all was sent, and says why then.
async fn both<T>(
    ending: impl Future<Output = Result<T, AgentError>>,
    sending: impl Future<Output = Result<()>>,
) -> Result<T> {
    tokio::pin!(ending);
    tokio::select! {
        ended = &mut ending => Ok(ended?),
        sent = sending => {
            sent?;
            Ok(ending.await?)
        }
    }
}

async fn send(
    context: &Context,
    name: &Name,
    lock: port::PortLock,
    deadline: Instant,
) -> Result<Reached> {
    let mut session =
        session::open(context, name, deadline.saturating_duration_since(Instant::now())).await?;
    // Whoever had the agent before may have sent it.
    let sockets = sockets::of(context, name);
    if let Some(sockets) = sockets
        && Qmp::open_ports(&sockets.status())
            .await
            .is_some_and(|open| open.get(lock.index()).is_some_and(|open| *open))
    {
        drop(session);
        let wire = Wire::connect(context, name, lock).await?;
        return wire.begin(name, Instant::now() + REPLY).await.map(Reached::Helper);
    }
    match session.agent.run(&guest_get_osinfo {}, REPLY).await {
        Ok(about)
            if about.machine.as_deref() != Some("x86_64")
                || about.id.as_deref() == Some("mswindows") =>
        {
            return Ok(Reached::AgentOnly("it is no 64-bit Linux".to_owned()));
        }
        // An agent that does not say may be one of a small guest.
        Ok(_) | Err(AgentError::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut wire = Wire::connect(context, name, lock).await?;
    let program = Path::new(crate::sys::relay::PROGRAM);
    let mut program = elf::loadable(&std::fs::read(program).on("read", program)?);
    let blocks = program.len().div_ceil(BLOCK);
    program.resize(blocks * BLOCK, 0);
    let arguments = [DIRECTORY, VERB, &port_name(wire.index()), &blocks.to_string()];
    let mut words = vec!["-c".to_owned(), SCRIPT.to_owned(), "sh".to_owned()];
    words.extend(arguments.map(str::to_owned));
    let start = guest_exec {
        path: "/bin/sh".to_owned(),
        arg: Some(words),
        env: None,
        input_data: None,
        capture_output: Some(GuestExecCaptureOutput::flag(true)),
    };
    let started = loop {
        match session.agent.run(&start, REPLY).await {
            Ok(started) => break started,
            Err(error) if super::is_frozen(&error) && Instant::now() < deadline => {
                // Whoever has frozen the guest needs the agent to thaw it.
                drop(session);
                tokio::time::sleep(LOOK * 10).await;
                let left = deadline.saturating_duration_since(Instant::now()).max(REPLY);
                session = session::open(context, name, left).await?;
            }
            Err(error) if super::is_frozen(&error) => return Err(super::stays_frozen(name, error)),
            Err(AgentError::Refused { message, .. }) => {
                return Ok(Reached::AgentOnly(format!("its agent says \"{message}\"")));
            }
            Err(error) => return Err(error.into()),
        }
    };
    let limit = Instant::now() + SENDING;
    let sending = async {
        let sent = wire.write(&program).await;
        sent.map_err(|source| {
            Error::qemu(format!("{name} ended while it was spoken to")).because(source)
        })
    };
    let ending = async {
        loop {
            let status = session
                .agent
                .run_within(&guest_exec_status { pid: started.pid }, REPLY, ANSWER)
                .await?;
            if status.exited {
                return Ok::<_, AgentError>(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let late = |_| {
        let seconds = SENDING.as_secs();
        Error::qemu(format!("the helper did not get into the guest of {name} within {seconds} s"))
    };
    let ended = tokio::time::timeout_at(limit, both(ending, sending)).await.map_err(late)??;
    if ended.exitcode != Some(0) {
        let words = String::from_utf8_lossy(&ended.err_data.unwrap_or_default()).trim().to_owned();
        return Ok(Reached::AgentOnly(format!("the guest says \"{words}\"")));
    }
    wire.begin(name, limit).await.map(Reached::Helper)
}
