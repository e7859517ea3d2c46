//! Reading the XML of a domain. Pure: no file that it names is looked at.
//!
//! Entities are not expanded, since a document with a DTD is refused, and the number of nodes has a
//! bound. Every element is either understood or told of.

use std::path::PathBuf;

use roxmltree::Node;
use uuid::Uuid;

use super::Note;
use super::devices::{self, Devices};
use super::xml::{Notes, bad, child, child_text, document, elements};
use super::{cpu, os};
use crate::error::{Error, Result};
use crate::model::{Firmware, KernelBoot, human};

/// The longest document, in bytes.
pub const LONGEST: usize = 256 << 10;

/// What a domain says.
#[derive(Debug, Clone, PartialEq)]
pub struct Domain {
    /// Its name, which need not be one of ours.
    pub name: String,
    /// Its identity.
    pub uuid: Option<Uuid>,
    /// The user's words.
    pub description: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub cpus: u32,
    /// A CPU model; `None` is the best that the host has.
    pub cpu: Option<String>,
    /// The machine type, with its version.
    pub machine: String,
    /// What runs first.
    pub firmware: Firmware,
    /// The variable store of its UEFI firmware.
    pub nvram: Option<PathBuf>,
    /// A kernel of the host that is booted directly.
    pub kernel: Option<KernelBoot>,
    /// Its disks and network cards.
    pub devices: Devices,
    /// What becomes of all of it.
    pub notes: Vec<Note>,
}

/// Reads a domain. `shown` is what the document is called in messages.
pub fn parse(text: &str, shown: &str) -> Result<Domain> {
    let bad = bad(shown, "domain");
    let document = document(text, LONGEST, &bad)?;
    let root = document.root_element();
    match root.tag_name().name() {
        "domain" if root.tag_name().namespace().is_none() => {}
        "domainsnapshot" => {
            return Err(bad("it is that of a snapshot".into())
                .hint("name the domain itself: virsh dumpxml --inactive NAME > domain.xml"));
        }
        other => return Err(bad(format!("its root is <{other:.40}>"))),
    }
    parse_element(root, &bad)
}

/// Reads a domain that is the element `root`.
pub(super) fn parse_element(root: Node<'_, '_>, bad: &dyn Fn(String) -> Error) -> Result<Domain> {
    match root.attribute("type") {
        Some("kvm" | "qemu") => {}
        Some(other) => return Err(bad(format!("it is of another hypervisor ({other:.40})"))),
        None => return Err(bad("it does not say of which hypervisor it is".into())),
    }
    read(root, bad)
}

fn read(root: Node<'_, '_>, bad: &dyn Fn(String) -> Error) -> Result<Domain> {
    let mut notes = Notes(Vec::new());
    let name = child_text(root, "name").ok_or_else(|| bad("it has no name".into()))?;
    let uuid = match child_text(root, "uuid") {
        Some(text) => Some(text.parse().map_err(|_| bad(format!("{text:.40} is not a UUID")))?),
        None => None,
    };
    let memory = child(root, "memory").ok_or_else(|| bad("it has no memory".into()))?;
    let memory_bytes = bytes(memory).ok_or_else(|| bad("its memory is not a size".into()))?;
    // A balloon makes it smaller while the guest runs, which is not known here.
    let memory_bytes = memory_bytes
        .checked_next_multiple_of(1 << 20)
        .ok_or_else(|| bad("its memory is not a size".into()))?;
    match child(root, "currentMemory").and_then(bytes).filter(|now| *now < memory_bytes) {
        Some(now) => notes.changed(
            "memory",
            format!("{} of {}: the guest has all of it", human(now), human(memory_bytes)),
        ),
        None => notes.kept("memory", human(memory_bytes)),
    }
    let cpus = cpu::cpus(root, bad, &mut notes)?;
    let cpu = cpu::cpu(root, cpus, &mut notes);
    let os = child(root, "os").ok_or_else(|| bad("it has no <os>".into()))?;
    let machine = os::machine(os, bad)?;
    let (firmware, nvram) = os::firmware(os, &mut notes);
    let kernel = os::kernel(os, &mut notes);
    let description = child_text(root, "description").or_else(|| child_text(root, "title"));
    rest(root, &mut notes);
    let boot: Vec<&str> = elements(os, "boot").filter_map(|boot| boot.attribute("dev")).collect();
    let mut all = elements(root, "devices");
    let (Some(devices), None) = (all.next(), all.next()) else {
        return Err(bad("it has no <devices>, or more than one".into()));
    };
    let devices = devices::read(devices, &machine, &boot, &mut notes);
    Ok(Domain {
        name,
        uuid,
        description,
        memory_bytes,
        cpus,
        cpu,
        machine,
        firmware,
        nvram,
        kernel,
        devices,
        notes: notes.0,
    })
}

