//! Steps of any kind, as a plan or a journal has them: how they are called, saved and read.
//!
//! The kinds stand in rooms above this one, so the program hands in the list of their tags when it
//! starts.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{PoisonError, RwLock};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::run::Run;
use super::step::{Abandoned, Step, Touches};
use crate::error::Result;
use crate::model::Record;

/// The key of the tag in a journal.
const TAG: &str = "step";

/// What an asynchronous method of a step returns.
type Doing<'a, T = ()> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// A step of any kind.
trait AnyStep: fmt::Debug {
    fn tag(&self) -> &'static str;
    fn save(&self) -> serde_json::Result<Value>;
    fn copy(&self) -> Box<dyn AnyStep>;
    fn touches(&self) -> Touches;
    fn apply<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a>;
    fn undo<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a>;
    fn abandon<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a, Abandoned>;
    fn happened<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a, Option<bool>>;
    fn wrote(&self, now: &Record) -> Option<bool>;
    fn shows_nowhere(&self) -> bool;
    fn ends_guest(&self) -> bool;
    fn holds_guest(&self) -> bool;
}

impl<S: Step> AnyStep for S {
    fn tag(&self) -> &'static str {
        S::TAG
    }

    fn save(&self) -> serde_json::Result<Value> {
        serde_json::to_value(self)
    }

    fn copy(&self) -> Box<dyn AnyStep> {
        Box::new(self.clone())
    }

    fn touches(&self) -> Touches {
        Step::touches(self)
    }

    fn apply<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a> {
        Box::pin(Step::apply(self, run))
    }

    fn undo<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a> {
        Box::pin(Step::undo(self, run))
    }

    fn abandon<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a, Abandoned> {
        Box::pin(Step::abandon(self, run))
    }

    fn happened<'a>(&'a self, run: &'a mut Run<'_>) -> Doing<'a, Option<bool>> {
        Box::pin(Step::happened(self, run))
    }

    fn wrote(&self, now: &Record) -> Option<bool> {
        Step::wrote(self, now)
    }

    fn shows_nowhere(&self) -> bool {
        Step::shows_nowhere(self)
    }

    fn ends_guest(&self) -> bool {
        Step::ends_guest(self)
    }

    fn holds_guest(&self) -> bool {
        Step::holds_guest(self)
    }
}

/// A step of a plan or of a journal.
pub struct Planned(Box<dyn AnyStep>);

impl<S: Step> From<S> for Planned {
    fn from(step: S) -> Self {
        Self(Box::new(step))
    }
}

impl Planned {
    /// Its tag.
    pub fn tag(&self) -> &'static str {
        self.0.tag()
    }

    /// [`Step::touches`].
    pub fn touches(&self) -> Touches {
        self.0.touches()
    }

    /// [`Step::apply`].
    pub async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        self.0.apply(run).await
    }

    /// [`Step::undo`].
    pub async fn undo(&self, run: &mut Run<'_>) -> Result<()> {
        self.0.undo(run).await
    }

    /// [`Step::abandon`].
    pub async fn abandon(&self, run: &mut Run<'_>) -> Result<Abandoned> {
        self.0.abandon(run).await
    }

    /// [`Step::happened`].
    pub async fn happened(&self, run: &mut Run<'_>) -> Result<Option<bool>> {
        self.0.happened(run).await
    }

    /// [`Step::wrote`].
    pub fn wrote(&self, now: &Record) -> Option<bool> {
        self.0.wrote(now)
    }

    /// [`Step::shows_nowhere`].
    pub fn shows_nowhere(&self) -> bool {
        self.0.shows_nowhere()
    }

    /// [`Step::ends_guest`].
    pub fn ends_guest(&self) -> bool {
        self.0.ends_guest()
    }

    /// [`Step::holds_guest`].
    pub fn holds_guest(&self) -> bool {
        self.0.holds_guest()
    }
}

impl Clone for Planned {
    fn clone(&self) -> Self {
        Self(self.0.copy())
    }
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// By their saved forms.
impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.tag() == other.tag() && self.0.save().ok() == other.0.save().ok()
    }
}

impl Serialize for Planned {
    /// The fields of the step behind its tag: `{"step": "trash", "directory": …}`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let saved = self.0.save().map_err(serde::ser::Error::custom)?;
        let mut fields = Map::from_iter([(TAG.to_owned(), Value::from(self.tag()))]);
        if let Value::Object(own) = saved {
            fields.extend(own);
        }
        fields.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Planned {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        let tag = fields.remove(TAG).ok_or_else(|| D::Error::missing_field(TAG))?;
        let tag = tag.as_str().ok_or_else(|| D::Error::custom("the tag of a step is no text"))?;
        let read = reader(tag).ok_or_else(|| D::Error::custom(format!("unknown step {tag:?}")))?;
        read(Value::Object(fields)).map_err(D::Error::custom)
    }
}

/// Reads a step of one kind from the fields of its saved form.
pub(crate) type Reader = fn(Value) -> serde_json::Result<Planned>;

/// One kind of step: its tag, and how it is read.
pub(crate) type Kind = (&'static str, Reader);

static KINDS: RwLock<Vec<&[Kind]>> = RwLock::new(Vec::new());

/// The kind of `S`.
pub(crate) const fn kind<S: Step>() -> Kind {
    (S::TAG, |fields| serde_json::from_value::<S>(fields).map(Planned::from))
}

/// Makes `kinds` known for the whole process. Doing that again changes nothing.
pub(crate) fn install(kinds: &'static [Kind]) {
    let mut all = KINDS.write().unwrap_or_else(PoisonError::into_inner);
    if !all.iter().any(|known| std::ptr::eq(*known, kinds)) {
        all.push(kinds);
    }
}

/// How a step with this tag is read; `None` where there is no such kind.
pub(super) fn reader(tag: &str) -> Option<Reader> {
    let all = KINDS.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().copied().flatten().find(|(known, _)| *known == tag).map(|(_, read)| *read)
}
