//! What is true of every plan: the record that it leads to is sound, and every point that stays
//! reads what it read before, wherever the plan is cut short. Stores come from random histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::layer::collapse::{self, Action, Permissions};
use crate::merge::plan::{LayerChanges, collapse as collapse_layers};
use crate::model::LayerId;
use crate::store::{schema, trash};

pub(crate) mod history;
pub(crate) mod model;

use history::{chosen, histories, taking};
use model::{BLOCK, Part, World, steps_of};

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// The record is read as it was written.
fn assert_sound(record: &Record) {
    let text = schema::render_record(record, None, None).expect("it can be written");
    assert_eq!(schema::parse_record(&text).expect("it is sound"), *record);
}

fn layers(record: &Record) -> BTreeSet<Layer> {
    record.layers().cloned().collect()
}

fn heads(record: &Record) -> BTreeSet<Layer> {
    record.config.writable().map(|disk| disk.layer.clone()).collect()
}

fn made(steps: &[Planned]) -> BTreeSet<Layer> {
    steps.iter().filter_map(|step| step.touches().makes).collect()
}

fn carry_out(world: &mut World, vm: &Name, steps: &[Planned]) {
    steps.iter().for_each(|step| world.apply(vm, step, Part::Whole));
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn a_snapshot_has_what_the_head_had_and_the_head_is_new(
        history in histories(),
        number in 0_usize..8,
        state in 0_usize..4,
        with_memory: bool,
        freeze: Option<bool>,
    ) {
        let mut world = history.world();
        let vm = world.vm(number);
        let state = [State::Running, State::Paused, State::Stopped, State::Crashed][state];
        let wanted = Taking { state, freeze, ..taking(&mut world, with_memory) };
        let before = world.records[&vm].clone();
        let (after, plan) = take(&before, &wanted);
        assert_sound(&after);
        let snapshot = after.snapshots.last().expect("the new one");
        assert_eq!((&snapshot.name, &snapshot.parent), (&wanted.name, &before.current));
        assert_eq!(snapshot.config, before.config);
        assert_eq!(after.current.as_ref(), Some(&wanted.name));
        assert_eq!(after.snapshots[..before.snapshots.len()], before.snapshots[..]);
        // What is made is the head, and nothing else is new.
        let (steps, pivot) = plan.parts();
        let new: BTreeSet<Layer> = layers(&after).difference(&layers(&before)).cloned().collect();
        assert_eq!((&new, &new), (&made(steps), &heads(&after)));
        assert!(new.iter().all(|layer| !world.layers.contains_key(layer)));
        // Before the pivot nothing that anybody reads has changed; after it, only the new point is
        // there.
        let points = world.points();
        carry_out(&mut world, &vm, &steps[..pivot]);
        assert_eq!(world.points(), points);
        carry_out(&mut world, &vm, &steps[pivot..]);
        let mut now = world.points();
        for disk in snapshot.config.volumes() {
            let read = now.remove(&format!("{vm}@{} {}", wanted.name, disk.target));
            assert_eq!(read.as_ref(), points.get(&format!("{vm}@ {}", disk.target)));
        }
        assert_eq!(now, points);
    }

    #[test]
    fn a_revert_depends_on_the_snapshot_and_trashes_the_old_head(
        history in histories(), number in 0_usize..8, at in 0_usize..8, live: bool,
    ) {
        let mut world = history.world();
        let vm = world.vm(number);
        let Some(snapshot) = chosen(&world, &vm, at) else { return Ok(()) };
        let before = world.records[&vm].clone();
        let wanted = Reverting { live, memory: None, trash: "t".to_owned() };
        let (after, plan) = revert(&before, &snapshot, &wanted);
        assert_sound(&after);
        assert_eq!(after.current.as_ref(), Some(&snapshot.name));
        assert_eq!(after.snapshots, before.snapshots);
        let (steps, pivot) = plan.parts();
        assert_eq!((&made(steps), &made(&steps[..pivot])), (&heads(&after), &heads(&after)));
        for (new, old) in after.config.volumes().zip(snapshot.config.volumes()) {
            let overlays = steps_of::<CreateOverlay>(steps);
            let made = overlays.into_iter().find(|step| step.layer == new.layer);
            assert_eq!((&new.target, new.virtual_bytes), (&old.target, old.virtual_bytes));
            match made {
                Some(made) => assert_eq!(
                    (made.backing.as_ref(), made.virtual_bytes),
                    (Some(&old.layer), old.virtual_bytes)
                ),
                None => assert!(old.read_only && new.layer == old.layer),
            }
        }
        let trashed = steps_of::<TrashLayers>(&steps[pivot..]);
        let trashed = trashed.into_iter().flat_map(|step| step.layers).collect();
        let gone: BTreeSet<Layer> = heads(&before).difference(&layers(&after)).cloned().collect();
        assert_eq!(gone, trashed);
        let mut expected = world.points();
        carry_out(&mut world, &vm, steps);
        expected.retain(|point, _| !point.starts_with(&format!("{vm}@ ")));
        for disk in snapshot.config.volumes() {
            let read = expected[&format!("{vm}@{} {}", snapshot.name, disk.target)].clone();
            expected.insert(format!("{vm}@ {}", disk.target), read);
        }
        let is_inside = |point: &String| point.contains(" inside ");
        expected.retain(|point, _| !is_inside(point));
        let mut now = world.points();
        now.retain(|point, _| !is_inside(point));
        assert_eq!(now, expected);
    }

    #[test]
    fn what_depended_on_a_snapshot_that_goes_depends_on_its_parent(
        history in histories(), number in 0_usize..8, at in 0_usize..8,
    ) {
        let world = history.world();
        let vm = world.vm(number);
        let Some(snapshot) = chosen(&world, &vm, at) else { return Ok(()) };
        let before = &world.records[&vm];
        let after = without(before, &snapshot.name);
        assert_sound(&after);
        let mut expected = before.clone();
        expected.snapshots.retain(|other| other.name != snapshot.name);
        let onto = |parent: &mut Option<Name>| if parent.as_ref() == Some(&snapshot.name) {
            parent.clone_from(&snapshot.parent);
        };
        expected.snapshots.iter_mut().for_each(|other| onto(&mut other.parent));
        onto(&mut expected.current);
        assert_eq!(after, expected);
    }

    #[test]
    fn what_goes_with_a_snapshot_is_all_that_depends_on_it_leaves_first(
        history in histories(), number in 0_usize..8, at in 0_usize..8,
    ) {
        let world = history.world();
        let vm = world.vm(number);
        let Some(snapshot) = chosen(&world, &vm, at) else { return Ok(()) };
        let record = &world.records[&vm];
        let stands_on_it = |other: &Snapshot| {
            let mut next = other.parent.clone();
            while let Some(name) = next.filter(|name| *name != snapshot.name) {
                let below = record.snapshots.iter().find(|one| one.name == name);
                next = below.and_then(|one| one.parent.clone());
                if next.is_none() {
                    return false;
                }
            }
            other.parent.is_some()
        };
        let above = record.snapshots.iter().filter(|other| stands_on_it(other));
        let above: BTreeSet<&Name> = above.map(|other| &other.name).collect();
        let alone = to_remove(record, &snapshot.name, Which::Alone);
        assert_eq!(alone, std::slice::from_ref(&snapshot.name));
        let only = to_remove(record, &snapshot.name, Which::ChildrenOnly);
        assert_eq!((only.iter().collect(), only.len()), (above.clone(), above.len()));
        let all = to_remove(record, &snapshot.name, Which::WithChildren);
        assert_eq!(&all[..only.len()], &only[..]);
        assert_eq!(&all[only.len()..], std::slice::from_ref(&snapshot.name));
        for (place, name) in all.iter().enumerate() {
            let parent = record.snapshot(&vm, name).expect("it is there").parent.as_ref();
            assert!(
                parent.is_none_or(|parent| !all[..place].contains(parent)),
                "{name} goes after its parent"
            );
        }
    }
}

