//! The argument vector: a machine in, `argv` out. Pure; `cowhand plan` prints what comes out of
//! here, and `start` runs it.
//!
//! `-nodefaults -no-user-config`, a versioned machine type, and JSON wherever QEMU takes it, so
//! that no name or path is ever parsed as an option list. Sources: `qemu-system-x86_64(1)`, QEMU's
//! QAPI reference.

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;

use super::accel::Chosen;
use super::sockets::Sockets;
use super::{devices, nodes};
use crate::model::{
    Chain, Config, Firmware, GUEST_ADDRESS, Name, Network, PORTS, PortForward, Protocol, port_name,
};

/// Everything that goes into an argument vector.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The system emulator.
    pub qemu: &'a Path,
    /// The VM's name.
    pub name: &'a Name,
    /// The VM's identity.
    pub uuid: Uuid,
    /// The machine.
    pub config: &'a Config,
    /// The chain of every volume, in the order of [`Config::volumes`].
    pub chains: &'a [Chain],
    /// KVM or TCG.
    pub accel: &'a Chosen,
    /// The UEFI code, where the VM boots with UEFI.
    pub uefi_code: Option<&'a Path>,
    /// Where the sockets go.
    pub sockets: &'a Sockets,
    /// Where the serial console is recorded.
    pub serial_log: &'a Path,
    /// What it does once it is there.
    pub how: StartMode<'a>,
}

/// What a QEMU does once it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMode<'a> {
    /// The guest boots.
    Running,
    /// The guest's CPUs stand still.
    Paused,
    /// It waits for the memory of a guest.
    Incoming {
        /// As in [`StartMode::Warm`].
        leased: &'a [usize],
    },
    /// The guest's CPUs stand still until its memory is loaded from its disk images.
    Loading {
        /// As in [`StartMode::Warm`].
        leased: &'a [usize],
    },
    /// The guest boots, with its memory in this file.
    Warming(&'a Path),
    /// It waits for a guest's devices; the guest's memory is there, copy-on-write, in this file.
    Warm {
        /// The file.
        file: &'a Path,
        /// QEMU can open it for reading alone.
        readonly: bool,
        /// The network cards, by their place, on which the saved guest has [`GUEST_ADDRESS`].
        leased: &'a [usize],
    },
}

impl StartMode<'_> {
    /// The network cards on which the guest whose memory it takes up has [`GUEST_ADDRESS`].
    fn leased(&self) -> &[usize] {
        match self {
            Self::Running | Self::Paused | Self::Warming(_) => &[],
            Self::Incoming { leased } | Self::Loading { leased } | Self::Warm { leased, .. } => {
                leased
            }
        }
    }
}

