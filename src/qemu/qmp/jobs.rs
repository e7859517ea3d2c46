//! Block jobs by their events (`JOB_STATUS_CHANGE`) and `query-jobs`. Every job of ours is called
//! `cw-…` and is created with `auto-dismiss: false`, so that a later command finds it concluded and
//! learns how it ended.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use super::{Qmp, QmpError};
use crate::ui::Task;

/// How often progress is asked for; the end itself arrives as an event.
const TICK: Duration = Duration::from_millis(200);

/// A job as `query-jobs` shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// `running`, `ready`, `concluded`, …
    pub status: String,
    /// Units done (bytes, for block jobs).
    #[serde(rename = "current-progress", default)]
    pub current: u64,
    /// Units in all, as far as is known.
    #[serde(rename = "total-progress", default)]
    pub total: u64,
    /// How it failed, once it has concluded.
    #[serde(default)]
    pub error: Option<String>,
}

/// Where a job can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// All data is there and stays in step; `job-complete` makes the switch.
    Ready,
    /// All data is there; `job-finalize` changes the links (jobs with `auto-finalize: false`).
    Pending,
    /// It is over.
    Concluded,
}

impl Qmp {
    /// All jobs.
    pub async fn jobs(&mut self) -> Result<Vec<Job>, QmpError> {
        self.call("query-jobs", json!({})).await
    }

    /// The job called `id`, if there is one.
    pub async fn job(&mut self, id: &str) -> Result<Option<Job>, QmpError> {
        Ok(self.jobs().await?.into_iter().find(|job| job.id == id))
    }

    /// Waits for a job, showing its progress. A job that concludes early, because it failed or had
    /// nothing to do, is returned as it ended; a failure is an error, and the job is dismissed.
    pub async fn wait_for_job(
        &mut self,
        id: &str,
        milestone: Milestone,
        task: &dyn Task,
    ) -> Result<Job, QmpError> {
        loop {
            let gone = || QmpError::Job { job: id.to_owned(), message: "it vanished".to_owned() };
            let job = self.job(id).await?.ok_or_else(gone)?;
            task.update(job.current, job.total);
            match job.status.as_str() {
                "concluded" | "null" => {
                    if let Some(message) = job.error {
                        self.dismiss_job(id).await?;
                        return Err(QmpError::Job { job: id.to_owned(), message });
                    }
                    return Ok(job);
                }
                "ready" if milestone == Milestone::Ready => return Ok(job),
                "pending" if milestone == Milestone::Pending => return Ok(job),
                _ => {}
            }
            let tick = Instant::now() + TICK;
            while let Some(event) = self.event(tick).await? {
                let news = matches!(
                    event.data["status"].as_str(),
                    Some("ready" | "pending" | "concluded" | "null")
                );
                if event.name == "JOB_STATUS_CHANGE" && event.data["id"] == id && news {
                    break;
                }
            }
        }
    }

    /// Lets a ready job make its switch.
    pub async fn complete_job(&mut self, id: &str) -> Result<(), QmpError> {
        self.run(&qapi::qmp::job_complete { id: id.to_owned() }).await.map(drop)
    }

    /// Lets a pending job change the links.
    pub async fn finalize_job(&mut self, id: &str) -> Result<(), QmpError> {
        self.run(&qapi::qmp::job_finalize { id: id.to_owned() }).await.map(drop)
    }

    /// Forgets a concluded job.
    pub async fn dismiss_job(&mut self, id: &str) -> Result<(), QmpError> {
        self.run(&qapi::qmp::job_dismiss { id: id.to_owned() }).await.map(drop)
    }
}
