//! QEMU's argument vector, held word for word: whatever changes here changes every guest.

use std::path::Path;

use cowhand::model::{Chain, Config, Disk, Firmware, Format, KernelBoot, Layer, Link, Nic};
use cowhand::qemu::accel::Chosen;
use cowhand::qemu::cmdline::{How, Machine, Sockets, argv, leased, shell_line};

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
        target: target.into(),
        layer,
        virtual_bytes: 1 << 30,
        read_only,
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
            ports: vec!["8080:80".parse().unwrap(), "0.0.0.0:53:53/udp".parse().unwrap()],
        }],
        generation: "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87".parse().unwrap(),
        disks: vec![
            disk("vda", layer("head000000", Format::Qcow2), false),
            disk("vdb", layer("seed000000", Format::Raw), true),
        ],
        nvram: Some(disk("nvram", layer("vars000000", Format::Raw), false)),
        log_limit: Default::default(),
        seed: None,
        credentials: Default::default(),
        tags: Default::default(),
    }
}

fn vector(how: How<'_>) -> Vec<String> {
    let config = config();
    let chains = [
        chain(&[layer("head000000", Format::Qcow2), layer("base000000", Format::Raw)]),
        chain(&[layer("seed000000", Format::Raw)]),
        chain(&[layer("vars000000", Format::Raw)]),
    ];
    argv(&Machine {
        qemu: Path::new("/usr/bin/qemu-system-x86_64"),
        name: &"web".parse().unwrap(),
        uuid: "c5a0dd0e-8d5a-4f3c-8d5c-2b6d3a3f0001".parse().unwrap(),
        config: &config,
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
    insta::assert_snapshot!(vector(How::Paused).join("\n"));
}

#[test]
fn the_second_lease_of_a_card_is_the_address_that_ports_lead_to_where_the_first_was_given_away_before() {
    let file = Path::new("/a store/ram/x.mem");
    let warm = |cards| How::Warm { file, readonly: true, leased: cards };
    for how in [warm(&[0]), How::Incoming { leased: &[0] }, How::Loading { leased: &[0] }] {
        let args = vector(how);
        let network = &args[args.iter().position(|arg| arg == "-netdev").unwrap() + 1];
        assert!(network.contains(r#""dhcpstart":"10.0.2.14""#), "{network}");
        assert!(network.contains("tcp:127.0.0.1:8080-10.0.2.15:80"), "{network}");
        assert_eq!(leased(&args, 1), [0]);
        assert_eq!(leased(&args, 0), [0; 0]);
    }
    for how in [How::Paused, warm(&[1])] {
        assert_eq!(leased(&vector(how), 1), [0; 0]);
    }
    // A QEMU that was taken over says what it likes.
    let odd = ["", "{", "[]", r#"{"dhcpstart": 1, "id": "net0"}"#, r#"{"dhcpstart": "10.0.2.14", "id": "net-1"}"#];
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
    let words: Vec<String> =
        output.stdout.split(|byte| *byte == 0).map(|word| String::from_utf8(word.to_vec()).unwrap()).collect();
    assert_eq!(&words[..args.len()], &args);
}
