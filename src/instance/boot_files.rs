//! Files outside the store that QEMU opens at each start: the kernel, the initrd, ISO images. They
//! are checked before the start, because QEMU would report a missing one much later.

use std::path::Path;

use crate::error::{Error, IoContext, Result};
use crate::layer::foreign;
use crate::layer::inspect::{self, Content};
use crate::model::{Config, KernelBoot};

/// The kernel and the initrd have to be there.
pub(crate) fn check_kernel(boot: &KernelBoot) -> Result<()> {
    for (what, path) in [("kernel", Some(&boot.kernel)), ("initrd", boot.initrd.as_ref())] {
        let Some(path) = path else { continue };
        if path.to_str().is_none() {
            return Err(Error::refused(format!(
                "the path of the {what} is not UTF-8: {}",
                path.display()
            )));
        }
        if !path.is_file() {
            return Err(Error::not_found(format!("there is no {what} {}", path.display())).hint(
                "it is not copied into the store; name another: \
                 cowhand set NAME kernel=FILE initrd=FILE",
            ));
        }
    }
    Ok(())
}

/// Refuses what is no regular file, and what is an image in another format.
pub(crate) fn check_iso(path: &Path) -> Result<()> {
    if path.to_str().is_none() {
        return Err(Error::refused(format!(
            "the path of the ISO image is not UTF-8: {}",
            path.display()
        )));
    }
    let file = foreign::open(path)?.file;
    if file.metadata().on("read", path)?.len() == 0 {
        return Err(Error::refused(format!("{} is empty, and no ISO image", path.display())));
    }
    match inspect::content(&file).on("read", path)? {
        Content::Raw => Ok(()),
        other => {
            Err(Error::refused(format!("{} is not an ISO image, but {other}", path.display())))
        }
    }
}

/// The ISO images of all drives have to be there. The error names the drive; the caller adds what
/// to do about it.
pub(crate) fn check_isos(config: &Config) -> Result<()> {
    for cdrom in &config.cdroms {
        let Some(iso) = &cdrom.iso else { continue };
        check_iso(iso).map_err(|error| {
            let message = format!("the ISO image of CD-ROM drive {} cannot be used", cdrom.target);
            Error::new(error.kind(), message)
                .because(error.full_message())
                .hint(format!("put it in its place again: {}", iso.display()))
        })?;
    }
    Ok(())
}
