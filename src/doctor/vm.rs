//! One VM or template: its record, its journal, its snapshots, and what else it needs to start.

use jiff::Timestamp;

use super::{Finding, Remedy, chain, running, store};
use crate::change::lost::{self, Lost};
use crate::change::open;
use crate::change::{Planned, recover};
use crate::context::Context;
use crate::ephemeral::discard::{self, Dates};
use crate::error::{Error, IoContext, Kind, Result};
use crate::instance::{boot_files, status};
use crate::layer::pool::{Misfit, Pool};
use crate::layer::stamp;
use crate::model::{Layer, LayerId, Memory, Name, PORTS, Record, Role, State};
use crate::qemu::probe::Probe;
use crate::store::journal::Journal;
use crate::sys::flock;
use crate::warm::resume;

/// Chains deeper than this make every read of old data slow.
const DEEP: usize = 50;
/// More snapshots than this are hard to keep in mind.
const MANY: usize = 100;
/// Snapshots older than this, in days, are mostly forgotten ones.
const OLD: i64 = 180;

/// Looks at it.
pub async fn examine(context: &Context, pool: &Pool, name: &Name) -> Result<Vec<Finding>> {
    let mut findings = misplaced(context, name);
    findings.extend(look(context, pool, name).await?);
    Ok(findings)
}

/// What lies in the place of one of its files, and is none. Of its record, its spare copy and its journal more is to be said.
fn misplaced(context: &Context, name: &Name) -> Vec<Finding> {
    let layout = &context.store.layout;
    let mut files = vec![
        ("locks", layout.lock(name)),
        ("locks", layout.run_lock(name)),
        ("locks", layout.agent_lock(name)),
        ("logs", layout.qemu_log(name)),
        ("logs", layout.older_qemu_log(name)),
        ("logs", layout.serial_log(name)),
        ("template", layout.sums(name)),
    ];
    files.extend((0..PORTS).map(|index| ("locks", layout.port_lock(name, index))));
    let of = |(check, path)| Some(store::of_misplaced(&context.store, check, path)?.of(name));
    files.into_iter().filter_map(of).collect()
}

async fn look(context: &Context, pool: &Pool, name: &Name) -> Result<Vec<Finding>> {
    let store = &context.store;
    let lock = store.layout.lock(name);
    let busy = flock::is_held(&lock).on("look at the lock", &lock)?;
    if !store.exists(name) {
        return without_record(context, name, busy).map(|finding| vec![finding]);
    }
    let mut findings = Vec::new();
    // While somebody is at work, it says what is not so yet.
    let journal = if busy { Journal::<Planned>::load(store, name) } else { recover::load(context, name) };
    let record = match store.load(name) {
        Ok(record) => record,
        // It was removed or renamed while it was looked at.
        Err(error) if error.kind() == Kind::NotFound => return Ok(findings),
        Err(error) => {
            findings.push(match error.kind() {
                Kind::Damaged if !error.is_newer() => unreadable(context, pool, name, error.full_message()).await,
                _ => {
                    let hint = error.hints().first().cloned().unwrap_or_default();
                    Finding::fail("record", error.full_message()).of(name).hint(hint)
                }
            });
            return Ok(findings);
        }
    };
    match journal {
        Ok(Some(journal)) if busy => {
            findings.push(Finding::info("journal", format!("`{}` is at work on it", journal.operation)).of(name));
            return Ok(findings);
        }
        Ok(Some(journal)) => {
            let is_paused = status::observe(context, name).await.is_ok_and(|status| status.state == State::Paused);
            let paused = if is_paused { ", and its guest is paused" } else { "" };
            findings.push(
                Finding::warn("journal", format!("`{}` was cut short{paused}", journal.operation))
                    .of(name)
                    .hint("the next command that changes it undoes or completes that; or: cowhand doctor --repair")
                    .remedy(Some(Remedy::Recover(name.clone()))),
            );
            return Ok(findings);
        }
        Ok(None) if busy => {
            findings.push(Finding::info("journal", "another command is at work on it").of(name));
            return Ok(findings);
        }
        Ok(None) => {}
        Err(error) if error.kind() != Kind::Damaged || error.is_newer() => {
            let hint = error.hints().first().cloned().unwrap_or_default();
            findings.push(Finding::fail("journal", error.full_message()).of(name).hint(hint));
            return Ok(findings);
        }
        Err(error) => {
            let finding = Finding::fail("journal", error.full_message()).of(name);
            findings.push(match whole(context, pool, name, &record).await {
                Ok(()) => finding
                    .hint("it is whole without it: cowhand doctor --repair    moves the journal into the trash")
                    .remedy(Some(Remedy::SetJournalAside(name.clone()))),
                Err(_) if later(context, pool, name, &record).is_some() => finding
                    .hint("cowhand doctor --repair    moves it into the trash, and takes the layers above its disks for their heads")
                    .remedy(Some(Remedy::Adopt(name.clone()))),
                Err(why) => finding.hint(format!("and it cannot be done without: {why}")),
            });
            return Ok(findings);
        }
    }
    findings.extend(spare_copy(context, name));
    findings.extend(chain::examine(context, name, &record));
    findings.extend(needs(context, name, &record));
    findings.extend(snapshots(context, name, &record));
    findings.extend(memories(context, name, &record));
    findings.extend(template(context, name, &record));
    findings.extend(warm_guest(context, name, &record));
    if discard::is_over(context, name, Dates::Counted) {
        findings.push(
            Finding::info("leftovers", "it was not to stay, and its time is over or whoever made it has ended")
                .of(name)
                .hint("the next `cowhand run` removes it; or: cowhand gc"),
        );
    }
    let status = status::observe(context, name).await?;
    let misfit = pool.misfit(name, &record).filter(|_| !status.state.is_live());
    let overruled = open::refuse_overruled(context, name, &record).err();
    if misfit.is_some() || overruled.is_some() {
        findings.push(wrong(context, pool, name, &record, misfit, overruled).await);
    }
    if status.state.is_live() {
        findings.extend(running::examine(context, name, &record, &status).await);
    } else if status.state == State::Crashed && record.ephemeral.is_some() {
        findings.push(
            Finding::info("sockets", "it was not to stay, and its QEMU has ended")
                .of(name)
                .hint("the next run removes it, if its command has ended or its time is over; at once: cowhand gc"),
        );
    } else if status.state == State::Crashed {
        findings.push(
            Finding::info("sockets", "its last QEMU did not end in order, and has left its sockets behind")
                .of(name)
                .hint(format!("the next start clears them: cowhand start {name}; or: cowhand doctor --repair"))
                .remedy(Some(Remedy::ClearSockets(name.clone()))),
        );
    }
    if findings.iter().all(|finding| finding.level == super::Level::Info) {
        findings.insert(
            0,
            Finding::ok(
                "record",
                format!(
                    "{}, chains whole; contents are looked at by: cowhand disk check {name}",
                    status.state.as_str()
                ),
            )
            .of(name),
        );
    }
    Ok(findings)
}

