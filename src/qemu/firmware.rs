//! Where distributions keep UEFI firmware (OVMF, edk2): the code, and an empty variable store to go
//! with it.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A firmware image and its variable store's first state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uefi {
    /// Read-only code.
    pub code: PathBuf,
    /// What a new variable store is copied from.
    pub variables: PathBuf,
}

/// Debian and Ubuntu, Fedora and RHEL, Arch, openSUSE.
const KNOWN: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];

/// The first firmware that is installed.
pub(crate) fn find() -> Result<Uefi> {
    KNOWN
        .iter()
        .find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists())
        .map(|(code, variables)| Uefi { code: code.into(), variables: variables.into() })
        .ok_or_else(|| {
            Error::failed("no UEFI firmware is installed")
                .hint("install it: apt-get install ovmf    (Fedora: dnf install edk2-ovmf)")
        })
}
