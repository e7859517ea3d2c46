//! Writing the XML of a domain and of its snapshots. Pure.
//!
//! Source: libvirt's "Domain XML format" (<https://libvirt.org/formatdomain.html>) and "Snapshot
//! XML format" (<https://libvirt.org/formatsnapshot.html>).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::xml::Notes;
use crate::model::{
    Bus, Config, Firmware, Format, Name, Nic, NicModel, PciSlot, Snapshot, VmState,
};

/// A disk or CD-ROM drive as libvirt has it.
pub(super) struct Drive {
    /// `disk` or `cdrom`.
    pub(super) device: &'static str,
    /// Its name.
    pub(super) target: String,
    /// Its bus.
    pub(super) bus: Bus,
    /// What is in it.
    pub(super) file: Option<(PathBuf, Format)>,
    /// Its serial number.
    pub(super) serial: Option<String>,
    /// The guest cannot write to it.
    pub(super) read_only: bool,
}

/// What a domain is made of beside its [`Config`].
pub(super) struct Parts<'a> {
    pub(super) name: &'a Name,
    pub(super) uuid: Uuid,
    /// `kvm` or `qemu`.
    pub(super) kind: &'a str,
    pub(super) drives: &'a [Drive],
    /// UEFI code, and the file of the variables.
    pub(super) uefi: Option<(PathBuf, PathBuf)>,
}

/// Text as it stands in XML. Characters that XML cannot have become `?`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            // As they are, they would be spaces in an attribute.
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

/// The drives of a machine, with the files `file` tells of its disks. libvirt has no NVMe disks in
/// files, and no USB drives without a medium.
pub(super) fn drives(
    config: &Config,
    file: impl Fn(&str) -> Option<(PathBuf, Format)>,
    notes: &mut Notes,
) -> Vec<Drive> {
    let mut drives: Vec<Drive> = Vec::new();
    let names = config
        .disks
        .iter()
        .map(|disk| &disk.target)
        .chain(config.cdroms.iter().map(|one| &one.target));
    let mut taken: BTreeSet<String> = names.cloned().collect();
    for disk in &config.disks {
        let (mut target, mut bus) = (disk.target.clone(), disk.bus);
        if bus == Bus::Nvme {
            // A SATA disk cannot be read-only.
            bus = if disk.read_only { Bus::Scsi } else { Bus::Sata };
            target = bus.free_target(&taken);
            taken.insert(target.clone());
            notes.changed(
                format!("disk {}", disk.target),
                format!("nvme becomes {bus}, as {target}"),
            );
        } else {
            notes.kept(format!("disk {target}"), format!("on {bus}"));
        }
        drives.push(Drive {
            device: "disk",
            target,
            bus,
            file: file(&disk.target),
            serial: Some(disk.serial.clone().unwrap_or_else(|| disk.target.clone())),
            read_only: disk.read_only,
        });
    }
    for cdrom in &config.cdroms {
        let what = format!("CD-ROM {}", cdrom.target);
        match &cdrom.iso {
            None if cdrom.bus == Bus::Usb => {
                notes.left(what, "libvirt has no USB drive without an image");
                continue;
            }
            None => notes.kept(what, format!("empty, on {}", cdrom.bus)),
            Some(iso) => notes
                .kept(what, format!("{} on {}, which stays where it is", iso.display(), cdrom.bus)),
        }
        let iso = cdrom.iso.clone().map(|iso| (iso, Format::Raw));
        let (device, target) = ("cdrom", cdrom.target.clone());
        drives.push(Drive {
            device,
            target,
            bus: cdrom.bus,
            file: iso,
            serial: None,
            read_only: true,
        });
    }
    drives
}

/// Where a drive is on its bus, as number `at` of those there. libvirt would tell it from the
/// letter of its name.
fn address(bus: Bus, at: usize) -> String {
    let drive = |controller: usize, bus: usize, target: usize, unit: usize| {
        format!(
            "<address type='drive' controller='{controller}' bus='{bus}' target='{target}' \
             unit='{unit}'/>"
        )
    };
    match bus {
        Bus::Sata => drive(at / 6, 0, 0, at % 6),
        Bus::Ide => drive(0, at / 2, 0, at % 2),
        Bus::Scsi => drive(0, 0, at, 0),
        Bus::Virtio | Bus::Nvme | Bus::Usb => String::new(),
    }
}

