//! The machine of a domain, as a VM would have it.

use std::io::Read;

use super::domain::Domain;
use super::drives::{self, Files};
use super::request::Request;
use super::xml::Notes;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::layer::foreign;
use crate::layer::inspect::{self, Content};
use crate::model::{Firmware, KernelBoot, LogLimit};
use crate::qemu::firmware;
use crate::qemu::probe::Probe;
use crate::vm::request as vm_request;
use crate::vm::requirements;

/// The machine of a domain with its disks, and its UEFI variables.
pub(super) async fn machine_of(
    context: &Context,
    domain: &Domain,
    request: &Request,
    files: &Files<'_>,
    notes: &mut Notes,
) -> Result<(vm_request::Request, Option<Vec<u8>>)> {
    let machine = machine(context, domain, notes)?;
    let disks = drives::disks(domain, request, files, notes)?;
    let cdroms = drives::cdroms(domain, request, files, &disks, notes)?;
    let has_iso = cdroms.iter().any(|drive| drive.iso.is_some());
    if disks.is_empty() && domain.kernel.is_none() && !has_iso {
        return Err(Error::refused(format!(
            "{} has no disk, so there is nothing to boot from",
            request.shown
        )));
    }
    let kernel = match domain.kernel.clone() {
        Some(boot) => Some(KernelBoot {
            kernel: files.allow(&boot.kernel, "the kernel", "")?,
            initrd: boot.initrd.map(|initrd| files.allow(&initrd, "the initrd", "")).transpose()?,
            append: boot.append,
        }),
        None => None,
    };
    let variables = variables(domain, files, notes)?;
    let machine = vm_request::Request {
        disks,
        cdroms,
        with_backing: Some(request.within.clone()),
        memory_bytes: domain.memory_bytes,
        cpus: domain.cpus,
        cpu: domain.cpu.clone(),
        firmware: domain.firmware,
        machine,
        kernel,
        nics: domain.devices.nics.clone(),
        log_limit: LogLimit::default(),
        ..vm_request::Request::default()
    };
    requirements::check(&machine).map_err(|error| Error::refused(error.full_message()))?;
    Ok((machine, variables))
}

/// The machine type, or the newest of its kind where this QEMU does not have it.
fn machine(context: &Context, domain: &Domain, notes: &mut Notes) -> Result<String> {
    let probe = Probe::get(context)?;
    if let Ok(machine) = probe.machine(&domain.machine) {
        notes.kept("machine", machine.clone());
        return Ok(machine);
    }
    let kind = if domain.machine.contains("q35") { "q35" } else { "pc" };
    let machine = probe.machine(kind)?;
    notes.changed(
        "machine",
        format!("{} is none of this QEMU's, and becomes {machine}", domain.machine),
    );
    Ok(machine)
}

/// The UEFI variables of the domain, where they fit the firmware of this host. Without them the
/// guest starts what is at `\\EFI\\BOOT\\BOOTX64.EFI`, if that is there.
fn variables(domain: &Domain, files: &Files<'_>, notes: &mut Notes) -> Result<Option<Vec<u8>>> {
    if domain.firmware != Firmware::Uefi {
        return Ok(None);
    }
    let uefi = firmware::find()?;
    let mut anew = |why: String| {
        notes.changed(
            "UEFI variables",
            format!("are new ones, without the guest's boot entries: {why}"),
        );
        Ok(None)
    };
    let Some(path) = &domain.nvram else { return anew("the XML names no file".to_owned()) };
    let path = &match files.allow(path, "the file of the UEFI variables", "") {
        Ok(path) => path,
        Err(error) => return anew(error.full_message()),
    };
    let wanted = uefi.variables.metadata().on("read", &uefi.variables)?.len();
    let file = match foreign::open(path) {
        Ok(opened) => opened.file,
        Err(error) => return anew(error.full_message()),
    };
    let (length, content) =
        (file.metadata().on("read", path)?.len(), inspect::content(&file).on("read", path)?);
    if content != Content::Raw || length != wanted {
        return anew(format!(
            "{} has {length} bytes ({content}), and this firmware wants {wanted} (raw)",
            path.display()
        ));
    }
    let mut bytes = Vec::new();
    file.take(wanted).read_to_end(&mut bytes).on("read", path)?;
    notes.kept("UEFI variables", path.display().to_string());
    Ok(Some(bytes))
}
