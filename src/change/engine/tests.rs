//! The engine with steps that are made up: whatever the plan, and wherever a process dies, the next
//! ones find the way to one of the two ends.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::planned::{Kind, install, kind};
use super::super::step::{Abandoned, Step};
use super::*;
use crate::change::recover::{self, Recovered};
use crate::model::Record;
use crate::settings::{Accel, Confine, Settings};
use crate::ui::Silent;

thread_local! {
    /// What has happened and was not undone: the numbers of the steps.
    static WORLD: RefCell<BTreeSet<u8>> = const { RefCell::new(BTreeSet::new()) };
    /// How many effects this process still lives to see.
    static LIFE: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Which step fails instead of being applied, and whether it has done its work before that.
    static FAILING: Cell<Option<(u8, bool)>> = const { Cell::new(None) };
    /// A step that was applied or undone out of its order.
    static DISORDER: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What is true of all steps: they are applied in their order, and undone in reverse.
fn look(is_in_order: bool, what: &str, number: u8) {
    if !is_in_order {
        DISORDER.set(Some(format!("step {number} is {what} in the world {:?}", world())));
    }
}

/// Does the step fail now? Once: what comes after that is another process.
fn fails(number: u8) -> Option<bool> {
    let failing = FAILING.get().filter(|(failing, _)| *failing == number);
    failing.map(|(_, done)| {
        FAILING.set(None);
        done
    })
}

/// An effect. A process that has no life left never comes back from here.
async fn live() {
    let left = LIFE.get();
    LIFE.set(left.saturating_sub(1));
    if left == 0 {
        poll_fn(|_| Poll::<()>::Pending).await;
    }
}

/// A step that puts its number into the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    number: u8,
    /// Its effect shows nowhere, so it may be applied more than once.
    unseen: bool,
}

impl Pivot for Put {}

impl Step for Put {
    const TAG: &'static str = "test-put";

    fn touches(&self) -> Touches {
        Touches::default()
    }

    async fn apply(&self, _: &mut Run<'_>) -> Result<()> {
        look(
            self.unseen || (0..self.number).all(|lower| world().contains(&lower)),
            "applied",
            self.number,
        );
        let fails = fails(self.number);
        live().await;
        if fails != Some(false) {
            WORLD.with_borrow_mut(|world| world.insert(self.number));
        }
        live().await;
        if fails.is_some() { Err(Error::failed("it failed")) } else { Ok(()) }
    }

    async fn undo(&self, _: &mut Run<'_>) -> Result<()> {
        look(world().iter().all(|other| *other <= self.number), "undone", self.number);
        live().await;
        WORLD.with_borrow_mut(|world| world.remove(&self.number));
        live().await;
        Ok(())
    }

    async fn happened(&self, _: &mut Run<'_>) -> Result<Option<bool>> {
        Ok(Some(WORLD.with_borrow(|world| world.contains(&self.number))))
    }

    async fn abandon(&self, _: &mut Run<'_>) -> Result<Abandoned> {
        Ok(if self.number.is_multiple_of(2) { Abandoned::CalledOff } else { Abandoned::GoesOn })
    }

    fn shows_nowhere(&self) -> bool {
        self.unseen
    }
}

/// A step that writes the record, which then shows that all before it was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    number: u8,
}

impl Pivot for Write {}

impl Step for Write {
    const TAG: &'static str = "test-write";

    fn touches(&self) -> Touches {
        Touches { writes_record: true, ..Touches::default() }
    }

    async fn apply(&self, run: &mut Run<'_>) -> Result<()> {
        look((0..self.number).all(|lower| world().contains(&lower)), "applied", self.number);
        let fails = fails(self.number);
        live().await;
        if fails != Some(false) {
            write(run.store(), &run.name, &self.number.to_string());
            WORLD.with_borrow_mut(|world| world.insert(self.number));
        }
        live().await;
        if fails.is_some() { Err(Error::failed("it failed")) } else { Ok(()) }
    }

    fn wrote(&self, now: &Record) -> Option<bool> {
        Some(now.config.tags.get(AT) == Some(&self.number.to_string()))
    }
}

/// The key in the record of the step that wrote it, and what is there before.
const AT: &str = "at";
const BEFORE: &str = "before";

fn write(store: &Store, name: &Name, at: &str) {
    let mut record = store.load(name).expect("a record");
    record.config.tags.insert(AT.to_owned(), at.to_owned());
    store.save(name, &record).expect("it can be written");
}

const KINDS: &[Kind] = &[kind::<Put>(), kind::<Write>()];

