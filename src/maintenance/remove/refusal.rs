//! What is said where others depend on what is to be removed.

use super::Which;
use crate::context::Context;
use crate::error::Error;
use crate::instance::status;
use crate::layer::graph::LayerGraph;
use crate::model::{Name, Record};

/// `name` is the base of `dependents`: who they are, and what to type.
pub(super) async fn refuse(
    context: &Context,
    graph: &LayerGraph,
    name: &Name,
    record: &Record,
    dependents: &[Name],
) -> Error {
    let mut shown = Vec::new();
    for dependent in dependents {
        let running =
            status::observe(context, dependent).await.is_ok_and(|status| status.state.is_live());
        shown.push(if running { format!("{dependent} (running)") } else { dependent.to_string() });
    }
    let (kind, verb) = (record.kind(), Which::of(record).verb());
    let count = match dependents.len() {
        1 => "another VM".to_owned(),
        many => format!("{many} others"),
    };
    let is_standby =
        |name: &&Name| context.store.load(name).is_ok_and(|record| record.is_standby());
    if dependents.iter().all(|name| is_standby(&name)) {
        let wait = if dependents.len() == 1 { "waits" } else { "wait" };
        return Error::refused(format!(
            "{kind} {name} is the base of {count} that {wait} in its pool"
        ))
        .hint(format!("end them first: cowhand pool drain {name}"))
        .dependents(dependents.iter().map(Name::to_string).collect());
    }
    // A shell that is just being started has an owner, too, but it is no run and does not end by
    // itself.
    let is_run = |name: &&Name| {
        context.store.load(name).is_ok_and(|record| {
            !record.is_standby()
                && record.ephemeral.is_some_and(|ephemeral| ephemeral.owner.is_some())
        })
    };
    let names: Vec<String> = dependents.iter().map(Name::to_string).collect();
    let others: Vec<&str> = dependents
        .iter()
        .filter(|name| !is_standby(name) && !is_run(name))
        .map(Name::as_str)
        .collect();
    let runs: Vec<&str> = dependents.iter().filter(|name| is_run(name)).map(Name::as_str).collect();
    let mut error =
        Error::refused(format!("{kind} {name} is the base of {count}: {}", shown.join(", ")));
    // What they hold is not what their disks show now.
    let disputed: Vec<&Name> = dependents.iter().filter(|name| graph.is_disputed(name)).collect();
    if !disputed.is_empty() {
        let hint = |error: Error, name: &&Name| {
            error.hint(format!(
                "the backing file of a layer of {name} is not the expected one; repair it first: \
                 cowhand doctor {name} --repair"
            ))
        };
        return disputed.iter().fold(error, hint).dependents(names);
    }
    if !runs.is_empty() {
        error = error.hint(format!("wait until these have ended: {}", runs.join(" ")));
    }
    if others.len() + runs.len() < names.len() {
        error = error.hint(format!("end those that wait in its pool: cowhand pool drain {name}"));
    }
    if others.is_empty() {
        return error
            .hint(format!("or all together: cowhand {verb} {name} --cascade --force"))
            .dependents(names);
    }
    let force = if runs.is_empty() { "" } else { " --force" };
    error
        .hint(format!("cowhand flatten {}    makes them independent of it", others.join(" ")))
        .hint(format!("or remove them first: cowhand rm {}", others.join(" ")))
        .hint(format!("or all together: cowhand {verb} {name} --cascade{force}"))
        .dependents(names)
}