/// A size with a unit, in bytes. Without one it is KiB.
fn bytes(node: Node<'_, '_>) -> Option<u64> {
    let number: u64 = node.text()?.trim().parse().ok()?;
    let unit: u64 = match node.attribute("unit").unwrap_or("KiB").to_ascii_lowercase().as_str() {
        "b" | "byte" | "bytes" => 1,
        "kb" => 1000,
        "k" | "kib" => 1 << 10,
        "mb" => 1_000_000,
        "m" | "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "g" | "gib" => 1 << 30,
        "tb" => 1_000_000_000_000,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// All other elements of the domain.
fn rest(root: Node<'_, '_>, notes: &mut Notes) {
    for element in root.children().filter(Node::is_element) {
        let name = element.tag_name().name();
        match name {
            "title" if child(root, "description").is_some() => {
                notes.left("title", "the description comes over")
            }
            "name" | "uuid" | "title" | "description" | "memory" | "currentMemory" | "vcpu"
            | "cpu" | "os" | "devices" => {}
            "features" => features(element, notes),
            "clock" => {
                match element.attribute("offset") {
                    Some("utc") | None => notes.kept("clock", "UTC"),
                    Some(other) => notes.changed("clock", format!("{other} becomes UTC")),
                }
                for timer in elements(element, "timer") {
                    let name = timer.attribute("name").unwrap_or("?");
                    notes.left(format!("timer {name}"), "is as QEMU has it");
                }
            }
            "on_poweroff" | "on_reboot" | "on_crash" => {
                let usual = if name == "on_reboot" { "restart" } else { "destroy" };
                if element.text().is_some_and(|text| text.trim() != usual) {
                    notes.changed(
                        name,
                        format!("{} becomes {usual}", element.text().unwrap_or_default().trim()),
                    );
                }
            }
            "genid" => {
                notes.changed("generation id", "is new: the VM is another one than the domain")
            }
            "pm" => notes.left("power management", "suspend to memory and disk is as QEMU has it"),
            "metadata" => notes.left("metadata", "is for other programs"),
            "seclabel" => notes.left("security label", "belongs to libvirt's own confinement"),
            "resource" | "cputune" | "memtune" | "blkiotune" | "numatune" | "iothreads"
            | "memoryBacking" | "maxMemory" | "vcpus" | "iothreadids" | "throttlegroups" => {
                notes.left(name, "limits and placement are not supported yet")
            }
            "sysinfo" => notes.left("sysinfo", "SMBIOS strings are not supported"),
            "commandline" | "override" | "capabilities" => {
                notes.left(format!("QEMU {name}"), "arguments for QEMU itself do not come over");
            }
            other => notes.left(other, "has no counterpart"),
        }
    }
}

fn features(features: Node<'_, '_>, notes: &mut Notes) {
    for feature in features.children().filter(Node::is_element) {
        match feature.tag_name().name() {
            // QEMU has these by itself.
            "acpi" | "apic" | "pae" => {}
            "vmport" => notes.left("feature vmport", "is as QEMU has it"),
            "smm" => notes.left("feature smm", "belongs to Secure Boot"),
            "hyperv" => notes.left(
                "feature hyperv",
                "enlightenments for Windows are not supported yet; it runs without",
            ),
            other => notes.left(format!("feature {other}"), "has no counterpart"),
        }
    }
}

#[cfg(test)]
mod tests;
