//! Small changes: rename, set, pause, resume.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::requirements;
use crate::change::OpenVm;
use crate::cloudinit;
use crate::context::Context;
use crate::ephemeral;
use crate::error::{Error, IoContext, Result};
use crate::instance::{boot_files, limits, logs, status};
use crate::model::{
    Bus, Config, Ephemeral, KernelBoot, LONGEST_CREDENTIALS, Limits, LogLimit, Name, Network, Nic,
    Record, Seed, Snapshot, bus, parse_age, parse_size,
};
use crate::qemu::probe::Probe;
use crate::store::trash::{self, Entry};
use crate::store::{Store, plain};

/// A guest that was let go on although its disk still has an error stops again within this time.
const TRIED_AGAIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(50);

/// The keys of [`set`], for messages and help.
pub(crate) const KEYS: &str = "memory, cpus, cpu, machine, kernel, initrd, append, ports, net, \
                        disk.TARGET.bus, disk.TARGET.serial, cloud-init, hostname, \
                        credential.NAME, autostart, expires, limit.io, \
                        limit.iops, log.max, tag.KEY";
/// How the changes begin that a running VM allows.
const WHILE_RUNNING: [&str; 5] = ["tag.", "autostart=", "expires=", "limit.", "log.max="];

/// Renames a stopped VM, or a template. Clones remember their source by its UUID, so they follow.
pub(crate) async fn rename(context: &Context, old: &Name, new: &Name) -> Result<()> {
    let store = &context.store;
    let _store_lock = context.lock_store_for(&[old]).await?;
    let vm = OpenVm::open(context, old).await?;
    vm.refuse_running("rename")?;
    if plain::is_there(&store.layout.vm(new)) {
        return Err(Error::exists(format!("the name {new} is taken"))
            .hint("choose another, or see what is there: cowhand ls -a"));
    }
    store.rename(old, new, &vm.record)
}

/// Changes the configuration of a VM: all of `changes` (`KEY=VALUE`), or none. What concerns its
/// machine, only while it does not run.
pub(crate) async fn set(context: &Context, name: &Name, changes: &[String]) -> Result<()> {
    let mut vm = OpenVm::for_change(context, name, "change").await?;
    let (before, mut record) = (vm.record.clone(), vm.record.clone());
    for change in changes {
        let (key, value) = change.split_once('=').ok_or_else(|| {
            Error::usage(format!("{change:?} is not KEY=VALUE")).hint(format!("keys: {KEYS}"))
        })?;
        match key {
            "machine" => {
                record.config.machine = Probe::get(context)?.machine(value)?;
                requirements::check_machine_type(&record.config.machine)?;
                forget_places(context, name, &mut record.config);
            }
            _ => apply(&mut record, key, value)?,
        }
    }
    if !changes.iter().all(|change| WHILE_RUNNING.iter().any(|allowed| change.starts_with(allowed)))
    {
        vm.refuse_running("change")?;
    }
    let config = &record.config;
    requirements::check_machine(config.memory_bytes, config.cpus, config.cpu.as_deref())?;
    if let Some(boot) = &config.kernel {
        boot_files::check_kernel(boot)?;
    }
    config.check_devices()?;
    // Before the record says so: what failed can be done once more.
    if changes.iter().any(|change| change.starts_with("limit."))
        && let Some(qmp) = vm.qmp().await?
    {
        limits::apply(qmp, name, &record.config).await?;
    }
    if record == before {
        return Ok(());
    }
    if record.config.machine != before.config.machine {
        warn_of_memory(context, name, &record);
    }
    save(context, name, &before, &record)?;
    if record.config.log_limit != before.config.log_limit {
        logs::limit_anew(context, name, record.config.log_limit).await?;
    }
    Ok(())
}

/// Saves a changed record, after the one before it has been kept for `undo`.
pub(super) fn save(context: &Context, name: &Name, before: &Record, record: &Record) -> Result<()> {
    let store = &context.store;
    if record.config == before.config && record.autostart == before.autostart {
        return store.save(name, record);
    }
    // For `undo`.
    let trash = store.open_trash(
        &Store::trash_name(&trash::Kind::Set, name),
        &Entry::new(trash::Kind::Set, name, &context.operation).of(before),
    )?;
    store.save_record(&trash.join("vm.json"), name, before)?;
    store.save(name, record)
}

