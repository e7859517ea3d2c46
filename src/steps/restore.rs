//! Layers that come back out of the trash. A change of another VM, with which this one shares no
//! lock, may be about to merge or remove what they depend on: see [`crate::change::dependents`].

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::change::dependents::consumed;
use crate::change::planned::Planned;
use crate::change::run::Run;
use crate::change::step::{Step, Touches};
use crate::error::{Error, Kind, Result};
use crate::layer::stamp;
use crate::model::{FileStamp, Layer, Name, Record};
use crate::store::journal::{self, Journal};
use crate::store::schema::form;
use crate::store::{Store, make_directory};

/// Moves layers out of the trash, back into the pool; undone by moving them into it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestoreLayers {
    /// The directory in the trash.
    pub directory: String,
    /// Which layers.
    pub layers: Vec<Layer>,
    /// What they depend on, as it was when they went into it.
    #[serde(default, with = "form")]
    pub below: Vec<FileStamp>,
}

impl Step for RestoreLayers {
    const TAG: &'static str = "restore-layers";

    fn touches(&self) -> Touches {
        let below = self.below.iter().map(|stamp| &stamp.layer);
        Touches {
            pins: self.layers.iter().chain(below).cloned().collect(),
            // They are about to be heads.
            consumes: self.layers.clone(),
            trash: Some(self.directory.clone()),
            is_undone_by_removal: true,
            ..Touches::changed(&self.layers)
        }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        let store = run.store();
        restore(
            store,
            &run.name,
            &store.layout.trash().join(&self.directory),
            &self.layers,
            &self.below,
        )?;
        // From here on their headers tell what they depend on.
        run.release_store();
        Ok(())
    }

    async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        let store = run.store();
        put_back(store, &store.layout.trash().join(&self.directory), &self.layers)
    }
}

