use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use uuid::Uuid;

use super::App;
use super::cloud_init::CloudInit;
use super::image::Checksum;
use super::words::{tag_pair, within};
use crate::error::{Error, IoContext, Result};
use crate::image::add;
use crate::image::source::Wanted;
use crate::model::{
    Bus, Credentials, Firmware, KernelBoot, Limits, LogLimit, Name, Nic, PortForward, parse_size,
};
use crate::output::json;
use crate::vm::cdrom;
use crate::vm::cdrom_request::CdromRequest;
use crate::vm::create;
use crate::vm::disk_request::DiskRequest;
use crate::vm::request::{OnImage, Request};
use crate::vm::{edit, requirements};

/// Create a VM from disk images, or with blank disks
///
/// Each --disk is copied into the store (as a sparse file, or a reflink where the file system
/// supports it), or used in place with `,use`. The format is detected once and recorded; QEMU never
/// probes it.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the VM: 1 to 64 letters, digits, dots, dashes, underscores
    name: Name,
    /// Image that backs the first disk: its name in the store, a URL, or NAME:VERSION of the
    /// catalogue
    ///
    /// An image that is not in the store yet is downloaded and added first, as by `image add`. All
    /// VMs that are created from an image share it.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Size of the disk that is backed by the image [default: the size of the image]; cloud-init
    /// enlarges the file system at the first boot
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "image")]
    disk_size: Option<u64>,
    #[command(flatten)]
    checksum: Checksum,
    /// Disk image: FILE[,copy|use][,format=F][,ro][,bus=B][,serial=S]; can be repeated
    ///
    /// Without `format=`, the format is detected from the header, and the file name must agree: a
    /// file called .raw or .img, or without an extension, that looks like another format is
    /// refused. An image that names other files is refused.
    #[arg(long, value_name = "FILE[,copy|use]")]
    disk: Vec<DiskRequest>,
    /// Also copy the backing files that an image names, if they are in its directory or below
    /// DIRECTORY; can be repeated
    ///
    /// An image can name any file of the host as its backing file, so use this only for images that
    /// you trust. Each file is inspected and listed before it is copied into the store.
    #[arg(
        long, value_name = "DIRECTORY", num_args = 0..=1, require_equals = true,
        default_missing_value = "",
    )]
    with_backing: Vec<OsString>,
    /// Bus of disks without `bus=`: virtio, scsi, nvme, sata, ide, usb
    ///
    /// A guest without virtio drivers needs another bus, which is slower. `ide` requires `--machine
    /// pc`. The memory of a guest with an `nvme` disk cannot be saved.
    #[arg(long, value_name = "BUS", default_value_t)]
    bus: Bus,
    /// Add a blank disk of this size, after the others; can be repeated
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Vec<u64>,
    /// Add a CD-ROM drive with this ISO image: FILE[,bus=BUS]; can be repeated
    ///
    /// The image is not copied. The guest boots from it if it cannot boot from its disks. Buses:
    /// sata, ide, scsi, usb [default: sata, or ide for `--machine pc`].
    #[arg(long, value_name = "FILE")]
    iso: Vec<CdromRequest>,
    /// Memory: 512M, 2G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    memory: u64,
    /// Virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// CPU model [default: host with KVM, max without]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Machine type; an alias is resolved to its current version, which is recorded
    #[arg(long, value_name = "TYPE", default_value = "q35")]
    machine: String,
    /// Firmware of the VM
    #[arg(long, value_name = "FIRMWARE", default_value = "bios")]
    firmware: FirmwareArg,
    /// Boot this kernel file of the host instead of the boot loader on the disk; the file is not
    /// copied, so keep it in place
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    append: Option<String>,
    /// Network card: user or restricted, with [,mac=ADDRESS][,model=MODEL]; can be repeated. Or
    /// none
    ///
    /// `user`: NAT without privileges. The guest reaches the Internet, and the host can forward
    /// ports to the guest. If root starts QEMU on a host with control groups version 2, the guest
    /// reaches neither the host nor private networks, unless you allow them:
    /// [,host-loopback][,private-networks][,allow=ADDRESS[/LENGTH][:PORT]]…; otherwise the guest
    /// reaches what the host reaches. `restricted`: the guest reaches nothing, but the host can
    /// forward TCP ports to the guest. Models: virtio, e1000, e1000e, rtl8139.
    #[arg(long, value_name = "NETWORK", default_value = "user")]
    net: Vec<String>,
    /// Forward a port of the host to the guest: HOST:GUEST or ADDRESS:HOST:GUEST, with /udp for
    /// UDP; can be repeated
    #[arg(short, long = "port", value_name = "HOST:GUEST")]
    port: Vec<PortForward>,
    /// Limit what the guest reads and writes per second, on all disks together: io=SIZE (bytes),
    /// iops=COUNT, or none
    #[arg(long, value_name = "LIMIT,…")]
    limit: Option<Limits>,
    /// Maximum size of each of the two log files: 64K or more, or none [default: 16M]
    #[arg(long, value_name = "SIZE", value_parser = LogLimit::parse)]
    log_max: Option<LogLimit>,
    /// Start the VM with the host (`start --autostart`)
    #[arg(long)]
    autostart: bool,
    /// Add a tag, KEY=VALUE; can be repeated
    #[arg(long, value_name = "K=V")]
    tag: Vec<String>,
    /// Pass the content of FILE to systemd in the guest as the credential NAME (`systemd-creds
    /// --system list`); can be repeated
    #[arg(long, value_name = "NAME=FILE")]
    credential: Vec<String>,
    #[command(flatten)]
    cloud_init: CloudInit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FirmwareArg {
    Bios,
    Uefi,
}

