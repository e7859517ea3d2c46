//! How much of a long walk is walked: a handful of places where a change is to land (`scripts/test`), more where there is time
//! (`scripts/test --full`, `scripts/faults --short`), and every one (`scripts/faults`). docs/testing.md says which test is in which tier.

use std::env::var;

/// From which place on, and every how manieth place, a walk is to try for the `at`th of several operations, where `more` is the
/// distance of the second tier.
///
/// The operations begin at different places, because in the first tier most have too few for a second one.
pub fn sample(at: usize, more: u32) -> (u32, u32) {
    let first = 1 + u32::try_from(at * 5 % 7).unwrap();
    match var("COWHAND_FAULTS").as_deref() {
        Ok("all") => (1, 1),
        Ok("more") => (first, more),
        _ => (first, more * 4),
    }
}

/// Is the `at`th of several operations tried under this fault? In the first tier each third one is, others under another fault.
pub fn is_picked(at: usize, fault: usize) -> bool {
    var("COWHAND_FAULTS").is_ok() || (at + fault).is_multiple_of(3)
}

/// Tries the places from `first` on, every `stride`th of them, until `hit` says that there is none of that number; one at least, if
/// there is any.
pub fn walk((first, stride): (u32, u32), mut hit: impl FnMut(u32) -> bool) {
    let mut number = first;
    while hit(number) {
        number += stride;
    }
    if number == first && first > 1 {
        hit(1);
    }
}

/// Is every place to be tried?
pub fn is_all() -> bool {
    var("COWHAND_FAULTS").is_ok_and(|value| value == "all")
}

/// `first` in the first tier, `second` in the others.
pub fn first_or<T>(first: T, second: T) -> T {
    if var("COWHAND_FAULTS").is_ok() { second } else { first }
}
