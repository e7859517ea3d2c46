//! Starting a VM, and saying how it would be started.

use crate::change::{OpenVm, open};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::{launch, ports, sockets, status};
use crate::layer::graph::LayerGraph;
use crate::model::{Name, Record};
use crate::qemu::accel::{self, Host};
use crate::qemu::cmdline::StartMode;
use crate::qemu::sockets::Sockets;

/// Starts `name`; with `paused`, its CPUs wait for `resume`.
pub(crate) async fn start(context: &Context, name: &Name, paused: bool) -> Result<()> {
    let vm = OpenVm::for_change(context, name, "start").await?;
    if vm.is_running()? {
        return Err(Error::refused(format!("{name} is running already"))
            .hint(format!("see it: cowhand show {name}")));
    }
    refuse_unstartable(context, name, &vm.record)?;
    let how = if paused { StartMode::Paused } else { StartMode::Running };
    launch::launch(context, name, &vm.record, how).await.map(drop)
}

/// A VM whose disks belong to another one is not started, neither by us nor by hand; nor is one
/// whose ports are taken.
fn refuse_unstartable(context: &Context, name: &Name, record: &Record) -> Result<()> {
    let damaged = |why: String| {
        Error::damaged(format!("{name} must not be started: {why}"))
            .hint(format!("what can be done about it: cowhand doctor {name}"))
    };
    if let Some(head_conflict) = LayerGraph::scan(&context.store)?.head_conflict(name, record) {
        return Err(damaged(format!("its record is out of date ({head_conflict})")));
    }
    ports::refuse_taken(context, record.config.nics.iter().flat_map(|nic| &nic.ports))
        .map_err(|error| error.hint(format!("another port: cowhand set {name} ports=HOST:GUEST,…")))
}

/// The argument vector `name` would be started with; what `start` would refuse is refused. Makes
/// the directory of its sockets and pipes, without which a shell could not start it, and its serial
/// log, which is for its owner alone; and notes where the directory is, so that a VM that is
/// started by hand is seen.
pub(crate) fn plan(context: &Context, name: &Name, paused: bool) -> Result<Vec<String>> {
    let record = context.store.load(name)?;
    open::refuse_template(name, &record, "start")?;
    open::refuse_overruled(context, name, &record)?;
    if context.store.has_journal(name) && !status::is_running(context, name)? {
        return Err(Error::damaged(format!(
            "a change of {name} was cut short, and its disks may be half-way between two states"
        ))
        .hint(format!("any command that changes it puts that right first: cowhand start {name}")));
    }
    let chosen = accel::choose(context.settings.accel, &Host::observe())?;
    let sockets = Sockets::new(sockets::directory(context, record.uuid)?);
    let how = if paused { StartMode::Paused } else { StartMode::Running };
    let runs = status::is_running(context, name)?;
    if !runs {
        refuse_unstartable(context, name, &record)?;
    }
    let argv = launch::argv(context, name, &record, &chosen, &sockets, how)?;
    if !runs {
        launch::make_ready(context, name, &record, &sockets)?;
    }
    Ok(argv)
}
