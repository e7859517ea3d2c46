//! The beginning of every change: take the lock, put right what an earlier change left unfinished, read the record.

use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::logs;
use crate::model::{Name, Record};
use crate::store::{VmLock, how_to_mend};
use crate::sys::owner;

/// Locks `name`, recovers it and reads its record.
pub async fn open(context: &Context, name: &Name) -> Result<(VmLock, Record)> {
    locked(context, context.lock_vm(name).await?).await
}

/// The same of a VM whose lock is held already.
pub async fn locked(context: &Context, lock: VmLock) -> Result<(VmLock, Record)> {
    let name = lock.name();
    recover::recover(context, &lock).await?;
    let record = context.store.load(name)?;
    refuse_overruled(context, name, &record)?;
    logs::keep_limited(context, name, &record).await;
    Ok((lock, record))
}

/// A record that names other layers than its spare copy is not the one that was written last. A change would make it that, and what it does not name nobody's.
pub fn refuse_overruled(context: &Context, name: &Name, record: &Record) -> Result<()> {
    let Some(spare) = context.store.overruling(name, record)? else { return Ok(()) };
    let differs =
        |one: &Record, other: &Record| one.layers().find(|layer| !other.layers().any(|it| it == *layer)).cloned();
    let what = match (differs(record, &spare), differs(&spare, record)) {
        (Some(layer), _) => format!("it names layer {layer}, and its spare copy does not"),
        (None, Some(layer)) => format!("its spare copy names layer {layer}, and it does not"),
        (None, None) => return Ok(()),
    };
    Err(Error::damaged(format!("the record of {name} is not the last one that was written: {what}"))
        .hint(how_to_mend(name))
        .hint(format!("if the record is right: rm {}", context.store.layout.spare_json(name).display())))
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
        return Err(match record.image() {
            None => Error::refused(format!("cannot {doing} {name}: it is a template, which never changes"))
                .hint(format!("make a VM of it: cowhand clone {name} NEW")),
            Some(_) => Error::refused(format!("cannot {doing} {name}: it is an image, which never changes"))
                .hint(format!("make a VM of it: cowhand create NEW --image {name}")),
        });
    }
    Ok(())
}
