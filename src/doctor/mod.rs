//! `doctor`: compares what ought to be with what is. The record of each VM, its journal, the
//! headers of its layers and what its QEMU really has open have to agree; beside that, whether the
//! host can do what is asked of it.
//!
//! Looking takes no lock and changes nothing. A finding may carry a [`Remedy`]: what would put it
//! right without losing anything. [`treat`] applies those; what it cannot be sure of stays as it
//! is.

mod chain;
mod confinement;
mod deep;
mod host;
mod memory;
mod permissions;
mod pool;
mod record;
mod remedy;
mod running;
mod store;
mod vm;

pub use confinement::examine as look_at_confinement;
pub use deep::examine as look_into_files;
pub use remedy::Remedy;

use remedy::Applied;

use crate::context::Context;
use crate::error::Result;
use crate::layer::garbage::Needs;
use crate::layer::graph::LayerGraph;
use crate::model::{Layer, Name};
use crate::store::plain;

/// How often it is looked again after remedies: one may uncover the next thing.
const ROUNDS: usize = 4;

/// How much later it is looked again before something is called wrong.
const SECOND_LOOK: std::time::Duration = std::time::Duration::from_millis(300);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Info,
    /// It works, and should not stay like that.
    Warn,
    /// It does not work, or data is in danger.
    Fail,
}

impl Level {
    /// The word in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `kvm`, `chain`, `journal`, …
    pub check: &'static str,
    /// The VM or template it concerns.
    pub vm: Option<Name>,
    /// How bad it is.
    pub level: Level,
    /// In words.
    pub message: String,
    /// What to type next.
    pub hint: Option<String>,
    /// What would put it right.
    pub remedy: Option<Remedy>,
    /// It was put right just now.
    pub repaired: bool,
}

impl Finding {
    fn new(check: &'static str, level: Level, message: impl Into<String>) -> Self {
        Self {
            check,
            vm: None,
            level,
            message: message.into(),
            hint: None,
            remedy: None,
            repaired: false,
        }
    }

    /// Is it the same matter, though the words may be others by now? What a remedy puts right is
    /// one.
    fn is_about_the_same(&self, other: &Self) -> bool {
        let is_same_matter = match (&self.remedy, &other.remedy) {
            (None, None) => self.message == other.message,
            (one, other) => one == other,
        };
        is_same_matter && self.check == other.check && self.vm == other.vm
    }

    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, message)
    }

    fn info(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Level::Info, message)
    }

    fn warn(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, message)
    }

    fn fail(check: &'static str, message: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, message)
    }

    fn of(self, vm: &Name) -> Self {
        Self { vm: Some(vm.clone()), ..self }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn remedy(self, remedy: Option<Remedy>) -> Self {
        Self { remedy, ..self }
    }

    /// The layers it says nobody uses.
    fn unused_layers(&self) -> &[Layer] {
        match &self.remedy {
            Some(Remedy::TrashUnused { layers }) => layers,
            _ => &[],
        }
    }
}

/// Looks at everything, or at one VM or template.
pub async fn examine(context: &Context, only: Option<&Name>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if only.is_none() {
        findings.extend(host::examine(context).await);
    }
    findings.extend(examine_store(context, only).await?);
    Ok(findings)
}

async fn examine_store(context: &Context, only: Option<&Name>) -> Result<Vec<Finding>> {
    let store = &context.store;
    if let Some(name) = only {
        // What nobody knows is an error, not a finding.
        if !store.exists(name) && !store.layout.vm(name).exists() {
            return Err(store.unknown(name));
        }
    }
    let findings = look(context, only).await?;
    let passing = |finding: &Finding| {
        let of_disks = finding.vm.is_some() || ["layers", "leftovers"].contains(&finding.check);
        let leftover = matches!(
            finding.remedy,
            Some(
                Remedy::Recover(_)
                    | Remedy::Sweep(_)
                    | Remedy::TrashUnused { .. }
                    | Remedy::TrashFile(_)
            )
        );
        leftover || (of_disks && finding.level >= Level::Warn)
    };
    if !findings.iter().any(passing) {
        return Ok(findings);
    }
    // Commands that are at work make, change and remove such things between two looks; what a dead
    // one has left stays.
    tokio::time::sleep(SECOND_LOOK).await;
    let again = look(context, only).await?;
    let unused: Vec<Layer> = findings.iter().flat_map(Finding::unused_layers).cloned().collect();
    Ok(again
        .into_iter()
        .filter_map(|finding| match &finding.remedy {
            Some(Remedy::TrashUnused { layers }) => {
                let both: Vec<Layer> =
                    layers.iter().filter(|layer| unused.contains(layer)).cloned().collect();
                (!both.is_empty()).then(|| pool::nobody_uses(both))
            }
            _ => (!passing(&finding)
                || findings.iter().any(|before| before.is_about_the_same(&finding)))
            .then_some(finding),
        })
        .collect())
}

