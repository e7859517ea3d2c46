use super::*;

#[test]
fn the_names_and_defaults_of_virt_sysprep_are_all_there() {
    let count = |default: bool| {
        OPERATIONS
            .iter()
            .filter(|operation| operation.sysprep && operation.default == default)
            .count()
    };
    assert_eq!((count(true), count(false)), (39, 6));
    let mut names: Vec<&str> = OPERATIONS.iter().map(|operation| operation.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), OPERATIONS.len(), "names are unique");
}
