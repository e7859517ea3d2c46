use proptest::prelude::*;

use super::super::Fate;
use super::*;
use crate::error::Kind;
use crate::model::{Bus, Format, NicModel, PciSlot};

const WEB: &str = "<domain type='kvm'>
    <name>web</name><uuid>11111111-2222-3333-4444-555555555555</uuid>\
    <description>ours</description>
    <memory unit='GiB'>2</memory><currentMemory unit='GiB'>2</currentMemory>\
    <vcpu placement='static'>3</vcpu>
    <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
    <features><acpi/><apic/><hyperv mode='custom'/></features>
    <cpu mode='host-passthrough'><topology sockets='1' cores='3' threads='1'/></cpu>
    <clock offset='localtime'/><on_poweroff>destroy</on_poweroff>\
    <on_reboot>destroy</on_reboot>
    <devices><emulator>/usr/bin/kvm</emulator>
      <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>\
        <source file='/i/b.qcow2'/>
        <target dev='vdb' bus='virtio'/><boot order='2'/></disk>
      <disk type='file' device='disk'><source file='/i/a.img'/>\
        <target dev='sda' bus='sata'/><boot order='1'/></disk>
      <disk type='network' device='disk'><source protocol='rbd' name='pool/x'/>\
        <target dev='vdc' bus='virtio'/></disk>
      <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
      <interface type='bridge'><mac address='52:54:00:AA:bb:cc'/><source bridge='br0'/>\
        <model type='e1000'/><address type='pci' bus='0x01' slot='0x00'/></interface>
      <controller type='usb'/><controller type='pci' index='1' model='pcie-root-port'>\
        <address type='pci' bus='0x00' slot='0x02'/></controller>\
      <channel type='unix'><target type='virtio'
        name='org.qemu.guest_agent.0'/></channel><serial type='pty'/>\
      <console type='pty'/><tpm model='tpm-crb'/>
      <memballoon model='virtio'/><rng model='virtio'/></devices>
    </domain>";

fn notes(domain: &Domain, fate: Fate) -> Vec<&str> {
    domain.notes.iter().filter(|note| note.fate == fate).map(|note| note.what.as_str()).collect()
}

#[test]
fn a_domain_is_read_with_its_machine_disks_and_addresses() {
    let domain = parse(WEB, "web.xml").expect("it is a domain");
    assert_eq!((domain.name.as_str(), domain.memory_bytes, domain.cpus), ("web", 2 << 30, 3));
    assert_eq!(
        domain.uuid.map(|uuid| uuid.to_string()).as_deref(),
        Some("11111111-2222-3333-4444-555555555555")
    );
    assert_eq!((domain.machine.as_str(), domain.cpu.as_deref()), ("pc-q35-7.2", None));
    // The one that is booted from comes first.
    let disks: Vec<(&str, &str)> = domain
        .devices
        .disks
        .iter()
        .map(|disk| (&*disk.target, disk.format.map_or("", Format::as_str)))
        .collect();
    assert_eq!(disks, [("sda", "raw"), ("vdb", "qcow2"), ("vdc", "raw")]);
    assert!(domain.devices.disks[2].file.as_ref().is_err_and(|why| why.contains("type network")));
    let cards: Vec<_> =
        domain.devices.nics.iter().map(|nic| (&*nic.mac, nic.model, nic.place)).collect();
    let place = Some(PciSlot { bus: 1, slot: 0 });
    assert_eq!(cards, [("52:54:00:aa:bb:cc", NicModel::E1000, place)]);
    let drives: Vec<_> =
        domain.devices.cdroms.iter().map(|drive| (&*drive.target, drive.bus)).collect();
    assert_eq!(drives, [("sdb", Bus::Sata)]);
    let kept = notes(&domain, Fate::Kept);
    for what in [
        "memory", "CPUs", "CPU model", "firmware", "guest agent", "rng", "serial console",
        "controllers",
    ] {
        assert!(kept.contains(&what), "{what}: {kept:?}");
    }
    let changed = notes(&domain, Fate::Changed);
    for what in
        ["CPU topology", "clock", "on_reboot", "network card 52:54:00:aa:bb:cc", "PCI addresses"]
    {
        assert!(changed.contains(&what), "{what}: {changed:?}");
    }
    let left = notes(&domain, Fate::Left);
    for what in ["feature hyperv", "tpm", "memballoon", "disk vdb, cache"] {
        assert!(left.contains(&what), "{what}: {left:?}");
    }
}

