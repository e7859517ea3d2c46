//! The limits of a VM that runs.

use crate::error::{Error, Result};
use crate::model::{Config, Name};
use crate::qemu::qmp::Qmp;

/// Gives the disks of `name` the limits that `config` has; where it has none, takes away those that
/// they had. A disk that the guest has unplugged needs none.
pub(crate) async fn apply(qmp: &mut Qmp, name: &Name, config: &Config) -> Result<()> {
    let mut first = Ok(());
    for disk in &config.disks {
        match qmp.limit_disk(disk, config.limits).await {
            Ok(()) => {}
            Err(error) if error.is_no_device() => {
                tracing::debug!("{name} has no {} just now", disk.target);
            }
            Err(error) => {
                let text = format!("cannot limit {} of {name}", disk.target);
                first = first.and(Err(Error::qemu(text).because(error)));
            }
        }
    }
    first
}
