//! The memory of snapshots: it has to be there, as long as it was when it was written.

use std::path::{Path, PathBuf};

use super::{Finding, Remedy};
use crate::error::Result;
use crate::model::{Memory, Name, RamImage, Record, Snapshot};
use crate::store::{Store, plain};

/// What the file's size was rounded to.
const ROUNDING: u64 = 1 << 20;

/// The snapshots whose memory is not what was written.
pub(super) fn examine(store: &Store, name: &Name, record: &Record) -> Vec<Finding> {
    let look = |snapshot: &Snapshot| {
        let memory = snapshot.memory.as_ref()?;
        let image = memory.image.as_ref()?;
        let is_torn = !is_whole(&store.layout.ram(image), memory);
        is_torn.then(|| describe(store, name, snapshot, memory, image))
    };
    record.snapshots.iter().filter_map(look).collect()
}

fn describe(
    store: &Store,
    name: &Name,
    snapshot: &Snapshot,
    memory: &Memory,
    image: &RamImage,
) -> Finding {
    let point = format!("{name}@{}", snapshot.name);
    if in_trash(store, memory, image).is_some() {
        let about = format!("the memory of {point} is missing; it is in the trash");
        return Finding::fail("memory", about)
            .of(name)
            .hint(format!("cowhand doctor {name} --repair    takes it out again"))
            .remedy(Some(Remedy::RestoreMemory { vm: name.clone(), image: image.clone() }));
    }
    Finding::fail(
        "memory",
        format!("the memory of {point} is missing or cut short; its disks are not"),
    )
    .of(name)
    .hint(format!("go back to the disks alone: cowhand snapshot revert {point} --stopped"))
}

/// Takes memory that a snapshot in `record` lacks out of the trash. `false`: none does, or it is
/// not there.
pub(super) fn take_out(store: &Store, record: &Record, image: &RamImage) -> Result<bool> {
    let mut memories = record.snapshots.iter().filter_map(|snapshot| snapshot.memory.as_ref());
    let memory = memories.find(|memory| memory.image.as_ref() == Some(image));
    let Some(trash) = memory.and_then(|memory| in_trash(store, memory, image)) else {
        return Ok(false);
    };
    store.move_memory(&trash, image, true)?;
    Ok(true)
}

/// The directory of the trash that has this memory, where there is nothing in its place.
fn in_trash(store: &Store, memory: &Memory, image: &RamImage) -> Option<PathBuf> {
    if plain::is_there(&store.layout.ram(image)) {
        return None;
    }
    let found = store.list_trash().ok()?.into_iter().find(|found| {
        let file = found.path.join("ram").join(image.file_name());
        found.entry.is_ok() && is_whole(&file, memory)
    })?;
    Some(found.path)
}

/// Is the file at `path` as long as what was written?
fn is_whole(path: &Path, memory: &Memory) -> bool {
    path.metadata().is_ok_and(|about| about.is_file() && about.len() + ROUNDING > memory.bytes)
}
