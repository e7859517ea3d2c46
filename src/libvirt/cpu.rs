//! The virtual CPUs of a domain.

use roxmltree::Node;

use super::xml::{Notes, child, child_text, elements, others};
use crate::error::{Error, Result};

pub(super) fn cpus(
    root: Node<'_, '_>,
    bad: &dyn Fn(String) -> Error,
    notes: &mut Notes,
) -> Result<u32> {
    let Some(vcpu) = child(root, "vcpu") else { return Ok(1) };
    let number = |text: &str| text.trim().parse().ok().filter(|number| (1..=255).contains(number));
    let most = vcpu
        .text()
        .and_then(number)
        .ok_or_else(|| bad("its number of CPUs is not one from 1 to 255".into()))?;
    match vcpu.attribute("current").and_then(number).filter(|current| *current < most) {
        Some(current) => {
            notes.changed(
                "CPUs",
                format!("{current}; that there can be {most} is left out: CPUs are not plugged in"),
            );
            Ok(current)
        }
        None => {
            notes.kept("CPUs", most.to_string());
            Ok(most)
        }
    }
}

pub(super) fn cpu(root: Node<'_, '_>, count: u32, notes: &mut Notes) -> Option<String> {
    if count > 1 {
        notes.changed("CPU topology", "becomes QEMU's default for the machine type");
    }
    let Some(cpu) = child(root, "cpu") else {
        notes.changed(
            "CPU model",
            "the default of the hypervisor becomes the best that the host has",
        );
        return None;
    };
    others(
        cpu,
        &["topology", "model", "feature"],
        &["mode", "check", "match", "migratable"],
        "CPU",
        notes,
    );
    let features: Vec<(&str, &str)> = elements(cpu, "feature")
        .filter_map(|feature| {
            Some((feature.attribute("policy").unwrap_or("require"), feature.attribute("name")?))
        })
        .collect();
    match (cpu.attribute("mode"), child_text(cpu, "model")) {
        (Some("custom") | None, Some(model)) => {
            let mut text = model;
            for (policy, name) in features {
                match policy {
                    "require" | "force" => text.push_str(&format!(",+{name}")),
                    "disable" | "forbid" => text.push_str(&format!(",-{name}")),
                    _ => notes.left(
                        format!("CPU feature {name}"),
                        format!("{policy}: it is as the model has it"),
                    ),
                }
            }
            notes.kept("CPU model", text.clone());
            // QEMU would list the models it has.
            return Some(text).filter(|text| text != "help");
        }
        (Some("host-passthrough" | "maximum"), _) => notes.kept("CPU model", "that of the host"),
        (mode, _) => {
            let mode = mode.unwrap_or("none");
            notes.changed("CPU model", format!("{mode} becomes the best that the host has"));
        }
    }
    for (policy, name) in features {
        notes.left(format!("CPU feature {name}"), format!("{policy}: it is as the host has it"));
    }
    None
}