/// Carries out `plan`, which leads to what is left by `dropped`: cut short after every step and in
/// the middle of it, and every step twice. Returns what is there in the end.
pub(crate) fn check(
    world: &World,
    vm: &Name,
    dropped: &Record,
    plan: &Plan,
    untouched: &[LayerId],
) -> World {
    let mut left = world.clone();
    left.records.insert(vm.clone(), dropped.clone());
    let reachable = left.reachable();
    let expected = left.points_with(&reachable);
    let (steps, pivot) = plan.parts();
    assert_eq!(pivot, 0, "nothing has to be undone");
    let fixed: Vec<_> =
        world.layers.iter().filter(|(layer, _)| untouched.contains(&layer.id)).collect();
    let look = |now: &World, when: &str| {
        assert_eq!(now.points_with(&reachable), expected, "{when} of {steps:#?}");
        for (layer, held) in &fixed {
            assert_eq!(
                now.layers.get(*layer),
                Some(*held),
                "{layer} is not ours to change, {when}"
            );
        }
        let named = dropped.snapshots.iter().filter_map(Snapshot::ram_image);
        assert!(
            named.clone().all(|image| now.images.contains(&image.id)),
            "the memory of a point is gone"
        );
    };
    let mut now = world.clone();
    for (at, step) in steps.iter().enumerate() {
        for part in [Part::Half, Part::Whole] {
            let mut cut = now.clone();
            cut.apply(vm, step, part);
            if at == 0 && part == Part::Half {
                continue;
            }
            look(&cut, "cut short");
            carry_on(&mut cut, vm, steps);
            look(&cut, "carried on");
        }
        now.apply(vm, step, Part::Whole);
        let once = now.clone();
        now.apply(vm, step, Part::Whole);
        assert_eq!(
            (&now.layers, &now.records),
            (&once.layers, &once.records),
            "{step:?} does something twice"
        );
    }
    // What was needed is needed still, or has gone.
    let (needed, was_needed) = (now.reachable(), world.reachable());
    assert!(needed.iter().all(|layer| now.layers.contains_key(layer)), "a layer is missing");
    // What was hidden before, and nothing is backed by any more, is left for `gc`, with what it is
    // backed by.
    let was_named: BTreeSet<&Layer> = world.records.values().flat_map(Record::layers).collect();
    let is_backing =
        |layer: &&Layer| now.layers.values().any(|held| held.backing.as_ref() == Some(*layer));
    let was_needed = |layer: &&Layer| was_named.contains(layer) && was_needed.contains(layer);
    let is_idle =
        |layer: &&Layer| was_needed(layer) && !needed.contains(layer) && !is_backing(layer);
    let idle: Vec<_> = now.layers.keys().filter(is_idle).collect();
    assert!(idle.is_empty() || !untouched.is_empty(), "{idle:?} is left");
    let (named, dropped) = (&now.records[vm], |layer: &Layer| now.trash.contains(layer));
    assert!(named.layers().all(|layer| !dropped(layer)), "something that is named was thrown away");
    assert_sound(named);
    now
}

