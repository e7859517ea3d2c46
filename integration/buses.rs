//! Disks on each bus: a boot sector counts its boots on the disk that it was booted from. And
//! CD-ROM drives.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::{Lab, eventually, qemu_img, tool};

/// Reads the second sector of its disk through the BIOS, counts it up, writes it back, and prints
/// `boots: N` on COM1.
const COUNTER: &str = r#"
.code16
.globl _start
_start: cli; xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; mov $0x7c00, %sp; sti
        mov %dl, drive
        mov $0x42, %ah; call sector; jc bad
        incb 0x8000
        mov $0x43, %ah; call sector; jc bad
        mov 0x8000, %al; add $'0', %al; mov %al, number
        mov $message, %si
next:   lodsb; test %al, %al; jz done
        mov %al, %bl; mov $0x3fd, %dx
wait:   in %dx, %al; test $0x20, %al; jz wait
        mov $0x3f8, %dx; mov %bl, %al; out %al, %dx; jmp next
done:   sti; hlt; jmp done
bad:    mov $failed, %si; jmp next
sector: xor %al, %al; mov drive, %dl; mov $packet, %si; int $0x13; ret
packet: .byte 16, 0, 1, 0
        .word 0x8000, 0
        .quad 1
drive:  .byte 0
message: .ascii "boots: "
number: .asciz "0 \r\n"
failed: .asciz "the disk failed\r\n"
.org 510
.word 0xaa55
"#;

/// An image of it, made by the assembler.
pub fn counter(lab: &Lab, name: &str) -> PathBuf {
    let at = |name: &str| lab.path().join(name).to_str().unwrap().to_owned();
    let (source, object, raw) = (at("counter.s"), at("counter.o"), at("counter.raw"));
    std::fs::write(&source, COUNTER).unwrap();
    tool("as", &["--32", &source, "-o", &object]);
    tool("ld", &["-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", &object, "-o", &raw]);
    let mut bytes = std::fs::read(&raw).unwrap();
    bytes.resize(1 << 20, 0);
    std::fs::write(&raw, bytes).unwrap();
    let image = at(name);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    image.into()
}

/// Starts the VM, and waits for what it says of its disk.
#[track_caller]
fn boots(lab: &Lab, vm: &str, number: u32) {
    let line = format!("boots: {number} ");
    // Without a log, it has not been started before.
    let before = lab.run(&["logs", vm, "--raw"]).out.matches(&line).count();
    lab.ok(&["start", vm]);
    eventually(&format!("{vm} prints {line:?}"), || {
        let log = lab.ok(&["logs", vm, "--raw"]);
        assert!(!log.contains("failed"), "{log}");
        log.matches(&line).count() > before
    });
}

#[test]
fn a_guest_reads_and_writes_its_disk_on_each_bus_and_snapshots_bring_it_back() {
    let lab = Lab::new();
    let image = counter(&lab, "counter.qcow2");
    for (machine, bus, target) in [
        ("q35", "scsi", "sda"),
        ("q35", "nvme", "nvme0n1"),
        ("q35", "sata", "sda"),
        ("q35", "usb", "sda"),
        ("pc", "ide", "hda"),
        ("pc", "sata", "sda"),
    ] {
        let vm = format!("{machine}-{bus}");
        let disk = format!("{},serial=WD-{bus}", image.display());
        lab.ok(&[
            "create", &vm, "--disk", &disk, "--bus", bus, "--machine", machine, "--memory", "64M",
            "--net", "none",
        ]);
        let listed = lab.json(&["disk", "ls", &vm]);
        assert_eq!(
            (&listed[0]["target"], &listed[0]["bus"]),
            (&json!(target), &json!(bus)),
            "{listed}"
        );
        boots(&lab, &vm, 1);
        // Of the running guest, and with its memory where QEMU can save that.
        lab.ok(&["snapshot", "create", &vm, "first"]);
        let mut memory = vec!["snapshot", "create", &vm, "memory", "--memory"];
        if bus == "nvme" {
            lab.run(&memory).fails(5, &["disk nvme0n1 is on NVMe", "disk.nvme0n1.bus=sata"]);
            memory[4] = "--internal";
            lab.run(&memory).fails(5, &["is on NVMe"]);
        } else {
            lab.ok(&memory);
        }
        lab.ok(&["stop", "--force", &vm]);
        boots(&lab, &vm, 2);
        let resize = ["disk", "resize", &vm, target, "+1M"];
        match bus {
            "nvme" => drop(lab.run(&resize).fails(5, &["is on NVMe", "cowhand stop"])),
            _ => drop(lab.ok(&resize)),
        }
        lab.ok(&["stop", "--force", &vm]);
        lab.ok(&["snapshot", "rm", &format!("{vm}@first")]);
        boots(&lab, &vm, 3);
        if bus != "nvme" {
            // It goes on where it was, and counts the next boot from there.
            lab.ok(&["snapshot", "revert", &format!("{vm}@memory")]);
            assert_eq!(lab.state(&vm), "running");
            lab.ok(&["stop", "--force", &vm]);
            boots(&lab, &vm, 2);
        }
        lab.ok(&["stop", "--force", &vm]);
        lab.ok(&["clone", &vm, "copy"]);
        let count = if bus == "nvme" { 4 } else { 3 };
        boots(&lab, "copy", count);
        lab.ok(&["rm", "--force", &vm, "--cascade"]);
        lab.check_images();
    }
}

