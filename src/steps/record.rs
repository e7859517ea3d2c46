//! The step that writes the record of a VM.

use serde::{Deserialize, Serialize};

use crate::change::run::{Report, Run};
use crate::change::step::{Pivot, Step, Touches};
use crate::error::Result;
use crate::model::{Name, Record, Role};
use crate::store::schema::RecordV1;

/// Replaces `vm.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteRecord {
    /// The new record, as it is known when the change begins.
    pub record: Box<RecordV1>,
    /// The snapshot that the record adds, if any.
    pub snapshot: Option<Name>,
}

impl WriteRecord {
    /// A new `vm.json`.
    pub(crate) fn of(record: &Record) -> Self {
        Self { record: Box::new(RecordV1::from(record)), snapshot: None }
    }

    /// The same, with a snapshot that is just being taken.
    pub(crate) fn with_snapshot(record: &Record, snapshot: &Name) -> Self {
        Self { snapshot: Some(snapshot.clone()), ..Self::of(record) }
    }

    /// The record, completed by what only became known on the way.
    fn completed(&self, report: &Report) -> Result<Record> {
        let mut record = Record::try_from((*self.record).clone())?;
        let Some(name) = &self.snapshot else {
            if let (Some(now), Role::Template { stamps, .. }) = (&report.stamps, &mut record.role) {
                stamps.clone_from(now);
            }
            return Ok(record);
        };
        for snapshot in record.snapshots.iter_mut().filter(|snapshot| snapshot.name == *name) {
            snapshot.quiesced |= report.quiesced;
            if report.memory_lost.is_some() {
                snapshot.memory = None;
            }
            if let Some((memory, bytes)) = snapshot.memory.as_mut().zip(report.memory) {
                memory.bytes = bytes;
            }
        }
        Ok(record)
    }
}

impl Pivot for WriteRecord {}

impl Step for WriteRecord {
    const TAG: &'static str = "save";

    fn touches(&self) -> Touches {
        Touches {
            vm: Some(self.record.uuid()),
            record: Some(self.record.clone()),
            writes_record: true,
            ..Touches::default()
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        if run.report.unmerged.is_some() {
            return Ok(());
        }
        run.store().save(&run.name, &self.completed(&run.report)?)
    }

    fn wrote(&self, now: &Record) -> Option<bool> {
        Some(Record::try_from((*self.record).clone()).is_ok_and(|planned| is_same(planned, now)))
    }
}

/// The same record, but for what is only known after the plan was written: whether a snapshot is
/// quiesced, its memory, what a template's layers look like.
fn is_same(mut planned: Record, now: &Record) -> bool {
    for (snapshot, known) in planned.snapshots.iter_mut().zip(&now.snapshots) {
        snapshot.quiesced = known.quiesced;
        snapshot.memory.clone_from(&known.memory);
    }
    if let (Role::Template { stamps, .. }, Role::Template { stamps: known, .. }) =
        (&mut planned.role, &now.role)
    {
        stamps.clone_from(known);
    }
    planned == *now
}
