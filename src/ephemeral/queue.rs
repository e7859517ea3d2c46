//! How many runs go on at once: no more than the host has memory for, and no more than was said.
//! Who has to wait queues up, and is told for what.
//!
//! Every run holds a *slot*, a file with its memory's size in it, locked with flock(2); the kernel
//! frees it however the run ends. One at a time looks for a free slot, and holds `queue.lock`
//! meanwhile; the others wait for that.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::human;
use crate::store::{make_directory, open_lock};
use crate::sys::{flock, space};

/// How often it is looked whether a slot is free. flock tells no event for one of several.
const LOOK: Duration = Duration::from_millis(20);
/// What the host keeps for itself: a tenth of its memory.
const OWN: u64 = 10;

/// The right to run, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Slot {
    _lock: File,
}

/// How many bytes of memory the host has for guests.
pub(crate) fn room() -> u64 {
    let total = space::memory().unwrap_or(u64::MAX);
    total - total / OWN
}

/// Waits for a slot for a VM with so much memory. `most` runs go on at once at most, if it is said.
pub(crate) async fn enter(context: &Context, memory_bytes: u64, most: Option<u32>) -> Result<Slot> {
    let room = room();
    if memory_bytes > room {
        return Err(Error::refused(format!(
            "the guest has {} of memory, and the host has {} for guests",
            human(memory_bytes),
            human(room)
        ))
        .hint("give the template less memory, or the host more"));
    }
    context.prepare_store()?;
    let directory = context.store.layout.slots();
    make_directory(&directory)?;
    let queue = directory.join("queue.lock");
    let first = open_lock(&queue)?;
    let mut told = None;
    while !flock::try_exclusive(&first).on("lock", &queue)? {
        tell(context, &mut told, "waiting for the runs that came before");
        tokio::time::sleep(LOOK).await;
    }
    loop {
        let (mut taken, mut bytes, mut free) = (0, 0, None);
        for number in 0.. {
            let path: PathBuf = directory.join(format!("{number}.lock"));
            if !path.exists() && free.is_some() {
                break;
            }
            let mut file = open_lock(&path)?;
            if !flock::try_exclusive(&file).on("lock", &path)? {
                taken += 1;
                bytes += size(&mut file);
            } else if free.is_none() {
                free = Some((path, file));
            }
        }
        let Some((path, mut file)) = free else { continue };
        if most.is_some_and(|most| taken >= most) {
            tell(
                context,
                &mut told,
                &format!("waiting for one of {taken} runs to end (--max-parallel)"),
            );
        } else if bytes + memory_bytes > room {
            let (bytes, room) = (human(bytes), human(room));
            tell(
                context,
                &mut told,
                &format!("waiting for memory: {taken} runs have {bytes} of {room}"),
            );
        } else {
            let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
            written.and_then(|_| write!(file, "{memory_bytes}")).on("write", &path)?;
            return Ok(Slot { _lock: file });
        }
        drop(file);
        tokio::time::sleep(LOOK).await;
    }
}

fn size(file: &mut File) -> u64 {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(64).read_to_string(&mut text));
    read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or_default()
}

fn tell(context: &Context, told: &mut Option<String>, words: &str) {
    if told.as_deref() != Some(words) {
        context.ui.note(words);
        *told = Some(words.to_owned());
    }
}
