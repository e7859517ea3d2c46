//! The end of a QEMU: asked by QMP `quit`, or killed.

use std::time::Duration;

use super::sockets;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::Name;
use crate::qemu::process;
use crate::qemu::qmp::Qmp;
use crate::sys::pidfd::PidFd;
use crate::sys::{fault, holder};

/// How long QEMU may take to end once it was told to; it only flushes.
const QUIT: Duration = Duration::from_secs(30);

/// Ends QEMU by QMP `quit`, which writes out what it has cached; kills it when it does not end.
pub(crate) async fn quit(context: &Context, name: &Name, mut qmp: Qmp) -> Result<()> {
    let process = process_of(&qmp, name)?;
    let told = qmp.run(&qapi::qmp::quit {}).await;
    if told.is_err() || !process::wait_for_end(&process, QUIT).await? {
        kill_process(name, &process).await?;
    }
    if let Some(sockets) = sockets::of(context, name) {
        process::clear(&sockets);
    }
    Ok(())
}

/// Kills a QEMU that does not answer; who it is, the kernel says (`SO_PEERPIDFD` of its socket).
pub(crate) async fn kill(context: &Context, name: &Name) -> Result<()> {
    let unknown =
        || Error::qemu(format!("the QEMU of {name} does not answer and its process is not known"));
    let sockets = sockets::of(context, name);
    let peer = async {
        let stream = tokio::net::UnixStream::connect(sockets.as_ref()?.status()).await.ok()?;
        PidFd::of_peer(&stream).ok()
    };
    // One that hangs takes no more connections once a few have come; what it holds is seen from
    // outside.
    let process = match peer.await {
        Some(process) => process,
        None => holder(context, name).ok_or_else(unknown)?,
    };
    kill_process(name, &process).await?;
    if let Some(sockets) = sockets {
        process::clear(&sockets);
    }
    Ok(())
}

/// Kills a QEMU and waits for its end. One that waits in the kernel, for a disk that does not
/// answer, lives on until that has answered; as long as it lives, its disks are in use.
async fn kill_process(name: &Name, process: &PidFd) -> Result<()> {
    process
        .kill()
        .map_err(|source| Error::qemu(format!("cannot kill the QEMU of {name}")).because(source))?;
    let limit = fault::patience(QUIT);
    if process::wait_for_end(process, limit).await? {
        return Ok(());
    }
    Err(Error::qemu(format!(
        "the QEMU of {name} was killed, and has not ended after {} s",
        limit.as_secs()
    ))
    .hint(
        "a process that waits for a disk or a file server ends when that answers: see the \
         host's kernel log (dmesg)",
    )
    .hint(format!("has it ended? cowhand show {name}")))
}

/// The QEMU that holds the run lock of `name`. Looked for twice: its number could be another's by
/// the time it is opened.
fn holder(context: &Context, name: &Name) -> Option<PidFd> {
    let run_lock = context.store.layout.run_lock(name);
    let pid = holder::of(&run_lock)?;
    let process = PidFd::open(pid).ok()?;
    (holder::of(&run_lock) == Some(pid)).then_some(process)
}

/// The process of the QEMU that `qmp` talks to.
pub(crate) fn process_of(qmp: &Qmp, name: &Name) -> Result<PidFd> {
    let unknown = || Error::qemu(format!("cannot watch the QEMU of {name}"));
    qmp.process().ok_or_else(unknown)
}
