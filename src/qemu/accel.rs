//! KVM or TCG. `/dev/kvm` alone proves nothing: it may open on a host without hardware behind it,
//! where a guest never boots.

use std::fs::OpenOptions;

use crate::error::{Error, Result};
use crate::settings::Accel;

/// What was chosen, and with which processor model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// QEMU's word: `kvm` or `tcg`.
    pub accel: &'static str,
    /// The CPU model when the VM names none.
    pub cpu: &'static str,
    /// What the user should know.
    pub warning: Option<String>,
}

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Opening `/dev/kvm`: fine, or the kernel's reason.
    pub kvm: std::result::Result<(), String>,
    /// The processor announces `vmx` or `svm`.
    pub hardware: bool,
    /// The processor's own name.
    pub model: String,
}

impl Host {
    /// Looks at this host.
    pub fn observe() -> Self {
        let kvm = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map(drop)
            .map_err(|error| error.to_string());
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        Self {
            kvm,
            hardware: flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"),
            model: model.trim_start_matches([' ', '\t', ':']).to_owned(),
        }
    }
}

/// Decides. Pure.
pub fn choose(wanted: Accel, host: &Host) -> Result<Chosen> {
    let tcg = |warning| Ok(Chosen { accel: "tcg", cpu: "max", warning });
    match (wanted, &host.kvm, host.hardware) {
        (Accel::Tcg, _, _) => tcg(None),
        (Accel::Kvm, Err(why), _) => {
            Err(Error::failed(format!("KVM cannot be used: /dev/kvm: {why}"))
                .hint(
                    "load the module (modprobe kvm_intel or kvm_amd) and see that you may open \
                     /dev/kvm (group kvm)",
                )
                .hint("or emulate the processor, slowly: --accel tcg"))
        }
        (Accel::Auto, Err(why), _) => tcg(Some(format!(
            "no KVM (/dev/kvm: {why}): the guest's processor is emulated, which is much slower"
        ))),
        (_, Ok(()), true) => Ok(Chosen { accel: "kvm", cpu: "host", warning: None }),
        (Accel::Auto, Ok(()), false) => tcg(Some(
            "KVM is not usable on this host (no vmx or svm): using TCG, which is much slower"
                .into(),
        )),
        (Accel::Kvm, Ok(()), false) => Ok(Chosen {
            accel: "kvm",
            cpu: "qemu64",
            warning: Some(
                "KVM has no hardware support on this host (no vmx or svm): many guests will not \
                 boot"
                    .into(),
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kvm: bool, hardware: bool) -> Host {
        Host {
            kvm: if kvm { Ok(()) } else { Err("Permission denied".into()) },
            hardware,
            model: String::new(),
        }
    }

    #[test]
    fn kvm_is_only_taken_for_granted_with_hardware_behind_it() {
        assert_eq!(choose(Accel::Auto, &host(true, true)).expect("kvm").accel, "kvm");
        for host in [host(true, false), host(false, true), host(false, false)] {
            let chosen = choose(Accel::Auto, &host).expect("tcg");
            assert_eq!(chosen.accel, "tcg");
            assert!(chosen.warning.is_some(), "falling back must be loud");
        }
    }

    #[test]
    fn what_was_asked_for_is_obeyed_or_refused_but_never_replaced() {
        assert_eq!(choose(Accel::Kvm, &host(true, false)).expect("kvm").accel, "kvm");
        assert_eq!(choose(Accel::Tcg, &host(true, true)).expect("tcg").warning, None);
        let error = choose(Accel::Kvm, &host(false, true)).expect_err("no kvm");
        assert!(error.message().contains("Permission denied"));
    }
}
