//! QEMU's argument vector, held word for word: whatever changes here changes every guest.

use std::path::{Path, PathBuf};

use cowhand::model::{
    Bus, Cdrom, Chain, Config, Disk, Firmware, Format, KernelBoot, Layer, Link, Network, Nic,
    NicModel,
};
use cowhand::qemu::accel::Chosen;
use cowhand::qemu::cmdline::{Machine, StartMode, argv, leased, shell_line};
use cowhand::qemu::confinement;
use cowhand::qemu::sockets::Sockets;
use cowhand::settings::Confine;
use serde_json::Value;

fn layer(id: &str, format: Format) -> Layer {
    Layer { id: id.parse().unwrap(), format }
}

fn chain(layers: &[Layer]) -> Chain {
    let link = |layer: &Layer| Link {
        layer: layer.clone(),
        path: Path::new("/a store, with commas/layers").join(layer.file_name()),
        virtual_bytes: 1 << 30,
        allocated_bytes: 0,
        internal_snapshots: 0,
    };
    Chain::from_links(layers.iter().map(link).collect()).unwrap()
}

fn config() -> Config {
    let disk = |target: &str, layer: Layer, read_only| Disk {
        read_only,
        ..Disk::new(target, layer, 1 << 30)
    };
    Config {
        machine: "pc-q35-7.2".into(),
        cpu: None,
        memory_bytes: 1 << 30,
        cpus: 2,
        firmware: Firmware::Uefi,
        kernel: Some(KernelBoot {
            kernel: "/boot/vmlinuz".into(),
            initrd: None,
            append: Some("console=ttyS0 a='b c'".into()),
        }),
        nics: vec![Nic {
            mac: "52:54:00:00:00:01".into(),
            model: NicModel::Virtio,
            network: Network::default(),
            place: None,
            ports: vec!["8080:80".parse().unwrap(), "0.0.0.0:53:53/udp".parse().unwrap()],
        }],
        generation: "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87".parse().unwrap(),
        disks: vec![
            disk("vda", layer("head000000", Format::Qcow2), false),
            disk("vdb", layer("seed000000", Format::Raw), true),
        ],
        nvram: Some(disk("nvram", layer("vars000000", Format::Raw), false)),
        cdroms: Vec::new(),
        limits: Default::default(),
        log_limit: Default::default(),
        seed: None,
        credentials: Default::default(),
        tags: Default::default(),
    }
}

fn vector(how: StartMode<'_>) -> Vec<String> {
    vector_of(&config(), how)
}

fn vector_of(config: &Config, how: StartMode<'_>) -> Vec<String> {
    with_machine(config, how, argv)
}

