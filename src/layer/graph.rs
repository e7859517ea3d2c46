//! Every layer, what it depends on, and who names it: read by [`super::scan`], never stored. Here
//! are the questions that can be asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::info::LayerInfo;
use crate::error::{Error, Result};
use crate::model::{Layer, LayerId, Name, Record};

/// Who names a layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// It is (part of) the head of a VM, which writes to it.
    Head(Name),
    /// It belongs to a snapshot.
    Snapshot(Name, Name),
    /// It belongs to a template.
    Template(Name),
    /// A change under way in this VM relies on it.
    Change(Name),
    /// The spare copy of this VM's record names it, and the record does not.
    Spare(Name),
}

impl Use {
    /// The VM or template behind the use.
    pub fn owner(&self) -> &Name {
        match self {
            Self::Head(vm) | Self::Snapshot(vm, _) | Self::Template(vm) => vm,
            Self::Change(vm) | Self::Spare(vm) => vm,
        }
    }
}

impl Use {
    /// Does a record say so?
    pub fn is_recorded(&self) -> bool {
        !matches!(self, Self::Change(_) | Self::Spare(_))
    }
}

/// Why a record does not fit the layers. See [`LayerGraph::head_conflict`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadConflict {
    /// Another layer depends on what the guest would write to.
    HasOverlay {
        /// The disk.
        target: String,
        /// That layer.
        child: Layer,
    },
    /// Another VM has the same layer.
    Shared {
        /// The disk.
        target: String,
        /// Who.
        owner: Name,
    },
}

impl fmt::Display for HeadConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HasOverlay { target, child } => {
                write!(f, "layer {child} is backed by its {target}")
            }
            Self::Shared { target, owner } => write!(f, "its {target} belongs to {owner}"),
        }
    }
}

/// All layers and who names them.
#[derive(Debug, Clone, Default)]
pub struct LayerGraph {
    /// By identity.
    pub layers: BTreeMap<LayerId, LayerInfo>,
    /// VMs whose record names a layer that is another one's, as far as anything says so.
    pub mistaken: Vec<(Name, LayerId)>,
    /// The layers that VMs write to, by their records.
    pub written: BTreeSet<LayerId>,
    /// Names that point at a layer.
    pub uses: BTreeMap<LayerId, Vec<Use>>,
    /// Layers whose header cannot be read, or that went while we looked.
    pub damaged: Vec<Layer>,
    /// Of some of the damaged ones, and of those whose header says something else: what they were
    /// made on, if on anything, as far as that was noted. They may still depend on it.
    pub noted: BTreeMap<LayerId, LayerInfo>,
    /// Files that are used in their place and cannot be used as they are now.
    pub unusable: Vec<Layer>,
    /// VMs whose record or journal cannot be read: what they use is unknown.
    pub unreadable: Vec<Name>,
    /// A VM that a user has set aside under a name that none can have: what it uses is not
    /// counted.
    pub set_aside: Option<String>,
    /// Others changed the store so fast that no moment of it could be seen.
    pub unsettled: bool,
    /// A layer that is named or depended on, and not there: what it depended on is unknown.
    pub lost: Option<LayerId>,
}

impl LayerGraph {
    /// Why it is uncertain which VMs use which layers: a record or the header of a layer
    /// cannot be read.
    pub fn uncertainty(&self, except: Option<&Name>) -> Option<String> {
        self.unseen_names(except).or_else(|| self.unseen_headers())
    }

    /// Why some names of layers are unknown: those in a record or a journal, `except`'s left aside,
    /// or those that only a layer which is missing could tell.
    pub(super) fn unseen_names(&self, except: Option<&Name>) -> Option<String> {
        let unreadable = self.unreadable.iter().find(|name| Some(*name) != except);
        let record = unreadable.map(|name| {
            format!(
                "the record or the journal of {name} cannot be read, so what it uses is unknown"
            )
        });
        let aside = || {
            let aside = self.set_aside.as_ref()?;
            Some(format!("{aside} is no VM by its name, and has a record that may name them"))
        };
        let lost = || {
            self.lost
                .as_ref()
                .map(|id| format!("layer {id} is missing, and its backing file is unknown"))
        };
        record.or_else(aside).or_else(lost)
    }

