//! Looking at many files on all CPUs of the host.

use std::num::NonZero;
use std::thread::{self, Builder};

/// Fewer items than this are not worth a thread.
const WORTH_A_THREAD: usize = 64;
/// More threads than this do not help: the kernel's locks are in the way.
const MOST: usize = 8;

/// What `look` says of each of `items`, in their order. Where no thread can be started, the
/// caller's does all of it.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get).min(MOST);
    let threads = cpus.min(items.len() / WORTH_A_THREAD);
    if threads < 2 {
        return items.iter().map(look).collect();
    }
    let all = |items: &[T]| items.iter().map(&look).collect::<Vec<R>>();
    thread::scope(|scope| {
        let chunks: Vec<&[T]> = items.chunks(items.len().div_ceil(threads)).collect();
        let others: Vec<_> = chunks[1..]
            .iter()
            .map(|chunk| (*chunk, Builder::new().spawn_scoped(scope, || all(chunk))))
            .collect();
        let mut results = all(chunks[0]);
        for (chunk, other) in others {
            // A thread that panics has said why; what it had to look at is looked at again, here.
            let theirs = other.ok().and_then(|thread| thread.join().ok());
            results.extend(theirs.unwrap_or_else(|| all(chunk)));
        }
        results
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items_however_many_there_are() {
        for count in [0, 1, WORTH_A_THREAD - 1, 2 * WORTH_A_THREAD, 2 * WORTH_A_THREAD + 1, 5000] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(
                map(&items, |item| item * 2),
                items.iter().map(|item| item * 2).collect::<Vec<_>>()
            );
        }
    }
}