/// What is said of a directory that has neither a record nor a spare copy.
fn without_record(context: &Context, name: &Name, busy: bool) -> Result<Finding> {
    let store = &context.store;
    if busy {
        return Ok(Finding::info("record", "a command is making it just now").of(name));
    }
    let missing = |layers: &[Layer]| {
        Finding::fail("record", lost::missing(name, layers)).of(name).hint(format!(
            "put its vm.json back from a backup; if there never was such a VM: cowhand rm --force {name}"
        ))
    };
    match recover::load(context, name) {
        Err(error) => {
            let is_newer = error.is_newer();
            let finding = Finding::warn("journal", error.full_message()).of(name);
            return Ok(match is_newer {
                true => finding.hint("use that version; nothing is changed by this one"),
                false => finding
                    .hint(format!("no VM needs it: cowhand doctor {name} --repair    moves it into the trash"))
                    .remedy(Some(Remedy::Sweep(name.clone()))),
            });
        }
        Ok(Some(journal)) if !lost::makes_its_vm(&journal) => return Ok(missing(&journal.pins)),
        Ok(Some(_)) => {}
        Ok(None) => match lost::look(store)? {
            Lost::Layers(layers) => return Ok(missing(&layers)),
            Lost::Nothing => {}
            Lost::Unknown => {
                return Ok(Finding::warn(
                    "leftovers",
                    "it has no record: a command that was making it has died, or the record is lost",
                )
                .of(name)
                .hint("while it is uncertain who uses which layer, it stays; put right first what is said of others"));
            }
        },
    }
    Ok(Finding::warn("leftovers", "it never came to be: a command that was making it has died")
        .of(name)
        .hint("the next command that makes or removes something clears it up; or: cowhand doctor --repair")
        .remedy(Some(Remedy::Sweep(name.clone()))))
}

