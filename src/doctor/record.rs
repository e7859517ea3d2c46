//! The record of a VM or template: one that is missing, cannot be read, or is not the last one, and
//! whether one fits what is there.

use super::{Finding, Remedy, chain, running};
use crate::change::lost::{self, Lost};
use crate::change::recover;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::status;
use crate::layer::graph::{HeadConflict, LayerGraph};
use crate::model::{Layer, LayerId, Name, Record};

/// What is said of a directory that has neither a record nor a spare copy.
pub(super) fn without_record(context: &Context, name: &Name, busy: bool) -> Result<Finding> {
    let store = &context.store;
    if busy {
        return Ok(Finding::info("record", "a command is making it just now").of(name));
    }
    let missing = |layers: &[Layer]| {
        Finding::fail("record", lost::missing(name, layers)).of(name).hint(format!(
            "put its vm.json back from a backup; if there never was such a VM: cowhand rm --force \
             {name}"
        ))
    };
    match recover::load(context, name) {
        Err(error) => {
            let is_newer = error.is_newer();
            let finding = Finding::warn("journal", error.full_message()).of(name);
            return Ok(match is_newer {
                true => finding.hint("use that version; nothing is changed by this one"),
                false => finding
                    .hint(format!(
                        "no VM needs it: cowhand doctor {name} --repair    moves it into the trash"
                    ))
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
                    "it has no record: a command that was making it has died, or the record is \
                     lost",
                )
                .of(name)
                .hint(
                    "while it is uncertain who uses which layer, it stays; repair first what \
                       is reported about others",
                ));
            }
        },
    }
    Ok(Finding::warn("leftovers", "it never came to be: a command that was making it has died")
        .of(name)
        .hint(
            "the next command that makes or removes something clears it up; or: cowhand doctor \
             --repair",
        )
        .remedy(Some(Remedy::Sweep(name.clone()))))
}

/// What is said of a record that is not the last one, and what can be done about it.
pub(super) async fn wrong(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
    record: &Record,
    head_conflict: Option<HeadConflict>,
    overruled: Option<Error>,
) -> Finding {
    let about = match (&head_conflict, &overruled) {
        (Some(head_conflict), _) => {
            format!("{head_conflict}: its record is out of date, and starting it is refused")
        }
        (None, overruled) => overruled.as_ref().map(Error::full_message).unwrap_or_default(),
    };
    let finding = Finding::fail("record", about).of(name);
    let spare = context.store.load_spare(name).and_then(Result::ok);
    if let Some(spare) = &spare
        && whole(context, graph, name, spare).await.is_ok()
        && overruled.is_some()
    {
        return finding
            .hint(format!("cowhand doctor {name} --repair    puts its spare copy in its place"))
            .remedy(Some(Remedy::RestoreRecord(name.clone())));
    }
    if head_conflict.is_some() && later(context, graph, name, record).is_some() {
        return finding
            .hint(format!(
                "cowhand doctor {name} --repair    takes the layers above its disks for \
                 their heads; snapshots of theirs have no name any more"
            ))
            .remedy(Some(Remedy::Adopt(name.clone())));
    }
    if overruled.is_some() && whole(context, graph, name, record).await.is_ok() {
        return finding
            .hint(format!(
                "what its spare copy names is not whole, and it is: cowhand doctor \
                 {name} --repair    moves the spare copy into the trash"
            ))
            .remedy(Some(Remedy::SetSpareAside(name.clone())));
    }
    finding.hint("put the right vm.json back; vm.json.spare beside it may be it")
}

/// A spare copy that would be of no use.
pub(super) fn spare_copy(context: &Context, name: &Name) -> Option<Finding> {
    let error = context.store.load_spare(name)?.err()?;
    // It was renamed meanwhile.
    if !context.store.layout.vm_json(name).exists() {
        return None;
    }
    let path = context.store.layout.spare_json(name);
    let mut about =
        format!("the spare copy of its record cannot be used: {}", error.full_message());
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

/// What is said of a record that cannot be read, because of `why`.
pub(super) async fn unreadable(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
    why: String,
) -> Finding {
    let finding = Finding::fail("record", why).of(name);
    if let Some(record) = context.store.load_of_another_store(name)
        && !matches!(context.store.load_spare(name), Some(Ok(_)))
    {
        return match whole(context, graph, name, &record).await {
            Ok(()) => finding
                .hint(format!(
                    "it fits the layers that are here: cowhand doctor {name} --repair    \
                     takes the VM over into this store"
                ))
                .remedy(Some(Remedy::TakeOver(name.clone()))),
            Err(why) => finding.hint(format!(
                "it does not fit what is here: {why}; put the right \
                 vm.json back"
            )),
        };
    }
    let unnamed = graph
        .layers
        .keys()
        .filter(|id| graph.uses(id).is_empty() && graph.children(id).next().is_none());
    let unnamed: Vec<&str> = unnamed.map(LayerId::as_str).collect();
    let whose = match unnamed.is_empty() {
        true => String::new(),
        false => format!("; layers that no record names may belong to it: {}", unnamed.join(", ")),
    };
    let by_hand = format!(
        "mend the file by hand, or: cowhand rm --force {name} (its layers stay until gc){whose}"
    );
    let spare = match context.store.load_spare(name) {
        Some(Ok(spare)) => spare,
        Some(Err(error)) => {
            return finding.hint(format!(
                "its spare copy cannot be used: {}; {by_hand}",
                error.full_message()
            ));
        }
        None => return finding.hint(format!("there is no spare copy; {by_hand}")),
    };
    match whole(context, graph, name, &spare).await {
        Ok(()) => finding
            .hint(format!("cowhand doctor {name} --repair    puts its spare copy in its place"))
            .remedy(Some(Remedy::RestoreRecord(name.clone()))),
        Err(why) => {
            finding.hint(format!("its spare copy does not fit: {why}; mend the file by hand"))
        }
    }
}

/// Does this record fit what is there? Every layer it names is there, nothing depends on the layers
/// its guest writes to, nobody else has them, and a running QEMU is on them. Otherwise, why not.
pub(super) async fn whole(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
    record: &Record,
) -> Result<(), String> {
    for layer in record.layers() {
        chain::read(&context.store, layer).map_err(|error| error.full_message())?;
    }
    if let Some(head_conflict) = graph.head_conflict(name, record) {
        return Err(head_conflict.to_string());
    }
    if status::is_running(context, name).map_err(|error| error.full_message())? {
        running::agrees(context, name, record).await?;
    }
    Ok(())
}

/// The layers that the disks of `record` were going on in when it was replaced by an older one,
/// where that is beyond doubt: nobody has written to the older ones since. `None`: it is in doubt,
/// or there are none.
pub(super) fn later(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
    record: &Record,
) -> Option<Vec<(String, Layer)>> {
    let written = |layer: &Layer| {
        std::fs::metadata(context.store.layout.layer(layer)).and_then(|about| about.modified()).ok()
    };
    let mut found = Vec::new();
    for disk in record.config.writable() {
        let id = &disk.layer.id;
        if graph.uses(id).iter().any(|r#use| r#use.owner() != name) {
            return None;
        }
        if graph.children(id).next().is_some() {
            let later = graph.later_head(id)?;
            if written(&disk.layer)? > written(&later)? {
                return None;
            }
            found.push((disk.target.clone(), later));
        }
    }
    (!found.is_empty()).then_some(found)
}