/// The argument vector, the program first.
pub fn argv(machine: &Machine<'_>) -> Vec<String> {
    let config = machine.config;
    let mut args = Args(vec![machine.qemu.to_string_lossy().into_owned()]);
    args.flag("-nodefaults").flag("-no-user-config");
    args.option("-name", format!("guest={},debug-threads=on", machine.name));
    args.option("-uuid", machine.uuid.to_string());
    args.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    args.option("-msg", "timestamp=on");
    // A clone of a sealed template takes its name from there, see `seal/firstboot.rs`.
    args.option("-smbios", format!("type=3,asset={}", machine.name));
    // systemd(1), "io.systemd.credential.binary"; type 11 is OEM strings (DMTF DSP0134).
    for name in config.credentials.names() {
        args.option(
            "-smbios",
            format!("type=11,path={}", escape(&machine.sockets.credential(name))),
        );
    }

    let pflash = if config.nvram.is_some() { nvram_wiring(config) } else { String::new() };
    args.option("-machine", format!("{},memory-backend=ram0{pflash}", config.machine));
    args.option("-accel", machine.accel.accel);
    args.option("-cpu", config.cpu.as_deref().unwrap_or(machine.accel.cpu));
    args.option("-smp", config.cpus.to_string());
    args.option("-m", format!("{}B", config.memory_bytes));
    args.json("-object", memory(machine));
    args.option("-rtc", "base=utc");
    args.option("-display", "none");
    args.json("-device", json!({"driver": "vmgenid", "guid": config.generation}));

    for port in devices::root_ports(config) {
        args.json("-device", port);
    }
    for index in cards(config, true) {
        network(&mut args, machine, index);
    }
    monitors(&mut args, machine.sockets);
    serial(&mut args, machine);
    guest_agent(&mut args, machine.sockets);
    ports(&mut args, machine.sockets);
    args.json(
        "-object",
        json!({"qom-type": "rng-random", "id": "rng0", "filename": "/dev/urandom"}),
    );
    args.json("-device", json!({"driver": "virtio-rng-pci", "id": "dev-rng0", "rng": "rng0"}));

    if let Some(code) = machine.uefi_code {
        args.json(
            "-blockdev",
            json!({
                "driver": "file", "node-name": "uefi-file", "filename": code, "read-only": true,
            }),
        );
        args.json(
            "-blockdev",
            json!({
                "driver": "raw", "node-name": "uefi-code", "file": "uefi-file", "read-only": true,
            }),
        );
    }
    for (disk, chain) in config.volumes().zip(machine.chains) {
        for node in nodes::chain_nodes(chain, !disk.read_only) {
            args.json("-blockdev", node);
        }
    }
    for cdrom in &config.cdroms {
        if let Some(iso) = &cdrom.iso {
            args.json("-blockdev", nodes::iso(&cdrom.target, iso, iso));
        }
    }
    for device in devices::drives(config) {
        args.json("-device", device);
    }
    for index in cards(config, false) {
        network(&mut args, machine, index);
    }
    if config.seed.is_some() {
        seed(&mut args, machine.sockets);
    }
    if let Some(boot) = &config.kernel {
        args.option("-kernel", boot.kernel.to_string_lossy());
        if let Some(initrd) = &boot.initrd {
            args.option("-initrd", initrd.to_string_lossy());
        }
        if let Some(append) = &boot.append {
            args.option("-append", append.as_str());
        }
    }
    if !matches!(machine.how, StartMode::Running | StartMode::Warming(_)) {
        args.flag("-S");
    }
    if matches!(machine.how, StartMode::Incoming { .. } | StartMode::Warm { .. }) {
        args.option("-incoming", "defer");
    }
    args.0
}

/// The network cards, by their number, that have a slot of their own, or that have none.
fn cards(config: &Config, placed: bool) -> impl Iterator<Item = usize> {
    let cards = config.nics.iter().enumerate();
    cards.filter(move |(_, nic)| nic.place.is_some() == placed).map(|(index, _)| index)
}

fn network(args: &mut Args, machine: &Machine<'_>, index: usize) {
    let Some(nic) = machine.config.nics.get(index) else { return };
    let forwards: Vec<Value> = nic.ports.iter().map(|port| json!({"str": hostfwd(port)})).collect();
    let mut network = json!({"type": "user", "id": format!("net{index}"), "hostfwd": forwards});
    if nic.network == Network::Restricted {
        network["restrict"] = true.into();
    }
    // The table of leases comes with the memory: its first entry is the template's card, and the
    // clone's gets the second. Entries are counted from `dhcpstart` (libslirp, `bootp.c`).
    if machine.how.leased().contains(&index) {
        network["dhcpstart"] = before_guest().into();
    }
    args.json("-netdev", network);
    args.json("-device", devices::card(machine.config, index, nic));
}

/// The network cards, by their place among `cards`, for which the table of leases of the QEMU
/// behind `argv` begins one address earlier. That QEMU may have been taken over, and say anything.
pub fn leased(argv: &[String], cards: usize) -> Vec<usize> {
    let networks = argv.windows(2).filter(|pair| pair[0] == "-netdev");
    let networks: Vec<Value> =
        networks.filter_map(|pair| serde_json::from_str(&pair[1]).ok()).collect();
    let begins_early = |index: &usize| {
        networks.iter().any(|network| {
            network["id"] == format!("net{index}") && network["dhcpstart"] == before_guest()
        })
    };
    (0..cards).filter(begins_early).collect()
}

/// The address before [`GUEST_ADDRESS`].
fn before_guest() -> String {
    Ipv4Addr::from_bits(GUEST_ADDRESS.to_bits() - 1).to_string()
}

