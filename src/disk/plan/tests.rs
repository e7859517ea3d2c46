//! Whatever merge a user asks for: it is refused, or every point that is not given up for it reads
//! what it read before.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::merge::plan::{LayerChanges, collapse};
use crate::model::LayerId;
use crate::snapshot::plan::tests::history::{History, histories};
use crate::snapshot::plan::tests::model::{World, volume};
use crate::snapshot::plan::tests::{check, config};
use crate::snapshot::plan::without;
use crate::store::trash;

/// What became of the requests, and how often.
type Tally = BTreeMap<&'static str, u32>;

/// A request: which VM and disk, from where to where in its chain, and which VMs are busy.
type Request = (History, (usize, usize), (usize, Option<usize>), u8);

fn requests() -> impl Strategy<Value = Request> {
    (histories(), (0_usize..8, 0_usize..4), (0_usize..6, prop::option::of(0_usize..6)), 0_u8..16)
}

/// The templates' layers, and those in `in_use`.
fn fixed(world: &World, in_use: &[LayerId]) -> Vec<LayerId> {
    let templates = world.records.values().filter(|record| record.is_template());
    templates
        .flat_map(Record::layers)
        .map(|layer| layer.id.clone())
        .chain(in_use.iter().cloned())
        .collect()
}

fn carry_out(world: &World, vm: &Name, given_up: &[Name], merges: Vec<Merge>, fixed: &[LayerId]) {
    let record = &world.records[vm];
    let dropped = given_up.iter().fold(record.clone(), |record, name| without(&record, name));
    let changes = LayerChanges { merges, trashed: Vec::new() };
    let plan = collapse(record, &dropped, changes, false, trash::Kind::DiskCommit, "t".to_owned());
    check(world, vm, &dropped, &plan, fixed);
}

fn run(cases: u32, kinds: &[&str], test: impl Fn(&World, &Request, &mut Tally)) {
    let tally = RefCell::new(Tally::new());
    let checked = TestRunner::new(config(cases)).run(&requests(), |request| {
        test(&request.0.world(), &request, &mut tally.borrow_mut());
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
    let tally = tally.into_inner();
    let is_tested = |kind: &&str| tally.get(kind).is_some_and(|count| *count > 0);
    assert!(kinds.iter().all(is_tested), "that is hardly tested: {tally:?}");
}

#[test]
fn a_commit_is_refused_or_leaves_all_points_as_they_were_but_those_that_are_given_up() {
    run(
        400,
        &["refused", "done", "given up", "several"],
        |world, (_, (vm, disk), (top, base), busy), tally| {
            let vm = world.vm(*vm);
            let mut record = world.records[&vm].clone();
            let Some(disk) = volume(&mut record, *disk).cloned() else { return };
            let is_busy = |(number, name): (usize, &Name)| {
                ((busy >> (number % 4)) & 1 == 1 && *name != vm).then(|| name.clone())
            };
            let names: Vec<Name> = world.records.keys().enumerate().filter_map(is_busy).collect();
            let in_use = world.open(&names);
            let graph = world.graph();
            let chain = graph.chain(&disk.layer.id).expect("it is whole");
            let subject = Subject { vm: &vm, record: &record, target: &disk.target, chain: &chain };
            let permissions =
                Permissions { owner: &vm, in_use: &in_use, kept: &[], uncertain: None };
            let (top, base) = (top % chain.len(), base.map(|base| (top + base) % chain.len()));
            let Ok(Commit { merge, given_up }) = commit(&graph, subject, top, base, permissions)
            else {
                *tally.entry("refused").or_default() += 1;
                return;
            };
            *tally.entry("done").or_default() += 1;
            *tally.entry("given up").or_default() += u32::from(!given_up.is_empty());
            *tally.entry("several").or_default() += u32::from(!merge.between.is_empty());
            carry_out(world, &vm, &given_up, vec![merge], &fixed(world, &in_use));
        },
    );
}

#[test]
fn a_stream_is_refused_or_leaves_all_points_as_they_were() {
    run(
        300,
        &["refused", "done", "kept", "several"],
        |world, (_, (vm, disk), (_, base), needed), tally| {
            let vm = world.vm(*vm);
            let mut record = world.records[&vm].clone();
            let Some(disk) = volume(&mut record, *disk).cloned() else { return };
            let graph = world.graph();
            let chain = graph.chain(&disk.layer.id).expect("it is whole");
            let subject = Subject { vm: &vm, record: &record, target: &disk.target, chain: &chain };
            // What a change that can be undone needs.
            let is_needed = |number: usize| number > 0 && (needed >> (number % 4)) & 1 == 1;
            let layers = chain.iter().enumerate().filter(|(number, _)| is_needed(*number));
            let layers = layers.map(|(_, info)| info.layer.id.clone()).collect();
            let kept = Kept { layers, unknown: None };
            match stream(&graph, subject, base.map(|base| base % chain.len()), &kept) {
                Ok(Some(merge)) => {
                    *tally.entry("done").or_default() += 1;
                    *tally.entry("kept").or_default() += u32::from(!merge.kept.is_empty());
                    *tally.entry("several").or_default() += u32::from(!merge.between.is_empty());
                    carry_out(world, &vm, &[], vec![merge], &fixed(world, &kept.layers));
                }
                Ok(None) => {}
                Err(_) => *tally.entry("refused").or_default() += 1,
            }
        },
    );
}

#[test]
fn all_disks_that_are_made_to_depend_on_nothing_read_what_they_read() {
    run(150, &["done"], |world, (_, (vm, _), _, _), tally| {
        let vm = world.vm(*vm);
        let record = &world.records[&vm];
        let graph = world.graph();
        let mut merges = Vec::new();
        for disk in record.config.writable() {
            let chain = graph.chain(&disk.layer.id).expect("it is whole");
            let subject = Subject { vm: &vm, record, target: &disk.target, chain: &chain };
            let Ok(merge) = stream(&graph, subject, None, &Kept::default()) else { return };
            merges.extend(merge);
        }
        *tally.entry("done").or_default() += u32::from(!merges.is_empty());
        carry_out(world, &vm, &[], merges, &fixed(world, &[]));
    });
}
