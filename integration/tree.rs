//! A tree of snapshots with two disks: whatever is removed in whatever order, running or stopped,
//! each point that is left keeps both.

use crate::lab::Lab;

/// s1 → { s2 → s3, s4 → s5 }, the head on s5, in a VM that is stopped. Each point has its name on
/// both disks.
fn grow(lab: &Lab) {
    let mark = |name: &str| {
        lab.sh(
            "web",
            &format!(
                "echo {name} > /root/a; echo {name} | dd of=/dev/vdb conv=fsync 2>/dev/null; sync"
            ),
        )
    };
    lab.booted_with("web", &["--size", "16M"]);
    for name in ["s1", "s2", "s3"] {
        mark(name);
        lab.ok(&["snapshot", "create", "web", name]);
    }
    lab.ok(&["snapshot", "revert", "web@s1"]);
    for name in ["s4", "s5"] {
        mark(name);
        lab.ok(&["snapshot", "create", "web", name]);
    }
    mark("head");
    lab.ok(&["stop", "web"]);
}

/// A lab with such a VM, `web`.
fn grown() -> Lab {
    let lab = Lab::new();
    lab.prepared("grown", &[], grow);
    lab
}

/// Both disks of a point, seen from outside.
fn check(lab: &Lab, vm: &str, points: &[&str]) {
    let raw = lab.path().join("x.raw");
    for name in points {
        let point = format!("{vm}@{name}");
        assert_eq!(lab.on_disk(&point, "/root/a").as_deref(), Some(*name), "{point}");
        lab.ok(&["image", "export", &point, raw.to_str().unwrap(), "--disk", "vdb", "--force"]);
        let second = std::fs::read(&raw).unwrap();
        assert_eq!(second.split(|byte| *byte == b'\n').next().unwrap(), name.as_bytes(), "{point}");
    }
}

/// A clone of a point boots.
fn boots(lab: &Lab, point: &str, text: &str) {
    lab.ok(&["clone", point, "look"]);
    lab.ok(&["start", "look"]);
    assert_eq!(lab.read("look", "/root/a").as_deref(), Some(text), "{point}");
    lab.ok(&["rm", "--force", "look"]);
}

fn remove_all(order: &[&str], running: bool) {
    let lab = grown();
    if running {
        lab.ok(&["start", "web"]);
    }
    let mut left = vec!["s1", "s2", "s3", "s4", "s5"];
    for name in order {
        lab.ok(&["snapshot", "rm", &format!("web@{name}")]);
        left.retain(|other| other != name);
        check(&lab, "web", &left);
        if left.len() == 2 {
            boots(&lab, &format!("web@{}", left[0]), left[0]);
        }
        if running {
            assert_eq!(lab.read("web", "/root/a").as_deref(), Some("head"), "after {name}");
            assert_eq!(lab.sh("web", "head -n1 /dev/vdb").trim(), "head", "after {name}");
        }
    }
    if !running {
        lab.ok(&["start", "web"]);
        assert_eq!(lab.read("web", "/root/a").as_deref(), Some("head"));
        assert_eq!(lab.sh("web", "head -n1 /dev/vdb").trim(), "head");
    }
    let chains = lab.json(&["disk", "chain", "web"]);
    assert!(
        chains
            .as_array()
            .unwrap()
            .iter()
            .all(|chain| chain["layers"].as_array().unwrap().len() == 1),
        "{chains}"
    );
    lab.ok(&["gc", "--older-than", "0"]);
    lab.ok(&["gc", "--older-than", "0"]);
    assert_eq!(lab.layer_files().len(), 2, "nothing is left but the two disks");
    lab.check_images();
}

#[test]
fn a_whole_branch_goes_and_nothing_else_does() {
    let lab = grown();
    let before = lab.fingerprint();
    let told = lab.ok(&["snapshot", "rm", "web@s2", "--children", "--dry-run"]);
    assert!(told.contains("would remove web@s3") && told.contains("would remove web@s2"), "{told}");
    assert_eq!(lab.fingerprint(), before, "a dry run changes nothing");
    lab.ok(&["snapshot", "rm", "web@s2", "--children"]);
    let names = |lab: &Lab| lab.ok(&["snapshot", "ls", "web", "-q"]);
    assert_eq!(names(&lab), "s1\ns4\ns5\n");
    lab.ok(&["snapshot", "rm", "web@s1", "--children-only"]);
    assert_eq!(names(&lab), "s1\n");
    check(&lab, "web", &["s1"]);
    assert_eq!(
        lab.on_disk("web", "/root/a").as_deref(),
        Some("head"),
        "the head is nobody's child to be removed"
    );
    lab.check_images();
}

/// The second tier, see docs/testing.md.
mod full {
    use super::*;

    #[test]
    fn removing_the_root_first_keeps_both_branches_while_the_guest_runs() {
        remove_all(&["s1", "s2", "s4", "s3", "s5"], true);
    }

    #[test]
    fn removing_in_any_order_keeps_the_rest_of_a_stopped_vm() {
        let orders = [
            ["s2", "s4", "s1", "s5", "s3"],
            ["s1", "s2", "s3", "s4", "s5"],
            ["s5", "s3", "s1", "s2", "s4"],
        ];
        for order in &orders {
            remove_all(order, false);
        }
    }

    #[test]
    fn removing_leaves_first_keeps_what_they_depended_on_while_the_guest_runs() {
        remove_all(&["s3", "s5", "s2", "s4", "s1"], true);
    }

    #[test]
    fn removing_the_branch_of_the_head_first_keeps_the_other_one_while_the_guest_runs() {
        remove_all(&["s5", "s4", "s1", "s3", "s2"], true);
    }
}
