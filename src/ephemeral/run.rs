//! A command in a guest that is made for it and gone afterwards, however it ends.
//!
//! ```text
//! queue ─▶ clone (pool, warm, or cold) ─▶ its own identity
//!     ─▶ copy in ─▶ command ─▶ copy out ─▶ discard
//! ```

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::make::{Made, make};
use super::request::{Keep, Request};
use super::{discard, queue};
use crate::change::OpenVm;
use crate::clone::Kind;
use crate::context::Context;
use crate::error::{Error, IoContext, Kind as ErrorKind, Result};
use crate::guest::copy;
use crate::guest::exec::{self, Streams};
use crate::guest::install::{self, Reached};
use crate::guest::outcome::{Failure, Finished};
use crate::helper::tree::Target;
use crate::instance::ports;
use crate::merge::collapse::merge_hidden;
use crate::model::{Ephemeral, Name, Record, human};
use crate::snapshot::delete;
use crate::sys::space;

/// What has to be left on the store's file system for a guest to write to.
const SPARE: u64 = 256 << 20;

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// How the command ended.
    pub result: std::result::Result<Finished, Failure>,
    /// The VM, if it is still there.
    pub kept: Option<Name>,
    /// How the guest was made, how long it took until its CPUs ran, and until a command could be
    /// run in it.
    pub made: Option<(Kind, Duration, Duration)>,
    /// How long it took to clear up.
    pub teardown: Duration,
}

/// Runs a command in a guest made for it.
pub(crate) async fn run(context: &Context, request: &Request, mut streams: Streams<'_>) -> Ran {
    let failed = |error: Error| Ran {
        result: Err(error.into()),
        kept: None,
        made: None,
        teardown: Duration::ZERO,
    };
    let name = match request.name.clone().map_or_else(free_name, Ok) {
        Ok(name) => name,
        Err(error) => return failed(error),
    };
    // Opened before the guest has a say: nothing that one copy brings leads the next astray.
    let targets = match check(context, request, &name) {
        Ok(targets) => targets,
        Err(error) => return failed(error),
    };
    let ours = super::ours(request.ttl);
    let mut control = streams.control.take();
    let prepared = tokio::select! {
        prepared = prepare(context, request, &name, &ours) => prepared,
        () = exec::interrupted(&mut control) => Err(interrupted()),
    };
    streams.control = control;
    let (result, made, _slot) = match prepared {
        Ok((mut made, slot)) => {
            let result = match keep_from_now_on(context, request, &name).await {
                Ok(()) => attend(context, request, targets, &mut made, streams).await,
                Err(error) => Err(error.into()),
            };
            (result, Some((made.kind, made.running, made.took)), Some(slot))
        }
        Err(error) => (Err(error.into()), None, None),
    };
    let good = matches!(&result, Ok(finished) if finished.code == 0);
    let keep = match request.keep {
        Keep::Never => false,
        Keep::OnFailure => !good && made.is_some(),
        Keep::Always => made.is_some(),
    };
    let began = Instant::now();
    let kept = match keep {
        true => stay(context, request, &name).await,
        false => leave_nothing(context, request, &name, &ours).await.map(|()| None),
    };
    match kept {
        Ok(kept) => Ran { result, kept, made, teardown: began.elapsed() },
        Err(error) => {
            context.ui.warn(&format!(
                "{name} could not be removed: {} (cowhand gc tries again)",
                error.full_message()
            ));
            Ran { result, kept: None, made, teardown: began.elapsed() }
        }
    }
}

/// Removes the VM, and the snapshot that was taken of a stopped VM for it to depend on.
async fn leave_nothing(
    context: &Context,
    request: &Request,
    name: &Name,
    ours: &Ephemeral,
) -> Result<()> {
    let record =
        context.store.load(name).ok().filter(|record| record.ephemeral.as_ref() == Some(ours));
    let base = record.as_ref().and_then(|record| base(request, record)).cloned();
    // Another command may have made another one of that name, or decided to keep this one.
    let ours_is_gone = discard::discard(context, name, ours).await?;
    let Some(base) = base.filter(|_| ours_is_gone) else { return Ok(()) };
    let source = &request.source.vm;
    let merged = async {
        let request = delete::Request { keep_undo: true, ..Default::default() };
        delete::remove(context, source, &base, request).await?;
        if context.store.torn_entry()?.is_some() {
            // What it needs is unknown; `gc` tells.
            return Ok(Vec::new());
        }
        // Those of other runs, which could not be merged while this one depended on them.
        merge_hidden(context, source, &context.store.below_trash()?, false).await
    };
    if let Err(error) = merged.await {
        let why = error.full_message();
        context.ui.warn(&format!(
            "{source}@{base}, which {name} was based on, stays until cowhand gc: {why}"
        ));
    }
    Ok(())
}

/// The snapshot that was taken of a stopped VM for this one to depend on.
fn base<'a>(request: &Request, record: &'a Record) -> Option<&'a Name> {
    record.origin.as_ref().filter(|_| request.source.snapshot.is_none())?.snapshot.as_ref()
}

/// `run-1a2b3c`.
pub(crate) fn free_name() -> Result<Name> {
    format!("run-{}", &Uuid::new_v4().simple().to_string()[..8]).parse()
}

