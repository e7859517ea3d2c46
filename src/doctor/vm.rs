//! One VM or template: its journal, its snapshots, and what else it needs to start. Of its record
//! [`record`](super::record) tells, and of its memory [`memory`].

use jiff::Timestamp;

use super::record::{later, spare_copy, unreadable, whole, without_record, wrong};
use super::{Finding, Remedy, chain, memory, running, store};
use crate::change::open;
use crate::change::{Planned, recover};
use crate::context::Context;
use crate::ephemeral::discard::{self, Dates};
use crate::error::{IoContext, Kind, Result};
use crate::instance::{boot_files, status};
use crate::layer::graph::LayerGraph;
use crate::layer::stamp;
use crate::model::{Name, PORTS, Record, Role, State};
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
pub(super) async fn examine(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
) -> Result<Vec<Finding>> {
    let mut findings = misplaced(context, name);
    findings.extend(look(context, graph, name).await?);
    Ok(findings)
}

/// What lies in the place of one of its files, and is none. Of its record, its spare copy and its
/// journal more is to be said.
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

async fn look(context: &Context, graph: &LayerGraph, name: &Name) -> Result<Vec<Finding>> {
    let store = &context.store;
    let lock = store.layout.lock(name);
    let busy = flock::is_held(&lock).on("look at the lock", &lock)?;
    if !store.exists(name) {
        return without_record(context, name, busy).map(|finding| vec![finding]);
    }
    let mut findings = Vec::new();
    // While a command is at work, it says what is not so yet.
    let journal =
        if busy { Journal::<Planned>::load(store, name) } else { recover::load(context, name) };
    let record = match store.load(name) {
        Ok(record) => record,
        // It was removed or renamed while it was looked at.
        Err(error) if error.kind() == Kind::NotFound => return Ok(findings),
        Err(error) => {
            findings.push(match error.kind() {
                Kind::Damaged if !error.is_newer() => {
                    unreadable(context, graph, name, error.full_message()).await
                }
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
            findings.push(
                Finding::info("journal", format!("`{}` is at work on it", journal.command()))
                    .of(name),
            );
            return Ok(findings);
        }
        Ok(Some(journal)) => {
            let is_paused = status::observe(context, name)
                .await
                .is_ok_and(|status| status.state == State::Paused);
            let paused = if is_paused { ", and its guest is paused" } else { "" };
            findings.push(
                Finding::warn("journal", format!("`{}` was cut short{paused}", journal.command()))
                    .of(name)
                    .hint(
                        "the next command that changes it undoes or completes that; or: cowhand \
                         doctor --repair",
                    )
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
            findings.push(match whole(context, graph, name, &record).await {
                Ok(()) => finding
                    .hint(
                        "it is whole without it: cowhand doctor --repair    moves the journal \
                         into the trash",
                    )
                    .remedy(Some(Remedy::SetJournalAside(name.clone()))),
                Err(_) if later(context, graph, name, &record).is_some() => finding
                    .hint(
                        "cowhand doctor --repair    moves it into the trash, and takes the \
                         layers above its disks for their heads",
                    )
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
    findings.extend(memory::examine(&context.store, name, &record));
    findings.extend(template(context, name, &record));
    findings.extend(warm_guest(context, name, &record));
    if discard::is_over(context, name, Dates::Counted) {
        findings.push(
            Finding::info(
                "leftovers",
                "it was not to stay, and its time is over or whoever made it has ended",
            )
            .of(name)
            .hint("the next `cowhand run` removes it; or: cowhand gc"),
        );
    }
    let status = status::observe(context, name).await?;
    let head_conflict = graph.head_conflict(name, &record).filter(|_| !status.state.is_live());
    let overruled = open::refuse_overruled(context, name, &record).err();
    if head_conflict.is_some() || overruled.is_some() {
        findings.push(wrong(context, graph, name, &record, head_conflict, overruled).await);
    }
    if status.state.is_live() {
        findings.extend(running::examine(context, name, &record, &status).await);
    } else if status.state == State::Crashed && record.ephemeral.is_some() {
        findings.push(
            Finding::info("sockets", "it was not to stay, and its QEMU has ended").of(name).hint(
                "the next run removes it, if its command has ended or its time is over; at \
                 once: cowhand gc",
            ),
        );
    } else if status.state == State::Crashed {
        findings.push(
            Finding::info(
                "sockets",
                "its last QEMU did not end in order, and has left its sockets behind",
            )
            .of(name)
            .hint(format!(
                "the next start clears them: cowhand start {name}; or: cowhand doctor --repair"
            ))
            .remedy(Some(Remedy::ClearSockets(name.clone()))),
        );
    }
    let is_wrong = |finding: &Finding| finding.level >= super::Level::Warn;
    if findings.iter().any(is_wrong) && !store.load(name).is_ok_and(|now| now == record) {
        // It was changed while it was looked at.
        return Ok(vec![Finding::info("journal", "another command is at work on it").of(name)]);
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

/// What else it needs to start.
fn needs(context: &Context, name: &Name, record: &Record) -> Option<Finding> {
    if record.is_template() {
        return None;
    }
    let kernel = record.config.kernel.as_ref().map_or(Ok(()), boot_files::check_kernel);
    let machine =
        Probe::get(context).and_then(|probe| probe.machine(&record.config.machine).map(drop));
    let media = boot_files::check_isos(&record.config);
    let error = machine.and(kernel).and(media).err()?;
    let hint = error.hints().first().cloned().unwrap_or_default();
    Some(
        Finding::fail("start", format!("it cannot start: {}", error.full_message()))
            .of(name)
            .hint(hint),
    )
}

fn snapshots(context: &Context, name: &Name, record: &Record) -> Vec<Finding> {
    let mut findings = Vec::new();
    let now = Timestamp::now();
    let expired = record
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.expires.is_some_and(|at| at <= now))
        .count();
    if expired > 0 {
        let finding = Finding::info("snapshots", format!("{expired} snapshots have expired"));
        findings.push(finding.of(name).hint("cowhand gc    removes them"));
    }
    if record.snapshots.len() > MANY {
        let finding =
            Finding::info("snapshots", format!("it has {} snapshots", record.snapshots.len()));
        findings.push(finding.of(name).hint(format!("which: cowhand snapshot tree {name}")));
    }
    if let Some(oldest) = record.snapshots.iter().min_by_key(|snapshot| snapshot.created) {
        let days = now.duration_since(oldest.created).as_hours() / 24;
        if days > OLD {
            let finding =
                Finding::info("snapshots", format!("snapshot {} is {days} days old", oldest.name));
            findings.push(
                finding.of(name).hint(format!(
                    "if it is not needed: cowhand snapshot rm {name}@{}",
                    oldest.name
                )),
            );
        }
        if days < 0 {
            findings.push(
                Finding::info(
                    "clock",
                    format!(
                        "snapshot {} was taken in the future, by this host's clock",
                        oldest.name
                    ),
                )
                .of(name),
            );
        }
    }
    let depth = |layer| chain::read(&context.store, layer).map_or(0, |chain| chain.links().len());
    if let Some((target, depth)) = record
        .config
        .volumes()
        .map(|disk| (&disk.target, depth(&disk.layer)))
        .max_by_key(|(_, depth)| *depth)
        && depth > DEEP
    {
        let finding = Finding::warn(
            "snapshots",
            format!("{target} has a chain of {depth} layers, which slows down reading"),
        );
        findings.push(finding.of(name).hint(format!(
            "remove snapshots that are not needed (cowhand snapshot tree {name}), or copy it \
             all into one: cowhand flatten {name}"
        )));
    }
    findings
}

fn warm_guest(context: &Context, name: &Name, record: &Record) -> Option<Finding> {
    let difference =
        resume::incompatibility(context, name, record, record.warm.as_ref()?).ok()??;
    let finding =
        Finding::warn("warm", format!("its warm guest cannot be gone on from: {difference}"));
    Some(finding.of(name).hint(format!(
        "clones boot instead; to warm it anew: cowhand template cool {name} && cowhand template \
         warm {name}"
    )))
}

fn template(context: &Context, name: &Name, record: &Record) -> Option<Finding> {
    let Role::Template { stamps, .. } = &record.role else { return None };
    let layer = stamp::changed(&context.store, stamps)?;
    Some(
        Finding::fail(
            "template",
            format!(
                "layer {layer} was changed after it was frozen; what its clones see may have \
                 changed with it"
            ),
        )
        .of(name)
        .hint(
            "nothing here ever writes to it: bring it back from a backup, or make a new template \
             and new clones",
        ),
    )
}