fn with_machine<T>(config: &Config, how: StartMode<'_>, make: impl FnOnce(&Machine<'_>) -> T) -> T {
    let chains = [
        chain(&[layer("head000000", Format::Qcow2), layer("base000000", Format::Raw)]),
        chain(&[layer("seed000000", Format::Raw)]),
        chain(&[layer("vars000000", Format::Raw)]),
    ];
    make(&Machine {
        qemu: Path::new("/usr/bin/qemu-system-x86_64"),
        name: &"web".parse().unwrap(),
        uuid: "c5a0dd0e-8d5a-4f3c-8d5c-2b6d3a3f0001".parse().unwrap(),
        config,
        chains: &chains,
        accel: &Chosen { accel: "kvm", cpu: "host", warning: None },
        uefi_code: Some(Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd")),
        sockets: &Sockets::new("/run/cowhand/c5a0dd0e8d5a".into()),
        serial_log: Path::new("/a store, with commas/vms/web/serial.log"),
        how,
    })
}

#[test]
fn the_whole_argument_vector_of_a_uefi_guest_with_two_disks() {
    insta::assert_snapshot!(vector(StartMode::Paused).join("\n"));
}

/// The paths in an argument, of JSON or of a list of options.
fn paths(argument: &str) -> Vec<PathBuf> {
    fn in_json(value: &Value, found: &mut Vec<PathBuf>) {
        match value {
            Value::String(text) if text.starts_with('/') => found.push(text.into()),
            Value::Array(values) => values.iter().for_each(|value| in_json(value, found)),
            Value::Object(fields) => fields.values().for_each(|value| in_json(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_str(argument) {
        in_json(&value, &mut found);
        return found;
    }
    // A comma in a path is doubled.
    let doubled = argument.replace(",,", "\0");
    let values = doubled.split(',').map(|option| option.rsplit('=').next().unwrap_or(option));
    let values = values.map(|value| value.replace('\0', ","));
    found.extend(values.filter(|value| value.starts_with('/')).map(PathBuf::from));
    found
}

#[test]
fn qemu_reaches_all_that_its_arguments_name_and_writes_to_what_its_guest_writes_to() {
    let mut config = config();
    config.cdroms = vec![Cdrom {
        target: "sda".into(),
        bus: Bus::Sata,
        iso: Some("/home/me/cd, first.iso".into()),
    }];
    config.kernel.as_mut().unwrap().initrd = Some("/boot/initrd.img".into());
    let memory = Path::new("/a store, with commas/ram/abcdefghij.mem");
    let warm = |readonly| StartMode::Warm { file: memory, readonly, leased: &[] };
    let layers = Path::new("/a store, with commas/layers");
    for (how, writes_memory) in [
        (StartMode::Running, None),
        (StartMode::Warming(memory), Some(true)),
        (warm(false), Some(true)),
        (warm(true), Some(false)),
    ] {
        let (arguments, reach) = with_machine(&config, how, |machine| {
            (argv(machine), confinement::of(machine, Confine::Default, layers).unwrap())
        });
        let named: Vec<PathBuf> =
            arguments.iter().skip(1).flat_map(|argument| paths(argument)).collect();
        assert!(named.len() > 15, "{named:?}");
        for path in &named {
            assert!(reach.reaches(path, false), "{} {how:?}", path.display());
        }
        assert_eq!(
            named.contains(&memory.into()).then(|| reach.reaches(memory, true)),
            writes_memory
        );
        let written = |path: &str| reach.reaches(Path::new(path), true);
        for path in
            ["/a store, with commas/layers/head000000.qcow2", "/run/cowhand/c5a0dd0e8d5a/qmp.sock"]
        {
            assert!(written(path), "{path}");
        }
        for path in [
            "/boot/vmlinuz",
            "/home/me/cd, first.iso",
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/a store, with commas/layers/base000000.raw",
        ] {
            assert!(!written(path), "{path}");
        }
        for path in [
            "/a store, with commas/vms/web/vm.json",
            "/a store, with commas",
            "/a store, with commas/layers/another000.qcow2",
            "/etc/shadow",
            "/",
        ] {
            assert!(!reach.reaches(Path::new(path), false), "{path}");
        }
    }
    let off = with_machine(&config, StartMode::Running, |machine| {
        confinement::of(machine, Confine::Off, layers)
    });
    assert_eq!(off, None);
}

/// The devices alone, of a machine that has one or more on each bus.
#[test]
fn the_drives_and_cards_of_every_bus_have_the_controllers_that_they_need() {
    let names = ["base000000", "head000000", "seed000000"];
    let disks = |buses: &[Bus]| -> Vec<Disk> {
        let disk = |(index, bus): (usize, &Bus)| Disk {
            bus: *bus,
            serial: (index == 1).then(|| "WD-1".to_owned()),
            ..Disk::new(&format!("d{index}"), layer(names[index % names.len()], Format::Raw), 512)
        };
        buses.iter().enumerate().map(disk).collect()
    };
    let cdrom = |target: &str, bus, iso: Option<&str>| Cdrom {
        target: target.into(),
        bus,
        iso: iso.map(Into::into),
    };
    let card = |model, place: Option<&str>| Nic {
        mac: "52:54:00:00:00:01".into(),
        model,
        network: Network::default(),
        place: place.map(|place| place.parse().unwrap()),
        ports: Vec::new(),
    };
    let shown = |machine: &str, buses: &[Bus], cdroms: Vec<Cdrom>, nics: Vec<Nic>| {
        let config = Config {
            machine: machine.into(),
            disks: disks(buses),
            nvram: None,
            cdroms,
            nics,
            ..config()
        };
        let args = vector_of(&config, StartMode::Running);
        let is_own = |pair: &&[String]| {
            matches!(&*pair[0], "-device" | "-netdev" | "-blockdev") && !pair[1].contains("serial1")
        };
        let lines = args.windows(2).filter(is_own).map(|pair| pair[1].as_str());
        let left_out = ["vmgenid", "isa-serial", "virtserialport", "virtio-rng", "uefi", "000000"];
        lines
            .filter(|line| {
                line.contains("drive") || !left_out.iter().any(|word| line.contains(word))
            })
            .filter(|line| !line.contains("node-name\":\"l-") && !line.contains("node-name\":\"f-"))
            .collect::<Vec<_>>()
            .join("\n")
    };
    use Bus::{Ide, Nvme, Sata, Scsi, Usb, Virtio};
    let q35 = shown(
        "pc-q35-7.2",
        &[Virtio, Scsi, Scsi, Nvme, Usb, Sata, Sata, Sata, Sata, Sata, Nvme],
        vec![
            cdrom("c0", Sata, Some("/a, b.iso")),
            cdrom("c1", Sata, None),
            cdrom("c2", Usb, None),
            cdrom("c3", Scsi, None),
        ],
        vec![
            card(NicModel::E1000, None),
            card(NicModel::Virtio, Some("02:00")),
            card(NicModel::E1000e, Some("00:03")),
        ],
    );
    insta::assert_snapshot!("devices of a q35", q35);
    let pc = shown(
        "pc-i440fx-7.2",
        &[Ide, Ide, Ide, Sata],
        vec![cdrom("c0", Ide, None), cdrom("c1", Sata, None)],
        vec![Nic { network: Network::Restricted, ..card(NicModel::Rtl8139, Some("00:03")) }],
    );
    insta::assert_snapshot!("devices of a pc", pc);
}

#[test]
fn ports_lead_to_the_second_lease_of_a_card_where_the_first_was_given_away() {
    let file = Path::new("/a store/ram/x.mem");
    let warm = |cards| StartMode::Warm { file, readonly: true, leased: cards };
    for how in
        [warm(&[0]), StartMode::Incoming { leased: &[0] }, StartMode::Loading { leased: &[0] }]
    {
        let args = vector(how);
        let network = &args[args.iter().position(|arg| arg == "-netdev").unwrap() + 1];
        assert!(network.contains(r#""dhcpstart":"10.0.2.14""#), "{network}");
        assert!(network.contains("tcp:127.0.0.1:8080-10.0.2.15:80"), "{network}");
        assert_eq!(leased(&args, 1), [0]);
        assert_eq!(leased(&args, 0), [0; 0]);
    }
    for how in [StartMode::Paused, warm(&[1])] {
        assert_eq!(leased(&vector(how), 1), [0; 0]);
    }
    // A QEMU that was taken over says what it likes.
    let odd = [
        "",
        "{",
        "[]",
        r#"{"dhcpstart": 1, "id": "net0"}"#,
        r#"{"dhcpstart": "10.0.2.14", "id": "net-1"}"#,
    ];
    for said in odd {
        let args = ["-netdev", said, "-netdev"].map(str::to_owned);
        assert_eq!(leased(&args, 1), [0; 0], "{said}");
    }
}

#[test]
fn a_shell_reads_back_exactly_the_arguments() {
    let args = ["a b", "it's", "", "{\"x\":1}", "plain,=/", "$HOME `x` \\"].map(str::to_owned);
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("printf '%s\\0' {}", shell_line(&args))])
        .output()
        .unwrap();
    let words: Vec<String> = output
        .stdout
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8(word.to_vec()).unwrap())
        .collect();
    assert_eq!(&words[..args.len()], &args);
}
