//! The collapse planner: what becomes of layers that no name points at any more. Pure.
//!
//! A sealed, unnamed layer L
//! - without a child is dropped (into the trash), and the layer below it is looked at next;
//! - with one child C is merged: C is *committed* into L (C's data moves) or L is *streamed* into C (L's data moves);
//! - with more children stays, hidden, until one is left.
//!
//! Commit changes L, so nothing but C may stand on it, and C vanishes, so all its names must be ours to re-point and at most
//! one layer may stand on it. Stream only writes C. The cheaper one that is allowed is taken.

use crate::model::{Format, Layer, LayerId, Name};

use super::info::LayerInfo;
use super::pool::{Pool, Use};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing stands on it and nobody names it: into the trash.
    Drop(Layer),
    /// Write `top`'s data into `base`; `top` vanishes and `base` takes its place.
    Commit {
        /// The layer that vanishes.
        top: Layer,
        /// The layer that is written.
        base: Layer,
        /// About how many bytes move.
        bytes: u64,
    },
    /// Copy `gone`'s data into `top`, which then stands on what `gone` stood on.
    Stream {
        /// The layer that is written.
        top: Layer,
        /// The layer that vanishes.
        gone: Layer,
        /// About how many bytes move.
        bytes: u64,
    },
    /// It stays for now.
    Keep {
        /// The unnamed layer.
        layer: Layer,
        /// Why.
        why: Why,
    },
}

/// Why an unnamed layer stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Several layers stand on it.
    Children(Vec<Layer>),
    /// It carries internal snapshots, which a merge would lose.
    InternalSnapshots(u32),
    /// The layer above it carries internal snapshots, which rest on it.
    BelowInternal(u32),
    /// A change that can be undone needs it as it is.
    Undo,
    /// Neither direction is allowed: the layers are in use elsewhere.
    InUse,
    /// Nobody can be sure who uses what, for this reason.
    Uncertain(String),
}

/// Which layers may be written.
#[derive(Debug, Clone, Copy)]
pub struct Permissions<'a> {
    /// The VM the plan is for: its names can be re-pointed.
    pub owner: &'a Name,
    /// Layers that a VM other than `owner` has open, or might open: they must not be written.
    pub foreign: &'a [LayerId],
    /// Layers that stay as they are, because a change that can be undone needs them.
    pub kept: &'a [LayerId],
    /// Why nobody can be sure who uses what; then nothing is touched.
    pub uncertain: Option<&'a str>,
}

/// What becomes of `layer` now that `pool` shows who still names it. At most one merge; dropping goes on downwards.
pub fn plan(pool: &Pool, layer: &LayerId, permissions: Permissions<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut dropped: Vec<LayerId> = Vec::new();
    let mut next = Some(layer.clone());
    while let Some(id) = next.take() {
        let Some(info) = pool.layers.get(&id) else {
            break;
        };
        // A damaged header may name a layer that was met already.
        if !pool.uses(&id).is_empty() || dropped.contains(&id) {
            break;
        }
        if let Some(why) = permissions.uncertain {
            actions.push(Action::Keep { layer: info.layer.clone(), why: Why::Uncertain(why.to_owned()) });
            break;
        }
        if permissions.kept.contains(&id) {
            actions.push(Action::Keep { layer: info.layer.clone(), why: Why::Undo });
            break;
        }
        let children: Vec<&LayerInfo> = pool.children(&id).filter(|child| !dropped.contains(&child.layer.id)).collect();
        match children[..] {
            [] => {
                actions.push(Action::Drop(info.layer.clone()));
                dropped.push(id);
                next = info.backing.as_ref().map(|backing| backing.id.clone());
            }
            [child] => actions.push(merge(pool, info, child, permissions)),
            _ => {
                let children = children.iter().map(|child| child.layer.clone()).collect();
                actions.push(Action::Keep { layer: info.layer.clone(), why: Why::Children(children) });
            }
        }
    }
    actions
}

/// The layers that are not what they were after `actions`, or not there any more.
pub fn touched(actions: &[Action]) -> impl Iterator<Item = &Layer> {
    actions
        .iter()
        .flat_map(|action| match action {
            Action::Drop(layer) => [Some(layer), None],
            Action::Commit { top: one, base: other, .. } | Action::Stream { top: one, gone: other, .. } => {
                [Some(one), Some(other)]
            }
            Action::Keep { .. } => [None, None],
        })
        .flatten()
}

