use jiff::Timestamp;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::layer::graph::Use;
use crate::model::{
    Config, Credentials, Disk, Firmware, Format, Limits, LogLimit, Role, Snapshot, SnapshotKind,
    VmState,
};

/// A layer of the model: what it depends on, whether somebody names it, whether the trash depends
/// on it.
#[derive(Debug, Clone)]
struct Modelled {
    backing: Option<usize>,
    is_named: bool,
    is_kept: bool,
}

fn layer(number: usize) -> Layer {
    Layer { id: format!("{number:0>10}").parse().expect("an id"), format: Format::Qcow2 }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn needs(layers: &[Modelled]) -> Needs {
    let mut graph = LayerGraph::default();
    let mut below_trash = BTreeSet::new();
    for (number, modelled) in layers.iter().enumerate() {
        let info = LayerInfo {
            backing: modelled.backing.map(layer),
            ..LayerInfo::unusable(layer(number))
        };
        if modelled.is_named {
            graph.add_use(&info.layer.id, Use::Head(name("vm")));
        }
        if modelled.is_kept {
            below_trash.insert(info.layer.id.clone());
        }
        graph.layers.insert(info.layer.id.clone(), info);
    }
    Needs { graph, below_trash, unknown: None, going: None }
}

/// Layers that depend on earlier ones, and now and then on a later one: then there may be a loop.
fn graphs() -> impl Strategy<Value = Vec<Modelled>> {
    let one = |at: usize, count: usize| {
        let backing = prop_oneof![
            1 => Just(None),
            6 => (0..at.max(1)).prop_map(move |below| (at > 0).then_some(below)),
            1 => (0..count).prop_map(Some),
        ];
        (backing, prop::bool::weighted(0.3), prop::bool::weighted(0.1))
            .prop_map(|(backing, is_named, is_kept)| Modelled { backing, is_named, is_kept })
    };
    (1_usize..24)
        .prop_flat_map(move |count| (0..count).map(|at| one(at, count)).collect::<Vec<_>>())
}

/// Is the layer with this number needed, with only those in `going` allowed to go? By the
/// definition, not by the way in which it is computed.
fn is_needed(layers: &[Modelled], going: &[bool], number: usize, seen: &mut Vec<usize>) -> bool {
    let modelled = &layers[number];
    if modelled.is_named || modelled.is_kept || !going[number] || seen.contains(&number) {
        // Who depends on itself stays.
        return true;
    }
    seen.push(number);
    let above = layers.iter().enumerate().filter(|(_, other)| other.backing == Some(number));
    let needed = above.map(|(other, _)| other).any(|other| is_needed(layers, going, other, seen));
    seen.pop();
    needed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Exactly those go that are not needed, and each after everything that depends on it.
    #[test]
    fn what_goes_is_what_nobody_needs(
        layers in graphs(),
        some in prop::collection::vec(any::<bool>(), 24),
    ) {
        let needs = needs(&layers);
        let all = vec![true; layers.len()];
        for going in [&all[..], &some[..layers.len()]] {
            let ids = (0..layers.len()).filter(|number| going[*number]);
            let ids = ids.map(|number| layer(number).id).collect();
            let free = needs.free(&ids);
            for number in 0..layers.len() {
                let needed = is_needed(&layers, going, number, &mut Vec::new());
                let goes = free.contains(&layer(number));
                prop_assert_eq!(goes, !needed, "layer {} of {:?}", number, layers);
            }
            for (at, gone) in free.iter().enumerate() {
                let above = needs.graph.children(&gone.id).map(|info| &info.layer);
                for above in above {
                    prop_assert!(
                        free[..at].contains(above),
                        "{above} stands on {gone}, which goes before it"
                    );
                }
            }
        }
    }

    /// Who stays keeps what it depends on.
    #[test]
    fn what_stays_keeps_all_below_it(layers in graphs(), stays in 0_usize..24) {
        let needs = needs(&layers);
        let stays = stays % layers.len();
        let free = needs.orphans(|info| info.layer == layer(stays));
        let (mut at, mut seen) = (Some(stays), BTreeSet::new());
        while let Some(number) = at.filter(|number| seen.insert(*number)) {
            prop_assert!(free.iter().all(|info| info.layer != layer(number)));
            at = layers[number].backing;
        }
    }
}

fn modelled(backing: Option<usize>) -> Modelled {
    Modelled { backing, is_named: false, is_kept: false }
}

fn config(disk: usize) -> Config {
    Config {
        machine: "q35".to_owned(),
        cpu: None,
        memory_bytes: 1 << 30,
        cpus: 1,
        firmware: Firmware::Bios,
        kernel: None,
        nics: Vec::new(),
        generation: Uuid::nil(),
        disks: vec![Disk::new("vda", layer(disk), 512)],
        nvram: None,
        cdroms: Vec::new(),
        limits: Limits::default(),
        log_limit: LogLimit::default(),
        seed: None,
        credentials: Credentials::default(),
        tags: BTreeMap::new(),
    }
}

fn record() -> Record {
    let snapshot = Snapshot {
        name: name("s"),
        parent: None,
        kind: SnapshotKind::External,
        created: Timestamp::UNIX_EPOCH,
        description: String::new(),
        quiesced: false,
        vm_state: VmState::Stopped,
        memory: None,
        expires: None,
        config: config(0),
    };
    Record {
        role: Role::Vm,
        uuid: Uuid::nil(),
        created: Timestamp::UNIX_EPOCH,
        origin: None,
        config: config(1),
        current: Some(name("s")),
        snapshots: vec![snapshot],
        warm: None,
        ephemeral: None,
        autostart: false,
    }
}

/// A VM whose head 1 depends on its snapshot's layer 0, with nobody else in the store.
fn vm() -> (Needs, Record) {
    let mut needs = needs(&[modelled(None), modelled(Some(0))]);
    let record = record();
    needs.graph.add_record(&name("vm"), &record);
    (needs.without(&name("vm")), record)
}

#[test]
fn the_vm_that_goes_takes_all_its_layers_along() {
    let (needs, record) = vm();
    let freed = needs.freed_by(&record, Going::IntoTrash);
    assert_eq!(freed, Unneeded { layers: vec![layer(1), layer(0)], uncertain: None });
}

#[test]
fn while_a_record_cannot_be_read_only_a_throw_away_vm_takes_along_what_it_wrote_to() {
    let (mut needs, record) = vm();
    needs.graph.unreadable.push("other".parse().expect("a name"));
    let freed = needs.freed_by(&record, Going::IntoTrash);
    assert!(freed.layers.is_empty() && freed.uncertain.is_some_and(|why| why.contains("other")));
    assert_eq!(needs.freed_by(&record, Going::ThrownAway).layers, [layer(1)]);
    // What a template has is what others depend on.
    let role = Role::Template {
        frozen: Timestamp::UNIX_EPOCH,
        sealed: true,
        stamps: Vec::new(),
        image: None,
    };
    assert!(needs.freed_by(&Record { role, ..record }, Going::ThrownAway).layers.is_empty());
    // The record of the VM itself does not count.
    let (mut needs, record) = vm();
    needs.graph.unreadable.push(name("vm"));
    assert_eq!(needs.freed_by(&record, Going::IntoTrash).uncertain, None);
}

#[test]
fn a_layer_that_is_missing_may_depend_on_any_that_a_template_has() {
    let (mut needs, record) = vm();
    needs.graph.lost = Some(layer(9).id);
    assert!(needs.freed_by(&record, Going::IntoTrash).layers.is_empty());
}

#[test]
fn a_removal_that_was_cut_short_goes_on_with_a_damaged_layer_that_says_what_it_stands_on() {
    let mut needs = needs(&[modelled(None)]);
    let info = LayerInfo { backing: Some(layer(0)), ..LayerInfo::unusable(layer(1)) };
    needs.graph.noted.insert(info.layer.id.clone(), info);
    needs.graph.damaged.push(layer(1));
    assert_eq!(needs.decided(&[layer(1), layer(0)]), Some(vec![layer(1)]));
    // Nor while something else cannot be seen.
    for hide in [
        (|graph| graph.damaged.push(layer(2))) as fn(&mut LayerGraph),
        |graph| graph.lost = Some(layer(9).id),
        |graph| graph.unreadable.push(name("other")),
        |graph| graph.unsettled = true,
    ] {
        let mut needs = needs.clone();
        hide(&mut needs.graph);
        assert_eq!(needs.decided(&[layer(1), layer(0)]), None);
    }
}

#[test]
fn while_a_header_cannot_be_read_nothing_goes() {
    let (mut needs, record) = vm();
    needs.graph.damaged.push(layer(7));
    let freed = needs.freed_by(&record, Going::IntoTrash);
    assert!(freed.layers.is_empty() && freed.uncertain.is_some_and(|why| why.contains("header")));
}

#[test]
fn a_torn_entry_of_the_trash_makes_all_names_uncertain() {
    let (mut needs, _) = vm();
    needs.unknown = Some("x".to_owned());
    assert!(matches!(needs.certainty(), Certainty::NamesUnknown(_)));
    assert!(needs.unneeded_of([layer(0)].iter()).layers.is_empty());
}
