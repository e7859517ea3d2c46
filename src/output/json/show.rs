//! `show`: everything about one VM or template.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::cdrom::Cdrom;
use crate::model::{self, Firmware, Format, Name, Protocol};
use crate::output::time::rfc3339;
use crate::sys::confine::observed::Observed;
use crate::vm::list;

/// `show`.
#[derive(Debug, Serialize)]
pub struct Details<'a> {
    name: &'a Name,
    state: &'static str,
    /// Why it is in that state, where the state does not say all.
    reason: Option<&'a str>,
    template: bool,
    image: Option<ImageOrigin<'a>>,
    uuid: Uuid,
    created: String,
    machine: &'a str,
    /// Of a VM that runs.
    accel: Option<&'static str>,
    cpu: Option<&'a str>,
    memory_bytes: u64,
    cpus: u32,
    firmware: &'static str,
    kernel: Option<Kernel<'a>>,
    from: Option<&'a str>,
    disks: Vec<Disk<'a>>,
    cdroms: Vec<Cdrom<'a>>,
    nics: Vec<Nic<'a>>,
    generation: Uuid,
    /// Without a limit, null, and likewise below.
    io_max_bytes: Option<u64>,
    io_max_operations: Option<u64>,
    log_max_bytes: Option<u64>,
    tags: &'a BTreeMap<String, String>,
    cloud_init: Option<CloudInit<'a>>,
    credentials: Vec<&'a str>,
    autostart: bool,
    /// The current snapshot.
    head: Option<&'a Name>,
    expires: Option<String>,
    cut_short: Option<&'a str>,
    pid: Option<i32>,
    /// Of a VM that runs.
    confinement: Option<Confinement<'a>>,
}

/// How far a QEMU is confined: what it has of its own.
#[derive(Debug, Serialize)]
struct Confinement<'a> {
    user_id: u32,
    capabilities: &'a [String],
    system_call_filter: bool,
    root_directory: bool,
    processes: bool,
    network: bool,
    destination_filter: bool,
}

impl<'a> From<&'a Observed> for Confinement<'a> {
    fn from(observed: &'a Observed) -> Self {
        Self {
            user_id: observed.user,
            capabilities: &observed.capabilities,
            system_call_filter: observed.system_calls,
            root_directory: observed.root_directory,
            processes: observed.processes,
            network: observed.network,
            destination_filter: observed.destinations,
        }
    }
}

/// Where an image comes from.
#[derive(Debug, Serialize)]
struct ImageOrigin<'a> {
    source: &'a str,
    catalogue: Option<&'a str>,
    sha256: Option<&'a str>,
    verified: bool,
}

/// The kernel that is booted without a boot loader.
#[derive(Debug, Serialize)]
struct Kernel<'a> {
    kernel: &'a Path,
    initrd: Option<&'a Path>,
    append: Option<&'a str>,
}

/// A disk, with the files of its chain: the active layer first.
#[derive(Debug, Serialize)]
struct Disk<'a> {
    target: &'a str,
    bus: &'static str,
    serial: Option<&'a str>,
    format: Format,
    virtual_bytes: u64,
    /// Of the active layer.
    allocated_bytes: Option<u64>,
    read_only: bool,
    chain: Vec<String>,
    /// Why the chain cannot be read. Left out where it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// A network card.
#[derive(Debug, Serialize)]
struct Nic<'a> {
    mac: &'a str,
    mode: &'static str,
    /// What it reaches that lies not outside. Left out where it reaches nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    reaches: Option<Reaches>,
    model: &'static str,
    pci: Option<String>,
    ports: Vec<Port>,
}

/// What a guest reaches that does not lie outside.
#[derive(Debug, Serialize)]
struct Reaches {
    host_loopback: bool,
    private_networks: bool,
    allow: Vec<String>,
}

/// A port of the host that leads into the guest.
#[derive(Debug, Serialize)]
struct Port {
    protocol: &'static str,
    address: Ipv4Addr,
    host: u16,
    guest: u16,
}

/// What cloud-init is told.
#[derive(Debug, Serialize)]
struct CloudInit<'a> {
    user_data_bytes: usize,
    hostname: Option<&'a str>,
}

