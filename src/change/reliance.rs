//! Two changes that share no lock and could hurt each other: one merges or removes layers of one VM, the other brings layers of another VM, which stand
//! on those, back out of the trash.
//!
//! ```text
//! merge:    its journal is written ─▶ the headers of the pool are read: does anybody stand there who was not in the plan?
//! restore:  its layers are in the pool ─▶ the journals and records of others are read, and the stamps of what it stands on: is it what it was, and stays so?
//! ```
//! Each makes itself seen before it looks. So whatever their order, one of them sees the other and steps back. Those who remove layers under the
//! store's lock are kept away by it, as long as the restore holds it.

use std::path::Path;

use super::step::Step;
use crate::error::{Error, Result};
use crate::layer::{census, stamp};
use crate::model::{Layer, LayerStamp, MergeKind, Name};
use crate::store::Store;
use crate::store::journal::Journal;
use crate::store::trash::{self, Stamp};

/// The layers that `steps` write to or take away, and that something may stand on.
fn consumed(steps: &[Step]) -> Vec<&Layer> {
    let mut layers = Vec::new();
    for step in steps {
        match step {
            Step::Merge { merges } => {
                for merge in merges {
                    layers.extend(merge.vanishing());
                    layers.extend((merge.kind == MergeKind::Commit).then_some(&merge.base));
                }
            }
            Step::RemoveMerged { layers: gone } => layers.extend(gone),
            // They are about to be heads.
            Step::RestoreLayers { layers: heads, .. } => layers.extend(heads),
            // Nothing stands on what a guest wrote to.
            Step::Trash { what, layers: gone, .. } if !trash::keeps_a_head(what) => layers.extend(gone),
            _ => {}
        }
    }
    layers
}

/// Refuses a change that is written down, and has not begun, when somebody new stands on what it takes away.
pub(super) fn refuse_newcomers(store: &Store, name: &Name, steps: &[Step]) -> Result<()> {
    let consumed = consumed(steps);
    if consumed.is_empty() {
        return Ok(());
    }
    let planned: Vec<Layer> = steps.iter().flat_map(Step::layers).collect();
    let newcomer = census::standing_on(store, &consumed)?.into_iter().find(|layer| !planned.contains(layer));
    newcomer.map_or(Ok(()), |newcomer| {
        Err(Error::refused(format!(
            "layers of {name} cannot be merged or removed: {newcomer}, which stands on them, was just taken out of the trash"
        ))
        .hint("run the command again"))
    })
}

/// Moves `layers` of `vm` out of the directory `trash`, back into the pool. Refused when what they stand on is not what `below` says, or will not stay
/// so; then they may be in the pool, and the caller moves them back ([`put_back`]).
pub fn restore(store: &Store, vm: &Name, trash: &Path, layers: &[Layer], below: &[Stamp]) -> Result<()> {
    layers.iter().try_for_each(|layer| store.restore_layer(trash, layer))?;
    for other in store.directories()?.iter().filter(|other| *other != vm) {
        let Some(journal) = Journal::<Step>::load(store, other)? else { continue };
        let consumed = consumed(&journal.steps);
        if let Some(stamp) = below.iter().find(|stamp| consumed.contains(&&stamp.layer)) {
            return Err(Error::refused(format!(
                "{vm} stands on layer {}, which `{}` of {other} is about to merge or remove",
                stamp.layer, journal.operation
            ))
            .hint("run the command again when that has ended"));
        }
    }
    let stamps: Vec<LayerStamp> = below.iter().cloned().map(LayerStamp::from).collect();
    match stamp::obstacle(store, &store.records()?, &stamps) {
        None => Ok(()),
        Some(obstacle) => Err(Error::refused(format!("it cannot be taken back: {obstacle}"))
            .hint("see what else there is: cowhand undo --list")),
    }
}

/// Moves layers that were restored into the trash again.
pub fn put_back(store: &Store, trash: &Path, layers: &[Layer]) -> Result<()> {
    layers.iter().try_for_each(|layer| store.trash_layer(trash, layer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::create;
    use crate::model::{Format, Merge};
    use crate::store::make_directory;
    use crate::store::trash::Entry;

    /// `base` ← `top`, and `kept` on `base` in the trash.
    struct Bench {
        _directory: tempfile::TempDir,
        store: Store,
        trash: std::path::PathBuf,
        base: Layer,
        top: Layer,
        kept: Layer,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::at(directory.path()).expect("a store");
            store.prepare().expect("a store");
            let entry = Entry::new("revert", &name("mine"), "snapshot revert mine@x");
            let trash = store.open_trash("20260101T000000000Z-revert-mine", &entry).expect("trash");
            let [base, top, kept] = [(); 3].map(|()| Layer::new(Format::Qcow2));
            for (layer, backing) in [(&base, None), (&top, Some(&base)), (&kept, Some(&base))] {
                create::empty(&store, layer, backing, 1 << 20).expect("a layer");
            }
            store.trash_layer(&trash, &kept).expect("trash");
            Self { _directory: directory, store, trash, base, top, kept }
        }

        fn merge(&self) -> Vec<Step> {
            let merge = Merge::pair("vda", MergeKind::Commit, &self.top, &self.base, 0);
            vec![Step::Merge { merges: vec![merge] }, Step::RemoveMerged { layers: vec![self.top.clone()] }]
        }

        fn below(&self) -> Vec<Stamp> {
            vec![stamp::of(&self.store, &self.base).expect("it is there").into()]
        }

        fn restore(&self, below: &[Stamp]) -> Result<()> {
            restore(&self.store, &name("mine"), &self.trash, std::slice::from_ref(&self.kept), below)
        }
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_merge_steps_back_from_who_was_taken_out_of_the_trash() {
        let bench = Bench::new();
        refuse_newcomers(&bench.store, &name("other"), &bench.merge()).expect("nobody new");
        bench.restore(&bench.below()).expect("nobody is in the way");
        let error = refuse_newcomers(&bench.store, &name("other"), &bench.merge()).expect_err("it is there now");
        assert!(error.full_message().contains(bench.kept.id.as_str()), "{}", error.full_message());
    }

    #[test]
    fn what_comes_out_of_the_trash_steps_back_from_a_merge() {
        let bench = Bench::new();
        let below = bench.below();
        make_directory(&bench.store.layout.vm(&name("other"))).expect("a directory");
        let journal = Journal { schema: 1, operation: "gc".into(), steps: bench.merge(), pivot: 0, pins: Vec::new() };
        journal.save(&bench.store, &name("other")).expect("a journal");
        let error = bench.restore(&below).expect_err("it is being merged");
        assert!(error.full_message().contains("`gc` of other"), "{}", error.full_message());
        put_back(&bench.store, &bench.trash, std::slice::from_ref(&bench.kept)).expect("trash");
        assert!(!bench.store.layout.layer(&bench.kept).exists());
    }

    #[test]
    fn what_comes_out_of_the_trash_steps_back_from_what_was_merged() {
        let bench = Bench::new();
        let below = bench.below();
        let file =
            std::fs::File::options().write(true).open(bench.store.layout.layer(&bench.base)).expect("it is there");
        file.set_len(1 << 20).expect("it grows");
        let error = bench.restore(&below).expect_err("it is not what it was");
        assert!(error.full_message().contains("merged or removed since then"), "{}", error.full_message());
    }
}
