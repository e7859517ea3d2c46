//! The engine for block jobs while no VM runs: `qemu-storage-daemon`, or a QEMU without a machine
//! where that is not installed.
//!
//! It speaks the same QMP and uses the same node names as a running VM, so a job is written once.
//! It is reached through a socket pair, and dies with us.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use super::nodes;
use super::probe::{self, Probe};
use super::qmp::jobs::Milestone;
use super::qmp::{Qmp, QmpError};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::Chain;
use crate::sys::cage::{Cage, Held, Limits};
use crate::sys::command;
use crate::sys::files::{Pinned, Refusal};
use crate::sys::pidfd::PidFd;
use crate::ui::Task;

/// How long the engine may take to greet us.
const START: Duration = Duration::from_secs(60);

/// A chain to open.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    chain: &'a Chain,
    /// How many layers may be written to, from above.
    written: usize,
}

impl<'a> Open<'a> {
    /// All layers read-only.
    pub(crate) fn read_only(chain: &'a Chain) -> Self {
        Self { chain, written: 0 }
    }

    /// The active layer writable.
    pub(crate) fn active(chain: &'a Chain) -> Self {
        Self { chain, written: 1 }
    }

    /// The same, and a block job makes the layers below writable where it has to.
    pub(crate) fn writable(chain: &'a Chain) -> Self {
        Self { chain, written: chain.links().len() }
    }
}

fn pin(path: &Path) -> Result<Pinned> {
    Pinned::open(path).map_err(|refusal| {
        let error = Error::damaged(format!(
            "the file in the place of {} cannot be used as it is now",
            path.display()
        ));
        match refusal {
            Refusal::Io(cause) => error.because(cause),
            Refusal::Link { .. } | Refusal::Linked => error,
        }
    })
}

/// A running engine.
pub(crate) struct Offline {
    /// The connection.
    pub qmp: Qmp,
    child: Child,
}

impl Offline {
    /// Starts the engine and opens `chains`; layers they share are opened once. It reaches these
    /// layers and the file `target`, and nothing else.
    pub(crate) async fn start(
        context: &Context,
        chains: &[Open<'_>],
        target: Option<&Path>,
    ) -> Result<Self> {
        let mut cage = target.into_iter().fold(Cage::new(Limits::ENGINE), Cage::writing);
        let mut in_place = Vec::new();
        for open in chains {
            for (depth, link) in open.chain.links().iter().enumerate() {
                let path = match link.path.is_symlink() {
                    // The file that is there now, whatever is put there a moment later.
                    true => {
                        in_place.push(pin(&link.path)?);
                        in_place[in_place.len() - 1].proc_path()
                    }
                    false => link.path.clone(),
                };
                cage = match depth < open.written {
                    true => cage.writing(&path),
                    false => cage.reading(&path),
                };
            }
        }
        Self::launch(context, chains, &cage).await
    }

    /// Starts the engine for an overlay and the open file below it, and opens nothing. It reaches
    /// these two and nothing else.
    pub(crate) async fn start_on(context: &Context, below: &Held, overlay: &Path) -> Result<Self> {
        let cage = Cage::new(Limits::ENGINE).holding(below).writing(&below.path()).writing(overlay);
        Self::launch(context, &[], &cage).await
    }

    async fn launch(context: &Context, chains: &[Open<'_>], cage: &Cage) -> Result<Self> {
        let probe = Probe::get(context)?;
        let failed = |source: std::io::Error| {
            Error::failed("cannot start the offline engine").because(source)
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        let fd = OwnedFd::from(theirs);
        let argv = engine_argv(
            &probe,
            probe::storage_daemon(&probe.path, context).as_deref(),
            fd.as_raw_fd(),
        );
        let mut child = command::caged_helper(&argv, fd, cage).map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let stream = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
        let qmp = match Qmp::handshake(stream, START).await {
            Ok(qmp) => qmp,
            Err(error) => {
                let _ = child.kill();
                let mut words = Vec::new();
                let _ = child.stderr.take().map(|mut stderr| stderr.read_to_end(&mut words));
                let _ = child.wait();
                let words = command::tail(&words);
                let cause = if words.is_empty() { error.to_string() } else { words };
                return Err(Error::qemu(format!("{} did not start", argv[0])).because(cause));
            }
        };
        let mut engine = Self { qmp, child };
        let mut opened: Vec<Value> = Vec::new();
        for open in chains {
            for node in nodes::chain_nodes(open.chain, open.written > 0) {
                if !opened.contains(&node["node-name"]) {
                    opened.push(node["node-name"].clone());
                    engine.qmp.add_node(node).await?;
                }
            }
        }
        Ok(engine)
    }

    /// Copies everything the node `source` shows into the qcow2 image at `target`, which must be
    /// empty.
    pub(crate) async fn copy_into(
        &mut self,
        source: &str,
        target: &Path,
        task: &dyn Task,
    ) -> Result<(), QmpError> {
        const JOB: &str = "cw-copy";
        let file = json!({
            "driver": "file", "node-name": "target-file", "filename": target, "discard": "unmap",
        });
        self.qmp.add_node(file).await?;
        let image = json!({
            "driver": "qcow2", "node-name": "target", "file": "target-file", "discard": "unmap",
            "detect-zeroes": "unmap",
        });
        self.qmp.add_node(image).await?;
        let job = json!({
            "job-id": JOB, "device": source, "target": "target", "sync": "full",
            "auto-dismiss": false,
        });
        self.qmp.call::<Value>("blockdev-backup", job).await?;
        self.qmp.wait_for_job(JOB, Milestone::Concluded, task).await?;
        self.qmp.dismiss_job(JOB).await?;
        self.qmp.remove_node("target").await?;
        self.qmp.remove_node("target-file").await
    }

    /// Ends the engine in order, so that everything is written.
    pub(crate) async fn quit(mut self) {
        let _ = self.qmp.run(&qapi::qmp::quit {}).await;
        if let Ok(process) = PidFd::open(self.child.id().cast_signed()) {
            // It only has to write out what it has; should it hang, dropping it kills it.
            let _ = tokio::time::timeout(START, process.ended()).await;
        }
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn engine_argv(probe: &Probe, daemon: Option<&Path>, fd: i32) -> Vec<String> {
    let chardev = format!("socket,id=qmp,fd={fd}");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let args = |list: &[&str]| list.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    match daemon {
        Some(daemon) => {
            [vec![text(daemon)], args(&["--chardev", &chardev, "--monitor", "chardev=qmp"])]
                .concat()
        }
        None => {
            let rest = [
                "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
                "-chardev", &chardev,
            ];
            [vec![text(&probe.path)], args(&rest), args(&["-mon", "chardev=qmp,mode=control"])]
                .concat()
        }
    }
}
