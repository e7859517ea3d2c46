//! Copying a file into or out of a running guest (`guest-file-open`, `-read`, `-write`, `-close`).
//! Nothing is needed in the guest but its agent; the agent works as root there.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use qapi::qga::{
    guest_exec, guest_file_close, guest_file_flush, guest_file_open, guest_file_read,
    guest_file_write,
};

use super::copy;
use super::session::{self, Session};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::helper::tree::Refusal;
use crate::model::Name;
use crate::qemu::agent::{AgentError, REPLY};

/// Bytes per message: the agent's limit for a read is 48 MiB, but small messages keep QEMU's
/// buffers small.
const CHUNK: usize = 256 << 10;

/// Copies the file `from` of the guest to `to` on the host, which is replaced only when all of it
/// has arrived. The guest may send `max_bytes`.
pub(crate) async fn copy_out(
    context: &Context,
    name: &Name,
    from: &str,
    to: &Path,
    agent_limit: Duration,
    max_bytes: u64,
) -> Result<u64> {
    copy::refuse_special(to)?;
    session::ensure_recovered(context, name).await?;
    session::refuse_paused(context, name).await?;
    let mut session = session::open(context, name, agent_limit).await?;
    let handle = open(&mut session, name, from, "r").await?;
    let result = read_all(context, &mut session, handle, from, to, max_bytes).await;
    close(&mut session, handle).await;
    result
}

async fn read_all(
    context: &Context,
    session: &mut Session,
    handle: i64,
    from: &str,
    to: &Path,
    max_bytes: u64,
) -> Result<u64> {
    let directory =
        to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".cowhand-")
        .tempfile_in(directory)
        .on("write in", directory)?;
    let task = context.ui.task(&format!("copying {from}"), 0);
    let mut total = 0;
    loop {
        let read = session
            .agent
            .run(&guest_file_read { handle, count: Some(CHUNK as i64) }, REPLY)
            .await?;
        total += read.buf_b64.len() as u64;
        if total > max_bytes {
            return Err(copy::refused(&Refusal::TooManyBytes(max_bytes), from));
        }
        file.write_all(&read.buf_b64).on("write", to)?;
        task.update(total, 0);
        if read.eof || read.buf_b64.is_empty() {
            break;
        }
    }
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).on("write", to)?;
    file.persist(to).map_err(|error| error.error).on("replace", to)?;
    Ok(total)
}

/// Copies the file `from` of the host to `to` in the guest. When it fails half-way, what was
/// written so far stays there, and the error says so.
pub(crate) async fn copy_in(
    context: &Context,
    name: &Name,
    from: &Path,
    to: &str,
    agent_limit: Duration,
) -> Result<u64> {
    let mut file = File::open(from).on("open", from)?;
    let about = file.metadata().on("read", from)?;
    if !about.is_file() {
        return Err(Error::refused(format!("{} is not an ordinary file", from.display()))
            .hint("pack a directory into an archive first, and unpack it with cowhand exec"));
    }
    let total = about.len();
    session::ensure_recovered(context, name).await?;
    session::refuse_paused(context, name).await?;
    let mut session = session::open(context, name, agent_limit).await?;
    let handle = open(&mut session, name, to, "w").await?;
    let result = async {
        let task = context.ui.task(&format!("copying {}", from.display()), total);
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        loop {
            let read = file.read(&mut buffer).on("read", from)?;
            if read == 0 {
                break;
            }
            write_all(&mut session, handle, &buffer[..read]).await?;
            done += read as u64;
            task.update(done, total);
        }
        session.agent.run(&guest_file_flush { handle }, REPLY).await?;
        Ok(done)
    }
    .await
    .map_err(|error: Error| {
        Error::qemu(format!("{to} in the guest of {name} is incomplete"))
            .because(error.full_message())
    });
    close(&mut session, handle).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o7777;
    set_mode(&mut session, to, mode).await;
    result
}

/// The agent makes files that everybody may write to. Where the guest has no chmod, that stays so.
async fn set_mode(session: &mut Session, path: &str, mode: u32) {
    let arguments = vec![format!("{mode:o}"), "--".to_owned(), path.to_owned()];
    let chmod = guest_exec {
        path: "chmod".to_owned(),
        arg: Some(arguments),
        env: None,
        input_data: None,
        capture_output: None,
    };
    let _ = session.agent.run(&chmod, REPLY).await;
}

async fn write_all(session: &mut Session, handle: i64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let command = guest_file_write { handle, buf_b64: bytes.to_vec(), count: None };
        let written = session.agent.run(&command, REPLY).await?.count;
        let written =
            usize::try_from(written).ok().filter(|count| (1..=bytes.len()).contains(count));
        bytes = &bytes[written.ok_or_else(|| Error::qemu("the guest agent wrote nothing"))?..];
    }
    Ok(())
}

async fn open(session: &mut Session, name: &Name, path: &str, mode: &str) -> Result<i64> {
    let command = guest_file_open { path: path.to_owned(), mode: Some(mode.to_owned()) };
    session.agent.run(&command, REPLY).await.map_err(|error| match error {
        AgentError::Refused { message, .. } => {
            let error = format!("cannot open {path} in the guest of {name}");
            let error = if message.contains("Is a directory") {
                format!("{error}: it is a directory, name a file in it")
            } else {
                error
            };
            let kind = if message.contains("No such file") {
                Error::not_found(error)
            } else {
                Error::qemu(error)
            };
            kind.because(format!("\"{message}\""))
        }
        other => other.into(),
    })
}

async fn close(session: &mut Session, handle: i64) {
    // The agent forgets the handle at the latest when it restarts; the data was flushed before.
    let _ = session.agent.run(&guest_file_close { handle }, REPLY).await;
}