/// A machine with another chipset has other slots.
fn forget_places(context: &Context, name: &Name, config: &mut Config) {
    let is_q35 = config.is_q35();
    for nic in &mut config.nics {
        if let Some(place) = nic.place.take_if(|place| !place.is_possible(is_q35)) {
            context.ui.warn(&format!(
                "the network card {} of {name} leaves PCI slot {place}: the name of its interface \
                 in the guest can change",
                nic.mac
            ));
        }
    }
}

/// Memory can be gone on from only in the machine in which it was saved.
fn warn_of_memory(context: &Context, name: &Name, record: &Record) {
    let other = |snapshot: &&Snapshot| {
        snapshot.memory.is_some() && snapshot.config.machine != record.config.machine
    };
    let points: Vec<String> = record
        .snapshots
        .iter()
        .filter(other)
        .map(|snapshot| format!("{name}@{}", snapshot.name))
        .collect();
    if !points.is_empty() {
        context.ui.warn(&format!(
            "{name} is a {} now; {} hold memory of another machine type, and going back to one \
             brings that type back",
            record.config.machine,
            points.join(", ")
        ));
    }
}

/// What a running guest would notice.
pub(crate) fn machine(config: &Config) -> Config {
    Config {
        tags: BTreeMap::new(),
        limits: Limits::default(),
        log_limit: LogLimit::default(),
        ..config.clone()
    }
}

/// The content of a credential's file.
pub(crate) fn credential(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    // One that is too long is refused as that.
    let limit = u64::try_from(LONGEST_CREDENTIALS).unwrap_or(u64::MAX) + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut content))
        .on("read", path)?;
    Ok(content)
}

fn apply(record: &mut Record, key: &str, value: &str) -> Result<()> {
    let config = &mut record.config;
    let text = || (!value.is_empty()).then(|| value.to_owned());
    match key {
        "memory" => config.memory_bytes = parse_size(value)?,
        "cpus" => {
            config.cpus = value
                .parse()
                .map_err(|_| Error::usage(format!("{value:?} is not a number of CPUs")))?
        }
        "cpu" => config.cpu = text(),
        "kernel" => match text() {
            Some(kernel) => {
                boot(record, true)?.kernel =
                    std::path::absolute(&kernel).on("find", kernel.as_ref())?
            }
            None => config.kernel = None,
        },
        "initrd" => {
            let initrd = text()
                .map(|path| std::path::absolute(&path).on("find", path.as_ref()))
                .transpose()?;
            boot(record, false)?.initrd = initrd;
        }
        "append" => boot(record, false)?.append = text(),
        "cloud-init" => {
            let before = config.seed.take().and_then(|seed| seed.hostname);
            if let Some(documents) = text() {
                let request = cloudinit::request::Request {
                    documents: Some(documents.into()),
                    ..Default::default()
                };
                config.seed =
                    request.seed()?.map(|seed| Seed { hostname: seed.hostname.or(before), ..seed });
            }
        }
        "hostname" => {
            let Some(seed) = &mut config.seed else {
                return Err(Error::refused(
                    "cloud-init is told nothing in its guest, so nothing would take up the name",
                )
                .hint("tell it something: cloud-init=FILE"));
            };
            seed.hostname = text();
            if let Some(hostname) = &seed.hostname {
                cloudinit::request::check_hostname(hostname)?;
            }
        }
        _ if key.starts_with("credential.") => {
            let name = &key["credential.".len()..];
            match text() {
                Some(file) => config.credentials.insert(name, &credential(file.as_ref())?)?,
                None => config.credentials.remove(name),
            }
        }
        _ if key.starts_with("disk.") => disk(config, key, value)?,
        "autostart" => record.autostart = autostart(record, value)?,
        _ if key.starts_with("limit.") => config.limits.set(&key["limit.".len()..], value)?,
        "log.max" => config.log_limit = LogLimit::parse(value)?,
        "ports" => {
            let ports: Vec<_> = value
                .split(',')
                .filter(|port| !port.is_empty())
                .map(str::parse)
                .collect::<Result<_>>()?;
            if config.nics.is_empty() {
                config.nics.push(Nic::new());
            }
            config.nics[0].forward(&ports)?;
        }
        "net" => {
            if config.nics.is_empty() {
                return Err(Error::refused("it has no network card"));
            }
            let network: Network =
                if value.is_empty() { Network::default() } else { value.parse()? };
            config.nics.iter_mut().for_each(|nic| nic.network = network.clone());
        }
        "expires" => {
            if record.ephemeral.as_ref().is_some_and(|ephemeral| ephemeral.owner.is_some()) {
                return Err(Error::refused("it goes with the command that made it").hint(
                    "one that is to stay: cowhand run --keep=NAME …, \
                     or cowhand clone TEMPLATE NAME",
                ));
            }
            if record.ephemeral.is_none() && !value.is_empty() {
                return Err(Error::refused(
                    "it was made to stay, and gc would remove it with all it holds",
                )
                .hint("one that has a date: cowhand clone TEMPLATE NAME --expires AGE"));
            }
            record.ephemeral = match text() {
                Some(age) => Some(Ephemeral {
                    owner: None,
                    expires: Some(ephemeral::from_now(parse_age(&age)?)),
                    standby: false,
                }),
                None => None,
            };
        }
        _ => match key.strip_prefix("tag.").filter(|tag| !tag.is_empty()) {
            Some(tag) => match text() {
                Some(value) => drop(config.tags.insert(tag.to_owned(), value)),
                None => drop(config.tags.remove(tag)),
            },
            None => {
                return Err(Error::usage(format!("there is nothing called {key:?} to set"))
                    .hint(format!("keys: {KEYS}")));
            }
        },
    }
    Ok(())
}

