//! How far a QEMU is confined: on this host, and each one that runs.

use super::Finding;
use crate::context::Context;
use crate::error::Result;
use crate::instance::status;
use crate::layer::backing_xattr;
use crate::model::Name;
use crate::qemu::probe::Probe;
use crate::settings::Confine;
use crate::sys::confine::observed::Observed;
use crate::sys::confine::tried;

/// What this host allows.
pub(super) fn of_host(context: &Context, probe: &Probe) -> Vec<Finding> {
    let mut findings = vec![tried(context, probe)];
    findings.extend(destinations(context, probe));
    findings.extend(notes(context));
    findings
}

/// This host, unless one VM was named, and each QEMU that runs a VM.
pub async fn examine(context: &Context, only: Option<&Name>) -> Result<Vec<Finding>> {
    let store = &context.store;
    let mut findings = Vec::new();
    let names = match only {
        Some(name) => {
            store.load(name)?;
            vec![name.clone()]
        }
        None => {
            findings.extend(of_host(context, &Probe::get(context)?));
            store.names()?
        }
    };
    for name in names {
        let Some(pid) = status::observe(context, &name).await?.pid else { continue };
        let reaches_out = store.load(&name).is_ok_and(|record| {
            record.config.nics.iter().any(|nic| nic.network.exceptions().is_some())
        });
        findings.push(of_process(pid, reaches_out).of(&name));
    }
    Ok(findings)
}

/// `reaches_out`: its guest has a user network, whose destinations root expects to be filtered.
fn of_process(pid: i32, reaches_out: bool) -> Finding {
    let is_root = nix::unistd::geteuid().is_root();
    match Observed::of(pid) {
        Ok(observed) if reaches_out && is_root && !observed.destinations => {
            let about = format!("{observed}; no filter of destinations");
            Finding::warn("confinement", about).hint(
                "its guest reaches the host's loopback and private networks: it was started with \
                 --confine off, by an earlier version or as an ordinary user, or the host does not \
                 allow more",
            )
        }
        Ok(observed) if observed.is_complete() => Finding::ok("confinement", observed.to_string()),
        Ok(observed) => Finding::warn("confinement", observed.to_string()).hint(
            "it was started with --confine off, by an earlier version, or on a host that does not \
             allow more: stop it and start it again",
        ),
        Err(error) => {
            Finding::warn("confinement", format!("its QEMU cannot be looked at: {error}"))
        }
    }
}

/// Tries it.
fn tried(context: &Context, probe: &Probe) -> Finding {
    if context.settings.confine == Confine::Off {
        return Finding::info("confinement", "not tried: --confine off leaves it out");
    }
    match tried::strictly(&probe.path) {
        None => Finding::ok(
            "confinement",
            "QEMU runs with Landlock's rules, a filter of system calls, no capabilities, and \
             its own namespaces and root directory",
        ),
        Some(why) => {
            Finding::warn("confinement", format!("QEMU is not confined in all ways: {why}"))
                .hint("what a QEMU that its guest has taken over reaches then: docs/security.md")
        }
    }
}

/// Where a QEMU connects to for its guest.
fn destinations(context: &Context, probe: &Probe) -> Option<Finding> {
    if context.settings.confine == Confine::Off {
        return None;
    }
    let Some(why) = tried::destinations(&probe.path) else {
        return Some(Finding::ok("confinement", "QEMU has a filter of destinations"));
    };
    let about = |why: &str| {
        format!("guests with --net user reach the host's loopback and private networks: {why}")
    };
    let finding = match nix::unistd::geteuid().is_root() {
        true => {
            let why = format!("this host filters no destinations (bpf(2)): {why}");
            Finding::warn("confinement", about(&why))
        }
        false => Finding::info("confinement", about("only root filters destinations")),
    };
    Some(finding.hint(
        "for guests of people you do not know: --net restricted or none, or start them as root on \
         a host with control groups of version 2",
    ))
}

/// What a layer depends on is noted where QEMU cannot write, if the file system can.
fn notes(context: &Context) -> Option<Finding> {
    let layers = context.store.layout.layers();
    let is_missing = context.settings.confine != Confine::Off
        && layers.is_dir()
        && !backing_xattr::can_be_kept(&context.store);
    is_missing.then(|| {
        Finding::warn(
            "confinement",
            format!("the file system of {} has no extended attributes", layers.display()),
        )
        .hint(
            "a QEMU that its guest has taken over, and that knows the name of another VM's layer, \
             may read that layer after its next start",
        )
    })
}
