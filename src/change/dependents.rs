//! Two changes that share no lock and could hurt each other: one merges or removes layers of one
//! VM, the other brings layers of another VM, which depend on those, back out of the trash.
//!
//! ```text
//! merge:    its journal is written ─▶ the headers of the pool are read:
//!                                     does anybody stand there who was not in the plan?
//! restore:  its layers are in the pool ─▶ the records and journals of others are read, and the
//!                                         stamps of what it depends on:
//!                                         is it what it was, and stays so?
//! ```
//! Each makes itself seen before it looks. So whatever their order, one of them sees the other and
//! steps back. Those who remove layers under the store's lock are kept away by it, as long as the
//! restore holds it.

use super::planned::Planned;
use crate::error::{Error, Result};
use crate::layer::scan;
use crate::model::{Layer, Name};
use crate::store::Store;

/// The layers that `steps` write to or take away, and that something may depend on.
pub(crate) fn consumed<'a>(steps: impl IntoIterator<Item = &'a Planned>) -> Vec<Layer> {
    steps.into_iter().flat_map(|step| step.touches().consumes).collect()
}

/// Refuses what `steps` of a change do, which is written down and has not begun, when a layer
/// depends on what they take away that is not in the `plan`.
pub(crate) fn refuse_new_dependents(
    store: &Store,
    name: &Name,
    steps: &[Planned],
    plan: &[Layer],
) -> Result<()> {
    let consumed = consumed(steps.iter().filter(|step| !step.touches().puts_heads_away));
    if consumed.is_empty() {
        return Ok(());
    }
    let consumed: Vec<&Layer> = consumed.iter().collect();
    let new = scan::backed_by(store, &consumed)?.into_iter().find(|layer| !plan.contains(layer));
    new.map_or(Ok(()), |new| {
        Err(Error::refused(format!(
            "layers of {name} cannot be merged or removed: {new}, which depends on them, was just \
             taken out of the trash"
        ))
        .hint("run the command again"))
    })
}