/// Everything that can be known to fail is looked at before anything is made. The places of the
/// copies out of the guest.
fn check(context: &Context, request: &Request, name: &Name) -> Result<Vec<Target>> {
    if context.store.exists(name) {
        return Err(
            Error::exists(format!("the name {name} is taken")).hint("choose another: --keep=NAME")
        );
    }
    for (from, _) in &request.copy_in {
        from.symlink_metadata().and_then(|_| from.metadata()).map(drop).on("read", from).map_err(
            |error| {
                Error::not_found(format!("--copy-in: {} is not there", from.display()))
                    .because(error.full_message())
            },
        )?;
    }
    let mut targets = Vec::new();
    for (from, to) in &request.copy_out {
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            return Err(Error::not_found(format!(
                "--copy-out: there is no directory {}",
                parent.display()
            )));
        }
        targets.push(copy::target(from, to)?);
    }
    let root = context.store.layout.root();
    match space::free(root) {
        Ok(free) if free < SPARE => Err(Error::refused(format!(
            "{} has {} free, and a guest may need {}",
            root.display(),
            human(free),
            human(SPARE)
        ))
        .hint("make room: cowhand gc --older-than 0    empties the trash")),
        _ => Ok(targets),
    }
}

async fn prepare(
    context: &Context,
    request: &Request,
    name: &Name,
    ours: &Ephemeral,
) -> Result<(Made, queue::Slot)> {
    let source = context.store.load(&request.source.vm)?;
    let config = match &request.source.snapshot {
        Some(snapshot) => &source.snapshot(&request.source.vm, snapshot)?.config,
        None => &source.config,
    };
    let slot = queue::enter(context, config.memory_bytes, request.most).await?;
    // What others have left takes room, and ports.
    discard::reap(context).await?;
    ports::refuse_taken(context, &request.ports)?;
    let limit = request.command.agent_limit;
    let made = make(context, request, name, ours, limit).await?;
    Ok((made, slot))
}

async fn attend(
    context: &Context,
    request: &Request,
    targets: Vec<Target>,
    made: &mut Made,
    mut streams: Streams<'_>,
) -> std::result::Result<Finished, Failure> {
    let mut control = streams.control.take();
    let copying = async {
        for (from, to) in &request.copy_in {
            copy::put(context, &mut made.client, from, to).await?;
        }
        Ok::<(), Error>(())
    };
    let copied = tokio::select! {
        copied = tokio::time::timeout(request.copy_limit, copying) => copied,
        () = exec::interrupted(&mut control) => return Err(interrupted().into()),
    };
    copied.map_err(|_| too_slow(request, "before"))??;
    streams.control = control;
    let result =
        exec::converse(context, &made.name, &mut made.client, &request.command, &mut streams).await;
    let copying = async {
        let mut lost = None;
        for ((from, _), target) in request.copy_out.iter().zip(targets) {
            if let Err(error) = copy_out(context, made, from, target, &request.copy_rules).await {
                let named = Error::new(error.kind(), format!("--copy-out {from}"))
                    .because(error.full_message());
                let named = error.hints().iter().fold(named, |named, hint| named.hint(hint));
                // Of several that fail, the last is the error.
                if let Some(before) = lost.replace(named) {
                    context.ui.warn(&before.full_message());
                }
            }
        }
        lost
    };
    let lost = tokio::select! {
        lost = tokio::time::timeout(request.copy_limit, copying) => {
            lost.unwrap_or_else(|_| Some(too_slow(request, "after")))
        }
        () = exec::interrupted(&mut streams.control) => Some(interrupted()),
    };
    match (result, lost) {
        (Ok(finished), Some(error)) if finished.code == 0 => Err(error.into()),
        (result, lost) => {
            if let Some(error) = lost {
                context.ui.warn(&error.full_message());
            }
            result
        }
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Interrupted, "interrupted")
}

/// The copies did not end in time. The guest is not waited for.
fn too_slow(request: &Request, when: &str) -> Error {
    let seconds = request.copy_limit.as_secs();
    Error::qemu(format!("the copies {when} the command did not end within {seconds} s"))
        .hint("to give them longer: --copy-timeout TIME")
}

async fn copy_out(
    context: &Context,
    made: &mut Made,
    from: &str,
    target: Target,
    rules: &copy::Rules,
) -> Result<u64> {
    let copied = copy::get(context, &mut made.client, from, target, rules).await;
    if copied.is_err()
        && let Reached::Helper(client) =
            install::reach(context, &made.name, Duration::from_secs(30)).await?
    {
        // What was on its way in the old conversation is of no use any more.
        made.client = client;
    }
    copied
}

/// What is to stay in any case stays even if we are killed outright.
async fn keep_from_now_on(context: &Context, request: &Request, name: &Name) -> Result<()> {
    if request.keep != Keep::Always {
        return Ok(());
    }
    let mut vm = OpenVm::open(context, name).await?;
    vm.record.ephemeral = None;
    vm.save()
}

/// From now on it belongs to nobody, and stays, or stays until then.
async fn stay(context: &Context, request: &Request, name: &Name) -> Result<Option<Name>> {
    let mut vm = OpenVm::open(context, name).await?;
    if let Some(base) = base(request, &vm.record) {
        context.ui.note(&format!(
            "{name} is based on the snapshot {}@{base}, which was taken for it",
            request.source.vm
        ));
    }
    vm.record.ephemeral = request.keep_for.map(|ttl| Ephemeral {
        owner: None,
        expires: Some(super::from_now(ttl)),
        standby: false,
    });
    vm.save()?;
    Ok(Some(name.clone()))
}
