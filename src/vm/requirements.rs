//! What a VM needs, and what no VM can be.

use std::collections::BTreeSet;
use std::path::Path;

use super::request::Request;
use crate::error::{Error, Result};
use crate::instance::boot_files;
use crate::model::{Bus, bus};
use crate::store::Store;

/// The least memory a guest can be given: below it no firmware starts.
const MEMORY_MIN: u64 = 1 << 20;
/// A q35 machine has 32 slots on its root bus, some of which we use ourselves.
const DISKS_MAX: usize = 20;

/// Refuses what no VM can be, without looking at any image.
pub(crate) fn check(request: &Request) -> Result<()> {
    check_machine_type(&request.machine)?;
    check_machine(request.memory_bytes, request.cpus, request.cpu.as_deref())?;
    let size = request.image.iter().filter_map(|image| image.size);
    if let Some(bytes) = size.into_iter().find(|bytes| *bytes == 0 || !bytes.is_multiple_of(512)) {
        return Err(Error::usage(format!(
            "a disk of {bytes} bytes is not a whole number of 512-byte sectors"
        )));
    }
    if request.image.iter().count()
        + request.disks.len()
        + request.blank.len()
        + request.cdroms.len()
        > DISKS_MAX
    {
        return Err(Error::usage(format!("a VM has at most {DISKS_MAX} disks and CD-ROM drives")));
    }
    let of_files =
        request.disks.iter().map(|disk| (disk.bus.unwrap_or(request.bus), disk.read_only));
    let others = request.image.iter().count() + request.blank.len();
    let disks: Vec<_> = of_files.chain(std::iter::repeat_n((request.bus, false), others)).collect();
    let cdroms: Vec<Bus> = request.cdroms.iter().map(|cdrom| cdrom.bus(&request.machine)).collect();
    bus::check(&request.machine, &disks, &cdroms)?;
    if disks.len() + cdroms.len() + request.nics.len() > bus::DEVICES {
        return Err(bus::too_many());
    }
    let macs: BTreeSet<&String> = request.nics.iter().map(|nic| &nic.mac).collect();
    if macs.len() < request.nics.len() {
        return Err(Error::usage("two network cards have the same address"));
    }
    if request.blank.contains(&0) {
        return Err(
            Error::usage("a disk of 0 bytes is no disk").hint("say, for example, --size 20G")
        );
    }
    if let Some(bytes) = request.blank.iter().find(|bytes| !bytes.is_multiple_of(512)) {
        return Err(Error::usage(format!(
            "a disk of {bytes} bytes is not a whole number of 512-byte sectors"
        )));
    }
    let has_disk = !request.cdroms.is_empty()
        || request.image.is_some()
        || !request.disks.is_empty()
        || !request.blank.is_empty();
    if !has_disk && request.kernel.is_none() {
        return Err(Error::usage("a VM needs something to boot from").hint(
            "--image debian:12 for a cloud image, --disk FILE for an image file, --size 20G for a \
             blank disk, --iso FILE for a CD-ROM, or --kernel FILE",
        ));
    }
    if let Some(boot) = &request.kernel {
        boot_files::check_kernel(boot)?;
    }
    for iso in request.cdroms.iter().filter_map(|cdrom| cdrom.iso.as_ref()) {
        boot_files::check_iso(iso)?;
    }
    Ok(())
}

/// Refuses machine types without what every VM has: PCI, and firmware of a PC.
pub(super) fn check_machine_type(machine: &str) -> Result<()> {
    let is_pc = ["q35", "i440fx"].into_iter().any(|chipset| machine.contains(chipset))
        || ["pc", "ubuntu"].into_iter().any(|start| machine.starts_with(start));
    if is_pc {
        return Ok(());
    }
    Err(Error::refused(format!("{machine} is not a machine type that cowhand works with"))
        .hint("choose q35 or pc, or a version of one of them: pc-q35-7.2"))
}

/// Numbers no machine can have, and names that would be taken for options.
pub(super) fn check_machine(memory_bytes: u64, cpus: u32, cpu: Option<&str>) -> Result<()> {
    if memory_bytes < MEMORY_MIN {
        return Err(Error::usage(format!("{memory_bytes} bytes of memory are too few"))
            .hint("say, for example, --memory 1G"));
    }
    if !memory_bytes.is_multiple_of(1 << 20) {
        return Err(Error::usage(format!(
            "{memory_bytes} bytes of memory are not a whole number of MiB"
        )));
    }
    if cpus == 0 || cpus > 255 {
        return Err(Error::usage(format!("a machine has 1 to 255 CPUs, not {cpus}")));
    }
    if let Some(cpu) =
        cpu.filter(|cpu| !cpu.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+,=".contains(c)))
    {
        return Err(Error::usage(format!("{cpu:?} is not a CPU model"))
            .hint("see: qemu-system-x86_64 -cpu help"));
    }
    Ok(())
}

pub(super) fn refuse_used_twice(store: &Store, file: &Path) -> Result<()> {
    if store.layout.root().canonicalize().is_ok_and(|root| file.starts_with(root)) {
        return Err(Error::refused(format!("{} belongs to the store", file.display()))
            .hint("clone the VM it belongs to: cowhand clone NAME NEW"));
    }
    let Ok(entries) = std::fs::read_dir(store.layout.layers()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == file) {
            return Err(Error::refused(format!(
                "{} is used by another VM of this store",
                file.display()
            ))
            .hint("give each VM its own file: --disk FILE,copy"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_cannot_be_are_refused() {
        assert!(check_machine(1 << 30, 2, Some("Skylake-Client,+vmx")).is_ok());
        for (memory, cpus, cpu) in
            [(0, 1, None), (1 << 30, 0, None), ((1 << 30) + 1, 1, None), (1 << 30, 1, Some("a b"))]
        {
            assert!(check_machine(memory, cpus, cpu).is_err());
        }
    }
}
