//! The beginning of every change: take the lock, put right what an earlier change left unfinished, read the record.

use super::logs;
use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Name, Record};
use crate::store::VmLock;
use crate::sys::owner;

/// Locks `name`, recovers it and reads its record.
pub async fn open(context: &Context, name: &Name) -> Result<(VmLock, Record)> {
    let lock = context.store.lock_vm(context, name).await?;
    recover::recover(context, &lock).await?;
    let record = context.store.load(name)?;
    logs::keep_limited(context, name, &record).await;
    Ok((lock, record))
}

/// The same, for what a template does not allow: `doing` is the verb for the message.
pub async fn open_vm(context: &Context, name: &Name, doing: &str) -> Result<(VmLock, Record)> {
    let (lock, record) = open(context, name).await?;
    refuse_template(name, &record, doing)?;
    refuse_nobodys(name, &record)?;
    Ok((lock, record))
}

/// What waits in the pool is nobody's VM yet, and what was made for a command that has died is nobody's any more: its guest may be another's double.
pub fn refuse_nobodys(name: &Name, record: &Record) -> Result<()> {
    let owner = record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.owner.as_ref());
    if owner.is_some_and(|owner| !owner::is_alive(owner)) {
        return Err(Error::refused(format!("{name} was made by a command that was killed, and goes with it"))
            .hint("remove what is left: cowhand gc"));
    }
    match &record.origin {
        Some(origin) if record.is_shell() => {
            Err(Error::refused(format!("{name} waits in the pool of {}, for a run to claim it", origin.name))
                .hint(format!("use it: cowhand run {} -- COMMAND", origin.name))
                .hint(format!("or end all that wait: cowhand pool drain {}", origin.name)))
        }
        _ => Ok(()),
    }
}

/// Refuses `doing` something to a template.
pub fn refuse_template(name: &Name, record: &Record, doing: &str) -> Result<()> {
    if record.is_template() {
        return Err(Error::refused(format!("cannot {doing} {name}: it is a template, which never changes"))
            .hint(format!("make a VM of it: cowhand clone {name} NEW")));
    }
    Ok(())
}