/// Makes `pool` what it is after `actions`. About sizes it is as vague as they are.
pub fn apply(pool: &mut Pool, actions: &[Action]) {
    for action in actions {
        match action {
            Action::Drop(layer) => drop(pool.layers.remove(&layer.id)),
            Action::Commit { top, base, bytes } => {
                let gone = pool.layers.remove(&top.id);
                for info in pool.layers.values_mut().filter(|info| info.backing.as_ref() == Some(top)) {
                    info.backing = Some(base.clone());
                }
                if let (Some(gone), Some(base)) = (gone, pool.layers.get_mut(&base.id)) {
                    base.virtual_bytes = base.virtual_bytes.max(gone.virtual_bytes);
                    base.allocated_bytes += bytes;
                }
                let uses = pool.uses.remove(&top.id).unwrap_or_default();
                pool.uses.entry(base.id.clone()).or_default().extend(uses);
            }
            Action::Stream { top, gone, bytes } => {
                let gone = pool.layers.remove(&gone.id);
                if let (Some(gone), Some(top)) = (gone, pool.layers.get_mut(&top.id)) {
                    top.backing = gone.backing;
                    top.allocated_bytes += bytes;
                }
            }
            Action::Keep { .. } => {}
        }
    }
}

fn merge(pool: &Pool, layer: &LayerInfo, child: &LayerInfo, permissions: Permissions<'_>) -> Action {
    if layer.internal_snapshots > 0 {
        return Action::Keep { layer: layer.layer.clone(), why: Why::InternalSnapshots(layer.internal_snapshots) };
    }
    // What an internal snapshot has not written it reads from below, now and for ever.
    if child.internal_snapshots > 0 {
        return Action::Keep { layer: layer.layer.clone(), why: Why::BelowInternal(child.internal_snapshots) };
    }
    if permissions.kept.contains(&child.layer.id) {
        return Action::Keep { layer: layer.layer.clone(), why: Why::Undo };
    }
    // Nobody's yet, or any more: whoever takes it away, or back, relies on what it stands on.
    if pool.users(&child.layer.id).is_empty() {
        return Action::Keep { layer: layer.layer.clone(), why: Why::InUse };
    }
    let foreign = |info: &LayerInfo| permissions.foreign.contains(&info.layer.id);
    let ours = |r#use: &Use| r#use.owner() == permissions.owner;
    let named_by_us = |uses: &[Use]| !uses.is_empty() && uses.iter().all(ours);
    let grandchildren = pool.children(&child.layer.id).count();
    let can_commit = matches!(layer.layer.format, Format::Qcow2 | Format::Raw)
        && !foreign(layer)
        && !foreign(child)
        && named_by_us(pool.uses(&child.layer.id))
        && grandchildren <= 1
        && pool.children(&child.layer.id).all(|grandchild| !foreign(grandchild) && !template(pool, grandchild))
        && child.virtual_bytes >= layer.virtual_bytes
        && !layer.would_show_memory(child.virtual_bytes);
    let can_stream = child.layer.format == Format::Qcow2 && !foreign(child) && !template(pool, child);
    let commit = Action::Commit { top: child.layer.clone(), base: layer.layer.clone(), bytes: child.allocated_bytes };
    let stream = Action::Stream { top: child.layer.clone(), gone: layer.layer.clone(), bytes: layer.allocated_bytes };
    match (can_commit, can_stream) {
        (true, true) if child.allocated_bytes <= layer.allocated_bytes => commit,
        (_, true) => stream,
        (true, false) => commit,
        (false, false) => Action::Keep { layer: layer.layer.clone(), why: Why::InUse },
    }
}

