//! Making a VM for somebody and having it run: from the pool, from memory, or by a boot.

use std::fs::File;
use std::time::{Duration, Instant};

use super::request::{Keep, Request, Warmth};
use super::standby;
use crate::change::OpenVm;
use crate::clone::{self, Kind};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::guest::install::{self, Reached};
use crate::guest::port::Client;
use crate::instance::launch::{self, Launch};
use crate::model::{Ephemeral, Name, Network, Record};
use crate::qemu::cmdline::StartMode;
use crate::settings::Accel;
use crate::sys::{command, relay};
use crate::warm::resume;

/// How many seconds a process that fills the pool again waits for others that do: nobody waits for
/// it.
const REFILL: &str = "3600";

/// A VM that was made for somebody, and runs.
pub(crate) struct Made {
    /// Its name.
    pub name: Name,
    /// How it was made.
    pub kind: Kind,
    /// A conversation with its helper.
    pub client: Client,
    /// How long it took until its CPUs ran.
    pub running: Duration,
    /// How long it took until a command could be run in it.
    pub took: Duration,
}

/// Makes the VM `name` and has it run: from the pool, from memory, or by a boot.
pub(crate) async fn make(
    context: &Context,
    request: &Request,
    name: &Name,
    ephemeral: &Ephemeral,
    limit: Duration,
) -> Result<Made> {
    let began = Instant::now();
    let source = &request.source;
    let record = context.store.load(&source.vm)?;
    let warm = match (request.warmth, &source.snapshot) {
        (Warmth::Cold, _) | (Warmth::Either, Some(_)) => None,
        (Warmth::Warm, Some(_)) => {
            return Err(Error::refused(format!(
                "{source} is a snapshot, and only a template can be warm"
            )));
        }
        (Warmth::Warm, None) => Some(clone::warm(context, &source.vm, &record)?),
        (Warmth::Either, None) if record.warm.is_none() => None,
        (Warmth::Either, None) => match clone::warm(context, &source.vm, &record) {
            Ok(warm) => Some(warm),
            Err(error) => {
                context.ui.warn(&format!("{}; the guest boots instead", error.full_message()));
                None
            }
        },
    };
    let Some(warm) = warm else {
        return boot(context, request, name, ephemeral, limit, began).await;
    };
    if is_as_made(request, &record)
        && let Some((_lock, vm, qmp)) = standby::claim(context, &record, name, ephemeral).await?
    {
        resume::go_on(context, name, qmp).await?;
        let running = began.elapsed();
        refill(context, &source.vm);
        let client = resume::adopt_identity(context, name, &vm, warm).await?;
        return Ok(Made {
            name: name.clone(),
            kind: Kind::Warm,
            client,
            running,
            took: began.elapsed(),
        });
    }
    if warm.pool > 0 && is_as_made(request, &record) {
        // None waited: they were all claimed, or have died.
        refill(context, &source.vm);
    }
    clone::clone(context, &cloning(request, name, Kind::Warm, ephemeral)).await?;
    let vm = OpenVm::open(context, name).await?;
    let qmp = resume::wake(context, name, &vm.record, warm, bound(request)).await?;
    resume::go_on(context, name, qmp).await?;
    let running = began.elapsed();
    let client = resume::adopt_identity(context, name, &vm.record, warm).await?;
    Ok(Made { name: name.clone(), kind: Kind::Warm, client, running, took: began.elapsed() })
}

/// Is it as the clones are that wait?
fn is_as_made(request: &Request, template: &Record) -> bool {
    let cards = &template.config.nics;
    let is_theirs =
        |asked: &Network| !cards.is_empty() && cards.iter().all(|card| card.network == *asked);
    request.ports.is_empty()
        && request.network.as_ref().is_none_or(is_theirs)
        && request.limits.is_none_or(|limits| limits == template.config.limits)
}

/// QEMU ends with us, unless it is to stay.
fn bound(request: &Request) -> bool {
    request.keep == Keep::Never
}

fn cloning(request: &Request, name: &Name, kind: Kind, ephemeral: &Ephemeral) -> clone::Request {
    clone::Request {
        source: request.source.clone(),
        names: vec![name.clone()],
        kind,
        ports: request.ports.clone(),
        network: request.network.clone(),
        limits: request.limits,
        ephemeral: Some(ephemeral.clone()),
    }
}

async fn boot(
    context: &Context,
    request: &Request,
    name: &Name,
    ephemeral: &Ephemeral,
    limit: Duration,
    began: Instant,
) -> Result<Made> {
    clone::clone(context, &cloning(request, name, Kind::Thin, ephemeral)).await?;
    let vm = OpenVm::open(context, name).await?;
    let launch = Launch { how: StartMode::Running, held: Vec::new(), with_us: bound(request) };
    drop(launch::launch(context, name, &vm.record, launch).await?);
    drop(vm);
    let running = began.elapsed();
    match install::reach(context, name, limit).await? {
        Reached::Helper(client) => Ok(Made {
            name: name.clone(),
            kind: Kind::Thin,
            client,
            running,
            took: began.elapsed(),
        }),
        Reached::AgentOnly(why) => Err(Error::refused(format!(
            "nothing can be run in the guest of {}: {why}",
            request.source
        ))),
    }
}

/// Starts a process that puts new standby clones in the place of those that were claimed, and
/// outlives us.
fn refill(context: &Context, template: &Name) {
    let accel = match context.settings.accel {
        Accel::Auto => "auto",
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    };
    let store = context.store.layout.root().to_string_lossy();
    let common = [relay::PROGRAM, "--quiet", "--accel", accel, "--store", &store, "--wait", REFILL];
    let argv: Vec<String> = common
        .into_iter()
        .chain(["pool", "top-up", template.as_str()])
        .map(str::to_owned)
        .collect();
    let started =
        File::open("/dev/null").and_then(|null| command::companion(&argv, null.into(), Vec::new()));
    if let Err(error) = started {
        context.ui.warn(&format!("the pool cannot be filled again: {error}"));
    }
}
