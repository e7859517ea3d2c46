//! Warm templates: a throw-away clone is booted with its memory in a file, waited for, got ready,
//! and saved as it stands. Clones go on from there.
//!
//! ```text
//! thin clone ─▶ boots, memory in a file ─▶ agent, --ready, idle
//!     ─▶ helper takes down keys, syncs ─▶ stop ─▶ devices saved ─▶ quit
//!     ─▶ its layers are sealed, the files move to ram/,
//!        the template's record names them (the point of no return)
//!     ─▶ clone discarded
//! ```
//! Memory and disks are of the same instant, because `stop` waits for every request that is under
//! way. So nothing is frozen: each clone would have to thaw first.

use std::fs::{File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::change::OpenVm;
use crate::clone::{self, Kind};
use crate::context::Context;
use crate::ephemeral::{self, discard};
use crate::error::{Error, IoContext, Result};
use crate::guest::exec::{self, Request, Stream, Streams};
use crate::guest::identity;
use crate::guest::install::{self, Reached};
use crate::guest::network;
use crate::guest::outcome::Failure;
use crate::guest::port::Client;
use crate::helper::frame;
use crate::instance::launch::Launch;
use crate::instance::{connect, fingerprint, launch, status, terminate};
use crate::model::{
    Config, Fingerprint, GUEST_ADDRESS, LayerId, Limits, Name, Nic, PointRef, Record, Warm,
    WarmImage, bus, human,
};
use crate::qemu::cmdline::StartMode;
use crate::qemu::probe::Probe;
use crate::qemu::qmp::{Qmp, QmpError};
use crate::store::{atomic, make_directory};
use crate::sys::{cpu_time, fault, space};
use crate::template::freeze;
use crate::warm::resume;

const FD: &str = "cw-state";
/// A guest that uses less than this part of a CPU is idle.
const IDLE: f64 = 0.15;
/// How long it is watched, and how often it has to be found idle in a row.
const WATCH: Duration = Duration::from_millis(500);
const TIMES: u32 = 3;
/// How long it may take to become idle; one that never does is saved as it is.
const SETTLE: Duration = Duration::from_secs(60);
/// How long the guest agent may take to tell the guest's addresses.
const ADDRESSES: Duration = Duration::from_secs(30);
/// How soon a readiness command that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// What is left free on the store's file system.
const SPARE: u64 = 64 << 20;
/// How long a throw-away clone may live, whatever becomes of us.
const LIFE: Duration = Duration::from_secs(6 * 3600);

/// How to warm.
#[derive(Debug, Clone)]
pub struct Warming {
    /// A shell command that has to succeed in the guest before it is saved.
    pub ready: Option<String>,
    /// How long the guest may take to boot as far as its agent, and again for the readiness
    /// command.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Warmed {
    /// Bytes on disk.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// Makes the template `name` warm.
pub async fn warm(context: &Context, name: &Name, warming: &Warming) -> Result<Warmed> {
    let began = Instant::now();
    let store = &context.store;
    let record = store.load(name)?;
    check(context, name, &record)?;
    make_directory(&store.layout.rams())?;
    discard::reap(context).await?;
    let clone = ephemeral::name("warm", name)?;
    let ours = ephemeral::ours(LIFE);
    let request = clone::Request {
        source: PointRef { vm: name.clone(), snapshot: None },
        names: vec![clone.clone()],
        kind: Kind::Thin,
        ports: Vec::new(),
        network: None,
        // It boots once, for all of them.
        limits: Some(Limits::default()),
        ephemeral: Some(ours.clone()),
    };
    clone::clone(context, &request).await?;
    let saved = save(context, &clone, warming).await;
    let kept = match saved {
        Ok(saved) => keep(context, name, &record, &clone, saved).await,
        Err(error) => Err(error),
    };
    discard::discard(context, &clone, &ours).await?;
    kept.map(|bytes| Warmed { bytes, took: began.elapsed() })
}

fn check(context: &Context, name: &Name, record: &Record) -> Result<()> {
    if !record.is_template() {
        return Err(Error::refused(format!("{name} is a VM, and only a template can be warm"))
            .hint(format!("make it one: cowhand template create {name} --warm")));
    }
    if record.image().is_some() {
        let error = Error::refused(format!("{name} is an image, and only a template can be warm"));
        return Err(error.hint(format!(
            "make a template of a VM that is based on it: cowhand create NEW --image {name}, \
             cowhand template create NEW --warm"
        )));
    }
    freeze::check_untouched(&context.store, name, record)?;
    if record.warm.is_some() {
        return Err(Error::refused(format!("template {name} is warm already")).hint(format!(
            "to warm it anew: cowhand template cool {name} && cowhand template warm {name}"
        )));
    }
    bus::refuse_memory(name.as_str(), &record.config)?;
    let memory = record.config.memory_bytes;
    let root = context.store.layout.root();
    let free = space::free(root).on("look at the file system of", root)?;
    if free < memory + SPARE {
        return Err(Error::refused(format!(
            "{} has {} free, and the memory of {name} may take {}",
            root.display(),
            human(free),
            human(memory)
        ))
        .hint("make room: cowhand gc --older-than 0    empties the trash"));
    }
    Ok(())
}

/// What is known of a guest that was saved.
struct Saved {
    config: Config,
    writer: Fingerprint,
    kernel: String,
    leased: Vec<usize>,
}

/// Boots the throw-away clone, gets it ready, and leaves its memory and devices in files of its
/// directory.
async fn save(context: &Context, clone: &Name, warming: &Warming) -> Result<Saved> {
    let store = &context.store;
    let vm = OpenVm::open(context, clone).await?;
    let record = vm.record.clone();
    let memory = store.layout.warming_memory(clone);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&memory)
        .on("create", &memory)?;
    file.set_len(record.config.memory_bytes).on("write", &memory)?;
    let launch = Launch { how: StartMode::Warming(&memory), held: Vec::new(), with_us: true };
    drop(launch::launch(context, clone, &record, launch).await?);
    drop(vm);
    let task = context.ui.task(&format!("{clone}: booting"), 0);
    let mut client = match install::reach(context, clone, warming.limit).await? {
        Reached::Helper(client) => client,
        Reached::AgentOnly(why) => {
            return Err(Error::refused(format!(
                "a guest that cannot run the helper cannot be warm: {why}"
            )));
        }
    };
    wait_for_ready(context, clone, &mut client, warming).await?;
    let leased = leased(context, clone, &record.config).await;
    wait_for_idle(context, clone).await?;
    let (_, release) =
        shell(context, clone, &mut client, "uname -r", Duration::from_secs(60)).await?;
    for problem in identity::prepare(&mut client).await? {
        context.ui.warn(&format!("{clone}: {problem}"));
    }
    drop(client);
    drop(task);
    let mut vm = OpenVm::open(context, clone).await?;
    let record = vm.record.clone();
    let mut qmp = vm.take_qmp().await?.ok_or_else(|| connect::not_running(clone))?;
    let writer = fingerprint::fingerprint(&mut qmp, &record.config).await?;
    save_devices(&mut qmp, &store.layout.warming_state(clone)).await?;
    terminate::quit(context, clone, qmp).await?;
    file.sync_all().on("flush", &memory)?;
    Ok(Saved { config: record.config, writer, kernel: release.trim().to_owned(), leased })
}

/// The network cards on which the guest has the address that forwarded ports lead to.
async fn leased(context: &Context, clone: &Name, config: &Config) -> Vec<usize> {
    if config.nics.is_empty() {
        return Vec::new();
    }
    let addresses = match network::addresses(context, clone, ADDRESSES).await {
        Ok(addresses) => addresses,
        Err(error) => {
            context.ui.warn(&format!(
                "{clone}: its addresses are not known, so ports that are forwarded to warm clones \
                 may not be answered: {}",
                error.full_message()
            ));
            return Vec::new();
        }
    };
    let has = |(_, nic): &(usize, &Nic)| {
        addresses
            .iter()
            .any(|(mac, address)| mac.eq_ignore_ascii_case(&nic.mac) && *address == GUEST_ADDRESS)
    };
    config.nics.iter().enumerate().filter(has).map(|(index, _)| index).collect()
}

/// The boot is over when systemd says so, where there is one, and the readiness command succeeds.
async fn wait_for_ready(
    context: &Context,
    clone: &Name,
    client: &mut Client,
    warming: &Warming,
) -> Result<()> {
    let deadline = Instant::now() + warming.limit;
    let booted = "command -v systemctl >/dev/null && [ -d /run/systemd/system ] && systemctl \
                  is-system-running --wait";
    match shell(context, clone, client, booted, warming.limit).await {
        Ok((_, state)) if state.trim() == "degraded" => {
            context.ui.warn(&format!(
                "{clone}: systemd says that not all services have started (degraded)"
            ));
        }
        Ok(_) => {}
        Err(error) => return Err(error),
    }
    let Some(ready) = &warming.ready else { return Ok(()) };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (code, words) = shell(context, clone, client, ready, left.max(AGAIN)).await?;
        if code == 0 {
            return Ok(());
        }
        if left.is_zero() {
            return Err(Error::qemu(format!(
                "the guest was not ready after {} s: `{ready}` exits with {code}",
                warming.limit.as_secs()
            ))
            .because(format!("\"{}\"", words.trim())));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Runs a shell command; its exit code and what it printed.
async fn shell(
    context: &Context,
    clone: &Name,
    client: &mut Client,
    script: &str,
    limit: Duration,
) -> Result<(u8, String)> {
    let request = Request {
        exec: frame::Exec {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            ..Default::default()
        },
        limit: Some(limit),
        ..Default::default()
    };
    let mut text = Vec::new();
    let mut output = |_: Stream, bytes: &[u8]| {
        text.extend_from_slice(bytes);
        Ok(())
    };
    let mut streams = Streams { input: None, control: None, output: &mut output };
    match exec::converse(context, clone, client, &request, &mut streams).await {
        Ok(finished) => Ok((finished.code, String::from_utf8_lossy(&text).into_owned())),
        Err(Failure::Ours(error)) => Err(error),
        Err(Failure::TimedOut | Failure::GoesOn { .. }) => Err(Error::qemu(format!(
            "`{script}` did not end within {} s in the guest",
            limit.as_secs()
        ))),
        Err(Failure::NotFound(words) | Failure::NotExecutable(words)) => Err(Error::qemu(words)),
    }
}

/// What still goes on after a boot would go on in every clone.
async fn wait_for_idle(context: &Context, clone: &Name) -> Result<()> {
    let Some(pid) = status::observe(context, clone).await?.pid else { return Ok(()) };
    let deadline = Instant::now() + SETTLE;
    let mut idle = 0;
    while idle < TIMES && Instant::now() < deadline {
        let before = (Instant::now(), cpu_time::of(pid).unwrap_or_default());
        tokio::time::sleep(WATCH).await;
        let used = cpu_time::of(pid).unwrap_or_default().saturating_sub(before.1);
        idle =
            if used.as_secs_f64() < before.0.elapsed().as_secs_f64() * IDLE { idle + 1 } else { 0 };
    }
    Ok(())
}

async fn save_devices(qmp: &mut Qmp, path: &Path) -> Result<()> {
    let file =
        File::options().write(true).create_new(true).mode(0o600).open(path).on("create", path)?;
    let migrate = async {
        qmp.run(&qapi::qmp::stop {}).await?;
        qmp.set_capabilities(&resume::CAPABILITIES).await?;
        qmp.give_fd(FD, file.as_fd()).await?;
        qmp.migrate_to(FD).await?;
        qmp.wait_for_migration(|_| {}).await
    };
    let migration = migrate.await.map_err(|error: QmpError| {
        Error::qemu("the guest's devices cannot be saved").because(error)
    })?;
    if !migration.is_complete() {
        let why = migration.error.or(migration.status).unwrap_or_default();
        return Err(Error::qemu("the guest's devices cannot be saved")
            .because(format!("QEMU says \"{why}\"")));
    }
    file.sync_all().on("flush", path)
}

/// Gives what was saved to the template.
async fn keep(
    context: &Context,
    name: &Name,
    before: &Record,
    clone: &Name,
    saved: Saved,
) -> Result<u64> {
    let Saved { config, writer, kernel, leased } = saved;
    let store = &context.store;
    let _store_lock = context.lock_store().await?;
    let mut vm = OpenVm::open(context, name).await?;
    let record = &mut vm.record;
    if record.warm.is_some() || record.uuid != before.uuid {
        return Err(Error::refused(format!("{name} was changed meanwhile")));
    }
    let layout = &store.layout;
    let (memory, state) = (layout.warming_memory(clone), layout.warming_state(clone));
    for layer in config.writable().map(|disk| &disk.layer) {
        let path = layout.layer(layer);
        std::fs::set_permissions(&path, Permissions::from_mode(freeze::MODE))
            .on("change", &path)?;
        File::open(&path).and_then(|file| file.sync_all()).on("flush", &path)?;
    }
    // An older QEMU opens it for writing, although it never writes.
    let owner_only = if nix::unistd::geteuid().is_root() || Probe::get(context)?.readonly_memory {
        0o400
    } else {
        0o600
    };
    std::fs::set_permissions(&memory, Permissions::from_mode(owner_only)).on("change", &memory)?;
    std::fs::set_permissions(&state, Permissions::from_mode(0o400)).on("change", &state)?;
    let about = memory.metadata().on("read", &memory)?;
    let image = WarmImage {
        id: LayerId::random(),
        memory_bytes: about.blocks() * 512,
        state_bytes: state.metadata().on("read", &state)?.len(),
        modified_ns: about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec()),
    };
    fault::point("memory, about to be kept").on("rename", &memory)?;
    std::fs::rename(&memory, layout.warm_memory(&image)).on("rename", &memory)?;
    fault::point("the state of devices, about to be kept").on("rename", &state)?;
    std::fs::rename(&state, layout.warm_state(&image)).on("rename", &state)?;
    atomic::sync_directory(&layout.rams())?;
    // The clone had none.
    let config = Config { limits: record.config.limits, ..config };
    let warm = Warm {
        image,
        made: Timestamp::now(),
        writer,
        helper: frame::VERSION,
        kernel,
        pool: 0,
        leased,
        config,
    };
    let bytes = warm.bytes();
    record.warm = Some(warm);
    vm.save()?;
    Ok(bytes)
}