    /// Why it is unknown what some layer depends on, or whether all were seen.
    pub(super) fn unseen_headers(&self) -> Option<String> {
        let header =
            self.damaged.first().map(|layer| format!("the header of layer {layer} cannot be read"));
        header.or_else(|| {
            self.unsettled.then(|| "other commands change the store all the time".to_owned())
        })
    }

    /// Why `record` cannot be the truth about what `name` writes to, if it cannot: a head is
    /// written, so nothing depends on it and nobody else has it.
    pub fn head_conflict(&self, name: &Name, record: &Record) -> Option<HeadConflict> {
        if record.is_template() {
            return None;
        }
        record.config.writable().find_map(|disk| {
            let (id, target) = (&disk.layer.id, disk.target.clone());
            let ours = |child: &&LayerInfo| {
                self.uses(&child.layer.id).contains(&Use::Change(name.clone()))
            };
            let other = self.uses(id).iter().find(|r#use| {
                r#use.owner() != name && r#use.is_recorded() && !self.is_mistaken(r#use.owner(), id)
            });
            // That the header of another VM's layer is wrong is no fault of this one.
            let is_other = |child: &&LayerInfo| {
                child.disputed
                    && !self.owned(name, &child.layer.id)
                    && self.was_made_elsewhere(child, id)
            };
            if let Some(child) = self.children(id).find(|child| !ours(child) && !is_other(child)) {
                return Some(HeadConflict::HasOverlay { target, child: child.layer.clone() });
            }
            other.map(|other| HeadConflict::Shared { target, owner: other.owner().clone() })
        })
    }

    /// Does something say that it is another VM's layer, and that the record of `name` is wrong?
    fn is_mistaken(&self, name: &Name, id: &LayerId) -> bool {
        self.mistaken.iter().any(|(other, layer)| other == name && layer == id)
    }

    /// The layers that some VM writes to, and that the records of more than one VM or template
    /// name, with who they are.
    pub(super) fn contested(&self) -> Vec<(LayerId, Vec<Name>)> {
        let owners = |uses: &[Use]| {
            let of_records = uses.iter().filter(|r#use| r#use.is_recorded());
            of_records
                .map(Use::owner)
                .cloned()
                .collect::<BTreeSet<Name>>()
                .into_iter()
                .collect::<Vec<_>>()
        };
        let several =
            self.uses.iter().filter(|(id, uses)| uses.len() > 1 && self.written.contains(*id));
        several
            .map(|(id, uses)| (id.clone(), owners(uses)))
            .filter(|(_, owners)| owners.len() > 1)
            .collect()
    }

    /// Does `name` name this layer?
    fn owned(&self, name: &Name, id: &LayerId) -> bool {
        self.uses(id).iter().any(|r#use| r#use.owner() == name)
    }

    /// Is what a disputed layer was made on, by its note, nothing; or there, and not above this
    /// one?
    fn was_made_elsewhere(&self, child: &LayerInfo, id: &LayerId) -> bool {
        let Some(noted) = self.noted.get(&child.layer.id) else { return false };
        noted.backing.as_ref().is_none_or(|backing| {
            let chain = self.chain(&backing.id);
            chain.is_ok_and(|chain| {
                chain.iter().all(|info| info.layer.id != *id && info.layer != child.layer)
            })
        })
    }

    /// Is there a layer below what `name` names whose header says something else than its note?
    pub fn is_disputed(&self, name: &Name) -> bool {
        let of_a_chain =
            |id: &LayerId| self.chain(id).is_ok_and(|chain| chain.iter().any(|info| info.disputed));
        self.named_by(name).iter().any(of_a_chain)
    }

    /// The VM that writes to what an unnamed layer depends on, with nothing named in between. That
    /// must not be, and means that the VM's record is not the last one; the layer may hold what its
    /// guest wrote.
    pub fn head_below(&self, id: &LayerId) -> Option<&Name> {
        let mut below = self.layers.get(id)?.backing.as_ref()?;
        // A loop is another finding.
        for _ in 0..self.layers.len() {
            match self.uses(&below.id) {
                [] => below = self.layers.get(&below.id)?.backing.as_ref()?,
                uses => {
                    return uses.iter().find_map(|r#use| {
                        if let Use::Head(name) = r#use { Some(name) } else { None }
                    });
                }
            }
        }
        None
    }

    /// The one layer that nobody names, nothing depends on, and that depends on this one with
    /// nothing named in between: what its VM wrote to before its record was replaced by an older
    /// one.
    /// `None` when there is no such layer, or more than one.
    pub fn later_head(&self, head: &LayerId) -> Option<Layer> {
        let (mut leaves, mut next, mut seen) = (Vec::new(), vec![head], BTreeSet::new());
        while let Some(id) = next.pop() {
            // A damaged header may name a layer that was met already.
            if !seen.insert(id) {
                return None;
            }
            for child in self.children(id) {
                // What one that is damaged holds, and what depends on it, nobody knows.
                if !self.uses(&child.layer.id).is_empty()
                    || self.noted.contains_key(&child.layer.id)
                {
                    return None;
                }
                if self.children(&child.layer.id).next().is_none() {
                    leaves.push(child.layer.clone());
                }
                next.push(&child.layer.id);
            }
        }
        match &leaves[..] {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// Notes everything a record names.
    pub fn add_record(&mut self, name: &Name, record: &Record) {
        if !record.is_template() {
            self.written.extend(record.config.writable().map(|disk| disk.layer.id.clone()));
        }
        for disk in record.config.volumes() {
            let r#use = if record.is_template() {
                Use::Template(name.clone())
            } else {
                Use::Head(name.clone())
            };
            self.add_use(&disk.layer.id, r#use);
        }
        for disk in record.warm.iter().flat_map(|warm| warm.config.volumes()) {
            self.add_use(&disk.layer.id, Use::Template(name.clone()));
        }
        for snapshot in &record.snapshots {
            for disk in snapshot.config.volumes() {
                self.add_use(&disk.layer.id, Use::Snapshot(name.clone(), snapshot.name.clone()));
            }
        }
    }

    /// Notes what a spare copy names that is another record than its VM's: one of them is wrong,
    /// and nobody knows which.
    pub fn add_spare(&mut self, name: &Name, spare: &Record) {
        for layer in spare.layers() {
            self.add_use(&layer.id, Use::Spare(name.clone()));
        }
    }

    /// Forgets what `name`'s record and journal point at (they are about to change).
    pub fn forget(&mut self, name: &Name) {
        for uses in self.uses.values_mut() {
            uses.retain(|r#use| r#use.owner() != name);
        }
    }

    pub(super) fn add_use(&mut self, id: &LayerId, r#use: Use) {
        self.uses.entry(id.clone()).or_default().push(r#use);
    }

    /// Who names this layer.
    pub fn uses(&self, id: &LayerId) -> &[Use] {
        self.uses.get(id).map_or(&[], Vec::as_slice)
    }

    /// The layers that depend on this one; those that are damaged, by their notes, come last.
    pub fn children<'a>(&'a self, id: &'a LayerId) -> impl Iterator<Item = &'a LayerInfo> {
        let all = self.layers.values().chain(self.noted.values());
        all.filter(move |info| info.backing.as_ref().is_some_and(|backing| backing.id == *id))
    }

    /// The chain below (and with) a layer, active layer first. A loop or a missing layer is damage.
    pub fn chain(&self, id: &LayerId) -> Result<Vec<&LayerInfo>> {
        let mut chain: Vec<&LayerInfo> = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let info = self.layers.get(id).ok_or_else(|| {
                let is_damaged = self.damaged.iter().any(|layer| layer.id == *id);
                let what = if is_damaged {
                    "is damaged: its header cannot be used"
                } else {
                    "is missing from the store"
                };
                Error::damaged(format!("layer {id} {what}"))
            })?;
            if chain.iter().any(|seen| seen.layer.id == *id) {
                return Err(Error::damaged(format!("the backing files of layer {id} form a loop")));
            }
            chain.push(info);
            next = info.backing.as_ref().map(|backing| &backing.id);
        }
        Ok(chain)
    }

    /// The layers in the record of `name`.
    pub(super) fn named_by(&self, name: &Name) -> Vec<LayerId> {
        let of_record = |r#use: &Use| r#use.owner() == name && r#use.is_recorded();
        self.uses
            .iter()
            .filter(|(_, uses)| uses.iter().any(of_record))
            .map(|(id, _)| id.clone())
            .collect()
    }
}