/// The guest finds the same disk on another bus; its snapshots know the old one.
#[test]
fn the_bus_of_a_disk_can_be_changed_and_comes_back_with_a_snapshot() {
    let lab = Lab::new();
    let image = counter(&lab, "counter.qcow2");
    let (disk, create) = (image.to_str().unwrap(), ["--memory", "64M", "--net", "none"]);
    lab.ok(&[&["create", "web", "--disk", disk][..], &create].concat());
    boots(&lab, "web", 1);
    lab.run(&["set", "web", "disk.vda.bus=sata"]).fails(5, &["while it runs"]);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["snapshot", "create", "web", "s"]);
    lab.ok(&["set", "web", "disk.vda.bus=sata", "disk.vda.serial=OLD-1"]);
    let shown = lab.json(&["show", "web"]);
    assert_eq!(
        (&shown["disks"][0]["bus"], &shown["disks"][0]["serial"]),
        (&json!("sata"), &json!("OLD-1"))
    );
    boots(&lab, "web", 2);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["snapshot", "revert", "web@s"]);
    assert_eq!(lab.json(&["disk", "ls", "web"])[0]["bus"], "virtio");
    // `undo` knows it, too, and never makes a machine that cannot be.
    lab.ok(&["set", "web", "machine=pc", "disk.vda.bus=ide", "disk.vda.serial=OLD-2"]);
    lab.ok(&["undo", "web"]);
    let listed = lab.json(&["disk", "ls", "web"]);
    assert_eq!((&listed[0]["bus"], &listed[0]["serial"]), (&json!("virtio"), &Value::Null));
    // A clone has the same devices, with other addresses.
    lab.ok(&["set", "web", "disk.vda.bus=scsi"]);
    lab.ok(&["clone", "web", "copy"]);
    assert_eq!(lab.json(&["disk", "ls", "copy"])[0]["bus"], "scsi");
    lab.ok(&[
        "create", "old", "--size", "1M", "--net", "user,model=e1000", "--net",
        "user,mac=52:54:00:12:34:56",
    ]);
    lab.ok(&["clone", "old", "new"]);
    let cards = |vm: &str| lab.json(&["show", vm])["nics"].clone();
    assert_eq!(
        (&cards("old")[1]["mac"], &cards("new")[0]["model"]),
        (&json!("52:54:00:12:34:56"), &json!("e1000"))
    );
    assert_ne!(cards("old")[1]["mac"], cards("new")[1]["mac"]);
    let before = lab.fingerprint();
    for (change, code, words) in [
        ("disk.vda.bus=ide", 5, "has no IDE"),
        ("disk.vda.bus=mca", 2, "virtio, scsi, nvme"),
        ("disk.vdb.bus=sata", 3, "it has no disk vdb"),
        ("disk.vda.serial=a b", 2, "serial number"),
        ("disk.vda.cache=none", 2, "nothing called"),
        ("disk.vda", 2, "is not KEY=VALUE"),
    ] {
        lab.run(&["set", "web", change]).fails(code, &[words]);
    }
    assert_eq!(lab.fingerprint(), before);
    let many = [&["--size", "1M"][..], &["--net", "user"].repeat(24)].concat();
    for (options, words) in [
        (&many[..], "at most 24"),
        (&["--size", "1M", "--bus", "ide"], "has no IDE"),
        (
            &["--machine", "pc", "--bus", "ide", "--size", "1M", "--iso", disk],
            "is not an ISO image",
        ),
        (&["--disk", &format!("{disk},ro,bus=sata")], "cannot be read-only"),
        (&["--size", "1M", "--iso", "/dev/zero"], "character device"),
        (&["--size", "1M", "--iso", "/proc/version"], "is empty"),
        (&["--size", "1M", "--machine", "microvm"], "choose q35 or pc"),
    ] {
        lab.run(&[&["create", "x"], options].concat()).fails(5, &[words]);
    }
    for (network, words) in [
        (&["--net", "user,model=ne2k"][..], "is not a model of network card"),
        (
            &["--net", "user,mac=52:54:00:00:00:01", "--net", "user,mac=52:54:00:00:00:01"],
            "the same address",
        ),
        (&["--net", "none", "--net", "user"], "contradict"),
        (&["--net", "bridge=br0"], "is not a network"),
    ] {
        lab.run(&[&["create", "x", "--size", "1M"], network].concat()).fails(2, &[words]);
    }
    assert_eq!(lab.fingerprint(), before);
}

