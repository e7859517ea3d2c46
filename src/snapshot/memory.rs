//! Whether the memory of a snapshot can be taken up again, and whether there is room for it.

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::{boot_files, fingerprint};
use crate::model::{Config, Memory, Name, PointRef, Record, Snapshot, human};
use crate::sys::space;

/// What an overlay, the journal and the record take, at most.
const SMALL: u64 = 1 << 20;

/// Refuses memory that the QEMU of here and now could not take up, naming the difference. `after`
/// is the VM as it would be.
pub(crate) fn check(
    context: &Context,
    vm: &Name,
    after: &Record,
    snapshot: &Snapshot,
    memory: &Memory,
) -> Result<()> {
    let point = PointRef { vm: vm.clone(), snapshot: Some(snapshot.name.clone()) };
    let cold = format!(
        "take back the disks alone, and let the guest boot: cowhand snapshot revert {point} --cold"
    );
    boot_files::check_isos(&after.config).map_err(|error| error.hint(cold.clone()))?;
    if let Some(difference) = memory.writer.difference(&fingerprint::planned(context, vm, after)?) {
        return Err(Error::refused(format!(
            "the memory of {point} cannot be taken up: {difference}"
        ))
        .hint(cold));
    }
    if let Some(image) = &memory.image {
        let path = context.store.layout.ram(image);
        let length = std::fs::metadata(&path).map(|about| about.len());
        if !length.is_ok_and(|length| length == memory.bytes) {
            let error = Error::damaged(format!(
                "the memory of {point} is missing or cut short: {}",
                path.display()
            ));
            return Err(error.hint(cold));
        }
    }
    Ok(())
}

/// Refuses a snapshot there is no room for: overlays, and memory of which no more can be written
/// than QEMU has in use.
pub(crate) fn check_space(context: &Context, config: &Config, qemu: Option<i32>) -> Result<()> {
    let overlays = SMALL * (1 + config.writable().count() as u64);
    let memory =
        qemu.map_or(0, |pid| space::resident(pid).unwrap_or(u64::MAX).min(config.memory_bytes));
    let root = context.store.layout.root();
    let free = space::free(root).on("look at the file system of", root)?;
    if free >= overlays + memory {
        return Ok(());
    }
    let parts = if memory > 0 {
        format!(" (overlays {}, memory up to {})", human(overlays), human(memory))
    } else {
        String::new()
    };
    Err(Error::refused(format!(
        "{} has {} free, and the snapshot may need {}{parts}",
        root.display(),
        human(free),
        human(overlays + memory)
    ))
    .hint("make room: cowhand gc --older-than 0    empties the trash"))
}