impl Create {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let name = self.name.clone();
        let (wanted, disk_size, checksum) =
            (self.image.clone(), self.disk_size, self.checksum.clone());
        let mut request = self.request()?;
        if wanted.is_none() && checksum.is_any() {
            return Err(Error::usage("a checksum needs --image with a URL or catalogue name")
                .hint("say which: --image URL"));
        }
        if app.context.store.exists(&name) {
            // Before anything is downloaded.
            return Err(Error::exists(format!("the name {name} is taken"))
                .hint("choose another name, or see what is there: cowhand ls -a"));
        }
        if let Some(wanted) = wanted {
            // Under any name: nothing is downloaded for a VM that cannot be made.
            request.image = Some(OnImage { name: name.clone(), uuid: None, size: disk_size });
            requirements::check(&request)?;
            let (name, uuid) = image(app, &wanted, checksum).await?;
            request.image = Some(OnImage { name, uuid, size: disk_size });
        }
        let record = create::create(&app.context, &name, &request).await?;
        let text = format!("created {name}; start it: cowhand start {name}");
        app.printer.done(&text, &json::Created::new(&name, record.uuid));
        Ok(())
    }

    fn request(self) -> Result<Request> {
        let nics = cards(&self.net, &self.port)?;
        let absolute = |path: PathBuf| std::path::absolute(&path).on("find", &path);
        let kernel = match self.kernel {
            Some(kernel) => Some(KernelBoot {
                kernel: absolute(kernel)?,
                initrd: self.initrd.map(absolute).transpose()?,
                append: self.append,
            }),
            None => None,
        };
        Ok(Request {
            disks: self.disk,
            nvram: None,
            points: Vec::new(),
            current: None,
            uuid: None,
            image: None,
            with_backing: within(self.with_backing),
            blank: self.size,
            bus: self.bus,
            cdroms: self.iso.into_iter().map(found).collect::<Result<_>>()?,
            memory_bytes: self.memory,
            cpus: self.cpus,
            cpu: self.cpu,
            firmware: match self.firmware {
                FirmwareArg::Bios => Firmware::Bios,
                FirmwareArg::Uefi => Firmware::Uefi,
            },
            machine: self.machine,
            kernel,
            nics,
            limits: self.limit.unwrap_or_default(),
            log_limit: self.log_max.unwrap_or_default(),
            autostart: self.autostart,
            credentials: credentials(&self.credential)?,
            seed: self.cloud_init.request().seed()?,
            tags: self.tag.iter().map(|tag| tag_pair(tag)).collect::<Result<_>>()?,
        })
    }
}

/// The drive, with the path of its image without links.
fn found(request: CdromRequest) -> Result<CdromRequest> {
    Ok(CdromRequest { iso: request.iso.as_deref().map(cdrom::iso).transpose()?, ..request })
}

/// The network cards. Ports lead in through the first one.
fn cards(said: &[String], ports: &[PortForward]) -> Result<Vec<Nic>> {
    if said.iter().any(|network| network == "none") {
        return match said.iter().all(|network| network == "none") {
            true if ports.is_empty() => Ok(Vec::new()),
            true => Err(Error::usage("--port needs a network, and there is --net none")),
            false => Err(Error::usage("--net none and another --net contradict each other")),
        };
    }
    let mut cards: Vec<Nic> = said.iter().map(|network| network.parse()).collect::<Result<_>>()?;
    if let Some(first) = cards.first_mut() {
        first.forward(ports)?;
        first.check_ports()?;
    }
    Ok(cards)
}

/// What was said with `--credential`.
fn credentials(said: &[String]) -> Result<Credentials> {
    let mut credentials = Credentials::default();
    for text in said {
        let Some((name, file)) = text.split_once('=').filter(|(_, file)| !file.is_empty()) else {
            return Err(Error::usage(format!("{text:?} is not NAME=FILE")));
        };
        credentials.insert(name, &edit::credential(file.as_ref())?)?;
    }
    Ok(credentials)
}

/// The name of the image that is wanted, which is added if it has to be.
async fn image(app: &App, wanted: &str, checksum: Checksum) -> Result<(Name, Option<Uuid>)> {
    let source = match wanted.parse()? {
        Wanted::Name(name) if checksum.is_any() => {
            return Err(Error::usage(format!(
                "image {name} is in the store: a checksum is checked when an image is added"
            )));
        }
        Wanted::Name(name) => return Ok((name, None)),
        Wanted::Source(source) => source,
    };
    let request = checksum.request(source, None, None)?;
    let added = add::ensure(&app.context, &request).await?;
    Ok((added.name, Some(added.record.uuid)))
}