/// What the next command does: all behind the last record that was written.
fn carry_on(world: &mut World, vm: &Name, steps: &[Planned]) {
    let saved = steps
        .iter()
        .rposition(|step| step.wrote(&world.records[vm]) == Some(true))
        .expect("the pivot");
    carry_out(world, vm, &steps[saved + 1..]);
}

/// What the planner decides for a layer that loses its name, and how often.
pub(crate) type Tally = BTreeMap<&'static str, u32>;

fn count(tally: &mut Tally, action: &Action) {
    let kind = match action {
        Action::Drop(_) => "drop",
        Action::Commit { .. } => "commit",
        Action::Stream { .. } => "stream",
        Action::Keep { .. } => "keep",
    };
    *tally.entry(kind).or_default() += 1;
}

/// Gives up what stands between the record of `vm` and `dropped`, as far as the layers in `disks`
/// go.
fn give_up(
    world: &World,
    vm: &Name,
    dropped: &Record,
    disks: &[(String, Layer)],
    limits: (&[LayerId], &[LayerId]),
    tally: &mut Tally,
) -> World {
    let (in_use, kept) = limits;
    let mut left = world.clone();
    left.records.insert(vm.clone(), dropped.clone());
    let graph = left.graph();
    let permissions = Permissions { owner: vm, in_use, kept, uncertain: None };
    let mut changes = LayerChanges::default();
    for (target, layer) in disks {
        let actions = collapse::plan(&graph, &layer.id, permissions);
        actions.iter().for_each(|action| count(tally, action));
        changes.add(target, &actions, &graph);
    }
    let plan = collapse_layers(
        &world.records[vm],
        dropped,
        changes,
        false,
        trash::Kind::SnapshotRm,
        "t".to_owned(),
    );
    let templates = world.records.values().filter(|record| record.is_template());
    let frozen = templates.flat_map(Record::layers).map(|layer| layer.id.clone());
    let fixed: Vec<LayerId> = in_use.iter().chain(kept).cloned().chain(frozen).collect();
    check(world, vm, dropped, &plan, &fixed)
}