/// What QEMU says is in the drive.
fn medium(lab: &Lab, vm: &str, target: &str) -> Option<String> {
    let answers = lab.user_qmp(vm, &[json!({"execute": "query-block"})]);
    let drives = answers[1].as_array().unwrap();
    let own = format!("dev-{target}");
    let drive = drives
        .iter()
        .find(|drive| drive["qdev"] == own.as_str())
        .unwrap_or_else(|| panic!("{drives:?}"));
    drive["inserted"]["file"].as_str().map(str::to_owned)
}

fn iso(lab: &Lab, name: &str) -> String {
    let path = lab.path().join(name);
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_medium_of_a_drive_is_exchanged_while_the_vm_runs_and_while_it_does_not() {
    let lab = Lab::new();
    // A counter on a CD cannot be written; one that boots from the CD says that its disk failed.
    let image = counter(&lab, "counter.qcow2");
    let (one, two) = (iso(&lab, "one, with a comma.iso"), iso(&lab, "two.iso"));
    let disk = image.to_str().unwrap();
    lab.ok(&["create", "web", "--disk", disk, "--iso", &one, "--memory", "64M", "--net", "none"]);
    let listed = lab.json(&["cdrom", "ls", "web"]);
    assert_eq!(listed, json!([{"target": "sda", "bus": "sata", "file": one}]));
    boots(&lab, "web", 1);
    assert_eq!(medium(&lab, "web", "sda"), Some(one.clone()));
    lab.ok(&["cdrom", "insert", "web", &two]);
    // It was handed over open.
    assert!(medium(&lab, "web", "sda").is_some_and(|file| file.starts_with("/dev/fdset/")));
    // The first one is not open any more.
    let pid = lab.pid("web");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let open: Vec<PathBuf> =
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
    assert!(
        open.contains(&PathBuf::from(&two)) && !open.contains(&PathBuf::from(&one)),
        "{open:?}"
    );
    lab.ok(&["cdrom", "eject", "web"]);
    assert_eq!(medium(&lab, "web", "sda"), None);
    lab.ok(&["cdrom", "eject", "web"]);
    // A snapshot brings back what was in it.
    lab.ok(&["cdrom", "insert", "web", &one]);
    lab.ok(&["snapshot", "create", "web", "s", "--memory"]);
    // Another program has ejected it: memory is not saved with a record that says otherwise.
    let open =
        [json!({"execute": "blockdev-open-tray", "arguments": {"id": "dev-sda", "force": true}})];
    let take = [json!({"execute": "blockdev-remove-medium", "arguments": {"id": "dev-sda"}})];
    lab.user_qmp("web", &open);
    lab.user_qmp("web", &take);
    lab.run(&["snapshot", "create", "web", "t", "--memory"])
        .fails(5, &["CD-ROM drive sda", "cdrom eject web"]);
    lab.ok(&["cdrom", "eject", "web"]);
    lab.ok(&["snapshot", "revert", "web@s"]);
    assert_eq!(medium(&lab, "web", "sda"), Some(one.clone()));
    lab.ok(&["stop", "--force", "web"]);
    // It is missed before QEMU is started, and can be taken out.
    std::fs::remove_file(&one).unwrap();
    lab.run(&["start", "web"]).fails(3, &["CD-ROM drive sda", &one, "cowhand cdrom eject web"]);
    lab.run(&["snapshot", "revert", "web@s"])
        .fails(3, &["CD-ROM drive sda", "put it in its place", "--cold"]);
    lab.run(&["snapshot", "revert", "web@s", "--cold", "--running"])
        .fails(3, &["CD-ROM drive sda", "--stopped"]);
    let found = lab.run(&["--format", "json", "doctor", "web"]);
    assert!(found.out.contains("CD-ROM drive sda"), "{}", found.out);
    lab.ok(&["cdrom", "eject", "web"]);
    boots(&lab, "web", 2);
    lab.ok(&["stop", "--force", "web"]);
    lab.ok(&["undo", "web"]);
    assert_eq!(lab.json(&["cdrom", "ls", "web"])[0]["file"], one.as_str());
}

#[test]
fn a_guest_boots_from_a_cd_while_its_disk_is_blank() {
    let lab = Lab::new();
    let size = ["--size", "1M", "--memory", "64M", "--net", "none"];
    let cd = iso(&lab, "cd.iso");
    // El Torito: a volume descriptor at sector 17 that leads to a catalogue, and that to the boot
    // sector.
    let mut bytes = vec![0; 1 << 20];
    let mut put = |at: usize, text: &[u8]| bytes[at..at + text.len()].copy_from_slice(text);
    put(16 * 2048, b"\x01CD001\x01");
    put(17 * 2048, b"\0CD001\x01EL TORITO SPECIFICATION");
    put(17 * 2048 + 0x47, &20_u32.to_le_bytes());
    put(18 * 2048, b"\xffCD001\x01");
    put(20 * 2048, &[1, 0, 0, 0]);
    put(20 * 2048 + 28, &[0xaa, 0x55, 0x55, 0xaa]);
    put(20 * 2048 + 32, &[0x88, 0, 0, 0, 0, 0, 4, 0, 21, 0, 0, 0]);
    counter(&lab, "counter.qcow2");
    put(21 * 2048, &std::fs::read(lab.path().join("counter.raw")).unwrap()[..512]);
    std::fs::write(&cd, &bytes).unwrap();
    for (vm, options) in
        [("sata", &[][..]), ("ide", &["--machine", "pc"]), ("usb", &[]), ("scsi", &[])]
    {
        let bus =
            if options.is_empty() && vm != "sata" { format!("{cd},bus={vm}") } else { cd.clone() };
        lab.ok(&[&["create", vm, "--iso", &bus], &size[..], options].concat());
        lab.ok(&["start", vm]);
        // It has been booted, and cannot write to the CD.
        eventually(&format!("{vm} boots from its CD"), || {
            lab.ok(&["logs", vm, "--raw"]).contains("the disk failed")
        });
        lab.ok(&["rm", "--force", vm]);
    }
    // A stopped VM without a drive gets one.
    lab.ok(&[&["create", "web"], &size[..]].concat());
    lab.run(&["cdrom", "eject", "web"]).fails(3, &["has no CD-ROM drive", "cdrom insert web FILE"]);
    lab.ok(&["cdrom", "insert", "web", &cd]);
    lab.ok(&["start", "web"]);
    eventually("it boots from its CD", || {
        lab.ok(&["logs", "web", "--raw"]).contains("the disk failed")
    });
    lab.run(&["cdrom", "insert", "web", &cd, "--target", "sdx"])
        .fails(3, &["no CD-ROM drive sdx", "it has: sda"]);
    lab.run(&["cdrom", "insert", "web", "/nowhere.iso"]).fails(3, &["/nowhere.iso"]);
    // What is a disk of a VM is no CD.
    let raw = lab.path().join("raw.img");
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    let raw = raw.to_str().unwrap();
    lab.ok(&["create", "other", "--disk", raw]);
    lab.ok(&["create", "used", "--disk", &format!("{raw},use")]);
    let layer: Value = lab.json(&["disk", "ls", "other"]);
    // Another user's link could lead to any file.
    let link = lab.path().join("link.iso");
    std::os::unix::fs::symlink(&cd, &link).unwrap();
    if std::os::unix::fs::lchown(&link, Some(65534), None).is_ok() {
        lab.run(&["cdrom", "insert", "web", link.to_str().unwrap()])
            .fails(5, &["belongs to another user"]);
        lab.run(&["create", "x", "--iso", link.to_str().unwrap()])
            .fails(5, &["belongs to another user"]);
    }
    let both = format!("{cd},use");
    let own = iso(&lab, "own.img");
    lab.run(&["create", "x", "--disk", &format!("{own},use"), "--iso", &own])
        .fails(5, &["is a disk of the VM and in its CD-ROM drive"]);
    lab.run(&["create", "x", "--disk", &both]).fails(5, &["is in a CD-ROM drive of web"]);
    for (file, words) in [
        (layer[0]["file"].as_str().unwrap(), "belongs to the store"),
        (raw, "is used by another VM"),
    ] {
        lab.run(&["cdrom", "insert", "web", file]).fails(5, &[words]);
        lab.run(&["create", "x", "--size", "1M", "--iso", file]).fails(5, &[words]);
    }
    lab.ok(&["rm", "--force", "web"]);
    lab.run(&["cdrom", "rm", "other", "sda"]).fails(3, &["has no CD-ROM drive"]);
    lab.ok(&["cdrom", "insert", "other", &cd]);
    lab.ok(&["set", "other", "disk.sda.bus=usb"]);
    assert_eq!(lab.json(&["cdrom", "ls", "other"])[0]["bus"], "usb");
    lab.run(&["set", "other", "disk.sda.bus="]).fails(5, &["cannot be on virtio"]);
    lab.ok(&["cdrom", "rm", "other", "sda"]);
    assert_eq!(lab.json(&["cdrom", "ls", "other"]), json!([]));
    lab.ok(&["start", "other", "--paused"]);
    lab.run(&["cdrom", "insert", "other", &cd])
        .fails(5, &["cannot get one while it runs", "cowhand stop other"]);
}

/// `enp1s0` stays `enp1s0`: the card is where the domain had it.
#[test]
fn cards_of_a_domain_sit_where_they_sat() {
    let lab = Lab::new();
    let xml = crate::import::booting(&lab);
    let address = |bus: &str, slot: &str| {
        format!("<address type='pci' bus='{bus}' slot='{slot}'/></interface>")
    };
    let port = |at: u8| {
        let address = format!("<address type='pci' bus='0' slot='2' function='{at}'/>");
        format!("<controller type='pci' index='{at}' model='pcie-root-port'>{address}</controller>")
    };
    let ports: String = (1..=3).map(port).collect();
    let second = "<interface type='user'><mac address='52:54:00:12:ab:02'/><model type='virtio'/>";
    let cards = format!("{}{second}{}{ports}", address("0x03", "0x00"), address("0x00", "0x05"));
    let path = crate::import::write(&lab, "web.xml", &xml.replacen("</interface>", &cards, 1));
    lab.ok(&["import", &path]);
    lab.ok(&["start", "web"]);
    let seen = lab.sh(
        "web",
        "for card in /sys/class/net/e*; do echo $(cat $card/address) $(readlink -f $card); done",
    );
    let places = [("52:54:00:12:ab:cd", "0000:03:00.0"), ("52:54:00:12:ab:02", "0000:00:05.0")];
    for (mac, place) in places {
        assert!(seen.lines().any(|line| line.starts_with(mac) && line.contains(place)), "{seen}");
    }
}
