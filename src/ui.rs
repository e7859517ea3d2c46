//! How the library tells a person what is going on, without printing: the caller hands in an
//! implementation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Receives what is worth telling while an operation runs.
pub trait Ui {
    /// Something a user wants to know and need not act on.
    fn note(&self, message: &str);
    /// Something a user should act on; the operation goes on.
    fn warn(&self, message: &str);
    /// A long step begins: `total` bytes, or 0 where it is not known yet.
    fn task(&self, label: &str, total: u64) -> Box<dyn Task>;
}

/// One long step on display. Dropping it takes it off the screen.
pub trait Task {
    /// `done` of `total` bytes so far.
    fn update(&self, done: u64, total: u64);
}

/// Bytes done, counted by a worker thread and read by the one that draws.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts `bytes` more.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Says nothing; for tests and for callers that only want the result.
#[derive(Debug, Default)]
pub struct Silent;

impl Ui for Silent {
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn task(&self, _: &str, _: u64) -> Box<dyn Task> {
        Box::new(Silent)
    }
}

impl Task for Silent {
    fn update(&self, _: u64, _: u64) {}
}