async fn look(context: &Context, only: Option<&Name>) -> Result<Vec<Finding>> {
    let store = &context.store;
    let mut findings = Vec::new();
    if only.is_none() {
        findings.extend(store::examine(context)?);
    }
    if let Err(unmounted) = store.refuse_unmounted() {
        return if only.is_none() { Ok(findings) } else { Err(unmounted) };
    }
    if !store.layout.vms().exists() {
        return Ok(findings);
    }
    let needs = match only {
        None => Needs::look_for_orphans(store)?,
        // Of the trash, nothing is to be said.
        Some(_) => {
            let mut graph = LayerGraph::scan(store)?;
            graph.add_spares(store)?;
            Needs::of(graph)
        }
    };
    if only.is_none() {
        findings.extend(pool::examine(context, &needs)?);
    }
    let mut names = store.directories()?;
    names.sort();
    for name in names.iter().filter(|name| only.is_none_or(|only| only == *name)) {
        findings.extend(vm::examine(context, &needs.graph, name).await?);
    }
    Ok(findings)
}

/// The same, and puts right what can be put right. What was repaired is among the findings.
pub async fn treat(context: &Context, only: Option<&Name>) -> Result<Vec<Finding>> {
    let host = match only {
        None => host::examine(context).await,
        Some(_) => Vec::new(),
    };
    let mut repaired: Vec<Finding> = Vec::new();
    let mut failed: Vec<(Remedy, String)> = Vec::new();
    let mut not_needed: Vec<Remedy> = Vec::new();
    let mut findings = Vec::new();
    let file = context.store.layout.store_json();
    if plain::is_there(&file)
        && let Err(error) = context.store.check_identity()
        && error.is_newer()
    {
        return examine(context, only).await;
    }
    for _ in 0..ROUNDS {
        findings = examine_store(context, only).await?;
        let mut tried = false;
        for finding in &findings {
            let Some(remedy) = &finding.remedy else { continue };
            // Another program may have frozen it, and rely on that: only where it is meant.
            if only.is_none() && matches!(remedy, Remedy::Thaw(_)) {
                continue;
            }
            let before = |(other, _): &(Remedy, String)| other == remedy;
            if not_needed.contains(remedy)
                || failed.iter().any(before)
                || repaired.iter().any(|other| other.remedy.as_ref() == Some(remedy))
            {
                continue;
            }
            tried = true;
            match remedy::apply::apply(context, remedy).await {
                Ok(Applied::NotNeeded) => not_needed.push(remedy.clone()),
                Ok(Applied::Done(words)) => {
                    let message = format!("{}: {words}", finding.message);
                    repaired.push(Finding {
                        level: Level::Ok,
                        repaired: true,
                        message,
                        ..finding.clone()
                    });
                }
                Err(error) => failed.push((remedy.clone(), error.full_message())),
            }
        }
        if !tried {
            break;
        }
    }
    findings.retain(|finding| {
        finding.remedy.as_ref().is_none_or(|remedy| !not_needed.contains(remedy))
    });
    for finding in &mut findings {
        if let Some((_, why)) =
            finding.remedy.as_ref().and_then(|mine| failed.iter().find(|(other, _)| other == mine))
        {
            finding.hint = Some(format!("it could not be repaired: {why}"));
        }
    }
    Ok(host.into_iter().chain(repaired).chain(findings).collect())
}
