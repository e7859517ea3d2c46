//! Reading or copying a whole file: on a thread of its own, with a progress bar, and stopped when
//! nobody waits for it any more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys::sparse::Stop;
use crate::ui::{Counter, Task};

/// How often a progress bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Stops the thread when its future is dropped.
#[derive(Debug, Default)]
pub(crate) struct StopOnDrop(pub(crate) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work`, which counts its bytes and looks at the other every now and then, and tells `task`
/// of `total` bytes.
pub(crate) async fn run<T: Send + 'static>(
    task: &dyn Task,
    total: u64,
    work: impl FnOnce(&Counter, &Stop) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (counter, stop) = (Counter::default(), StopOnDrop(Arc::new(AtomicBool::new(false))));
    let mut work = tokio::task::spawn_blocking({
        let (counter, stop) = (counter.clone(), Arc::clone(&stop.0));
        move || work(&counter, &stop)
    });
    loop {
        match tokio::time::timeout(TICK, &mut work).await {
            Ok(result) => return result.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            Err(_) => task.update(counter.get(), total),
        }
    }
}
