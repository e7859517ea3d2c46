//! What a directory of the trash says of itself. How it is written is the business of
//! [`crate::store::schema`].

use jiff::Timestamp;
use uuid::Uuid;

use super::kind::Kind;
use crate::model::{FileStamp, Layer, Name, Record};

/// The version written today.
pub(in crate::store) const SCHEMA: u32 = 2;

/// What a directory of the trash says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The version it was read in.
    pub(in crate::store) schema: u32,
    /// The verb that put it there.
    pub what: Kind,
    /// The VM it belonged to.
    pub vm: Name,
    /// The identity of that VM, where its record lies beside this entry.
    pub(in crate::store) uuid: Option<Uuid>,
    /// The store that it was written in.
    pub(in crate::store) store: Option<Uuid>,
    /// When.
    pub when: Timestamp,
    /// The command, in the words of the user.
    pub operation: String,
    /// The layers in it.
    pub layers: Vec<Layer>,
    /// What those layers stand on, as it was then: without it they mean nothing.
    pub below: Vec<FileStamp>,
    /// The internal snapshot in the layers of the head that holds what they were.
    pub undo_snapshot: Option<String>,
}

impl Entry {
    /// An entry for what is about to be put there.
    pub fn new(what: Kind, vm: &Name, operation: &str) -> Self {
        Self {
            schema: SCHEMA,
            what,
            vm: vm.clone(),
            uuid: None,
            store: None,
            when: Timestamp::now(),
            operation: operation.to_owned(),
            layers: Vec::new(),
            below: Vec::new(),
            undo_snapshot: None,
        }
    }

    /// The same, for a directory in which `record` is kept.
    pub fn of(self, record: &Record) -> Self {
        Self { uuid: Some(record.uuid), ..self }
    }

    /// The identity of the VM, where its record lies beside this entry.
    pub fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    /// Is it a change that `undo` takes back?
    pub fn can_be_undone(&self) -> bool {
        self.what.can_be_undone()
    }
}