struct Bench {
    _directory: tempfile::TempDir,
    context: Context,
    name: Name,
}

impl Bench {
    fn new() -> Self {
        install(KINDS);
        // In memory where there is some: the journal is flushed for each plan.
        let directory =
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let settings = Settings {
            store: directory.path().join("store"),
            runtime: directory.path().join("run"),
            accel: Accel::default(),
            confine: Confine::Default,
            qemu: "qemu-system-x86_64".into(),
            search_path: OsString::new(),
            lock_wait: Duration::ZERO,
        };
        let context = Context::open(settings, Box::new(Silent), "test").expect("a store");
        context.store.prepare().expect("a store");
        let text = include_bytes!("../../../tests/fixtures/vm-v1.json");
        let record = crate::store::schema::parse_record(text).expect("a record");
        let name: Name = "vm".parse().expect("a name");
        crate::store::make_directory(&context.store.layout.vm(&name)).expect("a directory");
        context.store.save(&name, &record).expect("a record");
        Self { _directory: directory, context, name }
    }

    /// Nothing has happened yet.
    fn begin(&self) {
        WORLD.with_borrow_mut(BTreeSet::clear);
        FAILING.set(None);
        DISORDER.set(None);
        write(&self.context.store, &self.name, BEFORE);
    }

    fn lock(&self) -> VmLock {
        self.context.store.try_lock_vm(&self.name, "test").expect("a lock").expect("nobody has it")
    }

    /// Carries out the plan in a process that lives to see `life` effects. `None`: it has died.
    fn run(&self, plan: Plan, life: usize) -> Option<Result<()>> {
        let lock = self.lock();
        let mut shared = Run::with_no_qemu(&self.context, &self.name);
        lives(run(&lock, plan, &mut shared), life).map(|done| done.map(drop))
    }

    /// What the next command does first, in a process that lives to see `life` effects.
    fn recover(&self, life: usize) -> Option<Result<Recovered>> {
        let lock = self.lock();
        lives(recover::recover(&self.context, &lock), life)
    }

    /// After an interrupt.
    fn interrupted(&self, life: usize) -> Option<Result<Vec<(String, Recovered)>>> {
        lives(recover::after_interrupt(&self.context), life)
    }
}

/// Nothing in here waits for anything but death.
fn lives<T>(work: impl Future<Output = T>, life: usize) -> Option<T> {
    LIFE.set(life);
    let done = match pin!(work).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    };
    LIFE.set(usize::MAX);
    done
}

/// A plan whose steps are numbered in their order.
fn plan(walk: &Walk) -> Plan {
    let pivot = walk.before;
    let step = |number: u8| -> Planned {
        match walk.written == Some(number) && number > pivot {
            true => Write { number }.into(),
            false => Put { number, unseen: number > pivot && walk.unseen == Some(number) }.into(),
        }
    };
    let before = Plan::before((0..pivot).map(step));
    let plan = match walk.pivot_is_record {
        true => before.pivot(Write { number: pivot }),
        false => before.pivot(Put { number: pivot, unseen: false }),
    };
    plan.after((pivot + 1..=pivot + walk.after).map(step))
}

fn world() -> BTreeSet<u8> {
    WORLD.with_borrow(BTreeSet::clone)
}

/// One walk: how many steps, of which kinds, which one fails and how, and after how many effects
/// each process dies.
#[derive(Debug, Clone, Default)]
struct Walk {
    before: u8,
    after: u8,
    pivot_is_record: bool,
    written: Option<u8>,
    unseen: Option<u8>,
    failing: Option<(u8, bool)>,
    lives: Vec<usize>,
    interrupted: bool,
}

fn walks() -> impl Strategy<Value = Walk> {
    let counts = (0_u8..5, 0_u8..5, any::<bool>());
    let kinds = (prop::option::of(0_u8..10), prop::option::of(0_u8..10));
    let failing = prop::option::of((0_u8..10, any::<bool>()));
    let lives = prop::collection::vec(0_usize..24, 1..5);
    (counts, kinds, failing, lives, any::<bool>()).prop_map(
        |((before, after, pivot_is_record), (written, unseen), failing, lives, interrupted)| {
            // A step is one or the other.
            let unseen = unseen.filter(|number| written != Some(*number));
            Walk { before, after, pivot_is_record, written, unseen, failing, lives, interrupted }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(3000)
    })]

    #[test]
    fn wherever_processes_die_the_next_ones_find_one_of_the_two_ends(walk in walks()) {
        thread_local!(static BENCH: Bench = Bench::new());
        BENCH.with(|bench| check(bench, &walk))?;
    }
}

