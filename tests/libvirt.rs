//! What becomes of real domains, as virt-install and libvirt 9.0 write them (`fixtures/libvirt`).

use std::path::Path;

use cowhand::libvirt::domain;
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
    for name in
        ["01-bios-virtio", "02-uefi", "05-sata", "06-scsi", "08-usb", "09-several-nics", "10-cdrom", "13-windows"]
    {
        let (printed, defined) = (read(&format!("{name}.xml")), read(&format!("{name}.defined.xml")));
        assert_eq!(printed.devices, defined.devices, "{name}");
        assert_eq!(
            (printed.memory_bytes, printed.cpus, &printed.cpu, printed.firmware, printed.uuid),
            (defined.memory_bytes, defined.cpus, &defined.cpu, defined.firmware, defined.uuid),
            "{name}"
        );
    }
}