/// What is said of a record that is not the last one, and what can be done about it.
async fn wrong(
    context: &Context,
    pool: &Pool,
    name: &Name,
    record: &Record,
    misfit: Option<Misfit>,
    overruled: Option<Error>,
) -> Finding {
    let about = match (&misfit, &overruled) {
        (Some(misfit), _) => format!("{misfit}: it is not the last record, and starting it is refused"),
        (None, overruled) => overruled.as_ref().map(Error::full_message).unwrap_or_default(),
    };
    let finding = Finding::fail("record", about).of(name);
    let spare = context.store.load_spare(name).and_then(Result::ok);
    if let Some(spare) = &spare
        && whole(context, pool, name, spare).await.is_ok()
        && overruled.is_some()
    {
        return finding
            .hint(format!("cowhand doctor {name} --repair    puts its spare copy in its place"))
            .remedy(Some(Remedy::RestoreRecord(name.clone())));
    }
    if misfit.is_some() && later(context, pool, name, record).is_some() {
        return finding
            .hint(format!("cowhand doctor {name} --repair    takes the layers above its disks for their heads; snapshots of theirs have no name any more"))
            .remedy(Some(Remedy::Adopt(name.clone())));
    }
    if overruled.is_some() && whole(context, pool, name, record).await.is_ok() {
        return finding
            .hint(format!("what its spare copy names is not whole, and it is: cowhand doctor {name} --repair    moves the spare copy into the trash"))
            .remedy(Some(Remedy::SetSpareAside(name.clone())));
    }
    finding.hint("put the right vm.json back; vm.json.spare beside it may be it")
}

/// A spare copy that would be of no use.
fn spare_copy(context: &Context, name: &Name) -> Option<Finding> {
    let error = context.store.load_spare(name)?.err()?;
    // It was renamed meanwhile.
    if !context.store.layout.vm_json(name).exists() {
        return None;
    }
    let path = context.store.layout.spare_json(name);
    let mut about = format!("the spare copy of its record cannot be used: {}", error.full_message());
    if !about.contains(&path.display().to_string()) {
        about.push_str(&format!(": {}", path.display()));
    }
    let finding = Finding::info("record", about).of(name);
    Some(match error.is_newer() {
        true => finding.hint("use that version; nothing is changed by this one"),
        false => finding
            .hint("the next command that changes it writes it anew; or: cowhand doctor --repair")
            .remedy(Some(Remedy::RenewSpare(name.clone()))),
    })
}

async fn unreadable(context: &Context, pool: &Pool, name: &Name, why: String) -> Finding {
    let finding = Finding::fail("record", why).of(name);
    if let Some(record) = context.store.load_of_another_store(name)
        && !matches!(context.store.load_spare(name), Some(Ok(_)))
    {
        return match whole(context, pool, name, &record).await {
            Ok(()) => finding
                .hint(format!("it fits the layers that are here: cowhand doctor {name} --repair    takes the VM over into this store"))
                .remedy(Some(Remedy::TakeOver(name.clone()))),
            Err(why) => finding.hint(format!("it does not fit what is here: {why}; put the right vm.json back")),
        };
    }
    let unnamed = pool.layers.keys().filter(|id| pool.uses(id).is_empty() && pool.children(id).next().is_none());
    let unnamed: Vec<&str> = unnamed.map(LayerId::as_str).collect();
    let whose = match unnamed.is_empty() {
        true => String::new(),
        false => format!("; layers that nobody names may be its: {}", unnamed.join(", ")),
    };
    let by_hand = format!("mend the file by hand, or: cowhand rm --force {name} (its layers stay until gc){whose}");
    let spare = match context.store.load_spare(name) {
        Some(Ok(spare)) => spare,
        Some(Err(error)) => {
            return finding.hint(format!("its spare copy cannot be used: {}; {by_hand}", error.full_message()));
        }
        None => return finding.hint(format!("there is no spare copy; {by_hand}")),
    };
    match whole(context, pool, name, &spare).await {
        Ok(()) => finding
            .hint(format!("cowhand doctor {name} --repair    puts its spare copy in its place"))
            .remedy(Some(Remedy::RestoreRecord(name.clone()))),
        Err(why) => finding.hint(format!("its spare copy does not fit: {why}; mend the file by hand")),
    }
}

/// Does this record fit what is there? Every layer it names is there, nothing stands on the layers its guest writes to, nobody else has them, and a
/// running QEMU is on them. Otherwise, why not.
pub async fn whole(context: &Context, pool: &Pool, name: &Name, record: &Record) -> Result<(), String> {
    for layer in record.layers() {
        chain::read(&context.store, layer).map_err(|error| error.full_message())?;
    }
    if let Some(misfit) = pool.misfit(name, record) {
        return Err(misfit.to_string());
    }
    if status::is_running(context, name).map_err(|error| error.full_message())? {
        running::agrees(context, name, record).await?;
    }
    Ok(())
}

/// The layers that the disks of `record` were going on in when it was replaced by an older one, where that is beyond doubt: nobody has written to
/// the older ones since. `None`: it is in doubt, or there are none.
pub fn later(context: &Context, pool: &Pool, name: &Name, record: &Record) -> Option<Vec<(String, Layer)>> {
    let written =
        |layer: &Layer| std::fs::metadata(context.store.layout.layer(layer)).and_then(|about| about.modified()).ok();
    let mut found = Vec::new();
    for disk in record.config.writable() {
        let id = &disk.layer.id;
        if pool.uses(id).iter().any(|r#use| r#use.owner() != name) {
            return None;
        }
        if pool.children(id).next().is_some() {
            let later = pool.later_head(id)?;
            if written(&disk.layer)? > written(&later)? {
                return None;
            }
            found.push((disk.target.clone(), later));
        }
    }
    (!found.is_empty()).then_some(found)
}