impl<'a> Details<'a> {
    /// The VM or template `name`.
    pub fn new(name: &'a Name, details: &'a list::Details) -> Self {
        let (record, status) = (&details.record, &details.status);
        let config = &record.config;
        Self {
            name,
            state: status.state.as_str(),
            reason: status.detail.as_deref(),
            template: record.is_template(),
            image: record.image().map(ImageOrigin::from),
            uuid: record.uuid,
            created: rfc3339(record.created),
            machine: &config.machine,
            accel: details.accel,
            cpu: config.cpu.as_deref(),
            memory_bytes: config.memory_bytes,
            cpus: config.cpus,
            firmware: firmware(config.firmware),
            kernel: config.kernel.as_ref().map(Kernel::from),
            from: details.from.as_deref(),
            disks: config
                .volumes()
                .zip(&details.chains)
                .map(|(disk, chain)| Disk::new(disk, chain))
                .collect(),
            cdroms: config.cdroms.iter().map(Cdrom::from).collect(),
            nics: config.nics.iter().map(Nic::from).collect(),
            generation: config.generation,
            io_max_bytes: config.limits.io,
            io_max_operations: config.limits.iops,
            log_max_bytes: config.log_limit.bytes(),
            tags: &config.tags,
            cloud_init: config.seed.as_ref().map(CloudInit::from),
            credentials: config.credentials.names().collect(),
            autostart: record.autostart,
            head: record.current.as_ref(),
            expires: record.ephemeral.as_ref().and_then(|ephemeral| ephemeral.expires).map(rfc3339),
            cut_short: details.cut_short.as_deref(),
            pid: status.pid,
            confinement: details.confinement.as_ref().map(Confinement::from),
        }
    }
}

fn firmware(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Bios => "bios",
        Firmware::Uefi => "uefi",
    }
}

impl<'a> From<&'a model::ImageOrigin> for ImageOrigin<'a> {
    fn from(image: &'a model::ImageOrigin) -> Self {
        Self {
            source: &image.source,
            catalogue: image.catalogue.as_deref(),
            sha256: image.sha256.as_deref(),
            verified: image.verified,
        }
    }
}

impl<'a> From<&'a model::KernelBoot> for Kernel<'a> {
    fn from(boot: &'a model::KernelBoot) -> Self {
        Self {
            kernel: &boot.kernel,
            initrd: boot.initrd.as_deref(),
            append: boot.append.as_deref(),
        }
    }
}

impl<'a> Disk<'a> {
    fn new(disk: &'a model::Disk, chain: &'a Result<model::Chain, String>) -> Self {
        let links = chain.as_ref().map(|chain| chain.links()).unwrap_or_default();
        Self {
            target: &disk.target,
            bus: disk.bus_word(),
            serial: disk.serial.as_deref(),
            format: disk.layer.format,
            virtual_bytes: disk.virtual_bytes,
            allocated_bytes: links.first().map(|link| link.allocated_bytes),
            read_only: disk.read_only,
            chain: links.iter().map(|link| link.layer.file_name()).collect(),
            reason: chain.as_ref().err().map(String::as_str),
        }
    }
}

impl<'a> From<&'a model::Nic> for Nic<'a> {
    fn from(nic: &'a model::Nic) -> Self {
        Self {
            mac: &nic.mac,
            mode: nic.network.mode(),
            reaches: nic.network.exceptions().map(Reaches::from),
            model: nic.model.as_str(),
            pci: nic.place.map(|place| place.to_string()),
            ports: nic.ports.iter().map(Port::from).collect(),
        }
    }
}

impl From<&model::Exceptions> for Reaches {
    fn from(exceptions: &model::Exceptions) -> Self {
        Self {
            host_loopback: exceptions.host_loopback,
            private_networks: exceptions.private_networks,
            allow: exceptions.destinations.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&model::PortForward> for Port {
    fn from(port: &model::PortForward) -> Self {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        Self { protocol, address: port.address, host: port.host, guest: port.guest }
    }
}

impl<'a> From<&'a model::Seed> for CloudInit<'a> {
    fn from(seed: &'a model::Seed) -> Self {
        Self { user_data_bytes: seed.user_data.len(), hostname: seed.hostname.as_deref() }
    }
}
