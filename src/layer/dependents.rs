//! Who depends on which layer, and who is lost with whom. Each answer takes as long as the pool is
//! large, not longer.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::LayerGraph;
use super::info::LayerInfo;
use crate::model::{LayerId, Name};

/// For each layer, those that depend on it.
type Children<'a> = BTreeMap<&'a LayerId, Vec<&'a LayerInfo>>;

impl LayerGraph {
    /// The other VMs and templates that depend on these layers, and would lose data if they went.
    pub fn dependents(&self, owner: &Name, layers: &[LayerId]) -> Vec<Name> {
        self.owners(Some(owner), above(&self.all_children(), layers).into_iter())
    }

    /// Everybody who names this layer or depends on it.
    pub fn users(&self, layer: &LayerId) -> Vec<Name> {
        let above = above(&self.all_children(), std::slice::from_ref(layer));
        self.owners(None, above.into_iter().chain([layer]))
    }

    /// The other VMs and templates that name this layer or depend on it.
    pub fn sharers(&self, owner: &Name, layer: &LayerId) -> Vec<Name> {
        let mut names = self.users(layer);
        names.retain(|name| name != owner);
        names
    }

    /// Everybody who would lose data if `root` went, and `root`: whoever is depended on comes after
    /// those who depend on it. A clone that is still being made is not among them.
    pub fn dependents_first(&self, root: &Name) -> Vec<Name> {
        let children = self.all_children();
        let mut named: BTreeMap<&Name, Vec<LayerId>> = BTreeMap::new();
        for (id, uses) in &self.uses {
            for owner in uses.iter().filter(|r#use| r#use.is_recorded()).map(|r#use| r#use.owner())
            {
                named.entry(owner).or_default().push(id.clone());
            }
        }
        let mut found = Vec::new();
        self.add_dependents(root, (&children, &named), &mut BTreeSet::new(), &mut found);
        found
    }

    fn add_dependents(
        &self,
        name: &Name,
        (children, named): (&Children<'_>, &BTreeMap<&Name, Vec<LayerId>>),
        seen: &mut BTreeSet<Name>,
        found: &mut Vec<Name>,
    ) {
        if !seen.insert(name.clone()) {
            return;
        }
        let own = named.get(name).map_or(&[][..], Vec::as_slice);
        for dependent in self.owners(Some(name), above(children, own).into_iter()) {
            if named.contains_key(&dependent) {
                self.add_dependents(&dependent, (children, named), seen, found);
            }
        }
        found.push(name.clone());
    }

    /// The layers that a record names, and those below them.
    pub fn used(&self) -> BTreeSet<&LayerId> {
        let mut used = BTreeSet::new();
        let mut next: Vec<&LayerId> =
            self.uses.iter().filter(|(_, uses)| !uses.is_empty()).map(|(id, _)| id).collect();
        while let Some(id) = next.pop() {
            if used.insert(id) {
                let infos = self.layers.get(id).into_iter().chain(self.noted.get(id));
                next.extend(
                    infos.filter_map(|info| info.backing.as_ref()).map(|backing| &backing.id),
                );
            }
        }
        used
    }

    /// The layers that a record names, or that one depends on which is used, and that are not
    /// there.
    pub fn lacking(&self) -> BTreeSet<&LayerId> {
        let used = self.used();
        let named = self
            .uses
            .iter()
            .filter(|(_, uses)| uses.iter().any(|r#use| r#use.is_recorded()))
            .map(|(id, _)| id);
        let infos = self
            .layers
            .values()
            .chain(self.noted.values())
            .filter(|info| used.contains(&info.layer.id));
        let backing = infos.filter_map(|info| info.backing.as_ref()).map(|backing| &backing.id);
        let damaged: BTreeSet<&LayerId> = self.damaged.iter().map(|layer| &layer.id).collect();
        let is_there = |id: &&LayerId| self.layers.contains_key(*id) || damaged.contains(*id);
        named.chain(backing).filter(|id| !is_there(id)).collect()
    }

    /// A VM or template whose record names a layer with a chain that is not whole, or is not what
    /// it was made to be.
    pub fn first_broken(&self) -> Option<&Name> {
        let unusable: BTreeSet<&LayerId> = self.unusable.iter().map(|layer| &layer.id).collect();
        let mut whole: BTreeSet<&LayerId> = BTreeSet::new();
        let mut is_whole = |id| {
            let (mut next, mut chain) = (Some(id), BTreeSet::new());
            while let Some(id) = next.filter(|id| !whole.contains(id)) {
                let info =
                    self.layers.get(id).filter(|info| !info.disputed && !unusable.contains(id));
                let Some(info) = info.filter(|_| chain.insert(id)) else { return false };
                next = info.backing.as_ref().map(|backing| &backing.id);
            }
            whole.extend(chain);
            true
        };
        let mut recorded = self
            .uses
            .iter()
            .filter_map(|(id, uses)| Some((id, uses.iter().find(|r#use| r#use.is_recorded())?)));
        recorded.find(|(id, _)| !is_whole(*id)).map(|(_, r#use)| r#use.owner())
    }

    fn all_children(&self) -> Children<'_> {
        let mut children = Children::new();
        for info in self.layers.values().chain(self.noted.values()) {
            if let Some(backing) = &info.backing {
                children.entry(&backing.id).or_default().push(info);
            }
        }
        children
    }

    fn owners<'a>(
        &self,
        except: Option<&Name>,
        layers: impl Iterator<Item = &'a LayerId>,
    ) -> Vec<Name> {
        let uses = layers.flat_map(|id| self.uses(id));
        let names: BTreeSet<&Name> =
            uses.map(|r#use| r#use.owner()).filter(|name| Some(*name) != except).collect();
        names.into_iter().cloned().collect()
    }
}

/// The layers that depend on these.
fn above<'a>(children: &Children<'a>, layers: &[LayerId]) -> BTreeSet<&'a LayerId> {
    let mut above = BTreeSet::new();
    let mut next: Vec<&LayerId> = layers.iter().collect();
    while let Some(id) = next.pop() {
        for child in children.get(id).into_iter().flatten().map(|info| &info.layer.id) {
            if above.insert(child) {
                next.push(child);
            }
        }
    }
    above
}

#[cfg(test)]
mod tests {
    use super::super::graph::Use;
    use super::*;
    use crate::model::{Format, Layer};

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    /// A pool of layers, each with the one it depends on and who names it.
    fn graph(layers: &[(&str, Option<&str>, Use)]) -> LayerGraph {
        let layer = |text: &str| Layer {
            id: format!("{text:0>10}").parse().expect("an id"),
            format: Format::Qcow2,
        };
        let mut graph = LayerGraph::default();
        for (id, backing, r#use) in layers {
            let info = LayerInfo {
                layer: layer(id),
                backing: backing.map(layer),
                virtual_bytes: 0,
                allocated_bytes: 0,
                internal_snapshots: 0,
                disputed: false,
                guest_memory: false,
            };
            graph.add_use(&info.layer.id, r#use.clone());
            graph.layers.insert(info.layer.id.clone(), info);
        }
        graph
    }

    fn head(vm: &str) -> Use {
        Use::Head(name(vm))
    }

    #[test]
    fn who_depends_on_another_disk_of_a_dependent_is_among_the_dependents() {
        // b's first disk depends on a; c depends on b's second disk, d on neither.
        let snapshot = |vm| Use::Snapshot(name(vm), name("s"));
        let layers = [
            ("1", None, Use::Template(name("a"))),
            ("2", Some("1"), head("b")),
            ("3", None, snapshot("b")),
            ("4", Some("3"), head("b")),
            ("5", Some("3"), head("c")),
            ("6", None, head("d")),
        ];
        assert_eq!(graph(&layers).dependents_first(&name("a")), [name("c"), name("b"), name("a")]);
        assert_eq!(graph(&layers).dependents_first(&name("d")), [name("d")]);
    }

    #[test]
    fn a_clone_that_is_being_made_is_not_among_the_dependents_yet() {
        let layers =
            [("1", None, Use::Template(name("a"))), ("2", Some("1"), Use::Change(name("b")))];
        assert_eq!(graph(&layers).dependents_first(&name("a")), [name("a")]);
    }

    #[test]
    fn who_depend_on_each_other_are_all_among_the_dependents() {
        let layers = [
            ("1", None, head("a")),
            ("2", Some("1"), head("b")),
            ("3", None, head("b")),
            ("4", Some("3"), head("a")),
        ];
        assert_eq!(graph(&layers).dependents_first(&name("a")), [name("b"), name("a")]);
    }
}