/// `disk.TARGET.bus=BUS`, `disk.TARGET.serial=SERIAL`. The disk keeps its name, by which its
/// snapshots know it.
fn disk(config: &mut Config, key: &str, value: &str) -> Result<()> {
    let unknown = || {
        Error::usage(format!("there is nothing called {key:?} to set"))
            .hint(format!("keys: {KEYS}"))
    };
    let (target, what) = key["disk.".len()..].split_once('.').ok_or_else(unknown)?;
    let bus = || if value.is_empty() { Ok(Bus::default()) } else { value.parse() };
    if let Some(cdrom) =
        config.cdroms.iter_mut().find(|cdrom| cdrom.target == target && what == "bus")
    {
        cdrom.bus = bus()?;
        return Ok(());
    }
    let names: Vec<String> = config.disks.iter().map(|disk| disk.target.clone()).collect();
    let disk = config.disks.iter_mut().find(|disk| disk.target == target).ok_or_else(|| {
        Error::not_found(format!("it has no disk {target}"))
            .hint(format!("its disks: {}", names.join(", ")))
    })?;
    match what {
        "bus" => disk.bus = bus()?,
        "serial" if value.is_empty() => disk.serial = None,
        "serial" => {
            bus::check_serial(value)?;
            disk.serial = Some(value.to_owned());
        }
        _ => return Err(unknown()),
    }
    Ok(())
}

/// `on` or `off`; nothing is `off`. A VM that ends with its command cannot start with the host.
fn autostart(record: &Record, value: &str) -> Result<bool> {
    match value {
        "on" if record.ephemeral.as_ref().is_some_and(|ephemeral| ephemeral.owner.is_some()) => {
            Err(Error::refused("the VM is removed when the command that created it ends").hint(
                "create one that stays: cowhand run --keep=NAME …, or cowhand clone TEMPLATE NAME",
            ))
        }
        "on" => Ok(true),
        "off" | "" => Ok(false),
        _ => Err(Error::usage(format!("{value:?} is neither on nor off"))
            .hint("autostart=on starts the VM with the host, autostart=off does not")),
    }
}

fn boot(record: &mut Record, create: bool) -> Result<&mut KernelBoot> {
    let boot = &mut record.config.kernel;
    if boot.is_none() && create {
        *boot = Some(KernelBoot { kernel: "".into(), initrd: None, append: None });
    }
    boot.as_mut().ok_or_else(|| {
        Error::usage("it boots from its firmware, not from a kernel").hint("say kernel=FILE first")
    })
}

/// Lets the CPUs of a running VM stand still.
pub(crate) async fn pause(context: &Context, name: &Name) -> Result<()> {
    let mut vm = OpenVm::for_change(context, name, "pause").await?;
    vm.running_qmp().await?.run(&qapi::qmp::stop {}).await?;
    Ok(())
}

/// Lets them go on.
pub(crate) async fn resume(context: &Context, name: &Name) -> Result<()> {
    let mut vm = OpenVm::for_change(context, name, "resume").await?;
    let had_io_error = vm.live().await?.is_some_and(|(_, now)| now.status == "io-error");
    vm.running_qmp().await?.cont().await?;
    // What could not be written is tried again at once.
    let deadline = Instant::now() + TRIED_AGAIN;
    while had_io_error && Instant::now() < deadline {
        if status::observe(context, name).await?.has_io_error() {
            return Err(Error::failed(format!(
                "{name} is paused again: one of its disks still cannot be written"
            ))
            .hint(crate::error::MAKE_ROOM));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
