//! What a guest may read and write in a second.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::Lab;

/// Bytes and requests in a second that QEMU lets each disk of `vm` have, and the group that shares
/// them.
fn limits(lab: &Lab, vm: &str) -> Vec<(u64, u64, Value)> {
    let answers = lab.user_qmp(vm, &[json!({"execute": "query-block"})]);
    let is_disk = |drive: &&Value| drive["qdev"].as_str().unwrap_or_default().contains("dev-vd");
    let drives = answers[1].as_array().unwrap().iter().filter(is_disk);
    let of = |drive: &Value| {
        let inserted = &drive["inserted"];
        let number = |key: &str| inserted[key].as_u64().unwrap();
        (number("bps"), number("iops"), inserted["group"].clone())
    };
    drives.map(of).collect()
}

#[test]
fn disks_on_every_bus_share_the_limits_of_their_vm_and_keep_them_above_a_snapshot() {
    let lab = Lab::new();
    let sizes = ["--size", "16M"].repeat(5);
    lab.ok(&[
        &["create", "web", "--net", "none", "--memory", "64M", "--limit", "io=8M,iops=100"][..],
        &sizes,
    ]
    .concat());
    let buses = ["scsi", "nvme", "sata", "usb"];
    for (target, bus) in ["vdb", "vdc", "vdd", "vde"].into_iter().zip(buses) {
        lab.ok(&["set", "web", &format!("disk.{target}.bus={bus}")]);
    }
    lab.ok(&["start", "web", "--paused"]);
    let limited = |io: u64, iops: u64| vec![(io, iops, json!("limits")); 5];
    assert_eq!(limits(&lab, "web"), limited(8 << 20, 100));
    lab.ok(&["snapshot", "create", "web", "s"]);
    assert_eq!(limits(&lab, "web"), limited(8 << 20, 100));
    // While it runs, and back again.
    lab.ok(&["set", "web", "limit.io=", "limit.iops=7"]);
    assert_eq!(limits(&lab, "web"), limited(0, 7));
    lab.ok(&["undo", "web"]);
    assert_eq!(limits(&lab, "web"), limited(8 << 20, 100));
    lab.ok(&["set", "web", "limit.io=", "limit.iops="]);
    assert_eq!(limits(&lab, "web"), vec![(0, 0, Value::Null); 5]);
    // Those of then.
    lab.ok(&["snapshot", "revert", "web@s", "--paused"]);
    assert_eq!(limits(&lab, "web"), limited(8 << 20, 100));
    let shown = lab.json(&["show", "web"]);
    assert_eq!(
        (&shown["io_max_bytes"], &shown["io_max_operations"]),
        (&json!(8 << 20), &json!(100))
    );
    assert!(lab.ok(&["show", "web"]).contains("8.0 MiB/s, 100 IOPS"));
}

#[test]
fn clones_have_the_limits_of_their_template_or_their_own() {
    let lab = Lab::new();
    lab.ok(&["create", "t", "--size", "16M", "--limit", "io=8M"]);
    lab.ok(&["template", "create", "t", "--no-seal"]);
    lab.ok(&["clone", "t", "a"]);
    lab.ok(&["clone", "t", "b", "--limit", "iops=5"]);
    let of = |vm: &str| {
        let shown = lab.json(&["show", vm]);
        (shown["io_max_bytes"].clone(), shown["io_max_operations"].clone())
    };
    assert_eq!(of("a"), (json!(8 << 20), Value::Null));
    assert_eq!(of("b"), (Value::Null, json!(5)));
    for (args, words) in [
        (&["create", "c", "--size", "1M", "--limit", "cpu=1"][..], "io=SIZE"),
        (&["create", "c", "--size", "1M", "--limit", "io=1K"], "64K"),
        (&["set", "a", "limit.iops=0"], "from 1 to"),
        (&["set", "a", "limit.cpu=1"], "io=SIZE"),
    ] {
        lab.run(args).fails(2, &[words]);
    }
    assert_eq!(of("a"), (json!(8 << 20), Value::Null));
}

#[test]
fn a_guest_that_resumes_from_memory_writes_no_faster_than_its_template_may() {
    let lab = Lab::new();
    lab.tiny("t", &["--limit", "io=2M"]);
    lab.ok(&["template", "create", "t", "--no-seal", "--warm"]);
    lab.ok(&["clone", "t", "a", "--warm"]);
    let limited = [(2 << 20, 0, json!("limits"))];
    assert_eq!(limits(&lab, "a"), limited);
    // 12 MiB, of which a tenth of a second's are free.
    let write = "dd if=/dev/zero of=/root/new bs=64k count=192 conv=fsync";
    let began = Instant::now();
    lab.sh("a", write);
    assert!(began.elapsed() > Duration::from_secs(5), "{:?}", began.elapsed());
    lab.ok(&["snapshot", "create", "a", "s", "--memory"]);
    lab.ok(&["set", "a", "limit.io="]);
    assert_eq!(limits(&lab, "a"), [(0, 0, Value::Null)]);
    lab.sh("a", write);
    lab.ok(&["snapshot", "revert", "a@s"]);
    assert_eq!(limits(&lab, "a"), limited);
    // Others than those of the template, or none.
    lab.ok(&["run", "--keep=b", "--limit", "iops=1000", "t", "--", "true"]);
    assert_eq!(limits(&lab, "b"), [(0, 1000, json!("limits"))]);
    lab.ok(&["run", "--keep=c", "--limit", "none", "t", "--", "true"]);
    assert_eq!(limits(&lab, "c"), [(0, 0, Value::Null)]);
}
