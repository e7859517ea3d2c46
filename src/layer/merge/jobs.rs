//! The block jobs of merges in one QEMU: begun and waited for, told to switch, called off, and what
//! they leave open closed.

use serde_json::{Value, json};

use crate::context::Context;
use crate::model::{Layer, Merge, MergeKind, human};
use crate::qemu::qmp::jobs::{Job, Milestone};
use crate::qemu::qmp::{Qmp, QmpError};

/// Has this job only copied so far, and can be called off? One that failed has not switched either.
pub(super) fn has_not_switched(job: &Job) -> bool {
    let copies = matches!(
        job.status.as_str(),
        "created" | "running" | "ready" | "standby" | "pending" | "waiting"
    );
    copies || (job.status == "concluded" && job.error.is_some())
}

/// Begins those that have a root, and waits until each has copied what it can without a switch.
pub(super) async fn copy_all<'a>(
    context: &Context,
    qmp: &mut Qmp,
    merges: &[(&'a Merge, Option<String>)],
) -> Result<Vec<(&'a Merge, Job)>, QmpError> {
    for (merge, root) in merges {
        if let Some(root) = root {
            start(qmp, merge, root).await?;
        }
    }
    let mut ready = Vec::with_capacity(merges.len());
    for (merge, _) in merges {
        let task = context.ui.task(&label(merge), merge.bytes);
        let milestone = if merge.is_active() { Milestone::Ready } else { Milestone::Pending };
        ready.push((*merge, qmp.wait_for_job(&merge.job(), milestone, &*task).await?));
    }
    Ok(ready)
}

/// Lets jobs that have copied everything change who depends on whom, and forgets them.
pub(super) async fn finalize(qmp: &mut Qmp, merges: &[(&Merge, Job)]) -> Result<(), QmpError> {
    for (merge, job) in merges {
        match job.status.as_str() {
            "ready" => qmp.complete_job(&merge.job()).await?,
            "pending" => qmp.finalize_job(&merge.job()).await?,
            _ => {}
        }
    }
    for (merge, _) in merges {
        qmp.wait_for_job(&merge.job(), Milestone::Concluded, &crate::ui::Silent).await?;
        qmp.dismiss_job(&merge.job()).await?;
    }
    Ok(())
}

/// Calls off the jobs of merges none of which has switched.
pub(super) async fn cancel(
    qmp: &mut Qmp,
    merges: &[(&Merge, Option<String>)],
) -> Result<(), QmpError> {
    for (merge, _) in merges {
        if qmp.job(&merge.job()).await?.is_none() {
            continue;
        }
        let cancelled = qmp
            .call::<Value>("block-job-cancel", json!({"device": merge.job(), "force": true}))
            .await;
        tracing::debug!(target: "qmp", "{}: {cancelled:?}", merge.job());
        match qmp.wait_for_job(&merge.job(), Milestone::Concluded, &crate::ui::Silent).await {
            Ok(_) => qmp.dismiss_job(&merge.job()).await?,
            Err(QmpError::Job { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn start(qmp: &mut Qmp, merge: &Merge, root: &str) -> Result<(), QmpError> {
    let mut job =
        json!({"job-id": merge.job(), "auto-dismiss": false, "auto-finalize": merge.is_active()});
    let command = match merge.kind {
        MergeKind::Commit => {
            job["device"] = root.into();
            job["base-node"] = merge.base.node().into();
            if merge.overlay.is_some() {
                job["top-node"] = merge.top.node().into();
                job["backing-file"] = merge.base.file_name().into();
            }
            "block-commit"
        }
        MergeKind::Stream => {
            job["device"] = merge.top.node().into();
            if let Some(below) = &merge.below {
                job["base-node"] = below.node().into();
                job["backing-file"] = below.file_name().into();
            }
            "block-stream"
        }
    };
    qmp.call::<Value>(command, job).await.map(drop)
}

/// Closes layers that have vanished; should QEMU still want one, its file only stays open a little
/// longer.
pub(crate) async fn release(qmp: &mut Qmp, layers: impl IntoIterator<Item = &Layer>) {
    for layer in layers {
        for node in [layer.node(), layer.file_node()] {
            if let Err(error) = qmp.remove_node(&node).await {
                tracing::debug!(target: "qmp", "{node} stays open: {error}");
            }
        }
    }
}

fn label(merge: &Merge) -> String {
    format!("{}: merging {}", merge.target, human(merge.bytes))
}
