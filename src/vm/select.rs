//! Which VMs a command without names is about: `start --autostart`, `stop --all`.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::status;
use crate::model::Name;
use crate::sys::owner;

/// What was selected.
#[derive(Debug, Default)]
pub(crate) struct Selected {
    /// The VMs, in the order of their names.
    pub names: Vec<Name>,
    /// Running VMs that end by themselves, with the command that created them.
    pub owned: Vec<Name>,
    /// Running VMs whose command was killed: `gc` ends and removes them.
    pub abandoned: Vec<Name>,
    /// One for each VM of which it cannot be determined whether it belongs to these.
    pub unclear: Vec<Error>,
}

/// The VMs with `autostart=on` that do not run.
pub(crate) fn with_autostart(context: &Context) -> Result<Selected> {
    let mut selected = Selected::default();
    for name in context.store.names()? {
        let is_due = context.store.load(&name).and_then(|record| {
            Ok(record.autostart && !record.is_template() && !status::is_running(context, &name)?)
        });
        match is_due {
            Ok(true) => selected.names.push(name),
            Ok(false) => {}
            Err(error) => selected.unclear.push(
                Error::new(
                    error.kind(),
                    format!("cannot determine whether {name} starts with the host"),
                )
                .because(error.full_message())
                .hint(format!("find out what is wrong with it: cowhand doctor {name}")),
            ),
        }
    }
    Ok(selected)
}

/// Does any VM have `autostart=on`, running or not?
pub(crate) fn any_with_autostart(context: &Context) -> Result<bool> {
    let has = |name: &Name| context.store.load(name).is_ok_and(|record| record.autostart);
    Ok(context.store.names()?.iter().any(has))
}

/// The VMs that run. Clones that wait in the pool are not among them.
pub(crate) fn running(context: &Context) -> Result<Selected> {
    let mut selected = Selected::default();
    for name in context.store.names()? {
        match status::is_running(context, &name) {
            Ok(false) => {}
            // A record that cannot be read is no reason to leave a guest running.
            Ok(true) => match context.store.load(&name) {
                Ok(record) if record.is_standby() => {}
                Ok(record) => match record.ephemeral.and_then(|ephemeral| ephemeral.owner) {
                    Some(owner) if owner::is_alive(&owner) => selected.owned.push(name),
                    Some(_) => selected.abandoned.push(name),
                    None => selected.names.push(name),
                },
                Err(_) => selected.names.push(name),
            },
            Err(error) => selected.unclear.push(
                Error::new(error.kind(), format!("cannot determine whether {name} runs"))
                    .because(error.full_message()),
            ),
        }
    }
    Ok(selected)
}
