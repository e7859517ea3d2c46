//! How many files QEMU has open for a VM, and whether that many can be open.
//!
//! Measured on QEMU 7.2 and 10.0: one descriptor for each layer of each disk, because the locks of
//! a layer are on the descriptor that reads it; and less than 50 for everything else (accelerator,
//! event loops, monitors, ports, network cards, memory).

use crate::error::{Error, Result};
use crate::model::{Chain, Name};
use crate::sys::files;

/// What everything but the layers may take, with some to spare for jobs and for layers that are
/// added while the VM runs.
const REST: u64 = 100;

/// Refuses a VM whose layers are more than the files that QEMU may have open, before it is started.
pub(super) fn refuse_too_many(name: &Name, chains: &[Chain]) -> Result<()> {
    let layers = chains.iter().map(|chain| chain.links().len() as u64).sum();
    match files::limit() {
        Some(limit) => check(name, layers, limit),
        None => Ok(()),
    }
}

fn check(name: &Name, layers: u64, limit: u64) -> Result<()> {
    let needed = layers.saturating_add(REST);
    if needed <= limit {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{name} cannot be started: its disks have {layers} layers, for which QEMU needs {needed} \
         open files, and the hard limit is {limit}"
    ))
    .hint(format!(
        "raise the limit (ulimit -Hn {needed}; systemd: LimitNOFILE={needed}), or merge \
         layers: cowhand snapshot rm {name}@SNAPSHOT"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_exact_and_both_numbers_are_said() {
        let name: Name = "web".parse().expect("a name");
        assert!(check(&name, 400, 400 + REST).is_ok());
        let error = check(&name, 401, 400 + REST).expect_err("one too many");
        assert!(
            error.message().contains("501") && error.message().contains("500"),
            "{}",
            error.message()
        );
        assert!(check(&name, u64::MAX, u64::MAX - 1).is_err());
    }
}
