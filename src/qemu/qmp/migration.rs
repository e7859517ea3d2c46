//! Migration as QEMU's QAPI has it, used to write a guest's memory to a file and to read it back.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::wire::Incoming;
use super::{Qmp, QmpError, REPLY, accepted, point};
use crate::sys::fault;

/// How often progress is asked for; state changes arrive as events.
const TICK: Duration = Duration::from_millis(100);
/// How soon a guest that may not go on yet is let go on again.
const MOMENT: Duration = Duration::from_millis(5);
/// No limit on bandwidth: the largest number QEMU takes.
const UNLIMITED: u64 = 9_223_372_036_853_727_232;

/// What `query-migrate` says.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Migration {
    /// `setup`, `active`, `completed`, `failed`, …; `None` before the first one.
    #[serde(default)]
    pub status: Option<String>,
    /// Why it failed.
    #[serde(rename = "error-desc", default)]
    pub error: Option<String>,
    #[serde(default)]
    ram: Ram,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Ram {
    #[serde(default)]
    normal: u64,
    #[serde(default)]
    duplicate: u64,
    #[serde(default)]
    total: u64,
    #[serde(default)]
    remaining: u64,
}

impl Migration {
    /// Is it over, one way or the other?
    pub fn is_over(&self) -> bool {
        matches!(self.status.as_deref(), Some("completed" | "failed" | "cancelled"))
    }

    /// Has it begun, and is not over?
    pub fn is_under_way(&self) -> bool {
        self.status.as_deref().is_some_and(|status| status != "none") && !self.is_over()
    }

    /// Has it worked?
    pub fn is_complete(&self) -> bool {
        self.status.as_deref() == Some("completed")
    }

    /// Has the first page of memory been written?
    pub fn has_begun(&self) -> bool {
        self.ram.normal + self.ram.duplicate > 0
    }

    /// Bytes of guest memory done, and in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.ram.total.saturating_sub(self.ram.remaining), self.ram.total)
    }
}

impl Qmp {
    /// `query-migrate`.
    pub async fn migration(&mut self) -> Result<Migration, QmpError> {
        self.call("query-migrate", json!({})).await
    }

    /// Sets several migration capabilities at once.
    pub async fn set_capabilities(&mut self, names: &[&str]) -> Result<(), QmpError> {
        let all: Vec<Value> =
            names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.call::<Value>("migrate-set-capabilities", json!({"capabilities": all})).await.map(drop)
    }

    /// Sets a migration capability.
    pub async fn set_capability(&mut self, name: &str, on: bool) -> Result<(), QmpError> {
        let capabilities = json!([{"capability": name, "state": on}]);
        self.call::<Value>("migrate-set-capabilities", json!({"capabilities": capabilities}))
            .await
            .map(drop)
    }

    /// Is a migration under way that lets the guest run while its memory of one instant is written,
    /// and has it taken that instant?
    pub async fn lets_the_guest_run(&mut self) -> Result<bool, QmpError> {
        let all: Value = self.call("query-migrate-capabilities", json!({})).await?;
        let on = json!({"capability": "background-snapshot", "state": true});
        let background = all.as_array().is_some_and(|all| all.contains(&on));
        Ok(background && self.migration().await?.has_begun())
    }

    /// Events on every change of a migration's state, and no limit on its speed.
    pub async fn prepare_migration(&mut self) -> Result<(), QmpError> {
        self.set_capability("events", true).await?;
        self.call::<Value>("migrate-set-parameters", json!({"max-bandwidth": UNLIMITED}))
            .await
            .map(drop)
    }

    /// Begins to write the guest's memory and devices to the descriptor handed over as `fd`.
    pub async fn migrate_to(&mut self, fd: &str) -> Result<(), QmpError> {
        self.call::<Value>("migrate", json!({"uri": format!("fd:{fd}")})).await.map(drop)
    }

    /// Begins to read them from there, in a QEMU that was started with `-incoming defer`.
    pub async fn migrate_from(&mut self, fd: &str) -> Result<(), QmpError> {
        self.call::<Value>("migrate-incoming", json!({"uri": format!("fd:{fd}")})).await.map(drop)
    }

    /// Lets the guest's CPUs go on. Right behind a migration QEMU says no for a moment, although it
    /// has told that all is written: its threads have to come to an end first (`qmp_cont` in QEMU's
    /// `monitor/qmp-cmds.c`).
    pub async fn cont(&mut self) -> Result<(), QmpError> {
        let deadline = Instant::now() + REPLY;
        loop {
            match self.run(&qapi::qmp::cont {}).await {
                Err(QmpError::Refused { message, .. })
                    if message.contains("not finalized") && Instant::now() < deadline =>
                {
                    tokio::time::sleep(MOMENT).await;
                }
                other => return other.map(drop),
            }
        }
    }

    /// `cont`, as far as the event `RESUME`: from there on the guest runs. QEMU's reply comes when
    /// its main loop gets a turn beside the guest's CPUs, which took up to 20 ms under emulation,
    /// and says nothing more.
    pub async fn cont_until_running(&mut self) -> Result<(), QmpError> {
        const COMMAND: &str = "cont";
        let limit = fault::patience(REPLY);
        let deadline = Instant::now() + limit;
        let id = self.submit(COMMAND, json!({}), deadline, limit, None).await?;
        loop {
            match self.receive(COMMAND, deadline, limit).await? {
                Incoming::Event(event) if event.name == "RESUME" => break,
                Incoming::Event(event) => self.events.push_back(event),
                Incoming::Reply { id: Some(got), result } if got == id => {
                    accepted(COMMAND, result)?;
                    break;
                }
                Incoming::Reply { .. } | Incoming::Greeting(_) => {}
            }
        }
        point(COMMAND, "answered")
    }

    /// Waits until the migration is over, telling how far it is.
    pub async fn wait_for_migration(
        &mut self,
        mut told: impl FnMut(&Migration),
    ) -> Result<Migration, QmpError> {
        loop {
            let migration = self.migration().await?;
            told(&migration);
            if migration.is_over() {
                return Ok(migration);
            }
            let tick = Instant::now() + TICK;
            while let Some(event) = self.event(tick).await? {
                if event.name == "MIGRATION" {
                    break;
                }
            }
        }
    }
}
