//! The appliance: the host's kernel, and an initramfs that holds nothing but our own binary and a
//! few kernel modules. It sees a guest's disks as the guest would, and works on its file systems;
//! the host never mounts them.
//!
//! ```text
//! kernel ─┐
//!         ├─▶ initramfs ─▶ boot ══ virtio-serial: protocol ══▶ init: we ourselves, as process 1
//! binary ─┘                        (one JSON object a line)
//! ```

pub(crate) mod boot;
pub mod init;
mod initramfs;
pub(crate) mod kernel;
pub(crate) mod protocol;
