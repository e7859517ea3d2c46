use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn id(n: usize) -> LayerId {
    format!("{n:0>10}").parse().expect("an id")
}

fn layer(n: usize) -> Layer {
    Layer { id: id(n), format: Format::Qcow2 }
}

/// A pool from `(backing, megabytes)` per layer; layer numbers are positions.
fn graph(layers: &[(Option<usize>, u64)], uses: &[(usize, Use)]) -> LayerGraph {
    let mut graph = LayerGraph::default();
    for (n, (backing, megabytes)) in layers.iter().enumerate() {
        let info = LayerInfo {
            layer: layer(n),
            backing: backing.map(layer),
            virtual_bytes: 1 << 30,
            allocated_bytes: megabytes << 20,
            internal_snapshots: 0,
            disputed: false,
            guest_memory: false,
        };
        graph.layers.insert(id(n), info);
    }
    for (n, r#use) in uses {
        graph.uses.entry(id(*n)).or_default().push(r#use.clone());
    }
    graph
}

fn run(graph: &LayerGraph, n: usize) -> Vec<Action> {
    let vm = name("vm");
    plan(graph, &id(n), Permissions { owner: &vm, in_use: &[], kept: &[], uncertain: None })
}

fn head() -> Use {
    Use::Head(name("vm"))
}

#[test]
fn a_small_overlay_is_committed_into_a_large_layer() {
    let graph = graph(&[(None, 900), (Some(0), 500), (Some(1), 3)], &[(2, head())]);
    assert_eq!(run(&graph, 1), [Action::Commit { top: layer(2), base: layer(1), bytes: 3 << 20 }]);
}

#[test]
fn memory_behind_a_disk_does_not_become_part_of_it() {
    let mut graph = graph(&[(None, 900), (Some(0), 500), (Some(1), 3)], &[(2, head())]);
    let below = |graph: &mut LayerGraph, change: fn(&mut LayerInfo)| {
        change(graph.layers.get_mut(&id(1)).expect("a layer"))
    };
    below(&mut graph, |info| info.guest_memory = true);
    let commit = [Action::Commit { top: layer(2), base: layer(1), bytes: 3 << 20 }];
    assert_eq!(run(&graph, 1), commit, "it has the size of what is above it");
    below(&mut graph, |info| info.virtual_bytes /= 2);
    assert_eq!(
        run(&graph, 1),
        [Action::Stream { top: layer(2), gone: layer(1), bytes: 500 << 20 }]
    );
    below(&mut graph, |info| info.guest_memory = false);
    assert_eq!(run(&graph, 1), commit);
}

#[test]
fn what_an_undo_needs_is_neither_merged_nor_dropped() {
    let vm = name("vm");
    let three = graph(&[(None, 900), (Some(0), 3), (Some(1), 500)], &[(2, head())]);
    for kept in [[id(1)], [id(2)]] {
        let permissions = Permissions { owner: &vm, in_use: &[], kept: &kept, uncertain: None };
        assert_eq!(
            plan(&three, &id(1), permissions),
            [Action::Keep { layer: layer(1), why: Why::Undo }]
        );
    }
    let leaf = graph(&[(None, 900), (Some(0), 3)], &[]);
    let permissions = Permissions { owner: &vm, in_use: &[], kept: &[id(0)], uncertain: None };
    let dropped = [Action::Drop(layer(1)), Action::Keep { layer: layer(0), why: Why::Undo }];
    assert_eq!(plan(&leaf, &id(1), permissions), dropped);
    assert_eq!(touched(&dropped).collect::<Vec<_>>(), [&layer(1)]);
}

#[test]
fn a_small_layer_is_streamed_into_a_large_overlay() {
    let graph = graph(&[(None, 900), (Some(0), 3), (Some(1), 500)], &[(2, head())]);
    assert_eq!(run(&graph, 1), [Action::Stream { top: layer(2), gone: layer(1), bytes: 3 << 20 }]);
}

#[test]
fn a_layer_somebody_names_is_left_alone() {
    let graph = graph(&[(None, 9), (Some(0), 9)], &[(0, Use::Template(name("tpl"))), (1, head())]);
    assert_eq!(run(&graph, 0), []);
}

#[test]
fn dropping_a_leaf_looks_at_what_was_below_it() {
    let graph = graph(&[(None, 900), (Some(0), 5), (Some(1), 5), (Some(1), 1)], &[(3, head())]);
    assert_eq!(
        run(&graph, 2),
        [Action::Drop(layer(2)), Action::Commit { top: layer(3), base: layer(1), bytes: 1 << 20 }]
    );
}

#[test]
fn layers_that_name_each_other_end_the_way_down() {
    let itself = graph(&[(Some(0), 5)], &[]);
    assert_eq!(run(&itself, 0).len(), 1);
    let graph = graph(&[(Some(1), 5), (Some(0), 5), (Some(1), 5)], &[]);
    assert!(run(&graph, 2).len() <= 3);
}

#[test]
fn a_layer_with_two_children_stays() {
    let graph = graph(
        &[(None, 900), (Some(0), 5), (Some(0), 5)],
        &[(1, head()), (2, Use::Snapshot(name("vm"), name("s")))],
    );
    assert_eq!(
        run(&graph, 0),
        [Action::Keep { layer: layer(0), why: Why::Children(vec![layer(1), layer(2)]) }]
    );
}

#[test]
fn a_clone_of_the_child_forbids_the_commit() {
    // 0 ← 1 ← {2 (our head), 3 (a clone's head)}: committing 1 into 0 would need two headers
    // rewritten.
    let clone = Use::Head(name("clone"));
    let graph =
        graph(&[(None, 900), (Some(0), 5), (Some(1), 5), (Some(1), 5)], &[(2, head()), (3, clone)]);
    assert_eq!(
        run(&graph, 0),
        [Action::Stream { top: layer(1), gone: layer(0), bytes: 900 << 20 }]
    );
}

#[test]
fn an_overlay_nobody_is_known_to_name_is_never_committed_away() {
    // It may be the head of a VM whose record cannot be read.
    let graph = graph(&[(None, 900), (Some(0), 5)], &[]);
    assert!(!run(&graph, 0).iter().any(|action| matches!(action, Action::Commit { .. })));
    let (vm, why) = (name("vm"), Some("a record cannot be read"));
    let kept =
        plan(&graph, &id(1), Permissions { owner: &vm, in_use: &[], kept: &[], uncertain: why });
    assert!(matches!(kept[..], [Action::Keep { why: Why::Uncertain(_), .. }]));
}

#[test]
fn the_header_of_a_template_is_never_rewritten() {
    let uses = [(1, Use::Snapshot(name("vm"), name("s2"))), (2, Use::Template(name("tpl")))];
    let graph = graph(&[(None, 900), (Some(0), 5), (Some(1), 5)], &uses);
    assert!(
        matches!(run(&graph, 0)[..], [Action::Stream { .. }]),
        "a commit would rewrite the template's backing file"
    );
}

#[test]
fn a_layer_open_elsewhere_waits() {
    let graph = graph(&[(None, 900), (Some(0), 5)], &[(1, Use::Head(name("clone")))]);
    let (vm, in_use) = (name("vm"), [id(0), id(1)]);
    let actions = plan(
        &graph,
        &id(0),
        Permissions { owner: &vm, in_use: &in_use, kept: &[], uncertain: None },
    );
    assert_eq!(actions, [Action::Keep { layer: layer(0), why: Why::InUse }]);
}

#[test]
fn a_grown_disk_never_shrinks_and_a_small_base_may_grow() {
    let mut graph = graph(&[(None, 900), (Some(0), 5)], &[(1, head())]);
    graph.layers.get_mut(&id(1)).expect("layer").virtual_bytes = 1 << 20;
    assert!(
        matches!(run(&graph, 0)[..], [Action::Stream { .. }]),
        "a commit would leave the guest a larger disk"
    );
    graph.layers.get_mut(&id(1)).expect("layer").virtual_bytes = 2 << 30;
    assert!(matches!(run(&graph, 0)[..], [Action::Commit { .. }]));
}

#[test]
fn internal_snapshots_are_never_merged_away() {
    let mut graph = graph(&[(None, 900), (Some(0), 5)], &[(1, head())]);
    graph.layers.get_mut(&id(0)).expect("layer").internal_snapshots = 2;
    assert_eq!(run(&graph, 0), [Action::Keep { layer: layer(0), why: Why::InternalSnapshots(2) }]);
}

#[test]
fn what_internal_snapshots_rest_on_stays() {
    let mut graph = graph(&[(None, 900), (Some(0), 5)], &[(1, head())]);
    graph.layers.get_mut(&id(1)).expect("layer").internal_snapshots = 2;
    assert_eq!(run(&graph, 0), [Action::Keep { layer: layer(0), why: Why::BelowInternal(2) }]);
}

proptest! {
    /// Whatever the forest: what is written or vanishes is never named by another record, and
    /// nothing named is dropped.
    #[test]
    fn nobody_elses_data_is_touched(
        shape in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0u64..50, 0u8..4),
            2..12,
        ),
        start in any::<prop::sample::Index>(),
        in_use in any::<prop::sample::Index>(),
    ) {
        let layers: Vec<(Option<usize>, u64)> = shape
            .iter()
            .enumerate()
            .map(|(n, (at, mb, _))| (if n == 0 { None } else { Some(at.index(n)) }, *mb))
            .collect();
        let uses: Vec<(usize, Use)> = shape
            .iter()
            .enumerate()
            .filter_map(|(n, (_, _, kind))| match kind {
                0 => None,
                1 => Some((n, Use::Snapshot(name("vm"), name("s")))),
                2 => Some((n, Use::Head(name("other")))),
                _ => Some((n, Use::Template(name("tpl")))),
            })
            .collect();
        let graph = graph(&layers, &uses);
        let in_use = [id(in_use.index(layers.len()))];
        let vm = name("vm");
        let permissions =
            Permissions { owner: &vm, in_use: &in_use, kept: &[], uncertain: None };
        for action in plan(&graph, &id(start.index(layers.len())), permissions) {
            match action {
                Action::Drop(layer) => prop_assert!(graph.uses(&layer.id).is_empty()),
                Action::Commit { top, base, .. } => {
                    prop_assert!(graph.uses(&base.id).is_empty());
                    prop_assert!(!in_use.contains(&base.id) && !in_use.contains(&top.id));
                    let named_beside_it = graph
                        .children(&base.id)
                        .filter(|child| child.layer.id != top.id)
                        .filter(|child| !graph.uses(&child.layer.id).is_empty())
                        .count();
                    prop_assert_eq!(named_beside_it, 0);
                    let uses = graph.uses(&top.id);
                    prop_assert!(!uses.is_empty());
                    prop_assert!(uses.iter().all(|r#use| r#use.owner() == &vm));
                    let above: Vec<_> = graph.children(&top.id).collect();
                    prop_assert!(above.len() <= 1, "only one header can be rewritten");
                    let is_ours = |info: &&LayerInfo| {
                        !in_use.contains(&info.layer.id) && !template(&graph, info)
                    };
                    prop_assert!(above.iter().all(is_ours));
                }
                Action::Stream { top, gone, .. } => {
                    prop_assert!(!in_use.contains(&top.id));
                    prop_assert!(graph.uses(&gone.id).is_empty());
                    let is_template = |r#use: &Use| matches!(r#use, Use::Template(_));
                    prop_assert!(!graph.uses(&top.id).iter().any(is_template));
                }
                Action::Keep { .. } => {}
            }
        }
    }
}