/// The XML of the domain.
pub(super) fn domain(parts: &Parts<'_>, config: &Config) -> String {
    let mut xml = format!("<domain type='{}'>\n  <name>{}</name>\n", parts.kind, parts.name);
    let mut line = |text: String| {
        xml.push_str("  ");
        xml.push_str(&text);
        xml.push('\n');
    };
    line(format!("<uuid>{}</uuid>", parts.uuid));
    line(format!("<genid>{}</genid>", config.generation));
    if let Some(text) = config.tags.get("description") {
        line(format!("<description>{}</description>", escape(text)));
    }
    line(format!("<memory unit='b'>{}</memory>", config.memory_bytes));
    line(format!("<vcpu>{}</vcpu>", config.cpus));
    line("<os>".into());
    line(format!("  <type arch='x86_64' machine='{}'>hvm</type>", escape(&config.machine)));
    if let Some((code, variables)) =
        parts.uefi.as_ref().filter(|_| config.firmware == Firmware::Uefi)
    {
        line(format!("  <loader readonly='yes' type='pflash'>{}</loader>", path(code)));
        line(format!("  <nvram>{}</nvram>", path(variables)));
    }
    if let Some(boot) = &config.kernel {
        line(format!("  <kernel>{}</kernel>", path(&boot.kernel)));
        boot.initrd.iter().for_each(|initrd| line(format!("  <initrd>{}</initrd>", path(initrd))));
        boot.append
            .iter()
            .for_each(|append| line(format!("  <cmdline>{}</cmdline>", escape(append))));
    }
    line("</os>".into());
    line("<features><acpi/><apic/></features>".into());
    line(cpu(parts.kind, config.cpu.as_deref()).0);
    line("<clock offset='utc'/>".into());
    line("<devices>".into());
    for (at, drive) in parts.drives.iter().enumerate() {
        let on_bus = parts.drives[..at].iter().filter(|other| other.bus == drive.bus).count();
        line(disk(drive, &address(drive.bus, on_bus), at + 1));
    }
    for nic in &config.nics {
        line(interface(nic, config.is_q35()));
    }
    let buses =
        config.nics.iter().filter_map(|nic| place(nic, config.is_q35())).map(|place| place.bus);
    let ports = if config.is_q35() { buses.max().unwrap_or(0) } else { 0 };
    (1..=ports).for_each(|at| {
        line(format!("  <controller type='pci' index='{at}' model='pcie-root-port'/>"))
    });
    if parts.drives.iter().any(|drive| drive.bus == Bus::Scsi) {
        line("  <controller type='scsi' index='0' model='virtio-scsi'/>".into());
    }
    if parts.drives.iter().any(|drive| drive.bus == Bus::Usb) {
        line("  <controller type='usb' index='0' model='qemu-xhci' ports='15'/>".into());
    } else {
        line("  <controller type='usb' index='0' model='none'/>".into());
    }
    line("  <serial type='pty'><target port='0'/></serial>".into());
    line("  <console type='pty'><target type='serial' port='0'/></console>".into());
    line(
        "  <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
            .into(),
    );
    line("  <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>".into());
    line("  <memballoon model='none'/>".into());
    line("</devices>".into());
    xml.push_str("</domain>\n");
    xml
}

/// The element of a CPU, which is `MODEL,+FEATURE,-FEATURE` here, and the words that libvirt has
/// not.
pub(super) fn cpu(kind: &str, model: Option<&str>) -> (String, Vec<String>) {
    let mut words = model.unwrap_or("max").split(',');
    let model = words.next().unwrap_or_default();
    let (mut features, mut left) = (String::new(), Vec::new());
    for word in words {
        match word.split_at_checked(1) {
            Some(("+", name)) => {
                features += &format!("<feature policy='require' name='{}'/>", escape(name))
            }
            Some(("-", name)) => {
                features += &format!("<feature policy='disable' name='{}'/>", escape(name))
            }
            _ => left.push(word.to_owned()),
        }
    }
    let element = match (model, kind) {
        ("host" | "max", "kvm") => format!("<cpu mode='host-passthrough'>{features}</cpu>"),
        ("host" | "max", _) => format!("<cpu mode='maximum'>{features}</cpu>"),
        _ => format!(
            "<cpu mode='custom' match='exact' check='none'><model \
             fallback='forbid'>{}</model>{features}</cpu>",
            escape(model)
        ),
    };
    (element, left)
}

