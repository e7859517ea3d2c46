use std::collections::BTreeSet;

use super::*;

/// A copy lies on the next file system, or has the next inode, or both.
#[test]
fn stores_that_lie_near_each_other_have_places_of_their_own() {
    let numbers = || {
        (0..64_u64)
            .flat_map(|device| (0..64_u64).map(move |inode| (0x801 + device, 0x2_0001 + inode)))
    };
    let places: BTreeSet<String> = numbers().map(|(device, inode)| place(device, inode)).collect();
    assert_eq!(places.len(), numbers().count());
}