/// Moves `layers` of `vm` out of the directory `trash`, back into the pool. Refused when what they
/// depend on is not what `below` says, or will not stay so; then they may be in the pool, and the
/// caller moves them back ([`put_back`]).
pub(crate) fn restore(
    store: &Store,
    vm: &Name,
    trash: &Path,
    layers: &[Layer],
    below: &[FileStamp],
) -> Result<()> {
    // None of them, if one cannot be.
    let both =
        |layer: &&Layer| Store::is_in_trash(trash, layer) && store.layout.layer(layer).exists();
    if let Some(layer) = layers.iter().find(both) {
        store.restore_layer(trash, layer)?;
    }
    layers.iter().try_for_each(|layer| store.restore_layer(trash, layer))?;
    // Records on either side of the journals. A change whose journal went before we came to it
    // shows in the records behind; one that takes a head away, and whose journal came after, in
    // those before.
    let records = refuse_what_changed(store, below)?;
    for other in store.directories()?.iter().filter(|other| *other != vm) {
        let journal = match Journal::<Planned>::load(store, other) {
            Ok(None) => continue,
            Ok(Some(journal)) => journal,
            // What it is about to take away is its own.
            Err(_)
                if below
                    .iter()
                    .all(|stamp| belongs_to_another(&records, Some(other), &stamp.layer)) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        let consumed = consumed(&journal.steps);
        if let Some(stamp) = below.iter().find(|stamp| consumed.contains(&stamp.layer)) {
            let error = Error::refused(format!(
                "{vm} depends on layer {}, which `{}` of {other} is about to merge or remove",
                stamp.layer,
                journal.command()
            ));
            return Err(match journal::cut_short(store, other) {
                Some(_) => error.hint(format!(
                    "that was cut short; end it first: cowhand doctor {other} --repair"
                )),
                None => error.hint("run the command again when that has ended"),
            });
        }
    }
    refuse_what_changed(store, below).map(drop)
}

/// A record that cannot be read might say that its VM writes to one of them; not to those that
/// belong to somebody else.
fn refuse_what_changed(store: &Store, below: &[FileStamp]) -> Result<Vec<(Name, Record)>> {
    let mut records = Vec::new();
    let mut unreadable = Ok(());
    for name in store.names()? {
        match store.load(&name) {
            Ok(record) => records.push((name, record)),
            // It went meanwhile.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => unreadable = unreadable.and(Err(error)),
        }
    }
    if below.iter().any(|stamp| !belongs_to_another(&records, None, &stamp.layer)) {
        unreadable?;
    }
    match stamp::obstacle(store, &records, below) {
        None => Ok(records),
        Some(obstacle) => Err(Error::refused(format!("it cannot be taken back: {obstacle}"))
            .hint("see what else there is: cowhand undo --list")),
    }
}

/// Is a snapshot or a template on it whose record can be read, and which is not that of `name`?
/// Then `name` neither writes to it nor takes it away.
fn belongs_to_another(records: &[(Name, Record)], name: Option<&Name>, layer: &Layer) -> bool {
    records.iter().filter(|(other, _)| Some(other) != name).any(|(_, record)| record.keeps(layer))
}

/// [`restore`], or nothing.
pub(crate) fn restore_or_put_back(
    store: &Store,
    vm: &Name,
    trash: &Path,
    layers: &[Layer],
    below: &[FileStamp],
) -> Result<()> {
    // What shows at once needs no way back.
    refuse_what_changed(store, below)?;
    restore(store, vm, trash, layers, below).map_err(|error| match put_back(store, trash, layers) {
        Ok(()) => error,
        Err(second) => error.hint(format!(
            "its layers could not all be moved back into the trash ({}): cowhand doctor --repair",
            second.full_message()
        )),
    })
}

/// Moves layers that were restored into the trash again, whatever is left of their directory there.
pub(crate) fn put_back(store: &Store, trash: &Path, layers: &[Layer]) -> Result<()> {
    make_directory(&trash.join("layers"))?;
    // What is there still was never taken out.
    let restored: Vec<Layer> =
        layers.iter().filter(|layer| !Store::is_in_trash(trash, layer)).cloned().collect();
    store.trash_layers(trash, &restored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::dependents::refuse_new_dependents;
    use crate::layer::create;
    use crate::model::{Format, Merge, MergeKind};
    use crate::steps::merge::{MergeLayers, RemoveLayers};
    use crate::steps::trash::TrashLayers;
    use crate::store::trash::{self, Entry};

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
            crate::registry::install_steps();
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::at(directory.path()).expect("a store");
            store.prepare().expect("a store");
            let entry = Entry::new(trash::Kind::Revert, &name("mine"), "snapshot revert mine@x");
            let trash = store.open_trash("20260101T000000000Z-revert-mine", &entry).expect("trash");
            let [base, top, kept] = [(); 3].map(|()| Layer::new(Format::Qcow2));
            for (layer, backing) in [(&base, None), (&top, Some(&base)), (&kept, Some(&base))] {
                create::empty(&store, layer, backing, 1 << 20).expect("a layer");
            }
            store.trash_layer(&trash, &kept).expect("trash");
            Self { _directory: directory, store, trash, base, top, kept }
        }

        fn merge(&self) -> Vec<Planned> {
            let merge = Merge::pair("vda", MergeKind::Commit, &self.top, &self.base, 0);
            vec![
                MergeLayers { merges: vec![merge] }.into(),
                RemoveLayers { layers: vec![self.top.clone()] }.into(),
            ]
        }

        fn look_for_new_dependents(&self) -> Result<()> {
            let steps = self.merge();
            let plan: Vec<Layer> = steps.iter().flat_map(|step| step.touches().pins).collect();
            refuse_new_dependents(&self.store, &name("other"), &steps, &plan)
        }

        /// Another VM has written down that it is about to do this, and died.
        fn other_is_about_to(&self, steps: Vec<Planned>) {
            make_directory(&self.store.layout.vm(&name("other"))).expect("a directory");
            let journal = Journal {
                schema: 1,
                vm: None,
                operation: "gc".into(),
                steps,
                pivot: 0,
                pins: Vec::new(),
            };
            journal.save(&self.store, &name("other")).expect("a journal");
        }

        fn below(&self) -> Vec<FileStamp> {
            vec![stamp::of(&self.store, &self.base).expect("it is there")]
        }

        fn restore(&self, below: &[FileStamp]) -> Result<()> {
            restore(
                &self.store,
                &name("mine"),
                &self.trash,
                std::slice::from_ref(&self.kept),
                below,
            )
        }
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn a_merge_steps_back_from_who_was_taken_out_of_the_trash() {
        let bench = Bench::new();
        bench.look_for_new_dependents().expect("nobody new");
        bench.restore(&bench.below()).expect("nobody is in the way");
        let error = bench.look_for_new_dependents().expect_err("it is there now");
        assert!(error.full_message().contains(bench.kept.id.as_str()), "{}", error.full_message());
    }

    #[test]
    fn what_comes_out_of_the_trash_steps_back_from_a_merge() {
        let bench = Bench::new();
        let below = bench.below();
        bench.other_is_about_to(bench.merge());
        let error = bench.restore(&below).expect_err("it is being merged");
        assert!(error.full_message().contains("`gc` of other"), "{}", error.full_message());
        assert!(
            error.hints().iter().any(|hint| hint.contains("doctor other --repair")),
            "{:?}",
            error.hints()
        );
        put_back(&bench.store, &bench.trash, std::slice::from_ref(&bench.kept)).expect("trash");
        assert!(!bench.store.layout.layer(&bench.kept).exists());
    }

    #[test]
    fn what_comes_out_of_the_trash_steps_back_from_what_was_merged() {
        let bench = Bench::new();
        let below = bench.below();
        let file = std::fs::File::options()
            .write(true)
            .open(bench.store.layout.layer(&bench.base))
            .expect("it is there");
        file.set_len(1 << 20).expect("it grows");
        let error = bench.restore(&below).expect_err("it is not what it was");
        assert!(
            error.full_message().contains("merged or removed since then"),
            "{}",
            error.full_message()
        );
    }

    #[test]
    fn what_comes_out_of_the_trash_steps_back_from_a_revert_that_takes_away_what_it_stands_on() {
        let bench = Bench::new();
        let text = include_bytes!("../../tests/fixtures/vm-v1.json");
        let record = crate::store::schema::parse_record(text).expect("a record");
        let directory = "20260101T000000000Z-revert-other".to_owned();
        let step = TrashLayers::of(
            &record,
            directory,
            trash::Kind::Revert,
            vec![bench.base.clone()],
            None,
        );
        bench.other_is_about_to(vec![step.into()]);
        bench.restore(&bench.below()).expect_err("what it stands on is about to go");
    }

    #[test]
    fn nothing_comes_out_of_the_trash_beside_a_record_that_cannot_be_read() {
        let bench = Bench::new();
        let other = name("other");
        make_directory(&bench.store.layout.vm(&other)).expect("a directory");
        std::fs::write(bench.store.layout.vm_json(&other), "{").expect("a file");
        let (mine, layers) = (name("mine"), std::slice::from_ref(&bench.kept));
        let error = restore_or_put_back(&bench.store, &mine, &bench.trash, layers, &bench.below())
            .expect_err("it may write to what it stands on");
        assert_eq!(error.kind(), Kind::Damaged, "{}", error.full_message());
        assert!(bench.trash.join("layers").join(bench.kept.file_name()).exists());
    }

    #[test]
    fn what_was_refused_goes_back_even_where_its_place_in_the_trash_is_gone() {
        let bench = Bench::new();
        bench.restore(&bench.below()).expect("nobody is in the way");
        std::fs::remove_dir_all(&bench.trash).expect("it is there");
        put_back(&bench.store, &bench.trash, std::slice::from_ref(&bench.kept)).expect("trash");
        assert!(bench.trash.join("layers").join(bench.kept.file_name()).exists());
    }

    #[test]
    fn what_is_left_of_a_merge_takes_nobody_of_its_own_plan_for_a_newcomer() {
        let bench = Bench::new();
        let plan: Vec<Layer> = bench.merge().iter().flat_map(|step| step.touches().pins).collect();
        // Merged already, and only to be removed: `top` goes, and what it depended on, but for
        // `kept`, went before.
        let left = [RemoveLayers { layers: vec![bench.base.clone(), bench.top.clone()] }.into()];
        refuse_new_dependents(&bench.store, &name("other"), &left, &plan)
            .expect("its own layer stands on it still");
        bench.restore(&bench.below()).expect("nobody is in the way");
        refuse_new_dependents(&bench.store, &name("other"), &left, &plan)
            .expect_err("it is there now");
    }
}
