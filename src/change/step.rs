//! What a step is. Each kind of step is a type of its own beside its domain, which says in one
//! place how it is applied, undone and called off, and what it touches. Nothing here knows which
//! kinds there are.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::run::Run;
use crate::error::Result;
use crate::model::{Layer, LayerId, Merge, Record};
use crate::store::schema::RecordV1;

/// Something that happens once, can be undone, and can be repeated without harm.
#[allow(async_fn_in_trait, reason = "steps run on one thread")]
pub trait Step: fmt::Debug + Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    /// Its tag in the journal and in fault points.
    const TAG: &'static str;

    /// What it touches, which changes of other VMs, `gc` and `undo` have to respect.
    fn touches(&self) -> Touches;

    /// Applies it. Applying it again changes nothing.
    async fn apply(&self, run: &mut Run<'_>) -> Result<()>;

    /// Undoes it, finished or not. Where it never happened, this does nothing.
    async fn undo(&self, _: &mut Run<'_>) -> Result<()> {
        Ok(())
    }

    /// After an interrupt, for a step past the pivot: calls it off, or says that it goes on.
    async fn abandon(&self, _: &mut Run<'_>) -> Result<Abandoned> {
        Ok(Abandoned::CalledOff)
    }

    /// Asked of the pivot: has it happened? By the kernel, QEMU or a header. `None`: the record
    /// tells, which a step writes that comes later.
    async fn happened(&self, _: &mut Run<'_>) -> Result<Option<bool>> {
        Ok(None)
    }

    /// Of a step that writes the record: is `now` what it wrote?
    fn wrote(&self, _now: &Record) -> Option<bool> {
        None
    }

    /// What it does has an effect that shows nowhere. So it is applied whatever fails past the
    /// pivot, and recovery applies it again.
    fn shows_nowhere(&self) -> bool {
        false
    }

    /// Does it end the guest?
    fn ends_guest(&self) -> bool {
        false
    }

    /// While it is applied the guest is the double of another, and nobody may talk to it.
    fn holds_guest(&self) -> bool {
        false
    }
}

/// A step that a plan can have for its pivot: whether it happened can be observed.
pub trait Pivot: Step {}

/// What came of calling a step off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// It was called off, or there was nothing to call off.
    CalledOff,
    /// It goes on by itself, or has gone too far.
    GoesOn,
}

/// What a step touches.
#[derive(Debug, Clone, Default)]
pub struct Touches {
    /// Layers that it relies on or brings into being. Nobody takes them for unused while the
    /// journal is there.
    pub pins: Vec<Layer>,
    /// The layer that it makes, which undoing it removes.
    pub makes: Option<Layer>,
    /// What the header of that layer names, where the step says so.
    pub made_on: Option<Option<Layer>>,
    /// A layer that nothing writes to any more once the change is done: a new one depends on it.
    pub seals: Option<Layer>,
    /// Layers that it makes, writes to or takes away.
    pub changes: Vec<Layer>,
    /// It changes no more of them than who may write to them.
    pub only_modes: bool,
    /// Of these, the layers that something may depend on, and that are not what they were
    /// afterwards.
    pub consumes: Vec<Layer>,
    /// The consumed layers are heads that it puts out of use. While a record names them as such,
    /// nothing is restored on top of them, so there are no new dependents.
    pub puts_heads_away: bool,
    /// Its merges.
    pub merges: Vec<Merge>,
    /// The files of guests' memory that it makes or removes.
    pub images: Vec<LayerId>,
    /// The directory of the trash that it writes to or removes.
    pub trash: Option<String>,
    /// It removes that directory with what is in there.
    pub drops_trash: bool,
    /// The VM as it is to be, where it writes that down or starts QEMU with it.
    pub record: Option<Box<RecordV1>>,
    /// It writes that down.
    pub writes_record: bool,
    /// The identity of the VM, where it holds a record.
    pub vm: Option<Uuid>,
    /// Undoing it takes away what it is about.
    pub is_undone_by_removal: bool,
    /// It removes something for good.
    pub removes: bool,
}

impl Touches {
    /// A step that makes `layer` and relies on `others`.
    pub fn made(layer: &Layer, others: &[&Layer]) -> Self {
        let pins = others.iter().copied().chain([layer]).cloned().collect();
        let (makes, changes) = (Some(layer.clone()), vec![layer.clone()]);
        Self { pins, makes, changes, is_undone_by_removal: true, ..Self::default() }
    }

    /// A step that changes `layers`, and is done with them when it is done.
    pub fn changed(layers: &[Layer]) -> Self {
        Self { changes: layers.to_vec(), ..Self::default() }
    }

    /// The same, and relies on them.
    pub fn pinned(layers: &[Layer]) -> Self {
        Self { pins: layers.to_vec(), ..Self::changed(layers) }
    }
}