/// A removal: of which VM and snapshot, what goes along, which VMs are busy, whether undo is kept.
type Removal = (history::History, (usize, usize, u8, u8, Option<usize>));

fn removals() -> impl Strategy<Value = Removal> {
    (
        histories(),
        (0_usize..8, 0_usize..8, 0_u8..3, 0_u8..16, prop::option::weighted(0.2, 0_usize..32)),
    )
}

fn remove((history, (number, at, which, busy, undo)): &Removal, tally: &mut Tally) {
    let mut world = history.world();
    let vm = world.vm(*number);
    let Some(snapshot) = chosen(&world, &vm, *at) else { return };
    let is_busy = |(number, name): (usize, &Name)| {
        ((busy >> (number % 4)) & 1 == 1 && *name != vm).then(|| name.clone())
    };
    let busy: Vec<Name> = world.records.keys().enumerate().filter_map(is_busy).collect();
    let in_use = world.open(&busy);
    let kept = undo.map(|number| below(&world, number)).unwrap_or_default();
    let which = [Which::Alone, Which::WithChildren, Which::ChildrenOnly][usize::from(*which)];
    for name in to_remove(&world.records[&vm], &snapshot.name, which) {
        let record = world.records[&vm].clone();
        let going = record.snapshot(&vm, &name).expect("it is there");
        let disks: Vec<(String, Layer)> =
            going.config.writable().map(|disk| (disk.target.clone(), disk.layer.clone())).collect();
        if disks.iter().any(|(_, layer)| !world.layers[layer].inner.is_empty()) {
            // That is refused.
            return;
        }
        world = give_up(&world, &vm, &without(&record, &name), &disks, (&in_use, &kept), tally);
    }
    merge_hidden(world, &vm, &in_use, tally);
}

/// What the trash would need if something in it depended on a layer.
fn below(world: &World, number: usize) -> Vec<LayerId> {
    let (mut next, mut kept) = (world.layers.keys().nth(number % world.layers.len()), Vec::new());
    while let Some(layer) = next {
        kept.push(layer.id.clone());
        next = world.layers[layer].backing.as_ref();
    }
    kept
}

/// What `gc` does with layers below a VM that nobody names.
fn merge_hidden(mut world: World, vm: &Name, in_use: &[LayerId], tally: &mut Tally) {
    for layer in world.reachable() {
        let record = world.records[vm].clone();
        let graph = world.graph();
        let mut heads = record.layers();
        let is_below = heads.any(|head| {
            graph.chain(&head.id).expect("whole").iter().any(|info| info.layer == layer)
        });
        if is_below && graph.uses(&layer.id).is_empty() {
            world =
                give_up(&world, vm, &record, &[("vda".to_owned(), layer)], (in_use, &[]), tally);
        }
    }
}

#[test]
fn whatever_is_removed_all_points_that_stay_read_what_they_read_wherever_it_is_cut_short() {
    let tally = std::cell::RefCell::new(Tally::new());
    let mut runner = TestRunner::new(config(300));
    let checked = runner.run(&removals(), |removal| {
        remove(&removal, &mut tally.borrow_mut());
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
    let tally = tally.into_inner();
    for kind in ["drop", "commit", "stream", "keep"] {
        assert!(
            tally.get(kind).is_some_and(|count| *count > 20),
            "that is hardly tested: {tally:?}"
        );
    }
}

/// The model itself: a layer that grows shows nothing of what is below its old end.
#[test]
fn in_the_model_a_layer_that_grows_hides_what_is_below_its_end() {
    let [base, top] = [(); 2].map(|()| Layer::new(Format::Qcow2));
    let mut world = World::default();
    world.make(&base, None, 3);
    world.held(&base).blocks.insert(2, 7);
    world.make(&top, Some(&base), 2);
    world.grow(&top, 3);
    assert_eq!((world.reading(&top), BLOCK), (Ok(vec![0, 0, 0]), 1 << 16));
}
