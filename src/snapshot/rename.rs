//! Giving a snapshot another name.

use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Name, PointRef};

/// Renames `vm@old` to `vm@new`.
pub(crate) async fn rename(context: &Context, vm: &Name, old: &Name, new: &Name) -> Result<()> {
    let mut opened = OpenVm::for_change(context, vm, "rename a snapshot of").await?;
    let record = &mut opened.record;
    let old = record.snapshot(vm, old)?.name.clone();
    if new.as_str() == PointRef::CURRENT {
        return Err(Error::usage(
            "a snapshot cannot be called \"current\": \
             that is how the one under the head is addressed",
        ));
    }
    if record.snapshots.iter().any(|snapshot| snapshot.name == *new) {
        return Err(Error::exists(format!("{vm} has a snapshot {new} already")));
    }
    let renamed = |name: &mut Name| {
        if *name == old {
            name.clone_from(new);
        }
    };
    for snapshot in &mut record.snapshots {
        renamed(&mut snapshot.name);
        snapshot.parent.as_mut().map(renamed);
    }
    record.current.as_mut().map(renamed);
    opened.save()
}