/// What else it needs to start.
fn needs(context: &Context, name: &Name, record: &Record) -> Option<Finding> {
    if record.is_template() {
        return None;
    }
    let kernel = record.config.kernel.as_ref().map_or(Ok(()), boot_files::check_kernel);
    let machine = Probe::get(context).and_then(|probe| probe.machine(&record.config.machine).map(drop));
    let media = boot_files::check_isos(&record.config);
    let error = machine.and(kernel).and(media).err()?;
    let hint = error.hints().first().cloned().unwrap_or_default();
    Some(Finding::fail("start", format!("it cannot start: {}", error.full_message())).of(name).hint(hint))
}

fn snapshots(context: &Context, name: &Name, record: &Record) -> Vec<Finding> {
    let mut findings = Vec::new();
    let now = Timestamp::now();
    let expired = record.snapshots.iter().filter(|snapshot| snapshot.expires.is_some_and(|at| at <= now)).count();
    if expired > 0 {
        let finding = Finding::info("snapshots", format!("{expired} snapshots have expired"));
        findings.push(finding.of(name).hint("cowhand gc    removes them"));
    }
    if record.snapshots.len() > MANY {
        let finding = Finding::info("snapshots", format!("it has {} snapshots", record.snapshots.len()));
        findings.push(finding.of(name).hint(format!("which: cowhand snapshot tree {name}")));
    }
    if let Some(oldest) = record.snapshots.iter().min_by_key(|snapshot| snapshot.created) {
        let days = now.duration_since(oldest.created).as_hours() / 24;
        if days > OLD {
            let finding = Finding::info("snapshots", format!("snapshot {} is {days} days old", oldest.name));
            findings
                .push(finding.of(name).hint(format!("if nobody needs it: cowhand snapshot rm {name}@{}", oldest.name)));
        }
        if days < 0 {
            findings.push(
                Finding::info(
                    "clock",
                    format!("snapshot {} was taken in the future, by this host's clock", oldest.name),
                )
                .of(name),
            );
        }
    }
    let depth = |layer| chain::read(&context.store, layer).map_or(0, |chain| chain.links().len());
    if let Some((target, depth)) =
        record.config.volumes().map(|disk| (&disk.target, depth(&disk.layer))).max_by_key(|(_, depth)| *depth)
        && depth > DEEP
    {
        let finding =
            Finding::warn("snapshots", format!("{target} stands on {depth} layers, which makes reading slow"));
        findings.push(finding.of(name).hint(format!(
            "remove snapshots nobody needs (cowhand snapshot tree {name}), or copy it all into one: cowhand flatten {name}"
        )));
    }
    findings
}

fn warm_guest(context: &Context, name: &Name, record: &Record) -> Option<Finding> {
    let difference = resume::misfit(context, name, record, record.warm.as_ref()?).ok()??;
    Some(Finding::warn("warm", format!("its warm guest cannot be gone on from: {difference}")).of(name).hint(format!(
        "clones boot instead; to warm it anew: cowhand template cool {name} && cowhand template warm {name}"
    )))
}

/// What the file's size was rounded to.
const ROUNDING: u64 = 1 << 20;

/// The snapshots whose memory is not what was written.
fn memories(context: &Context, name: &Name, record: &Record) -> Vec<Finding> {
    let is_whole = |memory: &Memory| {
        let path = memory.image.as_ref().map(|image| context.store.layout.ram(image));
        path.is_none_or(|path| path.metadata().is_ok_and(|about| about.len() + ROUNDING > memory.bytes))
    };
    let torn = record.snapshots.iter().filter(|snapshot| !snapshot.memory.as_ref().is_none_or(is_whole));
    torn.map(|snapshot| {
        let point = format!("{name}@{}", snapshot.name);
        Finding::fail("memory", format!("the memory of {point} is missing or cut short; its disks are not"))
            .of(name)
            .hint(format!("go back to the disks alone: cowhand snapshot revert {point} --stopped"))
    })
    .collect()
}

fn template(context: &Context, name: &Name, record: &Record) -> Option<Finding> {
    let Role::Template { stamps, .. } = &record.role else { return None };
    let layer = stamp::changed(&context.store, stamps)?;
    Some(
        Finding::fail(
            "template",
            format!("layer {layer} was changed after it was frozen; what its clones see may have changed with it"),
        )
        .of(name)
        .hint("nothing here ever writes to it: bring it back from a backup, or make a new template and new clones"),
    )
}