fn check(bench: &Bench, walk: &Walk) -> std::result::Result<(), TestCaseError> {
    let store = &bench.context.store;
    bench.begin();
    FAILING.set(walk.failing);
    let (pivot, all): (u8, BTreeSet<u8>) = (walk.before, (0..=walk.before + walk.after).collect());
    let ran = bench.run(plan(walk), walk.lives[0]);
    match &ran {
        Some(Ok(())) => prop_assert_eq!(world(), all.clone(), "it said that it was done"),
        // Before the pivot nothing is left of it; behind, its journal is.
        Some(Err(_)) if world().is_empty() => prop_assert!(!store.has_journal(&bench.name)),
        Some(Err(_)) => {
            prop_assert!(world().contains(&pivot) && store.has_journal(&bench.name));
            let unseen = walk.unseen.filter(|number| *number > pivot && all.contains(number));
            prop_assert!(
                unseen.is_none_or(|number| world().contains(&number)),
                "it does not show, and is left out"
            );
        }
        None => prop_assert!(store.has_journal(&bench.name), "nobody would know"),
    }
    let has_happened = world().contains(&pivot);
    for life in &walk.lives[1..] {
        let (had_journal, before) = (store.has_journal(&bench.name), world());
        if !walk.interrupted {
            drop(bench.recover(*life));
        } else if let Some(Ok(found)) = bench.interrupted(*life)
            && had_journal
        {
            // What is left to be done: behind the pivot, or behind a record that shows more.
            let shown = walk
                .written
                .filter(|number| *number > pivot && before.contains(number))
                .unwrap_or(pivot);
            let goes_on = before.contains(&pivot)
                && all.iter().any(|number| {
                    *number > shown && number % 2 == 1 && walk.written != Some(*number)
                });
            prop_assert_eq!(found.iter().any(|(_, outcome)| *outcome == Recovered::Left), goes_on);
        }
    }
    // From here on nothing fails, and nobody dies.
    FAILING.set(None);
    let recovered = bench.recover(usize::MAX).expect("it lives");
    prop_assert!(recovered.is_ok(), "{:?}", recovered);
    prop_assert!(world().is_empty() || world() == all, "neither before nor after: {:?}", world());
    prop_assert!(!store.has_journal(&bench.name));
    // Once the pivot has happened, the change does not go away any more.
    prop_assert!(!has_happened || world() == all, "it was undone behind its pivot");
    prop_assert_eq!(DISORDER.take(), None);
    let written = (walk.written.filter(|number| *number > pivot && all.contains(number)))
        .or(walk.pivot_is_record.then_some(pivot))
        .filter(|_| !world().is_empty());
    let now = store.load(&bench.name).expect("a record").config.tags.get(AT).cloned();
    prop_assert_eq!(
        now,
        Some(written.map_or_else(|| BEFORE.to_owned(), |number| number.to_string()))
    );
    Ok(())
}

#[test]
fn a_journal_is_read_as_it_was_written() {
    let bench = Bench::new();
    bench.begin();
    let walk = Walk { before: 2, after: 2, unseen: Some(4), ..Walk::default() };
    assert!(bench.run(plan(&walk), 3).is_none(), "it dies");
    let journal = Journal::<Planned>::load(&bench.context.store, &bench.name)
        .expect("a journal")
        .expect("it is there");
    assert_eq!(journal.steps, plan(&walk).steps);
    assert_eq!(journal.pivot, 2);
    let text = std::fs::read_to_string(bench.context.store.layout.journal(&bench.name))
        .expect("a journal");
    assert!(text.contains(r#"{"step":"test-put","number":0,"unseen":false}"#), "{text}");
    bench.recover(usize::MAX).expect("it lives").expect("it is undone");
}

#[test]
fn a_journal_with_a_step_that_nobody_knows_is_not_touched() {
    let bench = Bench::new();
    bench.begin();
    let walk = Walk { before: 1, ..Walk::default() };
    assert!(bench.run(plan(&walk), 1).is_none(), "it dies");
    let path = bench.context.store.layout.journal(&bench.name);
    let text =
        std::fs::read_to_string(&path).expect("a journal").replace("test-put", "of-tomorrow");
    std::fs::write(&path, &text).expect("a journal");
    let error = bench.recover(usize::MAX).expect("it lives").expect_err("nobody knows what to do");
    assert!(error.full_message().contains("of-tomorrow"), "{}", error.full_message());
    assert_eq!(std::fs::read_to_string(&path).expect("it stays"), text);
}