#[test]
fn a_card_keeps_its_place_where_the_machine_can_have_it_there() {
    let place = |from: &str, to: &str| {
        assert!(WEB.contains(from), "{from}");
        let domain = parse(&WEB.replace(from, to), "x").expect(to);
        let is_told = domain
            .notes
            .iter()
            .any(|note| note.what.ends_with(", PCI") && note.fate == Fate::Changed);
        let place = domain.devices.nics[0].place;
        assert_eq!(is_told, place.is_none(), "{to}: {:?}", domain.notes);
        place
    };
    let slot = |bus, slot| Some(PciSlot { bus, slot });
    // The firmware numbers a bridge behind the first root port before the second root port.
    let bridge = |index: u8, model: &str, at: &str| {
        format!(
            "<controller type='pci' index='{index}' model='{model}'><address type='pci' \
             {at}/></controller>"
        )
    };
    let first = "<controller type='usb'/>";
    let before = bridge(9, "pcie-root-port", "bus='0x00' slot='0x01' function='0x7'");
    assert_eq!(place(first, &before), slot(2, 0));
    let behind = before + &bridge(10, "pcie-to-pci-bridge", "bus='0x09' slot='0x00'");
    assert_eq!(place(first, &behind), slot(3, 0));
    let many: String =
        (20..40).map(|at| bridge(at, "pcie-root-port", "bus='0x00' slot='0x01'")).collect();
    assert_eq!(place(first, &many), None);
    assert_eq!(place("bus='0x01' slot='0x00'", "bus='0x00' slot='0x03'"), slot(0, 3));
    assert_eq!(place("bus='0x01' slot='0x00'", "bus='1' slot='0'"), slot(1, 0));
    for (from, to) in [
        ("bus='0x01' slot='0x00'", "bus='0x01' slot='0x02'"),
        ("bus='0x01' slot='0x00'", "bus='0x02' slot='0x00'"),
        ("bus='0x01' slot='0x00'", "bus='0x00' slot='0x1f'"),
        ("bus='0x01' slot='0x00'", "bus='0x01' slot='0x00' function='0x1'"),
        ("bus='0x01' slot='0x00'", "bus='0xfff' slot='0x00'"),
        ("model='pcie-root-port'", "model='pcie-to-pci-bridge'"),
        ("model='pcie-root-port'", "model='pcie-expander-bus'"),
        // It sits below itself.
        ("bus='0x00' slot='0x02'", "bus='0x01' slot='0x02'"),
        ("<address type='pci' bus='0x01' slot='0x00'/>", ""),
    ] {
        assert_eq!(place(from, to), None, "{to}");
    }
}

#[test]
fn uefi_kernels_and_models_are_read() {
    let with = |from: &str, to: &str| {
        assert!(WEB.contains(from), "{from}");
        parse(&WEB.replace(from, to), "x").expect(to)
    };
    let loader = "<loader readonly='yes' secure='yes' type='pflash'>/c.fd</loader>\
                  <nvram template='/t.fd'>/n.fd</nvram><boot";
    let uefi = with("<boot dev", &format!("{loader} dev"));
    assert_eq!((uefi.firmware, uefi.nvram.as_deref()), (Firmware::Uefi, Some("/n.fd".as_ref())));
    assert!(notes(&uefi, Fate::Left).contains(&"Secure Boot"));
    let auto = with("<os>", "<os firmware='efi'>");
    assert_eq!((auto.firmware, auto.nvram), (Firmware::Uefi, None));
    let kernel = "<kernel>/k</kernel><initrd>/i</initrd><cmdline>a b</cmdline><boot";
    let booted = with("<boot dev", &format!("{kernel} dev")).kernel.expect("a kernel");
    assert_eq!((booted.kernel.to_str(), booted.append.as_deref()), (Some("/k"), Some("a b")));
    let model = "<cpu mode='custom'><model>Skylake</model>\
                 <feature policy='require' name='vmx'/>\
                 <feature policy='disable' name='hle'/><topology";
    let custom = with("<cpu mode='host-passthrough'><topology", model);
    assert_eq!(custom.cpu.as_deref(), Some("Skylake,+vmx,-hle"));
    for (unit, bytes) in [("KiB", 2 << 20), ("MB", 2 << 20), ("MiB", 2 << 20), ("bytes", 1 << 20)] {
        assert_eq!(
            with(
                "<memory unit='GiB'>2",
                &format!("<memory unit='{unit}'>{}", if unit == "KiB" { 2048 } else { 2 })
            )
            .memory_bytes,
            bytes
        );
    }
}

#[test]
fn what_is_no_domain_is_refused_with_the_reason() {
    let laughs = "<!DOCTYPE lolz [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \
                  \"&a;&a;&a;&a;\">]><domain type='kvm'><name>&b;</name></domain>";
    let deep = "<domain type='kvm'>".to_owned() + &"<a>".repeat(80_000);
    for (text, word) in [
        ("", "is not the XML"),
        ("<domain", "is not the XML"),
        ("<network/>", "its root is <network>"),
        ("<domainsnapshot/>", "that of a snapshot"),
        ("<domain type='xen'/>", "another hypervisor (xen)"),
        ("<domain/>", "of which hypervisor"),
        (laughs, "DTD"),
        (&deep, "is not the XML"),
        (&" ".repeat(LONGEST + 1), "more than 256 KiB"),
    ] {
        let error = parse(text, "x.xml").expect_err(&text[..text.len().min(80)]);
        assert!(error.kind() == Kind::Refused && error.message().contains(word), "{error:?}");
    }
    for (from, to, word) in [
        ("<name>web</name>", "", "no name"),
        ("arch='x86_64'", "arch='aarch64'", "aarch64"),
        (">hvm<", ">exe<", "fully virtualised"),
        ("'pc-q35-7.2'", "'q35,accel=tcg'", "none of q35 and pc"),
        ("'pc-q35-7.2'", "'microvm'", "none of q35 and pc"),
        ("<memory unit='GiB'>2", "<memory unit='GiB'>x", "not a size"),
        ("<memory unit='GiB'>2", "<memory unit='TiB'>99999999999", "not a size"),
        (">3</vcpu>", ">300</vcpu>", "number of CPUs"),
        ("11111111-", "1", "not a UUID"),
    ] {
        assert!(WEB.contains(from), "{from}");
        let error = parse(&WEB.replace(from, to), "x.xml").expect_err(to);
        assert!(error.message().contains(word), "{error:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_cut_out_of_a_domain_nothing_panics(
        from in 0..WEB.len(),
        length in 0..200usize,
    ) {
        let to = (from + length).min(WEB.len());
        if WEB.is_char_boundary(from) && WEB.is_char_boundary(to) {
            let _ = parse(&[&WEB[..from], &WEB[to..]].concat(), "x.xml");
        }
    }
}
