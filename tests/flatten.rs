//! `flatten` of several: what is refused of one of them is refused before another is changed.

use std::path::Path;

use serde_json::Value;

use crate::fake::run;

/// A template `base` and a clone `web` of it.
fn store() -> tempfile::TempDir {
    let root = tempfile::Builder::new().prefix("cwl").tempdir_in("/tmp").unwrap();
    for args in [
        &["create", "base", "--size", "64M"][..],
        &["template", "create", "base", "--no-seal"],
        &["clone", "base", "web"],
    ] {
        let (code, _, error) = run(root.path(), args);
        assert_eq!(code, 0, "{args:?}: {error}");
    }
    root
}

fn layers(root: &Path, vm: &str) -> Vec<String> {
    let (code, out, error) = run(root, &["--format", "json", "disk", "chain", vm]);
    assert_eq!(code, 0, "{error}");
    let chain: Value = serde_json::from_str(&out).unwrap();
    let layers = chain[0]["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["file"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_template_or_an_unknown_name_behind_a_vm_is_refused_before_the_vm_is_merged() {
    let root = store();
    let before = layers(root.path(), "web");
    assert_eq!(before.len(), 2);
    for (other, code, why) in [("base", 5, "it is a template"), ("nosuch", 3, "nosuch")] {
        for args in [&["flatten", "web", other][..], &["flatten", "--dry-run", "web", other]] {
            let (exit, out, error) = run(root.path(), args);
            assert_eq!((exit, out.as_str()), (code, ""), "{args:?}: {error}");
            assert!(error.contains(why), "{args:?}: {error}");
        }
    }
    assert_eq!(layers(root.path(), "web"), before);
}

#[test]
fn a_vm_whose_active_layer_is_damaged_is_not_flattened() {
    let root = store();
    let active = root.path().join("store/layers").join(&layers(root.path(), "web")[0]);
    std::fs::write(&active, vec![0; 4096]).unwrap();
    for args in
        [&["flatten", "web"][..], &["flatten", "web", "vda"], &["disk", "stream", "web", "vda"]]
    {
        let (exit, out, error) = run(root.path(), args);
        assert_eq!((exit, out.as_str()), (8, ""), "{args:?}: {error}");
        assert!(error.contains("is damaged: its header cannot be used"), "{args:?}: {error}");
    }
}
