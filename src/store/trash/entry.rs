//! What a directory of the trash says of itself. How it is written is the business of
//! [`crate::store::schema`].

use std::borrow::Cow;

use jiff::Timestamp;
use uuid::Uuid;

use super::kind::Kind;
use crate::model::printable;
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
    /// The command, in the words of the user, as the file says it.
    pub operation: String,
    /// The layers in it.
    pub layers: Vec<Layer>,
    /// What those layers depend on, as it was then: without it they mean nothing.
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

    /// The command, for a person to read: on one line, with nothing in it that commands a terminal.
    pub fn command(&self) -> Cow<'_, str> {
        printable::line(&self.operation)
    }

    /// Is it a change that `undo` takes back?
    pub fn can_be_undone(&self) -> bool {
        self.what.can_be_undone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_an_entry_is_one_line_that_commands_no_terminal() {
        let vm: Name = "web".parse().expect("a name");
        let entry = Entry::new(Kind::Rm, &vm, "rm web\n hint: \x1b[31mx\t\u{202e}");
        assert_eq!(entry.command(), "rm web\\n hint: \\x1b[31mx\\t\\u{202e}");
        assert_eq!(Entry::new(Kind::Rm, &vm, "rm --force web").command(), "rm --force web");
    }
}
