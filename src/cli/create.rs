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
    Bus, Credentials, Firmware, KernelBoot, LogLimit, Name, Nic, PortForward, parse_size,
};
use crate::output::json;
use crate::vm::cdrom;
use crate::vm::cdrom_request::CdromRequest;
use crate::vm::create;
use crate::vm::disk_request::DiskRequest;
use crate::vm::request::{OnImage, Request};
use crate::vm::{edit, requirements};

/// Make a VM from disk images, or a blank one
///
/// Each --disk is copied into the store (sparse, or sharing blocks where the file system can), or
/// with `,use` written in place. The format is read from the file once and recorded; QEMU never
/// probes it.
#[derive(Debug, Args)]
pub struct Create {
    /// What to call it: 1 to 64 letters, digits, dots, dashes, underscores
    name: Name,
    /// An image that the first disk stands on: its name in the store, an address, or NAME:VERSION
    /// of the catalogue
    ///
    /// What is not in the store yet is downloaded and added first, as `image add` does. All VMs of
    /// an image share it.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Size of the disk on the image [default: the size of the image]; cloud-init enlarges the file
    /// system at the first boot
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "image")]
    disk_size: Option<u64>,
    #[command(flatten)]
    checksum: Checksum,
    /// A disk image; can be repeated: FILE[,copy|use][,format=F][,ro][,bus=B][,serial=S]
    ///
    /// The format is taken from `format=`, else from the header if the name agrees with it: a file
    /// called .raw or .img, or without an extension, that looks like another format is refused. An
    /// image that names other files is refused.
    #[arg(long, value_name = "FILE[,copy|use]")]
    disk: Vec<DiskRequest>,
    /// Also bring in the backing files that an image names, from its own directory or DIRECTORY
    ///
    /// An image can name any file of the host as its backing file, so this is for images of your
    /// own. Each file is inspected and listed before it is copied into the store.
    #[arg(
        long, value_name = "DIRECTORY", num_args = 0..=1, require_equals = true,
        default_missing_value = "",
    )]
    with_backing: Vec<OsString>,
    /// Bus of the disks of which `bus=` says nothing else: virtio, scsi, nvme, sata, ide, usb
    ///
    /// A guest without virtio drivers needs another one, which is slower. `ide` is for `--machine
    /// pc`. The memory of a guest with a disk on `nvme` cannot be saved.
    #[arg(long, value_name = "BUS", default_value_t)]
    bus: Bus,
    /// A blank disk of this size, behind the others; can be repeated
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Vec<u64>,
    /// A CD-ROM drive with this ISO image, which is not copied; can be repeated: FILE[,bus=BUS]
    ///
    /// The guest boots from it if it cannot boot from its disks. Buses: sata, ide, scsi, usb
    /// [default: sata, or ide for `--machine pc`].
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
    /// Machine type; an alias is pinned to the version it stands for now
    #[arg(long, value_name = "TYPE", default_value = "q35")]
    machine: String,
    /// What runs first
    #[arg(long, value_name = "FIRMWARE", default_value = "bios")]
    firmware: FirmwareArg,
    /// Boot this kernel of the host instead of the disk's boot loader; it is not copied, so keep it
    /// there
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's initial RAM disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    append: Option<String>,
    /// A network card, or none; can be repeated: user or restricted, with
    /// [,mac=ADDRESS][,model=MODEL]
    ///
    /// `user`: NAT without privileges. The guest reaches the Internet, and forwarded ports lead in.
    /// If root starts QEMU, on a host with control groups of version 2, the guest reaches neither
    /// the host nor private networks, unless you name them: [,host-loopback][,private-networks]
    /// [,allow=ADDRESS[/LENGTH][:PORT]]…; else it reaches what the host reaches. `restricted`: the
    /// guest reaches nothing; forwarded TCP ports lead in. Models: virtio, e1000, e1000e, rtl8139.
    #[arg(long, value_name = "NETWORK", default_value = "user")]
    net: Vec<String>,
    /// Forward a port of the host into the guest; can be repeated: HOST:GUEST, ADDRESS:HOST:GUEST,
    /// with /udp for UDP
    #[arg(short, long = "port", value_name = "HOST:GUEST")]
    port: Vec<PortForward>,
    /// Limit of each log file, at least 64K, or none; the log has two files [default: 16M]
    #[arg(long, value_name = "SIZE", value_parser = LogLimit::parse)]
    log_max: Option<LogLimit>,
    /// Start the VM with the host (`start --autostart`)
    #[arg(long)]
    autostart: bool,
    /// A key and value of your own; can be repeated
    #[arg(long, value_name = "K=V")]
    tag: Vec<String>,
    /// Give systemd in the guest the content of FILE as the credential NAME (`systemd-creds
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
    pub async fn run(self, app: &App) -> Result<()> {
        let name = self.name.clone();
        let (wanted, disk_size, checksum) =
            (self.image.clone(), self.disk_size, self.checksum.clone());
        let mut request = self.request()?;
        if wanted.is_none() && checksum.is_any() {
            return Err(Error::usage("a checksum is that of an image to be added")
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