fn disk(drive: &Drive, address: &str, order: usize) -> String {
    let mut xml = format!("  <disk type='file' device='{}'>", drive.device);
    if let Some((file, format)) = &drive.file {
        xml.push_str(&format!(
            "<driver name='qemu' type='{format}' discard='unmap'/><source file='{}'/>",
            path(file)
        ));
    }
    xml.push_str(&format!("<target dev='{}' bus='{}'/>", escape(&drive.target), drive.bus));
    if let Some(serial) = &drive.serial {
        xml.push_str(&format!("<serial>{}</serial>", escape(serial)));
    }
    if drive.read_only {
        xml.push_str("<readonly/>");
    }
    xml.push_str(&format!("<boot order='{order}'/>{address}</disk>"));
    xml
}

/// The place of a card, where libvirt puts it there: cards of conventional PCI sit behind no root
/// port.
pub(super) fn place(nic: &Nic, is_q35: bool) -> Option<PciSlot> {
    let is_conventional = matches!(nic.model, NicModel::E1000 | NicModel::Rtl8139);
    nic.place.filter(|place| !is_q35 || place.bus == 0 || !is_conventional)
}

fn interface(nic: &Nic, is_q35: bool) -> String {
    let place = place(nic, is_q35).map(|place| {
        let (bus, slot) = (place.bus, place.slot);
        format!(
            "<address type='pci' domain='0x0000' bus='{bus:#04x}' slot='{slot:#04x}' \
             function='0x0'/>"
        )
    });
    format!(
        "  <interface type='user'><mac address='{}'/><model type='{}'/>{}</interface>",
        escape(&nic.mac),
        nic.model.as_str(),
        place.unwrap_or_default()
    )
}

/// The XML of a snapshot of the domain `domain` of then. `overlays` are the files that were put on
/// external disks; without them it is internal.
pub(super) fn snapshot(
    snapshot: &Snapshot,
    parent: Option<&Name>,
    drives: &[Drive],
    overlays: Option<&[(String, PathBuf)]>,
    domain: &str,
) -> String {
    let mut xml = format!("<domainsnapshot>\n  <name>{}</name>\n", snapshot.name);
    if !snapshot.description.is_empty() {
        xml.push_str(&format!("  <description>{}</description>\n", escape(&snapshot.description)));
    }
    let state = match (overlays, snapshot.vm_state) {
        (Some(_), VmState::Running | VmState::Paused) => "disk-snapshot",
        _ => "shutoff",
    };
    xml.push_str(&format!("  <state>{state}</state>\n"));
    if let Some(parent) = parent {
        xml.push_str(&format!("  <parent><name>{parent}</name></parent>\n"));
    }
    xml.push_str(&format!("  <creationTime>{}</creationTime>\n", snapshot.created.as_second()));
    xml.push_str("  <memory snapshot='no'/>\n  <disks>\n");
    for drive in drives {
        let target = escape(&drive.target);
        let overlay = overlays.and_then(|all| all.iter().find(|(name, _)| *name == drive.target));
        let line = match (drive.read_only, overlays, overlay) {
            (true, ..) | (_, Some(_), None) => format!("<disk name='{target}' snapshot='no'/>"),
            (_, None, _) => format!("<disk name='{target}' snapshot='internal'/>"),
            (_, Some(_), Some((_, file))) => format!(
                "<disk name='{target}' snapshot='external' type='file'><driver \
                 type='qcow2'/><source file='{}'/></disk>",
                path(file)
            ),
        };
        xml.push_str(&format!("    {line}\n"));
    }
    xml.push_str("  </disks>\n");
    xml.push_str(domain);
    xml.push_str("</domainsnapshot>\n");
    xml
}
