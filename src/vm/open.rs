//! The beginning of every change: take the lock, put right what an earlier change left unfinished, read the record.

use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Name, Record};
use crate::store::VmLock;

/// Locks `name`, recovers it and reads its record.
pub async fn open(context: &Context, name: &Name) -> Result<(VmLock, Record)> {
    let lock = context.store.lock_vm(context, name).await?;
    recover::recover(context, &lock).await?;
    let record = context.store.load(name)?;
    Ok((lock, record))
}

/// The same, for what a template does not allow: `doing` is the verb for the message.
pub async fn open_vm(context: &Context, name: &Name, doing: &str) -> Result<(VmLock, Record)> {
    let (lock, record) = open(context, name).await?;
    refuse_template(name, &record, doing)?;
    Ok((lock, record))
}

/// Refuses `doing` something to a template.
pub fn refuse_template(name: &Name, record: &Record, doing: &str) -> Result<()> {
    if record.is_template() {
        return Err(Error::refused(format!("cannot {doing} {name}: it is a template, which never changes"))
            .hint(format!("make a VM of it: cowhand clone {name} NEW")));
    }
    Ok(())
}
