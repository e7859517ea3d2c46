//! Starting a VM from the memory of a warm template: a copy-on-write mapping of one file and a few
//! hundred KiB of device state, instead of a boot.
//!
//! ```text
//! QEMU starts, waiting (`-incoming defer`) ──▶ state is read ──▶ cont ──▶ the helper makes it
//!                                                                 ▲       a guest of its own
//!                                         a standby clone waits here
//! ```
//! The source: QEMU's `x-ignore-shared` migration capability, which leaves the memory out of the
//! stream. The memory file is never written: each QEMU has it mapped privately, and holds a shared
//! flock(2) on it while it lives.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use tokio::time::Instant;

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::guest::identity;
use crate::guest::port::{self, Client, Wire};
use crate::helper::frame;
use crate::instance::launch::Launch;
use crate::instance::{fingerprint, launch, terminate};
use crate::layer::stamp;
use crate::model::{Name, Record, Warm};
use crate::qemu::cmdline::StartMode;
use crate::qemu::probe::Probe;
use crate::qemu::qmp::{Qmp, QmpError};
use crate::store::plain;
use crate::sys::{fault, flock};

/// The name of the state's descriptor in QEMU.
const FD: &str = "cw-state";
/// What both sides of the stream have to be told.
pub(crate) const CAPABILITIES: [&str; 2] = ["events", IGNORE_SHARED];
const IGNORE_SHARED: &str = "x-ignore-shared";
/// How long a guest that goes on may take to say its first word.
const FIRST_WORD: Duration = Duration::from_secs(120);

/// Why `warm`, of the template `name`, cannot be gone on from here and now; `None` when it can.
pub(crate) fn incompatibility(
    context: &Context,
    name: &Name,
    record: &Record,
    warm: &Warm,
) -> Result<Option<String>> {
    let layout = &context.store.layout;
    if warm.helper != frame::VERSION {
        return Ok(Some(format!(
            "its helper speaks version {}, and this program version {}",
            warm.helper,
            frame::VERSION
        )));
    }
    let memory = layout.warm_memory(&warm.image);
    let whole = memory.metadata().is_ok_and(|about| {
        let modified = i128::from(about.mtime()) * 1_000_000_000 + i128::from(about.mtime_nsec());
        about.len() == warm.config.memory_bytes
            && stamp::is_same_time(warm.image.modified_ns.into(), modified)
    });
    if !whole {
        return Ok(Some(format!("{} is missing or was changed", memory.display())));
    }
    let state = layout.warm_state(&warm.image);
    if !state.metadata().is_ok_and(|about| about.len() == warm.image.state_bytes) {
        return Ok(Some(format!("{} is missing or was changed", state.display())));
    }
    let planned = Record { config: warm.config.clone(), ..record.clone() };
    Ok(warm.writer.difference(&fingerprint::planned(context, name, &planned)?))
}

/// Starts a QEMU for `record` and has it read what `warm` has saved: it stands still where the
/// template's guest stood. With `with_us` it is killed when we are.
pub(crate) async fn wake(
    context: &Context,
    name: &Name,
    record: &Record,
    warm: &Warm,
    with_us: bool,
) -> Result<Qmp> {
    let file = context.store.layout.warm_memory(&warm.image);
    let held = plain::open_existing(&file)?;
    if !flock::try_shared(&held).on("lock", &file)? {
        return Err(Error::refused("the template is being cooled just now"));
    }
    let readonly = Probe::get(context)?.readonly_memory;
    let how = StartMode::Warm { file: &file, readonly, leased: &warm.leased };
    let path = context.store.layout.warm_state(&warm.image);
    let state = plain::open_existing(&path)?;
    let mut qmp =
        launch::launch(context, name, record, Launch { how, held: vec![held.into()], with_us })
            .await?;
    let loaded = load(&mut qmp, &state).await;
    alive(context, name, qmp, loaded).await
}

/// Lets the guest that stands still go on, as `name`.
pub(crate) async fn go_on(context: &Context, name: &Name, mut qmp: Qmp) -> Result<()> {
    let failed =
        |source: std::io::Error| Error::failed(format!("{name} cannot go on")).because(source);
    fault::point("a guest, about to go on").map_err(failed)?;
    let going = qmp.cont_until_running().await;
    fault::point("a guest that is not yet one of its own").map_err(failed)?;
    alive(context, name, qmp, going).await.map(drop)
}

/// A QEMU that could not do it is of no use any more.
async fn alive(
    context: &Context,
    name: &Name,
    qmp: Qmp,
    done: std::result::Result<(), QmpError>,
) -> Result<Qmp> {
    match done {
        Ok(()) => Ok(qmp),
        Err(error) => {
            drop(qmp);
            let _ = terminate::kill(context, name).await;
            let words = launch::last_words(context, name).unwrap_or_default();
            Err(Error::qemu(format!("the saved guest cannot go on as {name}"))
                .because(format!("{error} {words}")))
        }
    }
}

async fn load(qmp: &mut Qmp, state: &File) -> std::result::Result<(), QmpError> {
    qmp.set_capabilities(&CAPABILITIES).await?;
    qmp.give_fd(FD, state.as_fd()).await?;
    qmp.migrate_from(FD).await?;
    let migration = qmp.wait_for_migration(|_| {}).await?;
    if !migration.is_complete() {
        return Err(QmpError::Refused {
            command: "migrate-incoming".into(),
            class: migration.status.unwrap_or_default(),
            message: migration.error.unwrap_or_default(),
        });
    }
    // A snapshot of its memory is whole, and says so.
    qmp.set_capability(IGNORE_SHARED, false).await
}

/// Makes the guest that goes on as `name` a guest of its own. Until this has returned nothing of
/// the user's may run in it. A guest whose random generator could not be reseeded is an error: it
/// repeats the random numbers of others.
pub(crate) async fn adopt_identity(
    context: &Context,
    name: &Name,
    record: &Record,
    warm: &Warm,
) -> Result<Client> {
    let deadline = Instant::now() + FIRST_WORD;
    let lock = port::lock_port(context, name, deadline).await?;
    let mut client = Wire::connect(context, name, lock).await?.begin(name, deadline).await?;
    let became = identity::become_(&mut client, name, &warm.config, &record.config).await?;
    if !became.reseeded {
        return Err(Error::refused(format!(
            "the random generator of {name} could not be reseeded, so it would repeat the random \
             numbers of other clones"
        ))
        .hint("start it cold: --cold, or clone without --warm")
        .because(became.problems.join("; ")));
    }
    for problem in became.problems {
        context.ui.warn(&format!("{name}: {problem}"));
    }
    Ok(client)
}
