//! What becomes of real domains, as virt-install and libvirt 9.0 write them (`fixtures/libvirt`).

use std::path::Path;

use cowhand::libvirt::{domain, snapshots};
use cowhand::output::table;

/// A snapshot for each: whoever changes what comes over sees it here.
#[test]
fn each_part_of_a_domain_comes_over_or_is_told() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/libvirt");
    let mut count = 0;
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let domain = domain::parse(&std::fs::read_to_string(&path).unwrap(), name).unwrap();
        insta::assert_snapshot!(format!("domain-{name}"), table::domain(&domain.notes));
        count += 1;
    }
    assert!(count > 25, "{count}");
}

/// What libvirt has filled in is what QEMU does by itself: a domain comes over the same before and
/// after it was defined.
#[test]
fn a_domain_comes_over_the_same_before_and_after_libvirt_has_defined_it() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/libvirt");
    let read = |name: &str| {
        let path = fixtures.join(name);
        domain::parse(&std::fs::read_to_string(path).unwrap(), name).unwrap()
    };
    for name in [
        "01-bios-virtio", "02-uefi", "05-sata", "06-scsi", "08-usb", "09-several-nics", "10-cdrom",
        "13-windows",
    ] {
        let (printed, defined) =
            (read(&format!("{name}.xml")), read(&format!("{name}.defined.xml")));
        // libvirt has given it PCI addresses.
        let mut devices = defined.devices.clone();
        devices.nics.iter_mut().for_each(|nic| nic.place = None);
        assert_eq!(printed.devices, devices, "{name}");
        assert_eq!(
            (printed.memory_bytes, printed.cpus, &printed.cpu, printed.firmware, printed.uuid),
            (defined.memory_bytes, defined.cpus, &defined.cpu, defined.firmware, defined.uuid),
            "{name}"
        );
    }
}

/// Snapshots of two domains, as libvirt 9.0 prints them: one shut down, one of a running domain,
/// each way of keeping it.
#[test]
fn snapshots_are_read_as_libvirt_prints_them() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/libvirt/snapshots");
    let read = |name: &str| {
        let text = std::fs::read_to_string(fixtures.join(name)).unwrap();
        let found = snapshots::parse(&text, name).unwrap();
        let file = found.domain.as_ref().unwrap().devices.disks[0].file.clone().unwrap();
        let file = file.file_name().unwrap().to_str().unwrap().to_owned();
        (
            found.parent,
            found.disks["sda"].clone(),
            found.state,
            found.was_off,
            found.has_memory,
            file,
        )
    };
    let (external, internal) = ("external".to_owned(), "internal".to_owned());
    let row = |parent: Option<&str>, kind: &String, state, was_off, has_memory, file: &str| {
        (parent.map(str::to_owned), kind.clone(), state, was_off, has_memory, file.to_owned())
    };
    use cowhand::model::VmState::{Running, Stopped};
    assert_eq!(read("web-first.xml"), row(None, &external, Stopped, true, false, "web.qcow2"));
    assert_eq!(
        read("web-live.xml"),
        row(Some("second"), &external, Running, false, false, "web.second")
    );
    assert_eq!(read("inn-early.xml"), row(None, &internal, Stopped, true, false, "inn.qcow2"));
    assert_eq!(
        read("inn-withmem.xml"),
        row(Some("early"), &internal, Running, false, true, "inn.qcow2")
    );
}