fn memory(machine: &Machine<'_>) -> Value {
    let size = machine.config.memory_bytes;
    match machine.how {
        StartMode::Running
        | StartMode::Paused
        | StartMode::Incoming { .. }
        | StartMode::Loading { .. } => {
            json!({"qom-type": "memory-backend-ram", "id": "ram0", "size": size})
        }
        StartMode::Warming(file) => {
            json!({
                "qom-type": "memory-backend-file", "id": "ram0", "size": size, "mem-path": file,
                "share": true,
            })
        }
        StartMode::Warm { file, readonly: false, .. } => {
            json!({
                "qom-type": "memory-backend-file", "id": "ram0", "size": size, "mem-path": file,
                "share": false,
            })
        }
        // The file is opened for reading only, and the guest writes to pages of its own all the
        // same.
        StartMode::Warm { file, readonly: true, .. } => json!({
            "qom-type": "memory-backend-file", "id": "ram0", "size": size, "mem-path": file,
            "share": false,
            "readonly": true, "rom": "off",
        }),
    }
}

fn nvram_wiring(config: &Config) -> String {
    match (config.firmware, &config.nvram) {
        (Firmware::Uefi, Some(nvram)) => {
            format!(",pflash0=uefi-code,pflash1={}", nvram.layer.node())
        }
        _ => String::new(),
    }
}

/// Behind all other devices, whose addresses stay what they are without it.
fn seed(args: &mut Args, sockets: &Sockets) {
    let file = json!({"driver": "file", "filename": sockets.seed(), "read-only": true});
    args.json(
        "-blockdev",
        json!({"driver": "raw", "node-name": "seed", "read-only": true, "file": file}),
    );
    args.json(
        "-device",
        json!({"driver": "virtio-blk-pci", "id": "dev-seed", "drive": "seed", "serial": "cidata"}),
    );
}

fn monitors(args: &mut Args, sockets: &Sockets) {
    for (id, path) in
        [("qmp", sockets.qmp()), ("status", sockets.status()), ("user-qmp", sockets.user_qmp())]
    {
        args.option(
            "-chardev",
            format!("socket,id={id},path={},server=on,wait=off", escape(&path)),
        );
        args.option("-mon", format!("chardev={id},mode=control"));
    }
}

fn serial(args: &mut Args, machine: &Machine<'_>) {
    let (socket, log) = (escape(&machine.sockets.console()), escape(machine.serial_log));
    args.option(
        "-chardev",
        format!("socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on"),
    );
    args.json(
        "-device",
        json!({"driver": "isa-serial", "id": "dev-serial0", "chardev": "console"}),
    );
}

fn guest_agent(args: &mut Args, sockets: &Sockets) {
    args.option("-chardev", format!("pipe,id=agent,path={}", escape(sockets.agent().stem())));
    args.json("-device", json!({"driver": "virtio-serial-pci", "id": "dev-serial1"}));
    args.json(
        "-device",
        json!({
            "driver": "virtserialport", "id": "dev-agent", "bus": "dev-serial1.0",
            "chardev": "agent", "name": "org.qemu.guest_agent.0",
        }),
    );
}

fn ports(args: &mut Args, sockets: &Sockets) {
    for index in 0..PORTS {
        args.option(
            "-chardev",
            format!(
                "socket,id=port{index},path={},server=on,wait=off",
                escape(&sockets.port(index))
            ),
        );
        args.json(
            "-device",
            json!({
                "driver": "virtserialport", "id": format!("dev-port{index}"),
                "bus": "dev-serial1.0", "chardev": format!("port{index}"), "name": port_name(index),
            }),
        );
    }
}

fn hostfwd(port: &PortForward) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{protocol}:{}:{}-{GUEST_ADDRESS}:{}", port.address, port.host, port.guest)
}

/// A path inside one of QEMU's option lists, where a comma is doubled.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// An argument vector as one line for a POSIX shell.
pub fn shell_line(argv: &[String]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    let quote = |arg: &String| match arg.chars().all(safe) && !arg.is_empty() {
        true => arg.clone(),
        false => format!("'{}'", arg.replace('\'', r"'\''")),
    };
    argv.iter().map(quote).collect::<Vec<_>>().join(" ")
}

struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.to_owned());
        self
    }

    fn option(&mut self, flag: &str, value: impl Into<String>) {
        self.0.push(flag.to_owned());
        self.0.push(value.into());
    }

    fn json(&mut self, flag: &str, value: Value) {
        self.option(flag, value.to_string());
    }
}
