//! What a domain boots: its machine type, its firmware, its kernel.

use std::path::PathBuf;

use roxmltree::Node;

use super::xml::{Notes, child, child_text, elements};
use crate::error::{Error, Result};
use crate::model::{Firmware, KernelBoot};

pub(super) fn machine(os: Node<'_, '_>, bad: &dyn Fn(String) -> Error) -> Result<String> {
    let kind =
        child(os, "type").ok_or_else(|| bad("it does not say what kind of guest it is".into()))?;
    match kind.text().map(str::trim) {
        Some("hvm") => {}
        other => {
            return Err(bad(format!(
                "it is not fully virtualised ({:.40})",
                other.unwrap_or("nothing")
            )));
        }
    }
    match kind.attribute("arch") {
        Some("x86_64") | None => {}
        Some(other) => return Err(bad(format!("its processor is {other:.40}, and not x86_64"))),
    }
    let machine = kind.attribute("machine").unwrap_or("pc");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let is_known = machine.contains("q35") || machine == "pc" || machine.starts_with("pc-");
    if !machine.chars().all(is_plain) || machine.len() > 64 || !is_known {
        return Err(bad(format!("its machine type is none of q35 and pc ({machine:.64})")));
    }
    Ok(machine.to_owned())
}

pub(super) fn firmware(os: Node<'_, '_>, notes: &mut Notes) -> (Firmware, Option<PathBuf>) {
    let loader = child(os, "loader");
    let is_uefi = os.attribute("firmware") == Some("efi")
        || loader.is_some_and(|loader| loader.attribute("type") == Some("pflash"));
    if !is_uefi {
        if let Some(path) = loader.and_then(|loader| loader.text()) {
            notes.left(
                "firmware",
                format!("{path}: the guest starts with the BIOS that QEMU brings"),
            );
        } else {
            notes.kept("firmware", "BIOS");
        }
        return (Firmware::Bios, None);
    }
    let has_secure_boot = loader.is_some_and(|loader| loader.attribute("secure") == Some("yes"))
        || child(os, "firmware").is_some_and(|firmware| {
            elements(firmware, "feature").any(|one| {
                one.attribute("name") == Some("secure-boot")
                    && one.attribute("enabled") == Some("yes")
            })
        });
    if has_secure_boot {
        notes.left(
            "Secure Boot",
            "is not supported yet: \
             the guest starts with UEFI firmware that does not check signatures",
        );
    }
    notes.kept("firmware", "UEFI");
    let nvram = child(os, "nvram").and_then(|nvram| {
        let source = child(nvram, "source").and_then(|source| source.attribute("file"));
        source.or_else(|| nvram.text().map(str::trim)).filter(|path| !path.is_empty())
    });
    (Firmware::Uefi, nvram.map(PathBuf::from))
}

pub(super) fn kernel(os: Node<'_, '_>, notes: &mut Notes) -> Option<KernelBoot> {
    for name in ["init", "dtb", "acpi", "bios", "bootmenu", "smbios", "shim"] {
        if child(os, name).is_some() {
            notes.left(format!("os {name}"), "has no counterpart");
        }
    }
    let kernel = child_text(os, "kernel")?;
    notes.kept("kernel", kernel.clone());
    Some(KernelBoot {
        kernel: kernel.into(),
        initrd: child_text(os, "initrd").map(PathBuf::from),
        append: child_text(os, "cmdline"),
    })
}
