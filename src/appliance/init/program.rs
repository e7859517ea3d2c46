//! Running programs inside the appliance: our own few, and those of the guest's tree.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Host;
use crate::appliance::protocol::Event;
use crate::error::{Error, Result};

/// What a guest's programs find in their environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program of the appliance's own. One that fails is an error that quotes it.
pub(super) fn output(program: &str, args: &[&str]) -> Result<String> {
    output_with(program, args, &[0])
}

/// The same; exit codes other than those in `fine` are errors.
pub(super) fn output_with(program: &str, args: &[&str], fine: &[i32]) -> Result<String> {
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("DM_DISABLE_UDEV", "1")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let cannot =
        |source: std::io::Error| Error::failed(format!("cannot run {program}")).because(source);
    // Inside the tree there need be no /dev/null.
    let output = command.stdin(Stdio::piped()).output().map_err(cannot)?;
    if output.status.code().is_some_and(|code| fine.contains(&code)) {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::failed(format!(
        "{program} {} failed ({})",
        args.first().unwrap_or(&""),
        output.status
    ))
    .because(words))
}

/// Runs a program of the guest's in its tree, which is our root by now. What it prints goes to the
/// host; one that fails is an error.
pub(super) fn in_tree(host: &mut Host, what: &str, program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").env_clear().stdin(Stdio::null());
    command.envs([
        ("PATH", PATH),
        ("HOME", "/root"),
        ("TERM", "dumb"),
        ("LANG", "C.UTF-8"),
        ("DEBIAN_FRONTEND", "noninteractive"),
    ]);
    let cannot = |source: std::io::Error| {
        Error::refused(format!("cannot run {what} in the guest's tree")).because(source)
    };
    let (mut reader, writer) = std::io::pipe().map_err(cannot)?;
    command.stdout(writer.try_clone().map_err(cannot)?).stderr(writer);
    let mut child = command.spawn().map_err(cannot)?;
    // Ours would keep the pipe open.
    drop(command);
    let mut buffer = [0; 4096];
    let mut ended = None;
    loop {
        // What it has left in the background keeps the pipe open, and is not waited for.
        let mut waiting = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(100u8)).unwrap_or(0) > 0 {
            match reader.read(&mut buffer) {
                Ok(length @ 1..) => {
                    host.tell(&Event::Output {
                        text: String::from_utf8_lossy(&buffer[..length]).into_owned(),
                    })?;
                }
                _ => break,
            }
        } else if ended.is_some() {
            break;
        }
        ended = ended.or(child.try_wait().map_err(cannot)?);
    }
    let status = match ended {
        Some(status) => status,
        None => child.wait().map_err(cannot)?,
    };
    // Process 1 means everybody else.
    let _ =
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
    if status.success() {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{what} failed in the guest's tree ({status}); nothing was changed"
    )))
}