fn template(pool: &Pool, info: &LayerInfo) -> bool {
    pool.uses(&info.layer.id).iter().any(|r#use| matches!(r#use, Use::Template(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
    fn pool(layers: &[(Option<usize>, u64)], uses: &[(usize, Use)]) -> Pool {
        let mut pool = Pool::default();
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
            pool.layers.insert(id(n), info);
        }
        for (n, r#use) in uses {
            pool.uses.entry(id(*n)).or_default().push(r#use.clone());
        }
        pool
    }

    fn run(pool: &Pool, n: usize) -> Vec<Action> {
        let vm = name("vm");
        plan(pool, &id(n), Permissions { owner: &vm, foreign: &[], kept: &[], uncertain: None })
    }

    fn head() -> Use {
        Use::Head(name("vm"))
    }

    #[test]
    fn a_small_overlay_is_committed_into_a_large_layer() {
        let pool = pool(&[(None, 900), (Some(0), 500), (Some(1), 3)], &[(2, head())]);
        assert_eq!(run(&pool, 1), [Action::Commit { top: layer(2), base: layer(1), bytes: 3 << 20 }]);
    }

    #[test]
    fn memory_behind_a_disk_does_not_become_part_of_it() {
        let mut pool = pool(&[(None, 900), (Some(0), 500), (Some(1), 3)], &[(2, head())]);
        let below = |pool: &mut Pool, change: fn(&mut LayerInfo)| change(pool.layers.get_mut(&id(1)).expect("a layer"));
        below(&mut pool, |info| info.guest_memory = true);
        let commit = [Action::Commit { top: layer(2), base: layer(1), bytes: 3 << 20 }];
        assert_eq!(run(&pool, 1), commit, "it has the size of what is above it");
        below(&mut pool, |info| info.virtual_bytes /= 2);
        assert_eq!(run(&pool, 1), [Action::Stream { top: layer(2), gone: layer(1), bytes: 500 << 20 }]);
        below(&mut pool, |info| info.guest_memory = false);
        assert_eq!(run(&pool, 1), commit);
    }

    #[test]
    fn what_an_undo_needs_is_neither_merged_nor_dropped() {
        let vm = name("vm");
        let three = pool(&[(None, 900), (Some(0), 3), (Some(1), 500)], &[(2, head())]);
        for kept in [[id(1)], [id(2)]] {
            let permissions = Permissions { owner: &vm, foreign: &[], kept: &kept, uncertain: None };
            assert_eq!(plan(&three, &id(1), permissions), [Action::Keep { layer: layer(1), why: Why::Undo }]);
        }
        let leaf = pool(&[(None, 900), (Some(0), 3)], &[]);
        let permissions = Permissions { owner: &vm, foreign: &[], kept: &[id(0)], uncertain: None };
        let dropped = [Action::Drop(layer(1)), Action::Keep { layer: layer(0), why: Why::Undo }];
        assert_eq!(plan(&leaf, &id(1), permissions), dropped);
        assert_eq!(touched(&dropped).collect::<Vec<_>>(), [&layer(1)]);
    }

    #[test]
    fn a_small_layer_is_streamed_into_a_large_overlay() {
        let pool = pool(&[(None, 900), (Some(0), 3), (Some(1), 500)], &[(2, head())]);
        assert_eq!(run(&pool, 1), [Action::Stream { top: layer(2), gone: layer(1), bytes: 3 << 20 }]);
    }

    #[test]
    fn a_layer_somebody_names_is_left_alone() {
        let pool = pool(&[(None, 9), (Some(0), 9)], &[(0, Use::Template(name("tpl"))), (1, head())]);
        assert_eq!(run(&pool, 0), []);
    }

    #[test]
    fn dropping_a_leaf_looks_at_what_was_below_it() {
        let pool = pool(&[(None, 900), (Some(0), 5), (Some(1), 5), (Some(1), 1)], &[(3, head())]);
        assert_eq!(
            run(&pool, 2),
            [Action::Drop(layer(2)), Action::Commit { top: layer(3), base: layer(1), bytes: 1 << 20 }]
        );
    }

    #[test]
    fn layers_that_name_each_other_end_the_way_down() {
        let itself = pool(&[(Some(0), 5)], &[]);
        assert_eq!(run(&itself, 0).len(), 1);
        let pool = pool(&[(Some(1), 5), (Some(0), 5), (Some(1), 5)], &[]);
        assert!(run(&pool, 2).len() <= 3);
    }

    #[test]
    fn a_layer_with_two_children_stays() {
        let pool =
            pool(&[(None, 900), (Some(0), 5), (Some(0), 5)], &[(1, head()), (2, Use::Snapshot(name("vm"), name("s")))]);
        assert_eq!(run(&pool, 0), [Action::Keep { layer: layer(0), why: Why::Children(vec![layer(1), layer(2)]) }]);
    }

    #[test]
    fn a_clone_of_the_child_forbids_the_commit() {
        // 0 ← 1 ← {2 (our head), 3 (a clone's head)}: committing 1 into 0 would need two headers rewritten.
        let clone = Use::Head(name("clone"));
        let pool = pool(&[(None, 900), (Some(0), 5), (Some(1), 5), (Some(1), 5)], &[(2, head()), (3, clone)]);
        assert_eq!(run(&pool, 0), [Action::Stream { top: layer(1), gone: layer(0), bytes: 900 << 20 }]);
    }

    #[test]
    fn an_overlay_nobody_is_known_to_name_is_never_committed_away() {
        // It may be the head of a VM whose record cannot be read.
        let pool = pool(&[(None, 900), (Some(0), 5)], &[]);
        assert!(!run(&pool, 0).iter().any(|action| matches!(action, Action::Commit { .. })));
        let (vm, why) = (name("vm"), Some("a record cannot be read"));
        let kept = plan(&pool, &id(1), Permissions { owner: &vm, foreign: &[], kept: &[], uncertain: why });
        assert!(matches!(kept[..], [Action::Keep { why: Why::Uncertain(_), .. }]));
    }

    #[test]
    fn the_header_of_a_template_is_never_rewritten() {
        let uses = [(1, Use::Snapshot(name("vm"), name("s2"))), (2, Use::Template(name("tpl")))];
        let pool = pool(&[(None, 900), (Some(0), 5), (Some(1), 5)], &uses);
        assert!(
            matches!(run(&pool, 0)[..], [Action::Stream { .. }]),
            "a commit would rewrite the template's backing file"
        );
    }

    #[test]
    fn a_layer_open_elsewhere_waits() {
        let pool = pool(&[(None, 900), (Some(0), 5)], &[(1, Use::Head(name("clone")))]);
        let (vm, foreign) = (name("vm"), [id(0), id(1)]);
        let actions = plan(&pool, &id(0), Permissions { owner: &vm, foreign: &foreign, kept: &[], uncertain: None });
        assert_eq!(actions, [Action::Keep { layer: layer(0), why: Why::InUse }]);
    }

    #[test]
    fn a_grown_disk_never_shrinks_and_a_small_base_may_grow() {
        let mut pool = pool(&[(None, 900), (Some(0), 5)], &[(1, head())]);
        pool.layers.get_mut(&id(1)).expect("layer").virtual_bytes = 1 << 20;
        assert!(matches!(run(&pool, 0)[..], [Action::Stream { .. }]), "a commit would leave the guest a larger disk");
        pool.layers.get_mut(&id(1)).expect("layer").virtual_bytes = 2 << 30;
        assert!(matches!(run(&pool, 0)[..], [Action::Commit { .. }]));
    }

    #[test]
    fn internal_snapshots_are_never_merged_away() {
        let mut pool = pool(&[(None, 900), (Some(0), 5)], &[(1, head())]);
        pool.layers.get_mut(&id(0)).expect("layer").internal_snapshots = 2;
        assert_eq!(run(&pool, 0), [Action::Keep { layer: layer(0), why: Why::InternalSnapshots(2) }]);
    }

    #[test]
    fn what_internal_snapshots_rest_on_stays() {
        let mut pool = pool(&[(None, 900), (Some(0), 5)], &[(1, head())]);
        pool.layers.get_mut(&id(1)).expect("layer").internal_snapshots = 2;
        assert_eq!(run(&pool, 0), [Action::Keep { layer: layer(0), why: Why::BelowInternal(2) }]);
    }

    proptest! {
        /// Whatever the forest: what is written or vanishes is never named by somebody else, and nothing named is dropped.
        #[test]
        fn nobody_elses_data_is_touched(
            shape in proptest::collection::vec((any::<prop::sample::Index>(), 0u64..50, 0u8..4), 2..12),
            start in any::<prop::sample::Index>(),
            foreign in any::<prop::sample::Index>(),
        ) {
            let layers: Vec<(Option<usize>, u64)> = shape.iter().enumerate()
                .map(|(n, (at, mb, _))| (if n == 0 { None } else { Some(at.index(n)) }, *mb)).collect();
            let uses: Vec<(usize, Use)> = shape.iter().enumerate().filter_map(|(n, (_, _, kind))| match kind {
                0 => None,
                1 => Some((n, Use::Snapshot(name("vm"), name("s")))),
                2 => Some((n, Use::Head(name("other")))),
                _ => Some((n, Use::Template(name("tpl")))),
            }).collect();
            let pool = pool(&layers, &uses);
            let foreign = [id(foreign.index(layers.len()))];
            let vm = name("vm");
            for action in plan(&pool, &id(start.index(layers.len())), Permissions { owner: &vm, foreign: &foreign, kept: &[], uncertain: None }) {
                match action {
                    Action::Drop(layer) => prop_assert!(pool.uses(&layer.id).is_empty()),
                    Action::Commit { top, base, .. } => {
                        prop_assert!(pool.uses(&base.id).is_empty() && !foreign.contains(&base.id) && !foreign.contains(&top.id));
                        prop_assert_eq!(pool.children(&base.id).filter(|child| child.layer.id != top.id).filter(|child| !pool.uses(&child.layer.id).is_empty()).count(), 0);
                        prop_assert!(!pool.uses(&top.id).is_empty() && pool.uses(&top.id).iter().all(|r#use| r#use.owner() == &vm));
                        let above: Vec<_> = pool.children(&top.id).collect();
                        prop_assert!(above.len() <= 1, "only one header can be rewritten");
                        prop_assert!(above.iter().all(|info| !foreign.contains(&info.layer.id) && !template(&pool, info)));
                    }
                    Action::Stream { top, gone, .. } => {
                        prop_assert!(!foreign.contains(&top.id));
                        prop_assert!(pool.uses(&gone.id).is_empty());
                        prop_assert!(!pool.uses(&top.id).iter().any(|r#use| matches!(r#use, Use::Template(_))));
                    }
                    Action::Keep { .. } => {}
                }
            }
        }
    }
}
